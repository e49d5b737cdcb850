"""InferenceModelRewrite: from manifests to arms, to Envoy's resources and to what the picker renames."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.config_fixtures import EXAMPLE, FLEET, manifests, problems
from pointsman.app.simulate import simulator_spec
from pointsman.core.arm_names import short_names, target_arm, target_of, whole_pool
from pointsman.core.change import ChangeError, Signature, WeightChange, decide, pool_names
from pointsman.core.compile import compile_plan
from pointsman.core.config import load
from pointsman.core.model import ModelRewrite, Plan
from pointsman.core.overlay import EMPTY, Overlay
from pointsman.rollout.manifest import spec_of
from pointsman.xds import BuildOptions, build_resources, render

GOLDEN = Path(__file__).parent / "golden" / "model-rewrite.json"
SPLIT = "HTTPRoute/default/chat/split"
REVIEW = {
    "matches": [{"model": {"value": "review"}}],
    "targets": [{"modelRewrite": "review-v2", "weight": 10}, {"modelRewrite": "review-v1", "weight": 90}],
}
PLACES = """
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {pool}-{site}
  labels: {{pointsman.dev/pool: {pool}, pointsman.dev/site: {site}}}
addressType: IPv4
endpoints: [{{addresses: [10.{net}.0.9]}}]
"""


def rewrite(*rules: dict[str, Any], name: str = "review", **more: Any) -> str:
    """A manifest for the pool `stable`; `more` replaces parts of it."""
    document = {
        "apiVersion": more.get("api", "llm-d.ai/v1alpha2"),
        "kind": "InferenceModelRewrite",
        "metadata": {"name": name, **more.get("metadata", {})},
        "spec": {"poolRef": {"name": "stable", **more.get("pool", {})}, "rules": list(rules)},
    }
    return f"---\n{yaml.safe_dump(document)}"


def compiled(*documents: str, fleet: str = FLEET, overlay: Overlay = EMPTY) -> Plan:
    return compile_plan(manifests(fleet + "".join(documents)), overlay)


def arms(plan: Plan, rule: str = SPLIT) -> dict[str, int]:
    found = plan.split(rule)
    assert found is not None
    return {arm.pool: arm.effective for arm in found.arms}


def renamed(plan: Plan, pool: str) -> dict[str, tuple[tuple[str, int], ...]]:
    found = next(one for one in plan.pool_views() if one.name == pool)
    return {one.model: one.targets for one in found.rewrites}


class TestNames:
    @pytest.mark.parametrize("model", ["v2", "org/model", "a~b@c%d e", "modèle:8b", "~local", "@"])
    @pytest.mark.parametrize("sites", ["", "@~local", "@EU+~local"])
    def test_a_name_can_be_taken_apart(self, model: str, sites: str) -> None:
        name = target_arm("ns/pool", model) + sites
        assert (whole_pool(name), target_of(name)) == ("ns/pool", model)

    @pytest.mark.parametrize("name", ["ns/pool", "ns/pool@~local", "ns/pool@EU", "ns/pool:import"])
    def test_what_has_no_model_has_none(self, name: str) -> None:
        assert target_of(name) == ""
        assert whole_pool(name) == name.partition("@")[0]

    def test_an_arm_may_be_called_by_its_model(self) -> None:
        assert short_names("ns/pool~org/m") == {"pool~org/m", "org/m"}


@pytest.mark.parametrize("api", ["llm-d.ai/v1alpha2", "inference.networking.x-k8s.io/v1alpha2"])
def test_several_targets_are_arms_where_a_rule_names_the_pool(api: str) -> None:
    plan = compiled(rewrite(REVIEW, api=api))
    wanted = {"default/canary": 500, "default/stable~review-v2": 950, "default/stable~review-v1": 8_550}
    assert list(arms(plan).items()) == list(wanted.items())
    assert [pool.name for pool in plan.gateways[0].pools] == [
        "default/canary", "default/stable~review-v1", "default/stable~review-v2", "default/stream",
    ]  # fmt: skip
    assert [pool.name for pool in plan.pools] == ["default/canary", "default/stable", "default/stream"]
    assert renamed(plan, "default/stable~review-v2") == {"review": (("review-v2", 10_000),)}
    assert renamed(plan, "default/stable") == {"review": (("review-v2", 1_000), ("review-v1", 9_000))}
    [first, second] = [pool for pool in plan.gateways[0].pools if "~" in pool.name]
    assert first.groups == second.groups


def test_one_target_is_an_alias_in_every_arm() -> None:
    alias = {
        "matches": [{"model": {"value": name}} for name in ("gpt", "chat")],
        "targets": [{"modelRewrite": "llama"}],
    }
    only = compiled(rewrite(alias))
    assert arms(only) == {"default/canary": 500, "default/stable": 9_500}
    llama = (("llama", 10_000),)
    assert renamed(only, "default/stable") == {"gpt": llama, "chat": llama}
    both = compiled(rewrite(REVIEW, alias))
    for version in ("review-v1", "review-v2"):
        found = renamed(both, f"default/stable~{version}")
        assert found == {"gpt": llama, "chat": llama, "review": ((version, 10_000),)}


def test_an_exact_match_comes_first_then_the_older_then_the_first() -> None:
    def to(target: str, *models: str) -> dict[str, Any]:
        return {"matches": [{"model": {"value": one}} for one in models], "targets": [{"modelRewrite": target}]}

    young = rewrite(to("young", "a", "b"), name="a", metadata={"creationTimestamp": "2026-02-01T00:00:00Z"})
    old = rewrite(to("any"), to("old", "a"), to("late", "a"), metadata={"creationTimestamp": "2026-01-01T00:00:00Z"})
    found = renamed(compiled(young, old), "default/stable")
    assert {model: targets[0][0] for model, targets in found.items()} == {"": "any", "a": "old", "b": "young"}
    assert ModelRewrite(model="a", targets=(("old", 10_000),)) in compiled(young, old).pools[1].rewrites


def test_targets_without_weights_share_alike() -> None:
    rule = {"targets": [{"modelRewrite": name} for name in ("a", "b", "c")]}
    assert list(arms(compiled(rewrite(rule))).values()) == [500, 3_167, 3_167, 3_166]


def test_weights_that_were_set_lie_over_the_arms() -> None:
    plan = compiled(rewrite(REVIEW))
    split = plan.split(SPLIT)
    assert split is not None
    change = WeightChange(
        rule=SPLIT,
        weights={"canary": 0, "review-v2": 30, "stable~review-v1": 70},
        signature=Signature(actor="", via=""),
    )
    over = decide(EMPTY, plan, change).overlay
    wanted = {"default/canary": 0, "default/stable~review-v2": 3_000, "default/stable~review-v1": 7_000}
    assert arms(compiled(rewrite(REVIEW), overlay=over)) == wanted
    with pytest.raises(ChangeError, match="stable is no arm"):
        pool_names(split, {"stable": 1})


def test_a_header_rule_reaches_one_target() -> None:
    chosen = FLEET.replace(
        "    backendRefs:\n    - group: inference.networking.k8s.io\n      kind: InferencePool\n      name: canary\n"
        "      weight: 5\n    - group: inference.networking.k8s.io\n      kind: InferencePool\n      name: stable\n"
        "      weight: 95\n",
        "    backendRefs:\n    - group: inference.networking.k8s.io\n      kind: InferencePool\n      name: stable\n"
        "      filters:\n      - type: RequestHeaderModifier\n        requestHeaderModifier:\n"
        "          set: [{name: X-Gateway-Model-Name-Rewrite, value: review-v2}]\n",
    )
    assert chosen != FLEET
    assert arms(compiled(rewrite(REVIEW), fleet=chosen)) == {"default/stable~review-v2": 10_000}
    [problem] = problems(chosen.replace("value: review-v2", "value: review-2") + rewrite(REVIEW))
    assert "filters[0].requestHeaderModifier.set[0].value" in problem
    assert problem.endswith('"review-2" is no target of pool default/stable (did you mean "review-v2"?)'), problem
    assert arms(compiled(fleet=chosen)) == {"default/stable": 10_000}, "without targets it is a header as any other"


def test_arms_are_narrowed_to_sites_like_their_pool() -> None:
    sites = FLEET.replace("spec:\n  state: Active", "spec: {jurisdictions: [EU]}").replace(
        "  name: chat\n", "  name: chat\n  annotations: {pointsman.dev/residency: EU}\n"
    )
    far = "---\napiVersion: pointsman.dev/v1alpha1\nkind: Site\nmetadata: {name: west}\n"
    plan = compiled(rewrite(REVIEW), far, PLACES.format(pool="stable", site="west", net=2), fleet=sites)
    narrowed = [pool for pool in plan.gateways[0].pools if pool.name.startswith("default/stable")]
    assert [pool.name for pool in narrowed] == ["default/stable~review-v1@EU", "default/stable~review-v2@EU"]
    assert {endpoint.site for pool in narrowed for endpoint in pool.endpoints()} == {"east"}
    assert narrowed[1].rewrites[0].targets == (("review-v2", 10_000),)


def test_a_pool_without_endpoints_takes_all_of_its_arms_down() -> None:
    bare = FLEET.replace("pointsman.dev/pool: stable", "pointsman.dev/pool: canary").replace(
        "  name: chat\n", "  name: chat\n  annotations: {pointsman.dev/on-unavailable: Redistribute}\n"
    )
    plan = compiled(rewrite(REVIEW), fleet=bare)
    assert arms(plan) == {"default/canary": 10_000, "default/stable~review-v2": 0, "default/stable~review-v1": 0}


def test_what_is_not_renamed_is_told() -> None:
    open_pool = [note for note in compiled(rewrite(REVIEW)).notes if "Renamed" in note.reason]
    assert [(note.rule, note.reason) for note in open_pool] == [(SPLIT, "ModelsNotRenamedWithoutPicker")]
    closed = FLEET.replace(
        "  selector: {matchLabels: {app: stable}}\n",
        "  selector: {matchLabels: {app: stable}}\n"
        "  endpointPickerRef: {name: p, port: {number: 1}, failureMode: FailClose}\n",
    )
    assert not [note for note in compiled(rewrite(REVIEW), fleet=closed).notes if "Renamed" in note.reason]
    [grpc] = [note for note in compiled(rewrite(REVIEW, pool={"name": "stream"})).notes if "Renamed" in note.reason]
    assert (grpc.rule, grpc.reason) == ("GRPCRoute/default/generate/0", "ModelsNotRenamed")


def test_the_example_has_its_arms_and_nothing_to_remark() -> None:
    plan = compile_plan(load(EXAMPLE.parent / "models"))
    assert arms(plan) == {"default/llama~review-v2": 1_000, "default/llama~review-v1": 9_000}
    assert arms(plan, "HTTPRoute/default/chat/preview") == {"default/llama~review-v2": 10_000}
    assert plan.notes == ()
    [first, _] = simulator_spec(plan, speed=1)["replicas"]
    assert (first["model"], first["loras"]) == ("llama-3-8b", ["review-v1", "review-v2"])


def test_a_fleet_has_rewrites_of_its_own() -> None:
    fleet = """
