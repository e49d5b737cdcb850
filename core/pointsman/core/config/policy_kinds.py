"""RolloutPolicy (pointsman.dev): a plan for bringing a canary in, and what it is judged by."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from pointsman.core.arm_names import target_arm
from pointsman.core.config.document import Path, shown
from pointsman.core.config.meta import Duration, Label, Name, Resource
from pointsman.core.config.rollout_parts import Assignment, OnAbort, Share, SiteOrder, share_of
from pointsman.core.config.schema import Complaint, Fields, rule
from pointsman.core.config.syntax import duration, duration_ms
from pointsman.core.model import TOTAL_WEIGHT

Found = Iterator[tuple[Path, str, str]]

MANUAL = "Manual"
"""A pause that ends when a person promotes."""
COMPARED = "CanaryVsStable"
ABSOLUTE = "Absolute"

MIN_INTERVAL_MS = 200
"""Access logs reach us every 50 to 1,000 ms; looking more often shows nothing new."""
MAX_STEPS = 64
MAX_CHECKS = 32

_LIMIT = re.compile(r"(\+?)([0-9]{1,9}(?:\.[0-9]{1,4})?)(%|pp|ms|s)\Z")

RATE_METRICS = frozenset({"errorRate", "retryRate", "clientErrorRate"})
MetricName = Literal[
    "errorRate", "retryRate", "clientErrorRate",
    "ttft.p50", "ttft.p90", "ttft.p95", "ttft.p99",
    "e2e.p50", "e2e.p90", "e2e.p95", "e2e.p99",
    "itl.p50", "itl.p90", "itl.p95", "itl.p99",
]  # fmt: skip


def limit(value: str) -> Complaint | None:
    """A bound of a check."""
    if _LIMIT.match(value):
        return None
    return f"{shown(value)} is not a limit", "expected one such as 2%, +1pp, 800ms, +200ms or +20%"


def limit_parts(value: str) -> tuple[bool, float, str]:
    """A valid `limit` as (relative to stable, number, unit %, pp or ms)."""
    found = _LIMIT.match(value)
    assert found is not None
    plus, number, unit = found.groups()
    scaled = float(number) * 1000 if unit == "s" else float(number)
    return bool(plus), scaled, "ms" if unit == "s" else unit


def pause(value: str) -> Complaint | None:
    """A duration or `Manual`."""
    if value == MANUAL or duration(value) is None:
        return None
    return f"{shown(value)} is no pause", "expected a duration such as 5m or 1m30s, or Manual"


def http_url(value: str) -> Complaint | None:
    """An address to ask."""
    try:
        parts = urlsplit(value)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if good and not parts.username and not parts.fragment:
        return None
    return f"{shown(value)} is not an address to ask", "expected http://host[:port]/path, without user and password"


Bound = Annotated[str, rule(limit)]
Url = Annotated[str, Meta(max_length=2048), rule(http_url)]


class TargetRef(Fields, frozen=True, kw_only=True):
    """A route, or with `sectionName` one of its rules, in the policy's namespace."""

    group: Literal["gateway.networking.k8s.io"]
    kind: Literal["HTTPRoute", "GRPCRoute"]
    name: Name
    section_name: Name = ""


class PoolRef(Fields, frozen=True, kw_only=True):
    """One of the backendRefs of every targeted rule, or with `model` one of the models that its requests are renamed to
    (InferenceModelRewrite)."""

    group: Literal["inference.networking.k8s.io", "pointsman.dev"] = "inference.networking.k8s.io"
    kind: Literal["InferencePool", "InferenceFleet"] = "InferencePool"
    namespace: Label = ""
    name: Name
    model: Annotated[str, Meta(max_length=253)] = ""

    def complaints(self) -> Found:
        home = "pointsman.dev" if self.kind == "InferenceFleet" else "inference.networking.k8s.io"
        if self.group != home:
            yield ("group",), f"{self.kind} does not belong to {self.group}", f"expected {home}"


class RolloutStep(Fields, frozen=True, kw_only=True):
    weight: Share
    pause: Annotated[str, rule(pause)] = ""
    min_requests: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0


class BlueGreenPlan(Fields, frozen=True, kw_only=True):
    """`preview`: how long the new pool stands ready before the switch; `keepWarm`: how long an undo is expected after
    it, and the old pool is to be left running."""

    preview: Annotated[str, rule(pause)] = MANUAL
    keep_warm: Duration = "10m"


class WebhookCheck(Fields, frozen=True, kw_only=True):
    """Answers 200 with `{"verdict": "Good" | "Bad", "why": …}`; anything else is no data."""

    url: Url
    timeout: Duration = "3s"


