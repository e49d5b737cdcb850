"""Site after site, users assigned by the policy, and what an abort leaves: manifest, machine, Plan and state folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from config.config_fixtures import FLEET, manifests, problems
from pointsman.app.commands.rollout import rollout_lines
from pointsman.app.rollout_sight import counts
from pointsman.app.rollout_status import RolloutMetrics, rollout_json
from pointsman.app.rollout_words import weight_change
from pointsman.core.change import decide
from pointsman.core.compile import compile_plan
from pointsman.core.compile.assignments import UNASSIGNED
from pointsman.core.config import Manifests
from pointsman.core.matching import RequestHead, route_of
from pointsman.core.model import Gateway, Rule
from pointsman.core.overlay import EMPTY, Overlay, RuleOverlay
from pointsman.core.store import StateFolder, read_overlay, write_overlay
from pointsman.rollout import machine
from pointsman.rollout.capacity import PoolLoad, share_with
from pointsman.rollout.evidence import Evidence
from pointsman.rollout.manifest import spec_of
from pointsman.rollout.state import Command, Phase, Programmed, Report, SetWeight, SpecChanged, State, Tick, Verb

RULE = "HTTPRoute/default/chat/split"


def edge(name: str, site: str) -> str:
    gateway = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": name, "annotations": {"pointsman.dev/site": site} if site else {}},
        "spec": {
            "gatewayClassName": "pointsman",
            "addresses": [{"type": "IPAddress", "value": "127.0.0.2" if name == "west" else "127.0.0.3"}],
            "listeners": [{"name": "http", "port": 8080, "protocol": "HTTP"}],
        },
    }
    return "---\n" + yaml.safe_dump(gateway)


def site(name: str) -> str:
    return "---\n" + yaml.safe_dump(
        {"apiVersion": "pointsman.dev/v1alpha1", "kind": "Site", "metadata": {"name": name}}
    )


def document(**spec: Any) -> str:
    """Gateways at east, at west and at no site; a policy with `spec`."""
    policy = {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "RolloutPolicy",
        "metadata": {"name": "chat"},
        "spec": {
            "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "chat"}],
            "stable": {"name": "stable"},
            "canary": {"name": "canary"},
            "steps": [{"weight": "10%"}, {"weight": "100%"}],
            "sites": {"order": ["east", "west"], "bake": "60s"},
            **spec,
        },
    }
    everywhere = "  - {name: main, sectionName: http}\n  - {name: west}\n  - {name: lone}"
    fleet = FLEET.replace("  - name: main\n    sectionName: http", everywhere, 1)
    return fleet + site("west") + edge("west", "west") + edge("lone", "") + "---\n" + yaml.safe_dump(policy)


def started(found: Manifests) -> State:
    state, _ = machine.begin(spec_of(found.rollout_policies[0], compile_plan(found)), 0.0)
    return state


def advance(state: State, now_s: float) -> State:
    """Gateways have it, and a minute later nothing keeps it."""
    state, _ = machine.step(state, Programmed(weight=state.weight), now_s)
    for second in range(0, 61, 5):
        step = state.step
        state, _ = machine.step(state, Tick(), now_s + second)
        if state.step != step or not state.active:
            break
    return state


def overlaid(found: Manifests, state: State, overlay: Overlay = EMPTY) -> Overlay:
    plan = compile_plan(found, overlay)
    split = plan.split(RULE)
    assert split is not None
    return decide(overlay, plan, weight_change(split, state)).overlay


def canary_at(found: Manifests, overlay: Overlay) -> dict[str, int]:
    """The canary's weight at each gateway."""
    return {gateway.name: _canary(gateway) for gateway in compile_plan(found, overlay).gateways}


def _canary(gateway: Gateway) -> int:
    arms = _rule(gateway).arms
    assert sum(arm.weight for arm in arms) == 10_000
    return next(arm.weight for arm in arms if arm.pool == "default/canary")


def _rule(gateway: Gateway) -> Rule:
    rules = [rule for listener in gateway.listeners for host in listener.hosts for rule in host.rules]
    return next(rule for rule in rules if rule.name.startswith(RULE))


