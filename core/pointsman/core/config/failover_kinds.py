"""FailoverPolicy (pointsman.dev): which sites serve a pool in which order, when one is left, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from pointsman.core.config import syntax
from pointsman.core.config.document import Path, shown
from pointsman.core.config.meta import Duration, Label, LabelValue, Name, Resource
from pointsman.core.config.rollout_parts import Share, share_of
from pointsman.core.config.schema import Complaint, Fields, rule
from pointsman.core.config.syntax import duration_ms
from pointsman.core.cron import parse_cron
from pointsman.core.model import TOTAL_WEIGHT

Found = Iterator[tuple[Path, str, str]]

TRIGGERS = ("errorRate", "latency", "stall", "saturation", "probe", "metricsAbsent")
TriggerName = Literal["errorRate", "latency", "stall", "saturation", "probe", "metricsAbsent"]
SHORTEST_WINDOW_MS = 200
"""Access logs reach us every 50 ms, and it is looked ten times a second: less holds no more than one look."""
LONGEST_FREEZE_MS = 31 * 24 * 3_600_000


def cron(value: str) -> Complaint | None:
    """Five cron fields, in UTC."""
    try:
        parse_cron(value)
    except ValueError as error:
        return f"{shown(value)} is no cron expression: {error}", "expected one such as 0 22 * * FRI"
    return None


CronText = Annotated[str, rule(cron)]
Tag = Annotated[str, Meta(min_length=1), rule(syntax.label_value)]


class FailoverTargetRef(Fields, frozen=True, kw_only=True):
    """A pool or a fleet; or a route, one of its rules or a Gateway: then all pools that it sends requests to."""

    group: Literal["inference.networking.k8s.io", "gateway.networking.k8s.io", "pointsman.dev"]
    kind: Literal["InferencePool", "InferenceFleet", "HTTPRoute", "GRPCRoute", "Gateway"]
    name: Name
    section_name: Name = ""

    def complaints(self) -> Found:
        homes = {"InferencePool": "inference.networking.k8s.io", "InferenceFleet": "pointsman.dev"}
        home = homes.get(self.kind, "gateway.networking.k8s.io")
        if self.group != home:
            yield ("group",), f"{self.kind} does not belong to {self.group}", f"expected {home}"
        if self.section_name and self.kind not in {"HTTPRoute", "GRPCRoute"}:
            yield ("sectionName",), f"{self.kind} has no rules", "remove it"


class LabelExpression(Fields, frozen=True, kw_only=True):
    key: Annotated[str, Meta(min_length=1, max_length=317)]
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[LabelValue, ...] = ()

    def complaints(self) -> Found:
        needs = self.operator in {"In", "NotIn"}
        if needs and not self.values:
            yield ("values",), "is empty", f"expected values for {self.operator}"
        elif not needs and self.values:
            yield ("values",), f"do not belong to {self.operator}", "remove them"

    def holds(self, labels: dict[str, str]) -> bool:
        """Whether an object with these labels fits."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case _:
                return self.key not in labels


class SiteSelector(Fields, frozen=True, kw_only=True):
    """Sites by their labels, as Kubernetes' label selectors."""

    match_labels: dict[str, LabelValue] = msgspec.field(default_factory=dict)
    match_expressions: tuple[LabelExpression, ...] = ()

    def selects(self, labels: dict[str, str]) -> bool:
        """Whether a site with these labels is meant."""
        equal = all(labels.get(key) == value for key, value in self.match_labels.items())
        return equal and all(expression.holds(labels) for expression in self.match_expressions)


class FailoverTier(Fields, frozen=True, kw_only=True):
    """Sites of one rank: by name, or by label those that no tier before it has."""

    sites: tuple[Label, ...] = ()
    site_selector: SiteSelector | None = None
    role: Literal["Active", "Standby"] = "Active"
    warm_up: Duration = "5s"
    require_ready: bool = True

    def complaints(self) -> Found:
        if bool(self.sites) == (self.site_selector is not None):
            yield (), "needs either sites or siteSelector", "say which sites are of this tier"
        for index, site in enumerate(self.sites):
            if site in self.sites[:index]:
                yield ("sites", index), f"{shown(site)} occurs twice", "remove one"


class ErrorRateTrigger(Fields, frozen=True, kw_only=True):
    threshold: Share = "10%"
    window: Duration = "5s"
    min_requests: Annotated[int, Meta(ge=1, le=1_000_000)] = 20

    def complaints(self) -> Found:
        if not 0 < share_of(self.threshold) <= TOTAL_WEIGHT:
            yield ("threshold",), f"{shown(self.threshold)} would always hold", "expected more than 0%"
        yield from _window("window", self.window)


