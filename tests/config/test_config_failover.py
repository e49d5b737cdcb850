"""FailoverPolicy and TrafficOperation manifests: what is taken, what it means, and the exact text of complaints."""

# ruff: noqa: E501 - each case is one line, so that it can be read as a table

from __future__ import annotations

from typing import Any

import pytest
import yaml

from config.config_fixtures import FLEET, manifests, problems
from pointsman.core.compile import compile_plan
from pointsman.core.config import Manifests
from pointsman.core.model import HealthPolicy, Plan, RetryPolicy
from pointsman.failover import detect_triggers as detect
from pointsman.failover.manifest import policies_of
from pointsman.failover.model import Member, Trigger
from pointsman.failover.spec import Combine, Failback, FailoverSpec, Freeze, Mode, Role, Rto, Safety, Spill, Tier

INFERENCE = "inference.networking.k8s.io"
GATEWAY = "gateway.networking.k8s.io"

MORE = """\
---
apiVersion: pointsman.dev/v1alpha1
kind: Site
metadata: {name: west, labels: {kind: warm}}
spec: {jurisdictions: [EU], capacity: {maxConcurrent: 40}}
---
apiVersion: pointsman.dev/v1alpha1
kind: Site
metadata: {name: north, labels: {kind: cold}}
spec: {jurisdictions: [EU, DE]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: stable-west, labels: {pointsman.dev/pool: stable, pointsman.dev/site: west}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: stable-north, labels: {pointsman.dev/pool: stable, pointsman.dev/site: north}}
addressType: IPv4
endpoints: [{addresses: [10.2.0.1]}]
"""

POLICY: dict[str, Any] = {
    "targetRefs": [{"group": INFERENCE, "kind": "InferencePool", "name": "stable"}],
    "tiers": [
        {"sites": ["east"]},
        {"siteSelector": {"matchExpressions": [{"key": "kind", "operator": "Exists"}]}, "role": "Standby", "warmUp": "9s"},
    ],
    "mode": "Recommend",
    "triggers": {
        "errorRate": {"threshold": "20%", "window": "4s", "minRequests": 10},
        "latency": {"deltaAboveBaseline": "800ms", "quantile": 0.9},
        "metricsAbsent": {"after": "20s", "action": "Failover"},
        "combine": "All",
        "off": ["stall", "saturation"],
    },
    "failback": {"mode": "Manual", "holdDown": "2m", "healthyFor": "10s", "ramp": ["10%", "100%"], "maxFlapsPerHour": 1},
    "safety": {"minActiveSites": 2, "minFreeCapacity": "20%", "freeze": [{"cron": "0 22 * * FRI", "for": "60h"}]},
    "spill": {"startAt": "90%", "stopAt": "50%", "maxShare": "30%"},
    "rto": {"objective": "60s", "alertAbove": "5s"},
    "probe": {"path": "/ready", "interval": "1s"},
    "outlier": {"consecutive5xx": 9, "failureRate": "30%"},
    "retry": {"retries": 1, "maxRatio": "20%"},
}  # fmt: skip