def test_every_step_at_one_site_and_then_at_the_next(tmp_path: Path) -> None:
    found = manifests(document())
    state = started(found)
    assert [(step.site, step.weight, step.pause_s) for step in state.spec.steps] == [
        ("east", 1_000, 0), ("east", 10_000, 60), ("west", 1_000, 0), ("west", 10_000, 0),
    ]  # fmt: skip
    seen, overlay, now_s = [], Overlay(), 0.0
    while state.active:
        overlay = overlaid(found, state, overlay)
        seen.append(canary_at(found, overlay))
        write_overlay(StateFolder(tmp_path), overlay)
        assert read_overlay(StateFolder(tmp_path)) == overlay, "a restart puts the same in force"
        now_s += 100
        state = advance(state, now_s)
    assert seen == [
        {"default/lone": 0, "default/main": 1_000, "default/west": 0},
        {"default/lone": 0, "default/main": 10_000, "default/west": 0},
        {"default/lone": 1_000, "default/main": 10_000, "default/west": 1_000},
        {"default/lone": 10_000, "default/main": 10_000, "default/west": 10_000},
    ]
    assert state.phase is Phase.COMPLETED
    split = compile_plan(found, overlaid(found, started(found))).split(RULE)
    assert split is not None
    assert [(where, [arm.effective for arm in arms]) for where, arms in split.sites] == [("east", [1_000, 9_000])]


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_an_abort_takes_it_back_at_every_site(steps: int) -> None:
    found = manifests(document())
    state = started(found)
    for number in range(steps):
        state = advance(state, 100.0 * (number + 1))
    state, effects = machine.step(state, Command(verb=Verb.UNDO), 1_000)
    assert SetWeight(weight=0) in effects
    assert set(canary_at(found, overlaid(found, state)).values()) == {0}


def test_the_command_tells_where_it_is() -> None:
    found = manifests(document())
    state = advance(advance(started(found), 100), 200)
    plan = compile_plan(found, overlaid(found, state))
    lines = rollout_lines(rollout_json(state, Evidence(), plan))
    assert "  step 3 of 4: east: 10 % → 100 % → [west: 10 %] → 100 %" in lines
    assert "  gateways at east 100 %, west 10 %" in lines


def test_no_single_weight_is_wanted_while_sites_differ() -> None:
    registry = CollectorRegistry()
    metrics = RolloutMetrics(registry)
    state = started(manifests(document()))

    def wanted() -> float | None:
        return registry.get_sample_value("pointsman_rollout_weight_ratio", {"policy": "default/chat"})

    metrics.show(state)
    assert wanted() is not None and math.isnan(wanted() or 0.0)
    metrics.show(machine.step(state, Command(verb=Verb.ABORT), 100)[0])
    assert wanted() == 0.0


def test_only_the_last_step_of_all_promotes() -> None:
    state = started(manifests(document()))
    state = advance(state, 100)
    assert (state.weight, state.phase) == (10_000, Phase.PROGRESSING)
    state = advance(advance(state, 200), 300)
    assert (state.current.site, state.weight, state.phase) == ("west", 10_000, Phase.PROMOTING)


def test_requests_of_the_site_in_turn_are_evidence() -> None:
    state = started(manifests(document()))
    assert [counts(state, where) for where in ("east", "west", "")] == [True, False, False]
    state = advance(advance(state, 100), 200)
    assert state.current.site == "west"
    assert [counts(state, where) for where in ("east", "west", "")] == [False, True, True], "who is nowhere goes last"


def test_an_edit_stays_at_its_site() -> None:
    state = advance(advance(started(manifests(document())), 100), 200)
    edited = manifests(document(steps=[{"weight": "5%"}, {"weight": "20%"}, {"weight": "100%"}]))
    spec = spec_of(edited.rollout_policies[0], compile_plan(edited))
    state, _ = machine.step(state, SpecChanged(spec=spec), 300)
    assert (state.current.site, state.weight, state.step) == ("west", 500, 3), "no more than what is in force"
    assert state.weight_at("east") == 10_000


def test_an_abort_may_leave_a_share_and_never_more_than_there_was() -> None:
    found = manifests(document(onAbort={"weight": "5%", "within": "2s"}))
    state = advance(started(found), 100)
    aborted, _ = machine.step(state, Command(verb=Verb.ABORT), 200)
    assert canary_at(found, overlaid(found, aborted)) == {"default/lone": 0, "default/main": 500, "default/west": 0}
    late = Programmed(weight=500, missing=("east-1",))
    aborted, effects = machine.step(aborted, late, 201)
    assert effects == []
    aborted, effects = machine.step(aborted, late, 202.5)
    assert effects == [Report(what="abort late", why="not everywhere after 2 s: east-1")]
    aborted, effects = machine.step(aborted, late, 204)
    assert effects == [], "told once"
    assert machine.step(aborted, Programmed(weight=500), 205)[0].phase is Phase.ABORTED
    found = manifests(document(sites=None, onAbort={"weight": "50%"}))
    aborted, _ = machine.step(started(found), Command(verb=Verb.ABORT), 200)
    assert aborted.weight == 1_000


def test_the_next_site_adds_to_what_the_canary_carries() -> None:
    def load(in_flight: int) -> PoolLoad:
        return PoolLoad(endpoints=1, in_flight=in_flight)

    assert share_with(load(50), load(50), 1_000) == 5_500
    assert share_with(load(0), load(0), 1_000) == 1_000