class LatencyTrigger(Fields, frozen=True, kw_only=True):
    metric: Literal["ttft"] = "ttft"
    delta_above_baseline: Duration = "500ms"
    quantile: Annotated[float, Meta(ge=0.05, le=0.99)] = 0.5
    window: Duration = "1s"
    count_in_flight: bool = True
    normalize_by_tokens: bool = True

    def complaints(self) -> Found:
        yield from _window("window", self.window)
        if not duration_ms(self.delta_above_baseline):
            yield ("deltaAboveBaseline",), "would always hold", "expected a delay such as 500ms"


class StallTrigger(Fields, frozen=True, kw_only=True):
    late_by: Duration = "500ms"


class SaturationTrigger(Fields, frozen=True, kw_only=True):
    queue: Annotated[float, Meta(ge=1, le=1_000_000)] = 32.0
    kv: Share = "95%"
    for_: Duration = msgspec.field(default="2s", name="for")
    action: Literal["Spill"] = "Spill"


class ProbeTrigger(Fields, frozen=True, kw_only=True):
    failing: Share = "50%"


class MetricsAbsentTrigger(Fields, frozen=True, kw_only=True):
    after: Duration = "10s"
    action: Literal["Neutral", "Degrade", "Failover"] = "Neutral"


class FailoverTriggers(Fields, frozen=True, kw_only=True):
    """What a site is left for. Those that are not written hold with their defaults; `off` names those that don't."""

    error_rate: ErrorRateTrigger = ErrorRateTrigger()
    latency: LatencyTrigger = LatencyTrigger()
    stall: StallTrigger = StallTrigger()
    saturation: SaturationTrigger = SaturationTrigger()
    probe: ProbeTrigger = ProbeTrigger()
    metrics_absent: MetricsAbsentTrigger = MetricsAbsentTrigger()
    combine: Literal["Any", "All"] = "Any"
    off: tuple[TriggerName, ...] = ()


class FailbackPlan(Fields, frozen=True, kw_only=True):
    mode: Literal["Auto", "Manual"] = "Auto"
    hold_down: Duration = "60s"
    healthy_for: Duration = "30s"
    ramp: Annotated[tuple[Share, ...], Meta(min_length=1, max_length=32)] = ("5%", "25%", "100%")
    ramp_interval: Duration = "10s"
    max_flaps_per_hour: Annotated[int, Meta(ge=1, le=60)] = 3

    def complaints(self) -> Found:
        shares = [share_of(text) for text in self.ramp]
        for index, share in enumerate(shares):
            if share <= (shares[index - 1] if index else 0):
                what = f"{self.ramp[index]} is not more than what is before it"
                yield ("ramp", index), what, "expected growing shares"
        if shares[-1] != TOTAL_WEIGHT:
            yield ("ramp", len(shares) - 1), f"the last step is {self.ramp[-1]}", "expected a last step of 100%"


class FreezeWindow(Fields, frozen=True, kw_only=True):
    cron: CronText
    for_: Duration = msgspec.field(name="for")

    def complaints(self) -> Found:
        if not 60_000 <= duration_ms(self.for_) <= LONGEST_FREEZE_MS:
            yield ("for",), f"{shown(self.for_)} is no length of a window", "expected from 1m to 744h"


class SafetyRules(Fields, frozen=True, kw_only=True):
    min_active_sites: Annotated[int, Meta(ge=1, le=1_000)] = 1
    min_free_capacity: Share = "0%"
    max_concurrent_drains: Annotated[int, Meta(ge=1, le=1_000)] = 1
    freeze: Annotated[tuple[FreezeWindow, ...], Meta(max_length=32)] = ()

    def complaints(self) -> Found:
        if share_of(self.min_free_capacity) >= TOTAL_WEIGHT:
            yield ("minFreeCapacity",), f"{shown(self.min_free_capacity)} forbids everything", "expected less than 100%"


class SpillRules(Fields, frozen=True, kw_only=True):
    """Overflow into the next tier; `maxShare: 0%` turns it off."""

    start_at: Share = "80%"
    stop_at: Share = "60%"
    max_share: Share = "50%"

    def complaints(self) -> Found:
        if share_of(self.stop_at) >= share_of(self.start_at):
            yield ("stopAt",), f"{shown(self.stop_at)} is not below startAt, {shown(self.start_at)}", "expected a gap"


class Residency(Fields, frozen=True, kw_only=True):
    """Jurisdictions that a site must have, all of them, to serve the pools of this policy in any case."""

    required: Annotated[tuple[Tag, ...], Meta(min_length=1, max_length=32)]


class RtoPromise(Fields, frozen=True, kw_only=True):
    objective: Duration = "120s"
    alert_above: Duration = "30s"


