"""`pointsman plan`: what a new folder would change, in numbers that are checked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from config.config_fixtures import spoiled
from config.plan_fixtures import endpoint_slice
from pointsman.app.cli import main
from pointsman.app.planning import compare
from pointsman.core.model import TOTAL_WEIGHT
from pointsman.core.overlay import Overlay, RuleOverlay
from pointsman.core.store import StateFolder, write_overlay
from weights.test_effective_weights import READY, RULE, annotated, plan_with

HALF = READY.replace("weight: 95", "weight: 5")


def changes(old: str, new: str, **more: Any) -> dict[str, Any]:
    return compare(plan_with(old, Overlay()), plan_with(new, Overlay()), **more)


def rule_of(found: dict[str, Any]) -> dict[str, Any]:
    (gateway,) = found["gateways"]
    (rule,) = gateway["rules"]
    assert rule["rule"] == RULE
    return dict(rule)


def test_nothing_changes() -> None:
    found = changes(READY, READY)
    assert (found["changes"], found["gateways"], found["pools"]) == (False, [], [])


def test_new_weights_are_one_route_and_a_share_of_the_requests() -> None:
    found = changes(READY, HALF)
    rule = rule_of(found)
    assert rule["before"] == {"default/canary": 500, "default/stable": 9_500}
    assert rule["after"] == {"default/canary": 5_000, "default/stable": 5_000}
    assert (rule["sticky"], rule["moved_percent"]) == (False, 45)
    assert found["gateways"][0]["resources"] == {"RDS": {"changed": ["default/main/127.0.0.1:8080"]}}


def test_users_of_a_sticky_split_move_by_the_difference_and_by_a_new_salt() -> None:
    old = annotated(READY, sticky_header="x-user-id", sticky_salt="a")
    assert rule_of(changes(old, annotated(HALF, sticky_header="x-user-id", sticky_salt="a")))["moved_percent"] == 45
    again = rule_of(changes(old, annotated(READY, sticky_header="x-user-id", sticky_salt="b")))
    assert (again["before"], again["moved_percent"]) == (again["after"], 9.5)


def test_endpoints_pools_and_gateways_come_and_go() -> None:
    more = READY.replace("- addresses: [10.0.0.2]", "- addresses: [10.0.0.3]")
    more = more.replace("name: main\n  annotations", "name: other\n  annotations").replace(
        "- name: main", "- name: other"
    )
    found = changes(READY, more)
    assert {(g["gateway"], g["state"]) for g in found["gateways"]} == {
        ("default/main", "removed"),
        ("default/other", "added"),
    }
    (pool,) = found["pools"]
    assert pool["endpoints_added"] == ["stable-east-1 10.0.0.3:8000"]
    assert pool["endpoints_removed"] == ["stable-east-1 10.0.0.2:8000"]


def test_an_endpoint_that_drains_is_told() -> None:
    found = changes(READY, READY.replace("state: Active", "state: Draining"))
    assert [pool["endpoints_changed"][0].rpartition(": ")[2] for pool in found["pools"]] == ["UNKNOWN → DRAINING"] * 3
    assert "EDS" in found["gateways"][0]["resources"]


def test_a_canary_that_cannot_carry_its_share() -> None:
    crowded = changes(READY, READY.replace("weight: 95", "weight: 1"))
    arms = {arm["pool"]: arm for arm in rule_of(crowded)["arms"]}
    assert (arms["default/canary"]["ready_endpoints"], arms["default/stable"]["ready_endpoints"]) == (1, 2)
    assert arms["default/canary"]["load_per_endpoint"] == pytest.approx(0.8333 * 3, abs=0.001)
    assert any("2.5 times the average" in warning for warning in crowded["warnings"])

    down = HALF.replace("addresses: [10.0.1.1]", "addresses: [10.0.1.1], conditions: {ready: false}")
    assert any("no ready endpoint for its 50 %" in warning for warning in changes(READY, down)["warnings"])

    small = HALF.replace("state: Active", "capacity: {maxConcurrent: 80}")
    found = changes(READY, small, concurrent=60)
    arms = {arm["pool"]: arm for arm in rule_of(found)["arms"]}
    assert (arms["default/canary"]["concurrent"], arms["default/canary"]["capacity"]) == (30, 20)
    assert any("30 requests at once, while its sites have room for 20" in warning for warning in found["warnings"])


def test_the_command(tmp_path: Path) -> None:
    for name, text in (("old", READY), ("new", HALF)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "fleet.yaml").write_text(text)
    words = ["plan", "-f", str(tmp_path / "new"), "--config", str(tmp_path / "old"), "--state", str(tmp_path / "state")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "45 % of the requests go elsewhere" in result.output
    assert "default/canary: 5 % → 50 %  (1 ready endpoints)" in result.output
    assert "RDS changed: default/main/127.0.0.1:8080" in result.output
    assert json.loads(CliRunner().invoke(main, [*words, "-o", "json"]).output)["changes"] is True

    set_before = Overlay().with_rule(RULE, RuleOverlay.of({"default/canary": TOTAL_WEIGHT, "default/stable": 0}))
    write_overlay(StateFolder(tmp_path / "state"), set_before)
    result = CliRunner().invoke(main, words)
    assert result.output.startswith("Gateways get nothing new"), "weights set at run time hold for both"

    (tmp_path / "new" / "fleet.yaml").write_text(
        spoiled(("weight: 5", "wieght: 5")) + endpoint_slice("east", "10.9.9.9", pool="canary")
    )
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    assert "wieght" in result.output