---
apiVersion: pointsman.dev/v1alpha1
kind: InferenceFleet
metadata: {name: all}
spec:
  poolRef: {name: stable}
  members: [{site: east}]
"""
    text = FLEET.replace(
        "group: inference.networking.k8s.io\n      kind: InferencePool\n      name: stable\n      weight: 95",
        "group: pointsman.dev\n      kind: InferenceFleet\n      name: all\n      weight: 95",
    )
    of_pool = compiled(rewrite(REVIEW), fleet, fleet=text)
    assert list(arms(of_pool)) == ["default/canary", "default/all"]
    of_fleet = rewrite(REVIEW, pool={"group": "pointsman.dev", "kind": "InferenceFleet", "name": "all"})
    plan = compiled(of_fleet, fleet, fleet=text)
    assert list(arms(plan)) == ["default/canary", "default/all~review-v2", "default/all~review-v1"]
    found = next(pool for pool in plan.gateways[0].pools if pool.name == "default/all~review-v1")
    assert {endpoint.address for endpoint in found.endpoints()} == {"10.0.0.1", "10.0.0.2"}


def policy(stable: dict[str, str], canary: dict[str, str], **spec: Any) -> str:
    ref = {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "chat"}
    document = {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "RolloutPolicy",
        "metadata": {"name": "chat"},
        "spec": {
            "targetRefs": [ref],
            "stable": stable,
            "canary": canary,
            "steps": [{"weight": "100%"}],
            "assignment": {"by": {"header": "x-user-id"}},
            **spec,
        },
    }
    return f"---\n{yaml.safe_dump(document)}"


V1, V2 = ({"name": "stable", "model": f"review-v{number}"} for number in (1, 2))


def test_a_policy_names_models_of_a_pool() -> None:
    found = manifests(FLEET + rewrite(REVIEW) + policy(V1, V2))
    plan = compile_plan(found)
    spec = spec_of(found.rollout_policies[0], plan)
    assert (spec.rules, spec.stable, spec.canary) == ((SPLIT,), "default/stable~review-v1", "default/stable~review-v2")
    split = plan.split(SPLIT)
    assert split is not None
    assert split.sticky == "header x-user-id"


@pytest.mark.parametrize(
    ("stable", "canary", "spec", "told"),
    [
        (V1, V1, {}, "canary.model: is the stable model, too"),
        (V1, {"name": "stable"}, {}, "models of default/stable are review-v1, review-v2"),
        (V1, {"name": "stable", "model": "review-v3"}, {}, "models of default/stable are review-v1, review-v2"),
        (V1, {"name": "canary", "model": "x"}, {}, "no InferenceModelRewrite gives default/canary several targets"),
        (V1, V2, {"gates": {"capacity": {"canaryMinFree": "10%"}}}, "gates.capacity: stable and canary have the same"),
        (V1, V2, {"strategy": "Shadow", "assignment": None}, "canary.model: models of mirrored requests"),
        (V1 | {"kind": "InferenceFleet", "group": "pointsman.dev"}, V2, {}, "the route has InferencePool stable"),
    ],
)
def test_models_that_a_policy_cannot_have(
    stable: dict[str, str], canary: dict[str, str], spec: dict[str, Any], told: str
) -> None:
    found = problems(FLEET + rewrite(REVIEW) + policy(stable, canary, **spec))
    assert any(told in problem for problem in found), found


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"targets": []}, "targets: is empty"),
        ({"matches": [{"model": {"value": "a"}}]}, "targets: is missing"),
        ({"targets": [{"modelRewrite": "a"}, {"modelRewrite": "a"}]}, '"a" is a target twice'),
        ({"targets": [{"modelRewrite": "a", "weight": 1}, {"modelRewrite": "b"}]}, "targets[1].weight: is missing"),
        ({"targets": [{"modelRewrite": "a", "weight": 0}]}, "found 0"),
        (
            {"targets": [{"modelRewrite": "a", "weight": 1}, {"modelRewrite": "b", "weight": 99_999}]},
            "less than 0.01 %",
        ),
        ({"targets": [{"modelRewrite": ""}]}, "is empty"),
        ({"matches": [{"model": {"type": "Prefix", "value": "a"}}], "targets": [{"modelRewrite": "b"}]}, '"Prefix"'),
        ({"matches": [{"headers": []}], "targets": [{"modelRewrite": "b"}]}, "unknown field"),
    ],
)
def test_rules_that_make_no_sense(rule: dict[str, Any], told: str) -> None:
    assert any(told in problem for problem in problems(FLEET + rewrite(rule))), problems(FLEET + rewrite(rule))


def test_targets_whose_models_all_belong_to_an_older_manifest_are_refused() -> None:
    """Else there would be no arms, and a header that asks for one of them would silently get another model."""
    alias = {"matches": [{"model": {"value": "review"}}], "targets": [{"modelRewrite": "llama"}]}
    old = {"metadata": {"creationTimestamp": "2024-01-01T00:00:00Z"}}
    (told,) = problems(FLEET + rewrite(REVIEW) + rewrite(alias, name="older", **old))
    assert "none of its models is left to it" in told
    (told,) = problems(FLEET + rewrite({"targets": alias["targets"]}, {"targets": REVIEW["targets"]}))
    assert "spec.rules[1]" in told
    assert problems(FLEET + rewrite(REVIEW, **old) + rewrite(alias, name="a-younger")) == []
    more = {**REVIEW, "matches": [*REVIEW["matches"], {"model": {"value": "judge"}}]}
    assert renamed(compiled(rewrite(more), rewrite(alias, name="older", **old)), "default/stable~review-v2") == {
        "judge": (("review-v2", 10_000),),
        "review": (("llama", 10_000),),
    }


def test_references_are_checked() -> None:
    [missing] = problems(FLEET + rewrite(REVIEW, pool={"name": "stabel"}))
    assert missing.endswith('no InferencePool "default/stabel" (did you mean "default/stable"?)'), missing
    [fleet] = problems(FLEET + rewrite(REVIEW, pool={"kind": "InferenceFleet", "group": "pointsman.dev"}))
    assert 'no InferenceFleet "default/stable"' in fleet
    [group] = problems(FLEET + rewrite(REVIEW, pool={"kind": "InferenceFleet"}))
    assert "InferenceFleet does not belong to inference.networking.k8s.io" in group
    [second] = problems(FLEET + rewrite(REVIEW) + rewrite(REVIEW, name="other"))
    assert "a second rule of pool default/stable has several targets" in second


def test_the_arms_reach_envoy_as_their_golden_resources() -> None:
    plan = compiled(rewrite(REVIEW))
    options = BuildOptions(picker_address="127.0.0.1", picker_port=1)
    found = render(build_resources(plan.gateways[0], options, sites=plan.sites))
    ours = {kind: [one["resource"] for one in found[kind] if "~" in one["name"]] for kind in ("CDS", "EDS")}
    routes = [route for one in found["RDS"] for host in one["resource"]["virtual_hosts"] for route in host["routes"]]
    ours["RDS"] = [route["route"] for route in routes if "~" in json.dumps(route)]
    text = json.dumps(ours, indent=1, sort_keys=True) + "\n"
    if os.environ.get("POINTSMAN_REWRITE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