class PrometheusCheck(Fields, frozen=True, kw_only=True):
    """A query with one number as its result, held against `max` or `min`."""

    url: Url
    query: Annotated[str, Meta(min_length=1, max_length=8192)]
    max: float | None = None
    min: float | None = None
    timeout: Duration = "3s"

    def complaints(self) -> Found:
        if (self.max is None) == (self.min is None):
            yield (), "needs either max or min", "say which values are good"


class RolloutCheck(Fields, frozen=True, kw_only=True):
    """Something to judge the canary by: a metric of its requests, a webhook, or a PromQL query.

    A canary within `max` is rolled back with `analysis.falseAlarms` at most; one beyond `mustCatch` passes a step with
    `analysis.missed` at most. The closer the two, the more requests a step takes.
    """

    name: Name
    metric: MetricName | None = None
    compare: Literal["CanaryVsStable", "Absolute"] | None = None
    max: Bound = ""
    must_catch: Bound = ""
    webhook: WebhookCheck | None = None
    prometheus: PrometheusCheck | None = None
    failure_limit: Annotated[int, Meta(ge=0, le=1_000)] = 0

    def complaints(self) -> Found:
        given = [name for name in ("metric", "webhook", "prometheus") if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"has {' and '.join(given)}" if given else "has nothing to judge by"
            yield (), what, "expected one of metric, webhook, prometheus"
            return
        if self.metric is None:
            for field, value in (("max", self.max), ("mustCatch", self.must_catch), ("compare", self.compare)):
                if value:
                    yield (field,), f"does not belong to a {given[0]} check", "remove it"
            return
        if not self.max:
            yield ("max",), "is missing", "expected a limit such as +1pp or 800ms"
            return
        yield from self._bound("max", self.max)
        if self.must_catch:
            yield from self._bound("mustCatch", self.must_catch)
            yield from self._order()

    def _bound(self, field: str, text: str) -> Found:
        relative, number, unit = limit_parts(text)
        is_rate = self.metric in RATE_METRICS
        if is_rate and not (unit == "pp" if relative else unit == "%"):
            yield (field,), f"{shown(text)} does not fit {self.metric}", "expected a share such as 2% or +1pp"
        elif not is_rate and not (unit in {"%", "ms"} if relative else unit == "ms"):
            yield (field,), f"{shown(text)} does not fit {self.metric}", "expected one such as 800ms, +200ms or +20%"
        elif is_rate and number >= 100:
            yield (field,), f"{shown(text)} forbids nothing", "expected less than 100"
        elif number == 0 and not relative and not is_rate:
            yield (field,), f"{shown(text)} forbids everything", "expected more than 0ms"
        elif not relative and self.metric is not None and self.metric.startswith("itl"):
            what = "gateways see bytes, not tokens, so itl can only be compared"
            yield (field,), what, "expected a limit relative to stable, such as +20%"
        if self.compare is not None and (self.compare == COMPARED) is not relative:
            mend = "expected a limit with + in front" if self.compare == COMPARED else "expected one without +"
            yield (field,), f"{shown(text)} does not fit compare: {self.compare}", mend

    def _order(self) -> Found:
        relative, number, unit = limit_parts(self.max)
        worse_relative, worse, worse_unit = limit_parts(self.must_catch)
        if (relative, unit) != (worse_relative, worse_unit):
            what = f"{shown(self.must_catch)} is of another kind than max, {shown(self.max)}"
            yield ("mustCatch",), what, "expected the same form"
        elif worse <= number:
            what = f"{shown(self.must_catch)} is not worse than max, {shown(self.max)}"
            yield ("mustCatch",), what, "expected a larger limit: in between either verdict is right"


class Analysis(Fields, frozen=True, kw_only=True):
    interval: Duration = "5s"
    window: Duration = "10m"
    on_no_data: Literal["Hold", "Continue", "Abort"] = "Hold"
    false_alarms: Share = "1%"
    missed: Share = "1%"
    checks: Annotated[tuple[RolloutCheck, ...], Meta(max_length=MAX_CHECKS)] = ()

    def complaints(self) -> Found:
        if duration_ms(self.interval) < MIN_INTERVAL_MS:
            yield ("interval",), f"{shown(self.interval)} is too short", f"expected at least {MIN_INTERVAL_MS}ms"
        elif duration_ms(self.window) < 2 * duration_ms(self.interval):
            yield ("window",), f"{shown(self.window)} is too short", "expected at least two intervals"
        for field, text in (("falseAlarms", self.false_alarms), ("missed", self.missed)):
            if not 0 < share_of(text) <= TOTAL_WEIGHT // 2:
                yield (field,), f"{shown(text)} can't be promised", "expected from 0.01% to 50%"
        names = [check.name for check in self.checks]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield ("checks", index, "name"), f"{shown(name)} is the name of two checks", "expected unique names"


class CapacityLimits(Fields, frozen=True, kw_only=True):
    """`slotsPerEndpoint`: requests that one endpoint runs at once (vLLM's `--max-num-seqs`)."""

    canary_min_free: Share
    slots_per_endpoint: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class Gates(Fields, frozen=True, kw_only=True):
    capacity: CapacityLimits | None = None


class RolloutPolicySpec(Fields, frozen=True, kw_only=True):
    target_refs: Annotated[tuple[TargetRef, ...], Meta(min_length=1, max_length=16)]
    stable: PoolRef
    canary: PoolRef
    strategy: Literal["Canary", "BlueGreen", "Shadow"] = "Canary"
    steps: Annotated[tuple[RolloutStep, ...], Meta(max_length=MAX_STEPS)] = ()
    blue_green: BlueGreenPlan | None = None
    sites: SiteOrder | None = None
    assignment: Assignment | None = None
    on_abort: OnAbort = OnAbort()
    analysis: Analysis = Analysis()
    gates: Gates = Gates()
    mode: Literal["Auto", "Manual", "DryRun"] = "Auto"
    paused: bool = False
    revision: Annotated[str, Meta(max_length=253)] = ""

    def complaints(self) -> Found:
        same = (self.stable.namespace, self.stable.name) == (self.canary.namespace, self.canary.name)
        if same and self.stable.model == self.canary.model:
            field, kind = ("model", "model") if self.canary.model else ("name", "pool")
            yield ("canary", field), f"is the stable {kind}, too", f"expected the {kind} with the new release"
        elif same and self.gates.capacity is not None:
            what = "stable and canary have the same endpoints, so a step asks for no more of them"
            yield ("gates", "capacity"), what, "remove it"
        if self.strategy == "BlueGreen":
            if self.steps:
                yield ("steps",), "do not belong to strategy BlueGreen", "set blueGreen.preview and blueGreen.keepWarm"
        elif self.blue_green is not None:
            yield ("blueGreen",), f"does not belong to strategy {self.strategy}", "remove it or change the strategy"
        elif not self.steps:
            yield ("steps",), "is missing", "expected at least one step"
        else:
            yield from self._steps()
        yield from self._no_data()
        if self.strategy == "Shadow":
            yield from self._shadow()

    def _steps(self) -> Found:
        weights = [share_of(one.weight) for one in self.steps]
        for index, weight in enumerate(weights[1:], 1):
            if weight <= weights[index - 1]:
                what = f"{self.steps[index].weight} is not more than the step before"
                yield ("steps", index, "weight"), what, "expected growing weights"
        if self.strategy == "Canary" and weights[-1] != TOTAL_WEIGHT:
            last = ("steps", len(weights) - 1, "weight")
            yield last, f"the last step is {self.steps[-1].weight}", "expected a last step of 100%"
        first_is_all = weights[0] == TOTAL_WEIGHT and (self.steps[0].pause or self.steps[0].min_requests)
        compared = any(check.max and limit_parts(check.max)[0] for check in self.analysis.checks)
        if self.strategy == "Canary" and first_is_all and compared:
            what = "at 100% from the beginning there is no stable traffic to compare with"
            yield ("steps", 0, "weight"), what, "expected a smaller step before it"

    def _no_data(self) -> Found:
        if self.analysis.on_no_data != "Abort":
            return
        for index, one in enumerate(self.steps):
            if not one.pause and self.analysis.checks:
                what = "with onNoData: Abort a step without a pause would be aborted at once"
                yield ("steps", index, "pause"), what, "expected a duration, or Manual"

    def _shadow(self) -> Found:
        why = "gateways do not log mirrored requests"
        if self.canary.model:
            yield ("canary", "model"), "models of mirrored requests are not renamed", "expected strategy Canary"
        for field in ("sites", "assignment"):
            if getattr(self, field) is not None:
                yield (field,), "does not belong to strategy Shadow", "remove it"
        for index, check in enumerate(self.analysis.checks):
            if check.metric is not None:
                yield ("analysis", "checks", index, "metric"), why, "expected a webhook or prometheus check with Shadow"
        for index, one in enumerate(self.steps):
            if one.min_requests:
                yield ("steps", index, "minRequests"), why, "expected a pause"


class RolloutPolicy(Resource, frozen=True, kw_only=True):
    """Attached to the rules of a route (GEP-713); the route's manifest is never changed."""

    spec: RolloutPolicySpec

    def pool_key(self, ref: PoolRef) -> str:
        """The arm that the policy names: `namespace/name` of a pool, with its model where it says one."""
        return target_arm(f"{ref.namespace or self.namespace}/{ref.name}", ref.model)

    def route_name(self, ref: TargetRef) -> str:
        """ "HTTPRoute/namespace/name" of a target."""
        return f"{ref.kind}/{self.namespace}/{ref.name}"
