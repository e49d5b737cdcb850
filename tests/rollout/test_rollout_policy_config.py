"""RolloutPolicy manifests: what is taken, what it means, and the exact text of every complaint."""

# ruff: noqa: E501 - each case is one line, so that it can be read as a table

from __future__ import annotations

from typing import Any

import pytest
import yaml

from config.config_fixtures import FLEET, manifests, problems
from pointsman.core.compile import compile_plan
from pointsman.rollout.manifest import spec_of
from pointsman.rollout.spec import Comparison, Limit, Metric, Mode, OnNoData, RolloutSpec, Source, Step, Strategy

POLICY: dict[str, Any] = {
    "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "chat", "sectionName": "split"}],
    "stable": {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "stable"},
    "canary": {"name": "canary"},
    "steps": [
        {"weight": "1%", "pause": "5m"},
        {"weight": "5%", "pause": "10m", "minRequests": 500},
        {"weight": "20.25%", "pause": "Manual"},
        {"weight": "100%", "pause": "1m"},
    ],
    "analysis": {
        "interval": "5s",
        "onNoData": "Hold",
        "checks": [
            {"name": "errors", "metric": "errorRate", "compare": "CanaryVsStable", "max": "+1pp", "failureLimit": 2},
            {"name": "ttft", "metric": "ttft.p95", "max": "+20%"},
            {"name": "slow", "metric": "e2e.p99", "max": "30s", "mustCatch": "60s"},
            {"name": "judge", "webhook": {"url": "http://judge.example:8080/verdict", "timeout": "5s"}},
            {
                "name": "quality",
                "prometheus": {"url": "http://prometheus.example:9090", "query": "avg(score)", "min": 0.9},
            },
        ],
    },
    "gates": {"capacity": {"canaryMinFree": "20%", "slotsPerEndpoint": 64}},
}


def document(spec: dict[str, Any]) -> str:
    manifest = {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "RolloutPolicy",
        "metadata": {"name": "chat"},
        "spec": spec,
    }
    return f"{FLEET}---\n{yaml.safe_dump(manifest, sort_keys=False)}"


def changed(path: str, value: Any) -> dict[str, Any]:
    """The policy with one field set to something else (None: taken out)."""
    spec: Any = yaml.safe_load(yaml.safe_dump(POLICY))
    *way, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    place = spec
    for part in way:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return dict(spec)


def compiled(spec: dict[str, Any]) -> RolloutSpec:
    found = manifests(document(spec))
    return spec_of(found.rollout_policies[0], compile_plan(found))


def test_what_a_policy_means() -> None:
    spec = compiled(POLICY)
    assert spec.name == "default/chat"
    assert spec.rules == ("HTTPRoute/default/chat/split",)
    assert (spec.stable, spec.canary) == ("default/stable", "default/canary")
    assert spec.steps == (
        Step(weight=100, pause_s=300),
        Step(weight=500, pause_s=600, min_requests=500),
        Step(weight=2_025, manual=True),
        Step(weight=10_000, pause_s=60),
    )
    assert (spec.strategy, spec.mode, spec.on_no_data) == (Strategy.CANARY, Mode.AUTO, OnNoData.HOLD)
    errors, ttft, slow, judge, quality = spec.checks
    assert errors.limit == Limit(comparison=Comparison.DIFFERENCE, value=0.01)
    assert errors.must_catch == Limit(comparison=Comparison.DIFFERENCE, value=0.04)
    assert errors.failure_limit == 2
    assert (ttft.metric, ttft.quantile) == (Metric.TTFT, 0.95)
    assert ttft.limit == Limit(comparison=Comparison.RATIO, value=1.2)
    assert ttft.must_catch == Limit(comparison=Comparison.RATIO, value=1.5)
    assert slow.limit == Limit(comparison=Comparison.ABSOLUTE, value=30_000)
    assert slow.must_catch == Limit(comparison=Comparison.ABSOLUTE, value=60_000)
    assert (judge.source, judge.timeout_s) == (Source.WEBHOOK, 5.0)
    assert (quality.source, quality.query, quality.at_least) == (Source.PROMETHEUS, "avg(score)", True)
    assert spec.capacity is not None
    assert (spec.capacity.min_free, spec.capacity.slots_per_endpoint) == (0.2, 64)


