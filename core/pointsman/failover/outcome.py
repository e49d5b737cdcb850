"""What clients saw of a fault: which requests ended well, which did not, and when it was over. Pure.

A drill is judged by its clients alone: they know nothing of health checks, picks or decisions. Times `_s` are of the
monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

import msgspec

WINDOW_S: Final = 1.0
"""A fault is over when everything goes well for this long: ten probes and a hundred requests. Five seconds would say no
more, because whatever goes wrong later is counted as a relapse and fails the drill."""

LEAST: Final = 5
"""So many requests must begin in a good window: half of what one prober sends."""

SLOW_MS: Final = 500.0
"""A request is slow when it took this much longer than 99 % of those before the fault."""

BIN_S: Final = 0.25
"""Switches between sites are looked for in steps of this: long enough to hold some twenty answers."""


class Seen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request as its client saw it.

    `gateway`: the site of the gateway that was asked. `first_s`: the first content of the answer, 0: none came.
    `status`: 0 when no answer began. `complete`: the whole answer came, with `[DONE]` where it was streamed. `error`:
    how it broke off, "" when it ended cleanly. `late`: the client gave up. `replica`: who answered.
    """

    source: Literal["probe", "load"]
    gateway: str
    stream: bool
    start_s: float
    end_s: float
    first_s: float = 0.0
    status: int = 0
    complete: bool = False
    late: bool = False
    error: str = ""
    replica: str = ""

    @property
    def answer_ms(self) -> float:
        """Time to the first content of a streamed answer, to the end of another one."""
        return 1000 * ((self.first_s if self.stream and self.first_s else self.end_s) - self.start_s)


class Outcome(Enum):
    """How a request ended. `TRUNCATED`: the answer had begun and broke off, or went silent after its first content;
    `REJECTED`: 429, there was no room."""

    OK = "ok"
    FAILED = "failed"
    TRUNCATED = "truncated"
    REJECTED = "rejected"


def outcome(seen: Seen) -> Outcome:
    """How it ended for its client."""
    if seen.status == 429:
        return Outcome.REJECTED
    if seen.status == 200 and seen.complete:
        return Outcome.OK
    if seen.status == 200 and (seen.first_s or not seen.late):
        return Outcome.TRUNCATED
    return Outcome.FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Before the fault: what 99 % of the requests were answered within, by whether they are streamed."""

    streamed_p99_ms: float
    plain_p99_ms: float

    def slow(self, seen: Seen) -> bool:
        """Whether it ended well, but much later than requests did before."""
        usual_ms = self.streamed_p99_ms if seen.stream else self.plain_p99_ms
        return outcome(seen) is Outcome.OK and seen.answer_ms > usual_ms + SLOW_MS


def baseline(before: Iterable[Seen]) -> Baseline:
    """Of the requests that ended well before the fault."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for seen in before:
        if outcome(seen) is Outcome.OK:
            times[seen.stream].append(seen.answer_ms)
    return Baseline(streamed_p99_ms=_p99(times[True]), plain_p99_ms=_p99(times[False]))


def _p99(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.99 * len(values)) - 1] if values else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Requests that ended after the fault began.

    `failed_streamed` are those of `failed` whose answer was to be streamed. `silent`: answers that were cut and ended
    as if they were whole, which must never be. `reasons` of what did not end well, with how often.
    """

    requests: int = 0
    ok: int = 0
    failed: int = 0
    failed_streamed: int = 0
    truncated: int = 0
    rejected: int = 0
    slow: int = 0
    silent: int = 0
    reasons: tuple[tuple[str, int], ...] = ()


def count(requests: Iterable[Seen], base: Baseline) -> Counts:
    """The exact counts of `requests`."""
    by: Counter[Outcome] = Counter()
    reasons: Counter[str] = Counter()
    slow = silent = failed_streamed = 0
    for seen in requests:
        what = outcome(seen)
        by[what] += 1
        slow += base.slow(seen)
        failed_streamed += what is Outcome.FAILED and seen.stream
        silent += what is Outcome.TRUNCATED and not seen.error and not seen.late
        if what is not Outcome.OK:
            reasons[seen.error or (f"status {seen.status}" if seen.status != 200 else "ended without [DONE]")] += 1
    return Counts(
        requests=by.total(),
        ok=by[Outcome.OK],
        failed=by[Outcome.FAILED],
        failed_streamed=failed_streamed,
        truncated=by[Outcome.TRUNCATED],
        rejected=by[Outcome.REJECTED],
        slow=slow,
        silent=silent,
        reasons=tuple(sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """When it was over. `recovered_s`: the start of the first good window, None: there was none.

    `relapses`: what went wrong after that window had begun. `last_bad_s`: when the last thing went wrong, None: nothing
    did.
    """

    recovered_s: float | None
    relapses: int = 0
    last_bad_s: float | None = None


def bad_times(
    requests: Iterable[Seen], reached: Iterable[float], *, fault_s: float, avoid: Collection[str]
) -> list[float]:
    """When something still went wrong, sorted: requests that began after the fault and did not end well or were
    answered by a replica of `avoid`, and the times `reached` at which such a replica was seen to get requests."""
    bad = [
        seen.start_s
        for seen in requests
        if seen.start_s >= fault_s and (outcome(seen) is not Outcome.OK or seen.replica in avoid)
    ]
    return sorted([*bad, *(at_s for at_s in reached if at_s >= fault_s)])


def recovery(
    bad: Sequence[float],
    began: Sequence[float],
    *,
    fault_s: float,
    end_s: float,
    window_s: float = WINDOW_S,
    least: int = LEAST,
) -> Recovery:
    """The first window of `window_s` within [fault_s, end_s] in which nothing of `bad` (sorted) lies, and in which at
    least so many requests began (`began`, sorted): silence is no success.

    A window begins with the fault or just after something went wrong.
    """
    last = bad[-1] if bad else None
    for number, start in enumerate([fault_s, *bad]):
        until = bad[number] if number < len(bad) else end_s
        if min(until, end_s) - start < window_s:
            continue
        if bisect_left(began, start + window_s) - bisect_left(began, start) >= least:
            return Recovery(recovered_s=start, relapses=len(bad) - number, last_bad_s=last)
    return Recovery(recovered_s=None, last_bad_s=last)


def switches(requests: Iterable[Seen], site_of: Mapping[str, str], *, fault_s: float, end_s: float) -> int:
    """How often most answers came from another site than in the step before; steps without answers say nothing."""
    bins: dict[int, Counter[str]] = {}
    for seen in requests:
        site = site_of.get(seen.replica)
        if site is not None and fault_s - BIN_S <= seen.start_s < end_s:
            bins.setdefault(math.floor((seen.start_s - fault_s) / BIN_S), Counter())[site] += 1
    main = [sites.most_common(1)[0][0] for _, sites in sorted(bins.items())]
    return sum(one != other for one, other in itertools.pairwise(main))
