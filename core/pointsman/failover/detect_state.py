"""What a detector keeps of a member: counts of each endpoint and of all together, the baseline, the last excesses."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pointsman.core.attention import ATTENTIVE, Attention
from pointsman.failover.baseline import Baseline
from pointsman.failover.detect_triggers import Triggers
from pointsman.failover.model import EndpointView, Sample, Waiting
from pointsman.failover.windows import Ring

BUCKETS: Final = 64
"""Of each ring. A tenth of a second each by default, which is how often it is decided: five seconds of errors, and six
times the window of latency for sites with few requests."""

LONG_BUCKET_S: Final = 2.0
"""A second pair of rings keeps two minutes for sites with hardly any requests."""

SLOW_PART: Final = 0.8
"""A request is slow from this part of the delta on: a fault of just the delta is to be found, and noise puts half of
its requests below; 0.6 of it (300 of 500 ms) must not."""

SLOW_RATIO: Final = 0.5
"""And it must be slow by this part of its usual time: expectations of long prompts and queues are that inexact."""

UNKNOWN_MARGIN: Final = 3.0
UNKNOWN_MS: Final = 1_500.0
"""Without a baseline, a silent request is late after three times what the picker expected and so much more."""

REPORT_MS: Final = 1_000.0
"""Gateways report what runs once a second, so that a request is known to be late at a whole second of its age."""

OVERLOAD_S: Final = 5.0
"""For so long after an endpoint refused for load, attempts that were given up there count as refused for load, too: the
access log does not tell why."""

EXCESSES: Final = 512


class Rings:
    """Errors and slowness, in short and in long buckets."""

    __slots__ = ("errors", "errors_long", "slow", "slow_long")

    def __init__(self, triggers: Triggers) -> None:
        error_s = triggers.error_rate.window_s if triggers.error_rate else 5.0
        latency_s = triggers.latency.window_s if triggers.latency else 1.0
        self.errors = Ring(bucket_s=max(0.1, error_s / 50), size=BUCKETS)
        self.slow = Ring(bucket_s=max(0.1, latency_s / 10), size=BUCKETS)
        self.errors_long = Ring(bucket_s=max(LONG_BUCKET_S, error_s), size=BUCKETS)
        self.slow_long = Ring(bucket_s=max(LONG_BUCKET_S, latency_s), size=BUCKETS)

    def outcome(self, at_s: float, *, bad: bool) -> None:
        """A request or an attempt was over."""
        self.errors.add(at_s, bad=bad)
        self.errors_long.add(at_s, bad=bad)

    def pace(self, at_s: float, *, bad: bool) -> None:
        """A first byte came, or is known not to have come in time."""
        self.slow.add(at_s, bad=bad)
        self.slow_long.add(at_s, bad=bad)

    def advance(self, now_s: float) -> None:
        """Time goes on."""
        self.errors.advance(now_s)
        self.slow.advance(now_s)
        self.errors_long.advance(now_s)
        self.slow_long.advance(now_s)


@dataclass(slots=True)
class EndpointState:
    """One endpoint. `busy`: its engine has a queue."""

    rings: Rings
    good_s: float = float("-inf")
    overload_s: float = float("-inf")
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Late:
    """A request that should have had its first byte: `at_s` is when that became known, `began_s` when it was sent."""

    endpoint: str
    at_s: float
    began_s: float
    excess_ms: float


@dataclass(slots=True)
class MemberState:
    """One member. `late` are the requests that are late now; `load_s` since when it is saturated; `busy`: more than
    half of its engines have queues; `busy_s`: when that was so last. `attention`: how much of the time we looked. Rings
    of endpoints are brought up to now when they are looked at."""

    triggers: Triggers
    rings: Rings
    baseline: Baseline
    endpoints: dict[str, EndpointState] = field(default_factory=dict)
    excesses: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=EXCESSES))
    late: list[Late] = field(default_factory=list)
    bad_s: float = float("-inf")  # the last failure
    slow_s: float = float("-inf")  # the last slow request
    load_s: float | None = None
    overloads: Ring = field(default_factory=lambda: Ring(bucket_s=0.1, size=BUCKETS))
    queued: Ring = field(default_factory=lambda: Ring(bucket_s=0.1, size=BUCKETS))  # slow for their queue's sake
    rtt_ms: float | None = None  # what a scrape usually takes
    busy: bool = False
    busy_s: float = float("-inf")
    attention: Attention = ATTENTIVE
    pardoned_s: float = float("-inf")  # what waits since before it is no evidence

    def endpoint(self, key: str) -> EndpointState:
        """Its state, which begins with the first word of it."""
        found = self.endpoints.get(key)
        if found is None:
            found = self.endpoints[key] = EndpointState(Rings(self.triggers))
        return found

    def pardon(self, now_s: float) -> None:
        """What was seen until now is void, and each endpoint is given as long to answer as if it just had."""
        self.rings, self.late = Rings(self.triggers), []
        self.overloads, self.queued = (Ring(bucket_s=0.1, size=BUCKETS) for _ in range(2))
        self.endpoints = {key: EndpointState(Rings(self.triggers), good_s=now_s) for key in self.endpoints}
        self.excesses.clear()
        self.bad_s = self.slow_s = float("-inf")
        self.pardoned_s = now_s

    def add(self, sample: Sample) -> None:
        """Count a sample."""
        endpoint = self.endpoint(sample.endpoint)
        at_s = sample.at_s
        if sample.ended and sample.waited_ms is None:  # who left proves neither that it works nor that it does not
            self._ended(sample, endpoint)
        took_ms = sample.ttft_ms if sample.ttft_ms is not None else sample.waited_ms
        if took_ms is None or sample.expected_ms is None:
            return
        came = sample.ttft_ms is not None
        if self.baseline.known:
            usual_ms = self.baseline.usual_ms(sample.expected_ms)
            excess_ms = took_ms - usual_ms
            bad = excess_ms >= self.slow_ms(usual_ms)
            if bad and at_s - (took_ms + REPORT_MS) / 1000.0 <= self.busy_s:
                bad = False  # it stood in a queue that is gone by now
                self.queued.add(at_s, bad=True)
            if came or bad:  # who left before it was late proves nothing
                self._pace(endpoint, at_s, excess_ms, bad=bad)
        if came and not sample.failed:
            self.baseline.add(at_s, sample.expected_ms, took_ms)

    def _ended(self, sample: Sample, endpoint: EndpointState) -> None:
        at_s = sample.at_s
        if sample.overloaded:
            endpoint.overload_s = at_s
        full = endpoint.busy or at_s - endpoint.overload_s < OVERLOAD_S
        bad = sample.failed and not (sample.retried and full)
        self.overloads.add(at_s, bad=sample.overloaded)
        endpoint.rings.outcome(at_s, bad=bad)
        self.rings.outcome(at_s, bad=bad)
        if bad:
            self.bad_s = max(self.bad_s, at_s)
        if not sample.failed:  # what was given up is no sign of life, whatever it is blamed on
            endpoint.good_s = max(endpoint.good_s, at_s)

    def _pace(self, endpoint: EndpointState, at_s: float, excess_ms: float, *, bad: bool) -> None:
        endpoint.rings.pace(at_s, bad=bad)
        self.rings.pace(at_s, bad=bad)
        self.excesses.append((at_s, excess_ms))
        if bad:
            self.slow_s = max(self.slow_s, at_s)

    def stretched(self, ring: Ring, length: int, now_s: float) -> int:
        """How many buckets up to now have as much time in which we looked as `length` have; more than the ring has
        where it is too short."""
        length_s = length * ring.bucket_s
        reach_s = self.attention.reach_s(length_s, now_s)
        return length if reach_s == length_s else math.ceil(reach_s / ring.bucket_s)

    def slow_ms(self, usual_ms: float) -> float:
        """From how much more than usual a request is slow."""
        delta_ms = self.triggers.latency.delta_ms if self.triggers.latency else 500.0
        return max(SLOW_PART * delta_ms, SLOW_RATIO * usual_ms)

    def advance(self, now_s: float, waiting: Sequence[Waiting], views: Sequence[EndpointView], busy: float) -> None:
        """Time goes on: who is late now, and which engines have a queue of `busy` or more."""
        self.rings.advance(now_s)
        self.overloads.advance(now_s)
        self.queued.advance(now_s)
        keys = {view.endpoint for view in views}
        if not self.endpoints.keys() <= keys:
            self.endpoints = {key: endpoint for key, endpoint in self.endpoints.items() if key in keys}
        queues = 0
        for view in views:
            endpoint = self.endpoint(view.endpoint)
            endpoint.busy = view.answers and view.waiting is not None and view.waiting >= busy
            queues += endpoint.busy
        self.busy = 2 * queues > len(views)
        if self.busy:
            self.busy_s = now_s
        self.late = [late for one in waiting if (late := self._late(now_s, one)) is not None and one.endpoint in keys]

    def _late(self, now_s: float, waiting: Waiting) -> Late | None:
        usual_ms = self.baseline.usual_ms(waiting.expected_ms)
        if self.baseline.known:
            limit_ms = usual_ms + self.slow_ms(usual_ms)
        else:
            limit_ms = UNKNOWN_MARGIN * waiting.expected_ms + UNKNOWN_MS
        began_s = now_s - waiting.age_ms / 1000.0
        looked_ms = waiting.age_ms - 1000.0 * self.attention.missed_s(began_s)
        silent_ms = looked_ms if waiting.silent_ms is None else waiting.silent_ms
        if silent_ms < limit_ms or began_s < self.pardoned_s:
            return None
        # Known since the first report past the limit; what waits for ever is late once, not anew each second.
        known_ms = limit_ms if waiting.silent_ms is None else min(silent_ms, -(-limit_ms // REPORT_MS) * REPORT_MS)
        return Late(
            endpoint=waiting.endpoint,
            at_s=began_s + known_ms / 1000.0,
            began_s=began_s,
            excess_ms=max(silent_ms, looked_ms) - usual_ms,
        )
