"""InferenceFleets, imports and sites behind gateways: what is refused, and what they become in the Plan."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.config_fixtures import EXAMPLE, manifests, problems, spoiled
from pointsman.core.compile import compile_plan
from pointsman.core.compile.fleets import expand
from pointsman.core.config import load
from pointsman.core.config.fleet_kinds import ClusterExpression
from pointsman.core.model import Gateway, Plan, Pool, Rule
from pointsman.failover.manifest import policies_of

STABLE = "    - group: inference.networking.k8s.io\n      kind: InferencePool\n      name: stable\n      weight: 95\n"
FLEET = "    - {group: pointsman.dev, kind: InferenceFleet, name: all, weight: 95}\n"
GATEWAY = "gateway: {address: 192.0.2.9, port: 443, tls: {sni: gw.west.example, caFile: /etc/ca.pem}}"
WEST = "metadata: {name: west, labels: {region: us-1}}\nspec: {jurisdictions: [US], " + GATEWAY + "}\n"
ALL = "spec: {poolRef: {name: stable}, members: [{site: east}, {site: west, tier: 1, weight: 7}]}\n"


def site(text: str) -> str:
    return f"---\napiVersion: pointsman.dev/v1alpha1\nkind: Site\n{text}"


def fleet(text: str) -> str:
    return f"---\napiVersion: pointsman.dev/v1alpha1\nkind: InferenceFleet\nmetadata: {{name: all}}\n{text}"


def imported(*clusters: str) -> str:
    names = ", ".join(f"{{name: {name}}}" for name in clusters)
    return (
        "---\napiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: InferencePoolImport\nmetadata: {name: stable}\n"
        f"status: {{controllers: [{{name: a.example/c, exportingClusters: [{names}], conditions: []}}]}}\n"
    )


BOTH = spoiled((STABLE, FLEET)) + site(WEST) + fleet(ALL)


def plan_of(text: str) -> Plan:
    assert problems(text) == []
    return compile_plan(manifests(text))


def pool(plan: Plan | Gateway, name: str) -> Pool:
    return next(one for one in plan.pools if one.name == name)


def rules(plan: Plan) -> dict[str, Rule]:
    return {r.name: r for g in plan.gateways for listener in g.listeners for h in listener.hosts for r in h.rules}


def places(found: Pool) -> list[tuple[str, int, int, int, list[str]]]:
    return [(g.site, g.priority, g.tier, g.weight, [e.key for e in g.endpoints]) for g in found.groups]


def test_a_fleet_is_one_pool_of_direct_endpoints_and_gateways() -> None:
    found = pool(plan_of(BOTH), "default/all")
    assert places(found) == [
        ("east", 0, 0, 2, ["10.0.0.1:8000", "10.0.0.2:8000"]),
        ("west", 1, 1, 7, ["192.0.2.9:443"]),
    ]
    assert [group.hop is not None for group in found.groups] == [False, True]
    hop = found.groups[1].hop
    assert hop is not None and hop.tls is not None
    assert (hop.tls.server_name, hop.tls.ca_file) == ("gw.west.example", "/etc/ca.pem")


def test_it_stands_beside_pools_in_a_split_and_what_travelled_stays_with_direct_endpoints() -> None:
    found = rules(plan_of(BOTH))
    names = [name for name in found if "/chat/" in name]
    assert names == ["HTTPRoute/default/chat/split/0@~local", "HTTPRoute/default/chat/split/0"]
    local, plain = (found[name] for name in names)
    assert [(arm.pool, arm.weight) for arm in plain.arms] == [("default/canary", 500), ("default/all", 9500)]
    assert all(("x-pointsman-hops", "1") in arm.request_headers.set for arm in plain.arms)
    assert [arm.pool for arm in local.arms] == ["default/canary", "default/all@~local"]
    assert not any(arm.request_headers.set for arm in local.arms)
    gateway = plan_of(BOTH).gateways[0]
    assert [group.site for group in pool(gateway, "default/all@~local").groups] == ["east"]


def test_where_only_gateways_are_left_the_answer_is_508() -> None:
    text = spoiled((STABLE, FLEET), ("      name: canary\n      weight: 5\n", "      name: canary\n      weight: 0\n"))
    text += site(WEST) + fleet("spec: {members: [{site: west}]}\n")
    found = rules(plan_of(text))
    local = found["HTTPRoute/default/chat/split/0@~local"]
    assert (local.direct_status, local.direct_reason) == (508, "loop")


def test_without_gateways_no_rule_is_added() -> None:
    assert not any(
        "@" in name
        for name in rules(
            plan_of(spoiled((STABLE, FLEET)) + fleet("spec: {poolRef: {name: stable}, members: [{site: east}]}\n"))
        )
    )


def test_the_site_of_ones_own_gateway_is_near_whatever_its_gateway_is() -> None:
    text = spoiled(("  state: Active", "  state: Active\n  " + GATEWAY), (STABLE, FLEET))
    text += fleet("spec: {poolRef: {name: stable}, members: [{site: east}]}\n")
    assert [group.hop for group in pool(plan_of(text), "default/all").groups] == [None]


def test_an_import_is_a_pool_of_its_own_beside_the_one_of_its_name() -> None:
    ref = "    - {group: inference.networking.x-k8s.io, kind: InferencePoolImport, name: stable, weight: 95}\n"
    text = (
        spoiled((STABLE, STABLE.replace("95", "45") + ref.replace("95", "50"))) + site(WEST) + imported("west", "east")
    )
    text = text.replace("weight: 50", "weight: 50")
    found = plan_of(text)
    assert [group.site for group in pool(found, "default/stable:import").groups] == ["east", "west"]
    arms = rules(found)["HTTPRoute/default/chat/split/0"].arms
    assert [(arm.pool, arm.weight) for arm in arms] == [
        ("default/canary", 500),
        ("default/stable", 4500),
        ("default/stable:import", 5000),
    ]


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ("{key: region, operator: Glob, values: ['us-*']}", ["west"]),
        ("{key: region, operator: Glob, values: ['eu-*', 'us-?']}", ["west"]),
        ("{key: region, operator: In, values: [us-1]}", ["west"]),
        ("{key: region, operator: DoesNotExist}", ["east"]),
        ("{key: region, operator: NotIn, values: [us-1]}", ["east"]),
    ],
)
def test_sites_are_selected_by_their_labels(expression: str, selected: list[str]) -> None:
    spec = f"spec: {{poolRef: {{name: stable}}, clusterSelector: {{matchExpressions: [{expression}]}}}}\n"
    found = pool(plan_of(spoiled((STABLE, FLEET)) + site(WEST) + fleet(spec)), "default/all")
    assert [group.site for group in found.groups] == selected


@given(value=st.text("ab-", max_size=8), pattern=st.text("ab-*?", min_size=1, max_size=8))
def test_globs_are_those_of_a_shell(value: str, pattern: str) -> None:
    from fnmatch import fnmatchcase

    expression = ClusterExpression(key="k", operator="Glob", values=(pattern,))
    assert expression.holds({"k": value}) is fnmatchcase(value, pattern)


def test_a_fleet_by_model_takes_every_pool_that_serves_it() -> None:
    mark = ("metadata:\n  name: stable\n", "metadata:\n  name: stable\n  annotations: {pointsman.dev/model: llama}\n")
    text = spoiled((STABLE, FLEET), mark) + fleet("spec: {model: llama, members: [{site: east}]}\n")
    found = pool(plan_of(text), "default/all")
    assert (found.model, len(found.endpoints())) == ("llama", 2)


def test_residency_leaves_selected_sites_out() -> None:
    selector = "clusterSelector: {matchExpressions: [{key: region, operator: Exists}]}"
    text = spoiled((STABLE, FLEET)) + site(WEST) + fleet(f"spec: {{{selector}, residency: {{required: [EU]}}}}\n")
    assert pool(plan_of(text), "default/all").groups == ()


def test_tiers_reach_failover_with_a_policy_or_without() -> None:
    [(default, _)] = policies_of(manifests(BOTH), plan_of(BOTH))
    assert (default.name, [tier.sites for tier in default.tiers]) == (
        "InferenceFleet/default/all",
        [("east",), ("west",)],
    )
    head = "---\napiVersion: pointsman.dev/v1alpha1\nkind: FailoverPolicy\nmetadata: {name: p}\nspec:\n"
    target = "  targetRefs: [{group: pointsman.dev, kind: InferenceFleet, name: all}]\n"
    led = BOTH + head + target + "  tiers: [{sites: [west]}, {sites: [east]}]\n"
    [(spec, _)] = policies_of(manifests(led), plan_of(led))
    assert spec.pools == ("default/all",)
    assert [group.site for group in pool(plan_of(led), "default/all").groups] == ["west", "east"]
    assert problems(BOTH + head + target)[0].endswith(
        "members of InferenceFleet default/all have tiers, and this policy has none "
        "(write tiers here; they come before those at fleet.yaml:110)"
    )


def test_a_rollout_may_lead_to_a_fleet_that_is_called_one() -> None:
    policy = (
        "---\napiVersion: pointsman.dev/v1alpha1\nkind: RolloutPolicy\nmetadata: {name: r}\nspec:\n"
        "  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: chat, sectionName: split}]\n"
        "  stable: {group: pointsman.dev, kind: InferenceFleet, name: all}\n"
        "  canary: {name: canary}\n  steps: [{weight: 5%, pause: Manual}, {weight: 100%}]\n"
    )
    assert problems(BOTH + policy) == []
    assert "the route has InferenceFleet all (expected InferenceFleet)" in "".join(
        problems(BOTH + policy.replace("group: pointsman.dev, kind: InferenceFleet, name: all}", "name: all}"))
    )
    assert "does not belong to" in "".join(
        problems(BOTH + policy.replace("stable: {group: pointsman.dev, ", "stable: {"))
    )


def test_the_example_is_two_tiers_of_which_the_second_is_a_gateway() -> None:
    found = pool(compile_plan(load(EXAMPLE.parent / "three-sites")).gateways[0], "default/llama")
    assert [(group.site, group.priority, group.hop is not None) for group in found.groups] == [
        ("us-east", 0, False),
        ("us-west", 1, False),
        ("eu-west", 2, True),
    ]


def test_expanding_twice_changes_nothing() -> None:
    once = expand(manifests(BOTH)).manifests
    assert expand(once).manifests == once
    assert not once.fleets
    assert dataclasses.replace(once, fleets=()) == once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BOTH + site("metadata: {name: third}\nspec: {" + GATEWAY + "}\n"), "Site third has the same gateway"),
        (BOTH.replace("192.0.2.9", "gw.west.example", 1), "is a host name, which is not supported yet"),
        (BOTH.replace("caFile: /etc/ca.pem", "caFile: ca.pem"), '"ca.pem" is not a path'),
        (BOTH.replace("{site: west,", "{site: wset,"), 'no Site "wset" (did you mean "west"?)'),
        (BOTH.replace("poolRef: {name: stable}", "poolRef: {name: stabel}"), 'no InferencePool "default/stabel"'),
        (BOTH.replace("members: [", "objective: {}, members: ["), "spec.objective: not supported yet"),
        (BOTH.replace("members: [", "spill: {}, members: ["), "spec.spill: not supported yet"),
        (BOTH.replace("poolRef: {name: stable}, ", ""), "no InferencePool gives endpoints at Site east"),
        (BOTH.replace("kind: InferenceFleet, name: all", "kind: InferenceFleet, name: al"), "no InferenceFleet"),
        (BOTH.replace("{group: pointsman.dev, kind", "{group: inference.networking.k8s.io, kind"), "is not supported"),
        (BOTH + imported("nowhere"), 'no Site "nowhere"'),
        (BOTH.replace("[US], ", "[US], metrics: {url: 'ftp://x'}, "), "is not an address to ask"),
        (BOTH.replace(GATEWAY, "metrics: {url: 'http://x/metrics'}"), "is only read of sites behind a gateway"),
        (
            BOTH.replace("pointsman.dev/site: east\naddressType", "pointsman.dev/site: west\naddressType"),
            "through its gateway",
        ),
        (BOTH.replace("metadata: {name: all}", "metadata: {name: canary}"), "an InferencePool has the name"),
        (
            BOTH.replace("spec: {poolRef: {name: stable}, members", "spec: {residency: {required: [EU]}, members"),
            "is outside EU",
        ),
        (BOTH + fleet("spec: {}\n").replace("name: all", "name: none"), "has no sites"),
        (
            BOTH.replace("{name: stable}, members", "{name: stable}, appProtocol: kubernetes.io/h2c, members"),
            "speaks http",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(text: str, expected: str) -> None:
    found = problems(text)
    assert any(expected in one for one in found), found
    assert all(one.startswith("fleet.yaml:") for one in found)
