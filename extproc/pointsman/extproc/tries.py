"""How asking an endpoint for its page goes: which failed tries prove anything, and how long to wait. Pure."""

from __future__ import annotations

from pointsman.core.attention import TOLERATED_S, Attention


class Tries:
    """The tries at one endpoint, each with `timeout_s`. Times are of the monotonic clock, in seconds.

    `failures`: tries in a row that failed. `since_s`: since when a page is awaited, None: none is. A try that timed out
    while we were late ourselves proves nothing, since the answer may have come and not been read: it is not counted,
    and the wait goes on.
    """

    def __init__(self, timeout_s: float, attention: Attention) -> None:
        self._timeout_s = timeout_s
        self._attention = attention
        self._due_s = 0.0
        self.failures = 0
        self.since_s: float | None = None

    def begin(self, now_s: float) -> float:
        """A try begins; returns how long to wait for the answer: longer while we read late what has come."""
        if self.since_s is None:
            self.since_s = now_s
        patience_s = self._timeout_s + self._attention.missed_s(now_s - 2.0 * self._timeout_s)
        self._due_s = now_s + patience_s
        return patience_s

    def answered(self) -> None:
        """The page has come."""
        self.failures, self.since_s = 0, None

    def failed(self, now_s: float, *, timed_out: bool) -> bool:
        """The try was in vain; returns whether that proves anything."""
        since_s = self.since_s if self.since_s is not None else now_s
        looked_s = self._attention.looked_s(since_s, now_s)
        if timed_out and (now_s - self._due_s > TOLERATED_S or looked_s < self._timeout_s / 2):
            return False
        self.failures, self.since_s = self.failures + 1, None
        return True
