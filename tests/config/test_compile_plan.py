"""The Plan as a whole: the example, pools seen from a site, listeners."""

from __future__ import annotations

import json
import os
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from config.config_fixtures import EXAMPLE, FLEET, problems, spoiled
from config.plan_fixtures import SITES, endpoint_slice, plan_of, pool_of
from pointsman.core.compile import compile_plan
from pointsman.core.config import load
from pointsman.core.model import AppProtocol, FailureMode, Health

GOLDEN = Path(__file__).parent / "golden" / "two-sites.json"


def told(value: Any) -> Any:
    """A plan as plain values, without the fields that have their defaults."""
    if isinstance(value, tuple):
        return [told(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, Enum):
        return value.value
    if not is_dataclass(value):
        return value
    return {f.name: told(getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) != f.default}


def test_the_example_compiles_to_its_golden_plan() -> None:
    text = json.dumps(told(compile_plan(load(EXAMPLE))), indent=1) + "\n"
    if os.environ.get("POINTSMAN_REWRITE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


class TestPools:
    FAR = SITES + "".join(
        endpoint_slice(site, f"10.0.{number}.1") for number, site in enumerate(["north", "far", "again", "west"], 1)
    )

    def test_near_sites_come_first(self) -> None:
        text = spoiled(("  state: Active", "  rttMs: {west: 10.5}")) + self.FAR
        plan = plan_of(text)
        groups = pool_of(plan.gateways[0]).groups
        assert [(g.site, g.priority, g.weight) for g in groups] == [
            ("east", 0, 2),
            ("west", 1, 1),
            ("north", 2, 1),
            ("again", 3, 1),
            ("far", 4, 7),
        ]
        everywhere = pool_of(plan).groups
        assert [(g.site, g.priority) for g in everywhere] == [(s, 0) for s in ("again", "east", "far", "north", "west")]

    def test_priorities_have_no_gaps(self) -> None:
        text = spoiled(("pointsman.dev/site: east}", "pointsman.dev/site: west}"))
        text += SITES + endpoint_slice("north", "10.0.1.1", pool="canary")
        assert [(g.site, g.priority) for g in pool_of(plan_of(text).gateways[0]).groups] == [("east", 0)]
        canary = pool_of(plan_of(text).gateways[0], "default/canary")
        assert [(g.site, g.priority) for g in canary.groups] == [("north", 0)]

    def test_without_a_site_of_its_own_a_gateway_prefers_none(self) -> None:
        text = spoiled(("  annotations: {pointsman.dev/site: east}\n", "")) + self.FAR
        assert {g.priority for g in pool_of(plan_of(text).gateways[0]).groups} == {0}

    @pytest.mark.parametrize(
        ("conditions", "health"),
        [
            ("{}", Health.UNKNOWN),
            ("{ready: true}", Health.UNKNOWN),
            ("{ready: null}", Health.UNKNOWN),
            ("{ready: false}", Health.UNHEALTHY),
            ("{ready: false, serving: true, terminating: true}", Health.DRAINING),
            ("{ready: false, serving: false, terminating: true}", Health.UNHEALTHY),
            ("{terminating: true}", Health.DRAINING),
        ],
    )
    def test_conditions_are_health(self, conditions: str, health: Health) -> None:
        text = spoiled(("- addresses: [10.0.0.1]", f"- {{addresses: [10.0.0.1], conditions: {conditions}}}"))
        assert pool_of(plan_of(text)).endpoints()[0].health is health

    @pytest.mark.parametrize("state", ["Draining", "Evacuated"])
    def test_a_draining_site_drains_its_endpoints_but_revives_none(self, state: str) -> None:
        text = spoiled(
            ("state: Active", f"state: {state}"),
            ("- addresses: [10.0.0.1]", "- {addresses: [10.0.0.1], conditions: {ready: false}}"),
        )
        plan = plan_of(text)
        assert plan.sites[0].draining
        assert [e.health for e in pool_of(plan).endpoints()] == [Health.UNHEALTHY, Health.DRAINING]

    def test_endpoints_have_names_keys_and_labels(self) -> None:
        text = spoiled(
            ("    pointsman.dev/site: east\n", "    pointsman.dev/site: east\n    gpu: h100\n"),
            ("- addresses: [10.0.0.1]", "- {addresses: [10.0.0.1], zone: b, targetRef: {kind: Pod, name: pod-1}}"),
            ("ports: [{port: 8000}]", "ports: [{port: 8000}, {name: rank1, port: 8001}]"),
        )
        named = {endpoint.key: endpoint for endpoint in pool_of(plan_of(text)).endpoints()}
        assert {key: endpoint.name for key, endpoint in named.items()} == {
            "10.0.0.1:8000": "pod-1-8000",
            "10.0.0.1:8001": "pod-1-8001",
            "10.0.0.2:8000": "stable-east-1-8000",
            "10.0.0.2:8001": "stable-east-1-8001",
        }
        assert named["10.0.0.1:8000"].labels == (("gpu", "h100"), ("topology.kubernetes.io/zone", "b"))

    def test_without_ports_the_target_ports_of_the_pool_hold(self) -> None:
        text = spoiled(("ports: [{port: 8000}]\n", ""), ("[{number: 8000}]", "[{number: 8000}, {number: 8001}]"))
        assert [e.port for e in pool_of(plan_of(text)).endpoints()] == [8000, 8001, 8000, 8001]

    def test_addresses_are_spelt_in_one_way(self) -> None:
        text = spoiled(("IPv4", "IPv6"), ("10.0.0.1", "FD00:0::1"), ("10.0.0.2", "fd00::2"))
        assert [e.key for e in pool_of(plan_of(text)).endpoints()] == ["[fd00::1]:8000", "[fd00::2]:8000"]
        twice = spoiled(("IPv4", "IPv6"), ("10.0.0.1", "FD00:0::1"), ("10.0.0.2", "fd00::1"))
        assert "fd00::1 port 8000 is in pool default/stable twice" in problems(twice)[0]

    def test_what_a_pool_says_of_itself(self) -> None:
        text = spoiled(
            (
                "  name: stable\nspec:\n",
                "  name: stable\n  annotations: {pointsman.dev/model: m, pointsman.dev/health-path: /up}\nspec:\n"
                "  endpointPickerRef: {name: epp, port: {number: 9002}}\n",
            ),
            (
                "  name: canary\nspec:\n",
                "  name: canary\nspec:\n  endpointPickerRef: {name: e, failureMode: FailOpen}\n",
            ),
        )
        pools = {pool.name: pool for pool in plan_of(text).pools}
        stable = pools["default/stable"]
        assert (stable.model, stable.health_path, stable.failure_mode) == ("m", "/up", FailureMode.FAIL_CLOSE)
        assert pools["default/canary"].failure_mode is FailureMode.FAIL_OPEN
        assert pools["default/stream"].failure_mode is FailureMode.FAIL_OPEN
        assert pools["default/stream"].app_protocol is AppProtocol.H2C
        assert pools["default/stream"].groups == ()


class TestListeners:
    def test_listeners_bind_loopback_unless_told_otherwise(self) -> None:
        assert [(found.name, found.address) for found in plan_of(FLEET).gateways[0].listeners] == [
            ("127.0.0.1:8080", "127.0.0.1"),
            ("127.0.0.1:8081", "127.0.0.1"),
        ]

    def test_addresses_then_the_annotation_say_where_to_bind(self) -> None:
        addresses = "  addresses: [{value: 10.0.0.9}, {type: IPAddress, value: 'FD00::9'}]\n  listeners:\n"
        text = spoiled(("  listeners:\n", addresses))
        names = [found.name for found in plan_of(text).gateways[0].listeners]
        assert names == ["10.0.0.9:8080", "10.0.0.9:8081", "[fd00::9]:8080", "[fd00::9]:8081"]
        text = text.replace("site: east}", "site: east, pointsman.dev/bind-address: 0.0.0.0}", 1)
        assert [found.address for found in plan_of(text).gateways[0].listeners] == ["0.0.0.0", "0.0.0.0"]

    def test_a_change_of_weights_changes_rules_only(self) -> None:
        before, after = plan_of(FLEET).gateways[0], plan_of(spoiled(("weight: 5\n", "weight: 50\n"))).gateways[0]
        assert before != after
        assert before.pools == after.pools
        assert [found.name for found in before.listeners] == [found.name for found in after.listeners]
        assert before.listeners[1] == after.listeners[1]

    def test_gateways_of_other_sites_may_use_the_same_port(self) -> None:
        second = "---\n" + FLEET.split("---\n")[0].replace("name: main", "name: second")
        public = ("pointsman.dev/site: east}", "pointsman.dev/site: east, pointsman.dev/bind-address: 0.0.0.0}")
        at_west = second.replace("site: east}", "site: west, pointsman.dev/bind-address: 0.0.0.0}")
        assert problems(spoiled(public) + at_west + SITES) == []
        assert len(problems(spoiled(public) + at_west.replace("site: west", "site: east"))) == 2
        assert len(problems(FLEET + second.replace("site: east}", "site: west}") + SITES)) == 2
        one_address = second.replace("site: east}", "site: east, pointsman.dev/bind-address: 10.0.0.9}")
        assert problems(FLEET + one_address) == []
        assert len(problems(spoiled(public) + one_address)) == 2


def test_a_fleet_without_routes_serves_nothing_and_keeps_its_listeners() -> None:
    text = "---\n".join(part for part in FLEET.split("---\n") if "Route\n" not in part)
    plan = plan_of(text)
    assert [found.hosts for found in plan.gateways[0].listeners] == [(), ()]
    assert plan.gateways[0].pools == ()
    assert len(plan.pools) == 3