def test_users_are_assigned_by_the_policy() -> None:
    found = manifests(document(assignment={"by": {"header": "X-User-Id"}, "salt": "chat-2026-11"}))
    plan = compile_plan(found)
    assert {(_rule(g).hash_header, _rule(g).hash_salt) for g in plan.gateways} == {("x-user-id", "chat-2026-11")}
    split = plan.split(RULE)
    assert split is not None and split.sticky == "header x-user-id, salt chat-2026-11"
    by_cookie = compile_plan(manifests(document(assignment={"by": {"cookie": "user"}})))
    assert {_rule(g).hash_cookie for g in by_cookie.gateways} == {"user"}
    others = compile_plan(manifests(FLEET)).splits
    assert [one.sticky for one in others] == [""] * len(others)


def shares(assigned_by: dict[str, str], *headers: tuple[str, str], canary: int = 5_000) -> dict[str, int]:
    """Who gets how much of such a request, at a gateway with these weights, with `fallback: Stable`."""
    found = manifests(document(assignment={"by": assigned_by, "fallback": "Stable"}))
    weights = {"default/canary": canary, "default/stable": 10_000 - canary}
    plan = compile_plan(found, Overlay(rules=((RULE, RuleOverlay.of(weights)),), revision=1))
    gateway = next(g for g in plan.gateways if g.name == "default/west")
    head = RequestHead(host="h", path="/v1/models", headers=(("x-variant", "a"), *headers))
    rule = route_of(gateway.listeners[0], head).rule
    assert rule is not None
    return {arm.pool.removeprefix("default/"): arm.weight for arm in rule.arms}


@pytest.mark.parametrize(
    ("assigned_by", "known", "unknown"),
    [
        ({"header": "X-User-Id"}, [("x-user-id", "u"), ("x-user-id", "")], [(), ("cookie", "x-user-id=u")]),
        (
            {"cookie": "user"},
            [("cookie", "user=u"), ("cookie", "a=b; user=u; c=d")],
            [(), ("cookie", "a=b"), ("cookie", "superuser=u"), ("x-user-id", "u")],
        ),
    ],
)
def test_unknown_users_are_stables(
    assigned_by: dict[str, str], known: list[tuple[str, str]], unknown: list[tuple[str, str]]
) -> None:
    for header in known:
        assert shares(assigned_by, header) == {"canary": 5_000, "stable": 5_000}, header
    for header in unknown:
        assert shares(assigned_by, *([header] if header else [])) == {"canary": 0, "stable": 10_000}, header


def test_without_a_stable_pool_unknown_users_get_the_canary() -> None:
    assert shares({"header": "x-user-id"}, canary=10_000) == {"canary": 10_000, "stable": 0}


def test_twins_of_unknown_users_have_names_of_their_own() -> None:
    found = manifests(document(assignment={"by": {"cookie": "user"}, "fallback": "Stable"}))
    weights = {"default/canary": 100, "default/stable": 9_900}
    plan = compile_plan(found, Overlay(rules=((RULE, RuleOverlay.of(weights)),), revision=1))
    for gateway in plan.gateways:
        names = [rule.name for host in gateway.listeners[0].hosts for rule in host.rules]
        ours = [name for name in names if name.startswith(f"{RULE}/")]
        assert len(ours) == len(set(ours)) >= 3
        assert all(UNASSIGNED in name.rpartition("/")[2] for name in ours[:2]) and UNASSIGNED not in ours[2]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"assignment": {"by": {"header": "x"}, "fallback": "Canary"}}, "spec.assignment.fallback: "),
        ({"sites": {"order": ["eats"]}}, 'spec.sites.order[0]: no Site "eats" (did you mean "east"?)'),
        ({"sites": {"order": ["east", "east"]}}, 'spec.sites.order[1]: "east" is listed twice (list each site once)'),
        ({"sites": {"order": []}}, "spec.sites.order: "),
        ({"strategy": "Shadow"}, "spec.sites: does not belong to strategy Shadow (remove it)"),
        ({"assignment": {"by": {}}}, "spec.assignment.by: needs either header or cookie"),
        ({"onAbort": {"weight": "100%"}}, "spec.onAbort.weight: an abort that leaves everything is none"),
        ({"onAbort": {"within": "1ms"}}, 'spec.onAbort.within: "1ms" is too short'),
    ],
)
def test_complaints(spec: dict[str, Any], expected: str) -> None:
    assert any(expected in line for line in problems(document(**spec))), problems(document(**spec))


def test_a_site_without_a_gateway_is_told() -> None:
    text = document(sites={"order": ["east", "south"]}) + site("south")
    expected = "no Gateway with a route of this policy stands at south (annotate one with pointsman.dev/site: south"
    assert any(expected in line for line in problems(text)), problems(text)


def test_two_assignments_are_one_too_many() -> None:
    text = document(assignment={"by": {"header": "x-user-id"}}).replace(
        "metadata:\n  name: chat\nspec:\n  parentRefs",
        "metadata:\n  name: chat\n  annotations: {pointsman.dev/sticky-cookie: user}\nspec:\n  parentRefs", 1
    )  # fmt: skip
    assert any("has the annotation pointsman.dev/sticky-cookie, too" in line for line in problems(text)), problems(text)
