"""What a rollout shall do, in plain units: the machine's input, made of a RolloutPolicy manifest.

Weights are shares of the two arms' traffic in 1/10,000, times are seconds, latencies are milliseconds, rates are
fractions. A spec is part of the saved state, so that a restart knows under which rules a step was begun.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

from pointsman.core.model import TOTAL_WEIGHT

DEFAULT_INTERVAL_S: Final = 5.0
DEFAULT_WINDOW_S: Final = 600.0
"""Evidence older than this is dropped once it has been judged, so that a canary that goes bad late is not excused by
its good hours."""

ODDS: Final = 0.01
"""Odds that a good canary is rolled back in a whole rollout, and that a bad one passes a step (design R5)."""


class Strategy(Enum):
    CANARY = "Canary"
    BLUE_GREEN = "BlueGreen"
    SHADOW = "Shadow"


class Mode(Enum):
    AUTO = "Auto"
    MANUAL = "Manual"  # shows verdicts; every advance and every rollback is a person's
    DRY_RUN = "DryRun"  # decides as Auto would, and sets no weights


class OnNoData(Enum):
    HOLD = "Hold"
    CONTINUE = "Continue"
    ABORT = "Abort"


class Comparison(Enum):
    """How `Limit.value` is meant."""

    ABSOLUTE = "absolute"  # the canary alone
    DIFFERENCE = "difference"  # canary - stable
    RATIO = "ratio"  # canary / stable


class Source(Enum):
    REQUESTS = "requests"  # what gateways saw
    WEBHOOK = "webhook"
    PROMETHEUS = "prometheus"


class Metric(Enum):
    """What is measured of each request."""

    ERROR_RATE = "errorRate"  # share of requests that failed for the user
    RETRY_RATE = "retryRate"  # share of requests that needed more than one attempt
    CLIENT_ERROR_RATE = "clientErrorRate"  # share of 4xx but 429: a canary under another model name answers 404
    TTFT = "ttft"  # ms to the first body byte
    E2E = "e2e"  # ms to the last byte
    ITL = "itl"  # ms for each 256 bytes after the first one: an SSE chunk's worth, for comparisons only


RATES: Final = frozenset({Metric.ERROR_RATE, Metric.RETRY_RATE, Metric.CLIENT_ERROR_RATE})


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """A bound for the canary. Rates are fractions (`+1pp` is 0.01), latencies ms, a ratio of 1.2 is `+20%`."""

    comparison: Comparison
    value: float


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is judged at every interval.

    Between `limit` (still good) and `must_catch` (certainly bad) either verdict is right. `quantile` is 0 for rates.
    `failure_limit`: how many bad verdicts in a row are forgiven. Webhooks have no limits: they answer with a verdict;
    a PromQL query's value is held against `limit`, from above unless `at_least`.
    """

    name: str
    source: Source = Source.REQUESTS
    metric: Metric = Metric.ERROR_RATE
    quantile: float = 0.0
    limit: Limit | None = None
    must_catch: Limit | None = None
    failure_limit: int = 0
    url: str = ""
    query: str = ""
    at_least: bool = False
    timeout_s: float = 3.0


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Hold `weight` until the pause is over, the requests were seen and every check has passed.

    `manual` waits for a person. With Shadow `weight` is the mirrored share. `site` is the one whose gateways it is
    about, where the rollout goes from site to site.
    """

    weight: int
    pause_s: float = 0.0
    manual: bool = False
    min_requests: int = 0
    site: str = ""


class CapacityGate(msgspec.Struct, frozen=True, kw_only=True):
    """The canary must keep `min_free` (a fraction) of its capacity after the next step.

    `slots_per_endpoint` is how many requests one endpoint runs at once; 0: only its KV cache is looked at.
    """

    min_free: float
    slots_per_endpoint: int = 0


class RolloutSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A whole RolloutPolicy. `rules` are rule ids ("HTTPRoute/namespace/name/rule"), sorted; pools are cluster names.

    `sites` is the order in which sites get the canary, empty: all at once. The steps are then those of the first site,
    then those of the second, and so on; gateways elsewhere go with the last one. `abort_weight` is what an aborted
    canary keeps, `abort_within_s` how fast gateways are to follow. `false_alarm_odds` bounds the chance that a canary
    within its limits is rolled back, over the whole rollout; `missed_odds` the chance that one beyond `must_catch`
    passes.
    """

    name: str
    rules: tuple[str, ...]
    stable: str
    canary: str
    strategy: Strategy = Strategy.CANARY
    steps: tuple[Step, ...] = (Step(weight=TOTAL_WEIGHT),)
    checks: tuple[Check, ...] = ()
    interval_s: float = DEFAULT_INTERVAL_S
    window_s: float = DEFAULT_WINDOW_S
    on_no_data: OnNoData = OnNoData.HOLD
    capacity: CapacityGate | None = None
    mode: Mode = Mode.AUTO
    paused: bool = False
    revision: str = ""
    sites: tuple[str, ...] = ()
    abort_weight: int = 0
    abort_within_s: float = 1.0
    false_alarm_odds: float = ODDS
    missed_odds: float = ODDS

    @property
    def identity(self) -> tuple[str, ...]:
        """What makes it another rollout when it changes; everything else may be edited while it runs."""
        return (self.stable, self.canary, self.strategy.value, self.revision, *self.rules, *self.sites)

    @property
    def request_checks(self) -> tuple[Check, ...]:
        """The checks that are judged from requests; they share the odds of a false alarm."""
        return tuple(check for check in self.checks if check.source is Source.REQUESTS)