class ProbeSettings(Fields, frozen=True, kw_only=True):
    """Envoy's active health check. `edgeInterval`: until the second probe after a failed one."""

    path: Annotated[str, rule(syntax.path)] | None = None
    interval: Duration = "400ms"
    timeout: Duration = "600ms"
    edge_interval: Duration = "100ms"
    unhealthy_threshold: Annotated[int, Meta(ge=1, le=100)] = 2
    healthy_threshold: Annotated[int, Meta(ge=1, le=100)] = 2

    def complaints(self) -> Found:
        for field, text in (
            ("interval", self.interval),
            ("timeout", self.timeout),
            ("edgeInterval", self.edge_interval),
        ):
            if duration_ms(text) < 10:
                yield (field,), f"{shown(text)} is too short", "expected at least 10ms"


class OutlierSettings(Fields, frozen=True, kw_only=True):
    """Envoy's passive ejection of single endpoints."""

    consecutive_5xx: Annotated[int, Meta(ge=1, le=1_000)] = msgspec.field(default=25, name="consecutive5xx")
    consecutive_gateway_errors: Annotated[int, Meta(ge=1, le=1_000)] = 3
    consecutive_connect_errors: Annotated[int, Meta(ge=1, le=1_000)] = 2
    failure_rate: Share = "50%"
    interval: Duration = "1s"
    base_ejection: Duration = "5s"
    max_ejection: Duration = "60s"

    def complaints(self) -> Found:
        if duration_ms(self.interval) < 100:
            yield ("interval",), f"{shown(self.interval)} is too short", "expected at least 100ms"
        if share_of(self.failure_rate) < TOTAL_WEIGHT // 100:
            yield ("failureRate",), f"{shown(self.failure_rate)} would eject everything", "expected at least 1%"
        if duration_ms(self.max_ejection) < duration_ms(self.base_ejection):
            yield ("maxEjection",), f"{shown(self.max_ejection)} is less than baseEjection", "expected as much or more"


class RetrySettings(Fields, frozen=True, kw_only=True):
    """Envoy's retries, before the first byte only. `firstByteTimeout` and `stallTimeout` are for policies on routes
    whose answers are streamed: other answers send no byte until they are complete."""

    retries: Annotated[int, Meta(ge=0, le=10)] = 3
    on_reset: bool = True
    max_ratio: Share = "100%"
    min_concurrent: Annotated[int, Meta(ge=0, le=1_000_000)] = 10_000
    first_byte_timeout: Duration | None = None
    stall_timeout: Duration | None = None

    def complaints(self) -> Found:
        for field, text in (("firstByteTimeout", self.first_byte_timeout), ("stallTimeout", self.stall_timeout)):
            if text is not None and duration_ms(text) < 50:
                yield (field,), f"{shown(text)} is too short", "expected at least 50ms"


class FailoverPolicySpec(Fields, frozen=True, kw_only=True):
    target_refs: Annotated[tuple[FailoverTargetRef, ...], Meta(min_length=1, max_length=16)]
    tiers: Annotated[tuple[FailoverTier, ...], Meta(max_length=32)] = ()
    mode: Literal["Auto", "Recommend", "Manual"] = "Auto"
    triggers: FailoverTriggers = FailoverTriggers()
    failback: FailbackPlan = FailbackPlan()
    safety: SafetyRules = SafetyRules()
    spill: SpillRules = SpillRules()
    residency: Residency | None = None
    rto: RtoPromise = RtoPromise()
    probe: ProbeSettings | None = None
    outlier: OutlierSettings | None = None
    retry: RetrySettings | None = None

    def complaints(self) -> Found:
        seen: dict[str, int] = {}
        for number, tier in enumerate(self.tiers):
            for index, site in enumerate(tier.sites):
                first = seen.setdefault(site, number)
                if first != number:
                    yield ("tiers", number, "sites", index), f"{shown(site)} is in tier {first}, too", "remove one"
        if self.tiers and self.tiers[0].role == "Standby":
            yield ("tiers", 0, "role"), "the first tier can't stand by", "expected role: Active"
        routes = all(ref.kind in {"HTTPRoute", "GRPCRoute"} for ref in self.target_refs)
        if self.retry is not None and not routes:
            for field, value in (
                ("firstByteTimeout", self.retry.first_byte_timeout),
                ("stallTimeout", self.retry.stall_timeout),
            ):
                if value is not None:
                    what = "would end answers that are not streamed"
                    yield ("retry", field), what, "expected a policy of its own on the routes that stream"


class FailoverPolicy(Resource, frozen=True, kw_only=True):
    """Attached to pools, routes or Gateways (GEP-713)."""

    own_annotations: ClassVar[frozenset[str]] = frozenset()
    spec: FailoverPolicySpec


def _window(field: str, text: str) -> Found:
    if duration_ms(text) < SHORTEST_WINDOW_MS:
        yield (field,), f"{shown(text)} is too short", f"expected at least {SHORTEST_WINDOW_MS}ms"
