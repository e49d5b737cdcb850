"""What the parts of failover tell each other: samples, findings, observations, directives.

Times `_s` of samples and findings are of the monotonic clock. A member is one pool at one site.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from pointsman.core.model import TOTAL_WEIGHT

FRESH_SCRAPE_S: Final = 2.0
"""Age up to which a scrape proves that somebody is there: ten tries at the usual five a second."""


class Trigger(Enum):
    """Why a site may be left; the names are those of `FailoverPolicy.spec.triggers`."""

    ERROR_RATE = "errorRate"
    LATENCY = "latency"
    STALL = "stall"
    SATURATION = "saturation"
    PROBE = "probe"
    METRICS_ABSENT = "metricsAbsent"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One pool ("namespace/name") at one site."""

    pool: str
    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request, or one attempt of it, as far as it is known; the access log gives it.

    `at_s`: when it was told. `endpoint` is `ip:port`. `failed`: 5xx but for overload, reset, gRPC 13, 14 or 4 and the
    like. `overloaded`: 429, or 503 with Retry-After: load, not failure. `ttft_ms` None: no body byte yet.
    `expected_ms` is what the picker expected at the pick (queue ahead, prefill of these tokens, network), None: not
    known. `ended`: it is over; `truncated`: it broke off after its first byte. `waited_ms`: it was over without a byte
    (the client left, or a proxy gave up) after this time.
    """

    at_s: float
    endpoint: str
    failed: bool = False
    overloaded: bool = False
    ttft_ms: float | None = None
    expected_ms: float | None = None
    ended: bool = True
    truncated: bool = False
    retried: bool = False
    waited_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A request that has been sent and has given no byte yet: its age, and when its first byte was expected.

    `silent_ms`: for how much of its age it is known to have given none (proxies report now and then); None: all.
    """

    endpoint: str
    age_ms: float
    expected_ms: float
    silent_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointView:
    """What is known of an endpoint by scrapes. None: not known.

    `metrics_age_s` is the age of the last good scrape; `scrape_failing`: the last tries found nobody there.
    `waiting` are requests in its queue, `kv_usage` from 0 to 1. `rtt_ms` is what a scrape takes to its first byte.
    `missed_s`: how much of the metrics' age we did not look (`attention`).
    """

    endpoint: str
    metrics_age_s: float | None = None
    scrape_failing: bool = False
    waiting: float | None = None
    kv_usage: float | None = None
    rtt_ms: float | None = None
    missed_s: float = 0.0

    @property
    def looked_age_s(self) -> float | None:
        """The age of the last good scrape, without the time in which we did not look."""
        return None if self.metrics_age_s is None else self.metrics_age_s - self.missed_s

    @property
    def answers(self) -> bool:
        """A scrape proves that somebody is there now."""
        age_s = self.looked_age_s
        return not self.scrape_failing and age_s is not None and age_s <= FRESH_SCRAPE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A trigger that holds now, with its evidence: the value held against the threshold, over how many samples.

    `since_s`: the first bad sample behind it, so the best guess of when the fault began.
    """

    trigger: Trigger
    value: float
    threshold: float
    samples: int
    since_s: float
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A member now. `clear`: there is evidence that it is well (None: no evidence either way, as without traffic).

    `load` is its fill level, 1.0: full, None: not known. `ready`: endpoints that could take a request.
    `baseline`: it is known what the first byte usually takes there, so latency can be judged.
    """

    member: Member
    findings: tuple[Finding, ...] = ()
    clear: bool | None = None
    load: float | None = None
    ready: int = 0
    endpoints: int = 0
    requests: int = 0
    failing_endpoints: tuple[str, ...] = ()
    baseline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """What gateways and pickers shall do with a member; the default is nothing special.

    `share` in 1/10,000: of the requests that may be sent there. `spill` in 1/10,000: of the requests that may be sent
    there although a lower tier serves. `last`: behind every other site, a last resort. `max_concurrent`: requests that
    the pool's endpoints there carry at once, the rest gets 429 with Retry-After; 0: no such limit.
    """

    share: int = TOTAL_WEIGHT
    spill: int = 0
    max_concurrent: int = 0
    last: bool = False
    draining: bool = False
    reason: str = ""


NOTHING_SPECIAL = Directive()