def test_without_a_section_all_rules_with_both_pools_are_meant() -> None:
    assert compiled(changed("targetRefs.0.sectionName", None)).rules == ("HTTPRoute/default/chat/split",)


def test_blue_green_is_two_steps() -> None:
    spec = changed("steps", None) | {"strategy": "BlueGreen", "blueGreen": {"preview": "1m", "keepWarm": "15m"}}
    assert compiled(spec).steps == (Step(weight=0, pause_s=60), Step(weight=10_000, pause_s=900))
    spec.pop("blueGreen")
    assert compiled(spec).steps == (Step(weight=0, manual=True), Step(weight=10_000, pause_s=600))


CASES: list[tuple[str, Any, str]] = [
    ("targetRefs", [], 'spec.targetRefs: is empty (expected at least one entry)'),
    ("targetRefs.0.kind", "TCPRoute", 'spec.targetRefs[0].kind: found "TCPRoute" (did you mean "HTTPRoute"?)'),
    ("targetRefs.0.name", "chatt", 'spec.targetRefs[0].name: no HTTPRoute "default/chatt" (did you mean "default/chat"?)'),
    ("targetRefs.0.sectionName", "splt", 'spec.targetRefs[0].sectionName: HTTPRoute default/chat has no rule "splt" (did you mean "split"?)'),
    ("canary.name", "stream", "spec.targetRefs[0]: the rule of HTTPRoute default/chat has not both default/stable and default/stream as backendRefs (see fleet.yaml:24; list the canary there with weight: 0)"),
    ("canary.name", "stable", "spec.canary.name: is the stable pool, too (expected the pool with the new release)"),
    ("strategy", "Canari", 'spec.strategy: found "Canari" (did you mean "Canary"?)'),
    ("strategy", "BlueGreen", "spec.steps: do not belong to strategy BlueGreen (set blueGreen.preview and blueGreen.keepWarm)"),
    ("blueGreen", {}, "spec.blueGreen: does not belong to strategy Canary (remove it or change the strategy)"),
    ("steps", None, "spec.steps: is missing (expected at least one step)"),
    ("steps.0.weight", 1, "spec.steps[0].weight: \"1\" is not a share (expected 0% to 100%, such as 5% or 0.25%)"),
    ("steps.0.weight", "101%", 'spec.steps[0].weight: "101%" is not a share (expected 0% to 100%, such as 5% or 0.25%)'),
    ("steps.0.weight", "0.001%", 'spec.steps[0].weight: "0.001%" is not a share (expected 0% to 100%, such as 5% or 0.25%)'),
    ("steps.1.weight", "1%", "spec.steps[1].weight: 1% is not more than the step before (expected growing weights)"),
    ("steps.3.weight", "90%", "spec.steps[3].weight: the last step is 90% (expected a last step of 100%)"),
    ("steps.0.pause", "soon", 'spec.steps[0].pause: "soon" is no pause (expected a duration such as 5m or 1m30s, or Manual)'),
    ("steps.0.minRequests", -1, "spec.steps[0].minRequests: found -1 (expected a whole number from 0 to 1000000000)"),
    ("steps", [{"weight": "100%", "pause": "1m"}], "spec.steps[0].weight: at 100% from the beginning there is no stable traffic to compare with (expected a smaller step before it)"),
    ("analysis.interval", "100ms", 'spec.analysis.interval: "100ms" is too short (expected at least 200ms)'),
    ("analysis.window", "6s", 'spec.analysis.window: "6s" is too short (expected at least two intervals)'),
    ("analysis.falseAlarms", "0%", 'spec.analysis.falseAlarms: "0%" can\'t be promised (expected from 0.01% to 50%)'),
    ("analysis.onNoData", "Ignore", 'spec.analysis.onNoData: found "Ignore" (expected one of Abort, Continue, Hold)'),
    ("analysis.checks.1.name", "errors", 'spec.analysis.checks[1].name: "errors" is the name of two checks (expected unique names)'),
    ("analysis.checks.0.metric", "errors", 'spec.analysis.checks[0].metric: found "errors" (did you mean "errorRate"?)'),
    ("analysis.checks.0.metric", None, "spec.analysis.checks[0]: has nothing to judge by (expected one of metric, webhook, prometheus)"),
    ("analysis.checks.0.webhook", {"url": "http://a"}, "spec.analysis.checks[0]: has metric and webhook (expected one of metric, webhook, prometheus)"),
    ("analysis.checks.3.max", "1%", "spec.analysis.checks[3].max: does not belong to a webhook check (remove it)"),
    ("analysis.checks.0.max", None, "spec.analysis.checks[0].max: is missing (expected a limit such as +1pp or 800ms)"),
    ("analysis.checks.0.max", "one", 'spec.analysis.checks[0].max: "one" is not a limit (expected one such as 2%, +1pp, 800ms, +200ms or +20%)'),
    ("analysis.checks.0.max", "+20%", 'spec.analysis.checks[0].max: "+20%" does not fit errorRate (expected a share such as 2% or +1pp)'),
    ("analysis.checks.0.max", "2%", 'spec.analysis.checks[0].max: "2%" does not fit compare: CanaryVsStable (expected a limit with + in front)'),
    ("analysis.checks.1.max", "+1pp", 'spec.analysis.checks[1].max: "+1pp" does not fit ttft.p95 (expected one such as 800ms, +200ms or +20%)'),
    ("analysis.checks.1", {"name": "pace", "metric": "itl.p50", "max": "50ms"}, "spec.analysis.checks[1].max: gateways see bytes, not tokens, so itl can only be compared (expected a limit relative to stable, such as +20%)"),
    ("analysis.checks.2.mustCatch", "20s", 'spec.analysis.checks[2].mustCatch: "20s" is not worse than max, "30s" (expected a larger limit: in between either verdict is right)'),
    ("analysis.checks.2.mustCatch", "+60s", 'spec.analysis.checks[2].mustCatch: "+60s" is of another kind than max, "30s" (expected the same form)'),
    ("analysis.checks.3.webhook.url", "judge:80", 'spec.analysis.checks[3].webhook.url: "judge:80" is not an address to ask (expected http://host[:port]/path, without user and password)'),
    ("analysis.checks.4.prometheus.max", 1, "spec.analysis.checks[4].prometheus: needs either max or min (say which values are good)"),
    ("gates.capacity.canaryMinFree", "much", 'spec.gates.capacity.canaryMinFree: "much" is not a share (expected 0% to 100%, such as 5% or 0.25%)'),
    ("sites", {}, "spec.sites.order: is missing (expected a list)"),
    ("assignment", {}, "spec.assignment.by: is missing (expected a mapping)"),
    ("strategy", "Shadow", "spec.analysis.checks[0].metric: gateways do not log mirrored requests (expected a webhook or prometheus check with Shadow)"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "expected"), CASES, ids=[f"{path}={value}" for path, value, _ in CASES])
def test_complaints(path: str, value: Any, expected: str) -> None:
    found = [line.split(": ", 1)[1] for line in problems(document(changed(path, value)))]
    assert expected in found, found


def test_two_policies_for_a_rule() -> None:
    text = document(POLICY)
    second = text.rpartition("---\n")[2].replace("name: chat\nspec", "name: other\nspec")
    (found,) = problems(f"{text}---\n{second}")
    assert "rule 0 of HTTPRoute default/chat has two policies" in found


def test_a_canary_without_a_share_anywhere() -> None:
    text = document(POLICY).replace("weight: 95", "weight: 0").replace("weight: 5\n", "weight: 0\n")
    (found,) = problems(text)
    assert "both pools have weight 0 in rule 0 of HTTPRoute default/chat" in found
