"""RTO as data: what became of a fault, from its first bad request to the first good second after it."""

from __future__ import annotations

from typing import Final

import msgspec

KEPT: Final = 100
"""Closed records that the state keeps: a year of weekly drills and some real faults."""
HISTORY_S: Final = 60.0
"""Seconds of client results that are kept, so that what failed before the detection is counted, too."""
IDLE_S: Final = 5.0
"""When nobody asked for longer than this before the first good second, it tells nothing of when it was well again: that
time would be how long nobody came."""
SILENCE_S: Final = 30.0
"""Without any request for so long after the decision a record is closed: nobody was there to be served."""
GIVE_UP_S: Final = 600.0
"""A record that has not seen a good second by then is closed as not recovered: five times the required RTO."""


class Second(msgspec.Struct, frozen=True, kw_only=True):
    """What clients got from `start_s` (wall time) on for `length_s`: requests that ended, and how.

    `failed`: without an answer. `truncated`: broken off after the first byte. `retried`: of all requests, those that
    needed another try.
    """

    start_s: float
    length_s: float = 1.0
    requests: int = 0
    failed: int = 0
    truncated: int = 0
    retried: int = 0

    @property
    def end_s(self) -> float:
        return self.start_s + self.length_s

    @property
    def good(self) -> bool:
        """Everything that ended in it ended well, and something did."""
        return self.requests > 0 and not self.failed and not self.truncated


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A site that was left. All times are wall time; 0: not yet, or never.

    `fault_s`: the first bad sample behind the trigger, the best guess of when it began. `detected_s`: the trigger held.
    `decided_s`: the directives changed, under number `change`. `programmed_s`: every gateway had acknowledged them.
    `recovered_s`: the start of the first full second in which everything went well, at or after `programmed_s`.
    `outcome`: open, recovered, silent (no requests to tell when), or unrecovered. `opened_s`: `State.clock_s` then.
    """

    site: str
    pools: tuple[str, ...]
    trigger: str
    fault_s: float
    detected_s: float
    decided_s: float
    change: int
    why: str = ""
    by: str = ""
    evidence: tuple[str, ...] = ()
    programmed_s: float = 0.0
    recovered_s: float = 0.0
    requests: int = 0
    failed: int = 0
    truncated: int = 0
    retried: int = 0
    outcome: str = "open"
    opened_s: float = 0.0

    @property
    def rto_s(self) -> float | None:
        """From the fault to the first good second; None while it is not over."""
        return max(0.0, self.recovered_s - self.fault_s) if self.recovered_s else None
