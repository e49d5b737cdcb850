"""How fast a client is read: one that floods the server must not take the others' time. Pure."""

from __future__ import annotations

from typing import Final

BURST: Final = 1_000
"""Requests that answer nothing, at once. An Envoy whose clusters all are new may ask for their endpoints one by one."""

PER_S: Final = 100.0
"""And lasting. An Envoy that works sends a few per change; at a millisecond of work each, this is a tenth of a core."""


class Pace:
    """A token bucket of requests. What answers a response of ours is free: it can't be more than we sent."""

    __slots__ = ("_at_s", "_tokens")

    def __init__(self) -> None:
        self._tokens = float(BURST)
        self._at_s: float | None = None

    def count(self, *, answers: bool) -> None:
        """A request came; `answers`: it was an ACK or a NACK."""
        if not answers:
            self._tokens -= 1.0

    def delay_s(self, now_s: float) -> float:
        """How long to wait before the next one is read; 0 for all that behave."""
        if self._at_s is not None:
            self._tokens = min(float(BURST), self._tokens + (now_s - self._at_s) * PER_S)
        self._at_s = now_s
        return max(0.0, -self._tokens) / PER_S
