"""Arms that are models of one pool, in what operators see: one pool, its endpoints once, its arms apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from pointsman.app.exposure import Exposure
from pointsman.app.failover_samples import samples
from pointsman.app.hypothetical import AskBody, explain_request
from pointsman.app.planning import compare
from pointsman.app.pool_load import pool_load
from pointsman.app.traffic import Traffic
from pointsman.app.tree import fleet_tree
from pointsman.app.workers.frames import SetPlan
from pointsman.core.arm_names import target_of
from pointsman.core.clock import ManualClock
from pointsman.core.compile import compile_plan
from pointsman.core.config import load
from pointsman.core.model import Plan
from pointsman.core.overlay import EMPTY, RuleOverlay
from pointsman.extproc import Feedback, Picker
from pointsman.failover.model import Member

EXAMPLE = Path(__file__).parents[2] / "examples" / "models"
RULE = "HTTPRoute/default/chat/split"
OLD, NEW = "default/llama~review-v1", "default/llama~review-v2"
KEY = "127.0.4.11:8000"


def plan(weights: Mapping[str, int] | None = None) -> Plan:
    overlay = EMPTY.with_rule(RULE, RuleOverlay.of(weights)) if weights else EMPTY
    return compile_plan(load(EXAMPLE), overlay)


def ended(arm: str, **more: Any) -> Feedback:
    return Feedback(
        pick_id="", ended=True, upstream=KEY, status=200, cluster=arm, route=f"{RULE}/0", gateway="default/main", **more
    )


def test_arms_are_counted_apart_and_their_pool_as_one() -> None:
    clock, registry = ManualClock(), CollectorRegistry()
    traffic, exposure = Traffic(clock, plan), Exposure(registry)
    exposure.apply(plan())
    for arm in (OLD, OLD, NEW, f"{NEW}@~local"):
        traffic.feedback(ended(arm))
        exposure.feedback(ended(arm))
    assert dict(traffic.recent()) == {("default/llama", KEY): 4}
    for arm in (OLD, NEW):
        labels = {"rule": RULE, "pool": arm, "outcome": "ok"}
        assert registry.get_sample_value("pointsman_arm_requests_total", labels) == 2


def test_failover_judges_the_endpoints_of_the_pool() -> None:
    member = Member(pool="default/llama", site="us-east")
    [(found, sample)] = samples(ended(NEW, failed=True), {("default/llama", KEY): member}, 0.0)
    assert (found, sample.endpoint, sample.failed) == (member, KEY, True)


def test_a_plan_knows_that_arms_share_their_endpoints() -> None:
    found = compare(plan(), plan({NEW: 9_000, OLD: 1_000}), concurrent=100)
    [rule] = found["gateways"][0]["rules"]
    assert [(arm["pool"], arm["concurrent"], arm["load_per_endpoint"]) for arm in rule["arms"]] == [
        (NEW, 90, 1.0),
        (OLD, 10, 1.0),
    ]
    assert rule["moved_percent"] == 80
    assert found["warnings"] == []


def test_the_load_of_an_arm_is_that_of_its_pool() -> None:
    picker = Picker(ManualClock())
    picker.apply(plan())
    picker.table.requests[picker.table.row(KEY)] = 3
    assert pool_load(plan(), picker, NEW) == pool_load(plan(), picker, "default/llama")
    assert pool_load(plan(), picker, NEW).in_flight == 3


def test_the_tree_has_one_pool_with_the_shares_of_its_arms() -> None:
    pool = {"name": "default/llama", "model": "llama-3-8b", "protocol": "http"}
    endpoint = {"name": "llama-0", "key": KEY, "health": "UNKNOWN"}
    status = {
        "version": "1",
        "configuration": {"accepted": True, "problems": []},
        "sites": [{"name": "us-east", "draining": False}],
        "gateways": [],
        "pools": [pool | {"sites": [{"site": "us-east", "endpoints": [endpoint]}]}],
        "weights": [{"rule": RULE, "set_by": "", "effective": {NEW: 1_000, OLD: 9_000}}],
        "notes": [],
        "rollouts": [{"name": "default/chat", "stable": OLD, "canary": NEW, "phase": "Progressing"}],
        "xds": {"nodes": [], "gateways": []},
    }
    [found] = fleet_tree(status, {("default/llama", KEY): 4})["sites"][0]["pools"]
    shares = {target_of(NEW): 1_000, target_of(OLD): 9_000}
    assert found["weights"] == [{"rule": RULE, "weight": 10_000, "models": shares}]
    assert (found["rollout"]["role"], found["requests"]) == ("canary", 4)


def test_a_question_is_answered_with_the_name_that_the_model_server_gets() -> None:
    picker = Picker(ManualClock())
    picker.apply(plan())
    asked = AskBody(body='{"model": "review", "prompt": "x"}', headers=[("x-model-variant", "review-v2")])
    [pick] = explain_request(plan(), picker, asked)["picks"]
    assert (pick["pool"], pick["asked_model"], pick["model"]) == (NEW, "review", "review-v2")
    anybody = msgspec.structs.replace(asked, headers=[])
    picks = explain_request(plan(), picker, anybody)["picks"]
    assert [(one["pool"], one["model"]) for one in picks] == [(NEW, "review-v2"), (OLD, "review-v1")]


def test_picker_workers_get_the_names_too() -> None:
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(SetPlan(plan=plan())), type=SetPlan).plan
    assert sent == plan()
    picker = Picker(ManualClock())
    picker.apply(replace(sent, splits=()))
    renaming = picker.model_rules.rename(OLD, b'{"model":"review"}')
    assert renaming is not None
    assert renaming.body == b'{"model":"review-v1"}'