def kind(spec: dict[str, Any], name: str = "f", kind: str = "FailoverPolicy") -> str:
    manifest = {"apiVersion": "pointsman.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    return f"---\n{yaml.safe_dump(manifest, sort_keys=False)}"


def changed(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The spec with one field set to something else (None: taken out)."""
    copy: Any = yaml.safe_load(yaml.safe_dump(spec))
    *way, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    place = copy
    for part in way:
        place = place[part] if isinstance(place, list) else place.setdefault(part, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return dict(copy)


def loaded(*texts: str) -> tuple[Manifests, Plan]:
    text = "".join((FLEET, MORE, *texts))
    assert problems(text) == []
    found = manifests(text)
    return found, compile_plan(found)


def specs(*texts: str) -> dict[str, FailoverSpec]:
    return {spec.name: spec for spec, _ in policies_of(*loaded(*texts))}


def on(kind: str, name: str, section: str = "") -> dict[str, Any]:
    group = INFERENCE if kind == "InferencePool" else GATEWAY
    ref = {"group": group, "kind": kind, "name": name} | ({"sectionName": section} if section else {})
    return {"targetRefs": [ref]}


def test_what_a_policy_means() -> None:
    found, plan = loaded(kind(POLICY))
    ((spec, triggers),) = policies_of(found, plan)
    assert spec.name == "FailoverPolicy/default/f"
    assert spec.pools == ("default/stable",)
    assert spec.tiers == (Tier(sites=("east",)), Tier(sites=("north", "west"), role=Role.STANDBY, warm_up_s=9.0))
    assert spec.sites == {"default/stable": ("east", "north", "west")}
    assert spec.capacity == {"west": 40}
    assert (spec.mode, spec.combine) == (Mode.RECOMMEND, Combine.ALL)
    assert set(spec.required) == {Trigger.ERROR_RATE, Trigger.LATENCY, Trigger.PROBE}
    assert set(spec.decisive) == {*spec.required, Trigger.METRICS_ABSENT}
    assert spec.failback == Failback(
        auto=False, hold_down_s=120.0, healthy_for_s=10.0, ramp=(1_000, 10_000), max_flaps_per_hour=1
    )
    assert spec.safety == Safety(
        min_active_sites=2, min_free=0.2, freeze=(Freeze(cron="0 22 * * FRI", for_s=216_000.0),)
    )
    assert spec.spill == Spill(start=0.9, stop=0.5, max_share=3_000)
    assert spec.rto == Rto(objective_s=60.0, alert_above_s=5.0)
    assert triggers == detect.Triggers(
        error_rate=detect.ErrorRate(threshold=0.2, window_s=4.0, min_requests=10),
        latency=detect.Latency(delta_ms=800.0, quantile=0.9),
        stall=None,
        saturation=None,
        metrics_absent=detect.MetricsAbsent(after_s=20.0, action=detect.AbsentAction.FAILOVER),
        combine=detect.Combine.ALL,
    )


def test_what_the_gateways_get() -> None:
    _, plan = loaded(kind(POLICY))
    pool = next(pool for pool in plan.pools if pool.name == "default/stable")
    assert [(group.site, group.tier) for group in pool.groups] == [("east", 0), ("north", 1), ("west", 1)]
    assert pool.health_path == "/ready"
    assert pool.health == HealthPolicy(
        interval_ms=1_000, consecutive_5xx=9, failure_percent=30, retry_budget_percent=20.0
    )
    assert {rule.retry for rule in rules(plan)} == {None}, "the other arm is led by nobody"


def test_the_defaults_are_the_machines_own() -> None:
    """A policy that says nothing is the default, but for its name; so is one written out by hand from the reference."""
    found, plan = loaded(kind(on("InferencePool", "stable")))
    ((spec, triggers),) = policies_of(found, plan)
    assert (spec.failback, spec.safety, spec.spill, spec.rto) == (Failback(), Safety(), Spill(), Rto())
    assert spec.tiers == (Tier(sites=("east", "north", "west")),)
    assert triggers == detect.Triggers()
    pool = next(pool for pool in plan.pools if pool.name == "default/stable")
    assert pool.health is None
    explicit = changed(on("InferencePool", "stable"), "probe", {}) | {"outlier": {}, "retry": {}}
    _, plan = loaded(kind(explicit))
    pool = next(pool for pool in plan.pools if pool.name == "default/stable")
    assert pool.health == HealthPolicy()


def test_a_pool_at_several_sites_has_a_default() -> None:
    (spec,) = specs().values()
    assert (spec.name, spec.policy, spec.mode) == ("InferencePool/default/stable", False, Mode.AUTO)
    assert spec.tiers == (Tier(sites=("east", "north", "west")),)
    off = FLEET.replace(
        "  name: stable\nspec:", "  name: stable\n  annotations: {pointsman.dev/failover: Off}\nspec:", 1
    )
    off = off.replace("Off}", '"Off"}')
    found = manifests(off + MORE)
    assert policies_of(found, compile_plan(found)) == ()
    (complaint,) = problems(off.replace('"Off"', "Never") + MORE)
    assert complaint.endswith('metadata.annotations["pointsman.dev/failover"]: found "Never" (expected Auto or Off)')


def test_a_default_outlives_the_pods_of_its_sites() -> None:
    """What it decided, a drain for example, must not end because the drained site is empty now."""
    text = (FLEET + MORE).replace("endpoints:\n- addresses: [10.0.0.1]\n- addresses: [10.0.0.2]", "endpoints: []", 1)
    for endpoints in ("", "[{addresses: [10.1.0.1]}]", "[{addresses: [10.2.0.1]}]"):
        text = text.replace(endpoints, "[]", 1) if endpoints else text
        found = manifests(text)
        ((spec, _),) = policies_of(found, compile_plan(found))
        assert spec.name == "InferencePool/default/stable"
    assert spec.sites == {"default/stable": ()}


def test_the_nearest_policy_leads_a_pool() -> None:
    found = specs(
        kind(on("Gateway", "main"), "gateway"),
        kind(on("HTTPRoute", "chat"), "route"),
        kind(on("HTTPRoute", "chat", "split"), "rule"),
        kind(on("InferencePool", "stable"), "pool"),
    )
    leads = {name.rpartition("/")[2]: spec.pools for name, spec in found.items()}
    assert leads == {
        "pool": ("default/stable",),
        "rule": ("default/canary",),
        "route": (),
        "gateway": ("default/stream",),
    }


def test_retries_of_a_route() -> None:
    terms = {"retry": {"retries": 2, "onReset": False, "firstByteTimeout": "2s", "stallTimeout": "30s"}}
    _, plan = loaded(kind(on("HTTPRoute", "chat") | terms))
    (rule,) = (rule for rule in rules(plan) if rule.route.startswith("HTTPRoute"))
    assert rule.retry == RetryPolicy(
        num_retries=2, on_reset=False, first_byte_timeout_ms=2_000, stall_timeout_ms=30_000
    )
    _, plan = loaded(kind(on("InferencePool", "stream") | {"retry": {"retries": 0}}))
    (rule,) = (rule for rule in rules(plan) if rule.route.startswith("GRPCRoute"))
    assert rule.retry == RetryPolicy(num_retries=0)


def test_residency_keeps_sites_out_whatever_fails() -> None:
    spec = on("InferencePool", "stable") | {
        "residency": {"required": ["EU", "DE"]},
        "tiers": [{"siteSelector": {"matchLabels": {"kind": "cold"}}}, {"siteSelector": {}}],
    }
    (found,) = specs(kind(spec)).values()
    assert found.outside == ("east", "west")
    assert found.tiers == (Tier(sites=("north",)), Tier(sites=()))
    assert Member(pool="default/stable", site="west") in found.members()
    text = kind(changed(spec, "tiers", [{"sites": ["north", "west"]}]))
    (complaint,) = problems(FLEET + MORE + text)
    assert 'Site "west" is outside DE, which residency requires' in complaint


CASES: list[tuple[str, Any, str]] = [
    ("targetRefs", [], "spec.targetRefs: is empty (expected at least one entry)"),
    ("targetRefs.0.kind", "Service", 'spec.targetRefs[0].kind: found "Service" (expected one of GRPCRoute, Gateway, HTTPRoute, InferenceFleet, InferencePool)'),
    ("targetRefs.0.group", GATEWAY, "spec.targetRefs[0].group: InferencePool does not belong to gateway.networking.k8s.io (expected inference.networking.k8s.io)"),
    ("targetRefs.0.name", "stabel", 'spec.targetRefs[0].name: no InferencePool "default/stabel" (did you mean "default/stable"?)'),
    ("targetRefs.0.sectionName", "x", "spec.targetRefs[0].sectionName: InferencePool has no rules (remove it)"),
    ("tiers.0.sites", ["eest"], 'spec.tiers[0].sites[0]: no Site "eest" (did you mean "west"?)'),
    ("tiers.0.sites", ["east", "east"], 'spec.tiers[0].sites[1]: "east" occurs twice (remove one)'),
    ("tiers.0.sites", [], "spec.tiers[0]: needs either sites or siteSelector (say which sites are of this tier)"),
    ("tiers.0.role", "Standby", "spec.tiers[0].role: the first tier can't stand by (expected role: Active)"),
    ("tiers.1", {"sites": ["east"]}, 'spec.tiers[1].sites[0]: "east" is in tier 0, too (remove one)'),
    ("tiers.1.siteSelector.matchExpressions.0.operator", "In", "spec.tiers[1].siteSelector.matchExpressions[0].values: is empty (expected values for In)"),
    ("mode", "Automatic", 'spec.mode: found "Automatic" (did you mean "Auto"?)'),
    ("triggers.errorRate.threshold", "0%", 'spec.triggers.errorRate.threshold: "0%" would always hold (expected more than 0%)'),
    ("triggers.errorRate.window", "100ms", 'spec.triggers.errorRate.window: "100ms" is too short (expected at least 200ms)'),
    ("triggers.latency.quantile", 1.5, "spec.triggers.latency.quantile: found 1.5 (expected a number from 0.05 to 0.99)"),
    ("triggers.off", ["probes"], 'spec.triggers.off[0]: found "probes" (did you mean "probe"?)'),
    ("triggers.errorrate", {}, 'spec.triggers.errorrate: unknown field (did you mean "errorRate"?)'),
    ("failback.ramp", ["50%", "20%", "100%"], "spec.failback.ramp[1]: 20% is not more than what is before it (expected growing shares)"),
    ("failback.ramp", ["50%"], "spec.failback.ramp[0]: the last step is 50% (expected a last step of 100%)"),
    ("failback.maxFlapsPerHour", 0, "spec.failback.maxFlapsPerHour: found 0 (expected a whole number from 1 to 60)"),
    ("safety.minActiveSites", 0, "spec.safety.minActiveSites: found 0 (expected a whole number from 1 to 1000)"),
    ("safety.minFreeCapacity", "100%", 'spec.safety.minFreeCapacity: "100%" forbids everything (expected less than 100%)'),
    ("safety.freeze.0.cron", "0 25 * * *", 'spec.safety.freeze[0].cron: "0 25 * * *" is no cron expression: hour: 25 is not within 0-23 (expected one such as 0 22 * * FRI)'),
    ("safety.freeze.0.for", "10s", 'spec.safety.freeze[0].for: "10s" is no length of a window (expected from 1m to 744h)'),
    ("spill.stopAt", "95%", 'spec.spill.stopAt: "95%" is not below startAt, "90%" (expected a gap)'),
    ("probe.interval", "1ms", 'spec.probe.interval: "1ms" is too short (expected at least 10ms)'),
    ("outlier.maxEjection", "1s", 'spec.outlier.maxEjection: "1s" is less than baseEjection (expected as much or more)'),
    ("outlier.failureRate", "0.5%", 'spec.outlier.failureRate: "0.5%" would eject everything (expected at least 1%)'),
    ("retry.firstByteTimeout", "2s", "spec.retry.firstByteTimeout: would end answers that are not streamed (expected a policy of its own on the routes that stream)"),
    ("retry.retries", 11, "spec.retry.retries: found 11 (expected a whole number from 0 to 10)"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "expected"), CASES, ids=[f"{path}={value}" for path, value, _ in CASES])
def test_complaints(path: str, value: Any, expected: str) -> None:
    found = [line.split(": ", 1)[1] for line in problems(FLEET + MORE + kind(changed(POLICY, path, value)))]
    assert expected in found, found


def test_two_policies_for_one_target() -> None:
    (found,) = problems(FLEET + MORE + kind(POLICY, "one") + kind(POLICY, "two"))
    assert "InferencePool default/stable has two policies" in found


OPERATION: dict[str, Any] = {
    "action": "Drain",
    "target": {"kind": "Site", "name": "east", "pool": "stable"},
    "reason": "CHG-1234",
}

OPERATION_CASES: list[tuple[str, Any, str]] = [
    ("action", "Drill", "spec.action: \"Drill\" is not supported yet (expected one of Activate, Drain, Evacuate, Failback, Failover, Freeze, Unfreeze)"),
    ("reason", None, "spec.reason: is missing"),
    ("reason", "", "spec.reason: is empty (expected a value)"),
    ("target", None, "spec.target: is missing (expected what to drain)"),
    ("target.name", "eest", 'spec.target.name: no Site "eest" (did you mean "west"?)'),
    ("target.pool", "stabel", 'spec.target.pool: no InferencePool "default/stabel" (did you mean "default/stable"?)'),
    ("target", {"kind": "Endpoint", "name": "10.0.0.1"}, 'spec.target.name: "10.0.0.1" is no endpoint (expected ip:port, as 10.0.0.1:8000)'),
    ("action", "Freeze", "spec.target: Freeze is about a policy, not about a site (name it in spec.policy)"),
    ("policy", "f", "spec.policy: does not belong to Drain (name a site in spec.target)"),
    ("abortIf", ["errorRate>3s"], 'spec.abortIf[0]: "errorRate>3s" is no condition (expected one such as errorRate>1% or ttft.p95>3s)'),
    ("schedule", "daily", 'spec.schedule: "daily" is no cron expression: it has 1 fields, not 5 (minute, hour, day of month, month, day of week) (expected one such as 0 22 * * FRI)'),
    ("ttl", "10ms", 'spec.ttl: "10ms" is too short (expected at least 1s)'),
    ("deadline", "tomorrow", 'spec.deadline: "tomorrow" is not a time (expected one such as 2026-05-01T12:00:00Z)'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "expected"), OPERATION_CASES, ids=[f"{p}={v}" for p, v, _ in OPERATION_CASES]
)
def test_complaints_about_operations(path: str, value: Any, expected: str) -> None:
    text = kind(changed(OPERATION, path, value), "leave", "TrafficOperation")
    found = [line.split(": ", 1)[1] for line in problems(FLEET + MORE + text)]
    assert any(line.startswith(expected) for line in found), found


def test_an_operation_that_cannot_be_undone_has_no_end() -> None:
    text = kind(OPERATION | {"action": "Activate", "ttl": "5m", "abortIf": ["errorRate>1%"]}, "a", "TrafficOperation")
    found = problems(FLEET + MORE + text)
    assert [line.split(": ", 1)[1] for line in found] == [
        "spec.ttl: Activate can't be undone (remove it)",
        "spec.abortIf: Activate can't be undone (remove it)",
    ]


def rules(plan: Plan) -> list[Any]:
    return [
        rule
        for gateway in plan.gateways
        for listener in gateway.listeners
        for host in listener.hosts
        for rule in host.rules
    ]
