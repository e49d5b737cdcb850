"""A preview says what a pick would, and leaves nothing behind."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.fleet import POOL, make_plan
from pointsman.core.clock import ManualClock
from pointsman.core.model import Health
from pointsman.extproc import Picker, PickPolicy, PickRequest
from pointsman.extproc.request import read_body

KEYS = [f"10.0.0.{n}:8000" for n in range(1, 5)]


def picker_of(policy: PickPolicy, *, health: dict[str, Health] | None = None) -> Picker:
    picker = Picker(ManualClock(), policy=policy)
    picker.apply(make_plan({"near": KEYS[:2], "far": KEYS[2:]}, health=health))
    return picker


def asking(text: str, pool: str = POOL) -> PickRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return PickRequest(pool=pool, body=read_body(json.dumps(body).encode()), affinity="somebody")


@pytest.mark.parametrize("policy", [PickPolicy.JOINT, PickPolicy.ROUND_ROBIN, PickPolicy.LEAST_OUTSTANDING])
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=12))
def test_the_next_pick_is_what_was_previewed(policy: PickPolicy, prompts: list[int]) -> None:
    picker = picker_of(policy)
    for number in prompts:
        request = asking(f"{number} " * 600)
        before = picker.stats(), len(picker.recent())
        previews = [picker.preview(request) for _ in range(2)]
        assert (picker.stats(), len(picker.recent())) == before
        made = picker.pick(request)
        for preview in previews:
            assert preview.pick_id == ""
            assert replace(preview, pick_id=made.pick_id).explain() == made.explain()


def test_refusals_are_previewed_too() -> None:
    picker = picker_of(PickPolicy.JOINT, health=dict.fromkeys(KEYS, Health.UNHEALTHY))
    found = picker.preview(asking("hello"))
    assert (found.status, found.reason, found.endpoints) == (503, "no-ready-endpoint", ())
    assert picker.preview(asking("hello", "default/other")).reason == "unknown-pool"
    assert picker.stats().refused == 0 and picker.recent() == ()
