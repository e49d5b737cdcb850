"""How attentive we were: what has not come says little while we did not look. Pure.

A control plane that gets no CPU asks late, and reads late what has come long ago: scrapes time out, first bytes are not
heard of, and no site is at fault. So evidence by absence (a page that hangs, a request that is silent) is timed by a
clock that runs while we are on time. What was told (a refusal, a 503, a first byte that was slow by the gateway's
clock) counts at once, lag or not.

A look that comes `n` times as late as it should counts as `TICK_S / n`: an answer takes several wake-ups of ours, each
as late, so at half the speed we are four times as careful. Each look lets some time pass, so that what is really gone
is found, only later. Looks, scrapes and their time-outs share one event loop: the lateness of one is that of all.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, NamedTuple

TICK_S: Final = 0.1
"""How often it is looked: a tenth of the fastest time that is asked of detection."""

TOLERATED_S: Final = 0.05
"""A look that is late by this is on time: a process that works is as late now and then, and loses no answer by it."""

KEPT_S: Final = 300.0
"""How far back it is known; the longest windows have two minutes."""


class _Late(NamedTuple):
    """A stretch between two looks in which we were late. `before_s`, `after_s`: all that was missed up to its ends."""

    began_s: float
    ended_s: float
    before_s: float
    after_s: float


class Attention:
    """How much of the last minutes was missed. Times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._stretches: list[_Late] = []
        self._last_s: float | None = None
        self.total_s = 0.0
        """All that was ever missed."""

    def look(self, now_s: float) -> float:
        """We look now; returns how much of the time since the last look was missed."""
        last_s, self._last_s = self._last_s, now_s
        if last_s is None or now_s - last_s - TICK_S <= TOLERATED_S:
            return 0.0
        took_s = now_s - last_s
        before_s, missed_s = self.total_s, took_s - TICK_S * (TICK_S / took_s)
        self.total_s += missed_s
        if self._stretches and now_s - self._stretches[0].ended_s > 2 * KEPT_S:
            self._stretches = [one for one in self._stretches if now_s - one.ended_s <= KEPT_S]
        self._stretches.append(_Late(last_s, now_s, before_s, self.total_s))
        return missed_s

    def pause(self) -> None:
        """Nobody looks from now on, which is no lateness."""
        self._last_s = None

    def looked_s(self, since_s: float, now_s: float) -> float:
        """How much of the time since then we looked: after the last look, no more than until the next one is due."""
        looked_s = now_s - since_s - self.missed_s(since_s)
        if self._last_s is None:
            return looked_s
        return looked_s - max(0.0, now_s - max(since_s, self._last_s) - TICK_S)

    def missed_s(self, since_s: float) -> float:
        """How much was missed since then; what is long ago is forgotten."""
        late = self._stretches
        number = bisect_right(late, since_s, key=lambda one: one.ended_s)
        if number == len(late):
            return 0.0
        one = late[number]
        part = max(0.0, since_s - one.began_s) / (one.ended_s - one.began_s)
        return self.total_s - one.before_s - part * (one.after_s - one.before_s)

    def reach_s(self, length_s: float, now_s: float) -> float:
        """How far back one must go for so much time in which we looked: `length_s` while we were on time."""
        if not self.missed_s(now_s - length_s):
            return length_s
        wanted_s = now_s - self.total_s - length_s  # by the clock that runs while we are on time
        number = bisect_right(self._stretches, wanted_s, key=lambda one: one.ended_s - one.after_s)
        one = self._stretches[number]
        inside_s = wanted_s - (one.began_s - one.before_s)
        if inside_s <= 0.0:
            return now_s - (wanted_s + one.before_s)
        took_s = one.ended_s - one.began_s
        part = inside_s / (took_s - (one.after_s - one.before_s))
        return now_s - (one.began_s + part * took_s)


ATTENTIVE: Final = Attention()
"""One that never looks, so that it has never missed anything: for those who have no clock."""
