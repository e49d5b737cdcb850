"""When a site is to be called bad: the triggers of a FailoverPolicy, with its defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Combine(Enum):
    """Whether one trigger is enough."""

    ANY = "Any"
    ALL = "All"


class AbsentAction(Enum):
    """What absent metrics mean. Degrade and Failover need failing scrapes and no good requests, too."""

    NEUTRAL = "Neutral"
    DEGRADE = "Degrade"
    FAILOVER = "Failover"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRate:
    """`threshold` of the requests of the last `window_s` fail, of at least `min_requests`.

    Below `min_requests` half of them must, and then the odds decide alone, so that a site where everything fails is
    found after a few requests.
    """

    threshold: float = 0.10
    window_s: float = 5.0
    min_requests: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The time to the first byte is `delta_ms` above its own baseline, at this quantile of the last `window_s`.

    `normalised`: what the picker expected of each request (its tokens, the queue before it, the network) is its own
    baseline; else all requests have the same. `in_flight`: who still waits counts, too.
    """

    delta_ms: float = 500.0
    quantile: float = 0.5
    window_s: float = 1.0
    normalised: bool = True
    in_flight: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """Nothing comes any more: requests wait `late_ms` longer than expected and none has had a byte meanwhile."""

    late_ms: float = 500.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation:
    """More than half of the endpoints have `queue` requests waiting or `kv` of their KV cache in use, for `for_s`."""

    queue: float = 32.0
    kv: float = 0.95
    for_s: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """More than `failing` of the endpoints, or all, are gone: nobody answers a scrape and no request either."""

    failing: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsAbsent:
    """More than half of the endpoints have had no good scrape for `after_s`; by default that says nothing."""

    after_s: float = 10.0
    action: AbsentAction = AbsentAction.NEUTRAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Triggers:
    """The triggers of one policy; None: off.

    `combine` ALL wants all of error rate, latency, stall and probe that are on; saturation stands alone in any case,
    since it asks for spill, not for failover.
    """

    error_rate: ErrorRate | None = field(default_factory=ErrorRate)
    latency: Latency | None = field(default_factory=Latency)
    stall: Stall | None = field(default_factory=Stall)
    saturation: Saturation | None = field(default_factory=Saturation)
    probe: Probe | None = field(default_factory=Probe)
    metrics_absent: MetricsAbsent | None = field(default_factory=MetricsAbsent)
    combine: Combine = Combine.ANY
