"""Can the canary carry the next step?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from pointsman.app.rollout_sight import Ceilings, ceilings
from pointsman.core.model import TOTAL_WEIGHT, Plan, Split, SplitArm
from pointsman.rollout.analysis import Verdict
from pointsman.rollout.capacity import PoolLoad, ceiling, room
from pointsman.rollout.spec import CapacityGate, Strategy
from pointsman.rollout.state import State

SLOTS = CapacityGate(min_free=0.2, slots_per_endpoint=10)
CACHES = CapacityGate(min_free=0.2)


def load(endpoints: int, in_flight: int | None, used: float | None = None, size: float | None = None) -> PoolLoad:
    return PoolLoad(endpoints=endpoints, in_flight=in_flight, kv_used_tokens=used, kv_tokens=size)


@pytest.mark.parametrize(
    ("gate", "stable", "canary", "weight", "expected"),
    [
        (SLOTS, load(4, 28), load(2, 4), 5_000, Verdict.GOOD),  # 16 of 20: 20 % stay free
        (SLOTS, load(4, 30), load(2, 4), 5_000, Verdict.BAD),  # 17 of 20
        (SLOTS, load(4, 28), load(0, 0), 1, Verdict.BAD),  # nobody is there
        (SLOTS, load(4, None), load(2, None), 100, Verdict.NO_DATA),
        (CACHES, load(4, 28), load(2, 4), 5_000, Verdict.NO_DATA),
        (CACHES, load(4, 0, 700.0, 4_000.0), load(2, 0, 100.0, 500.0), 5_000, Verdict.GOOD),
        (CACHES, load(4, 0, 701.0, 4_000.0), load(2, 0, 100.0, 500.0), 5_000, Verdict.BAD),
        (SLOTS, load(4, 2, 701.0, 4_000.0), load(2, 0, 100.0, 500.0), 5_000, Verdict.BAD),  # the fullest counts
    ],
)
def test_room(gate: CapacityGate, stable: PoolLoad, canary: PoolLoad, weight: int, expected: Verdict) -> None:
    found = room(gate, stable, canary, weight)
    assert found.verdict is expected, found
    assert found.why


@pytest.mark.parametrize(
    ("gate", "stable", "canary", "alone", "expected"),
    [
        (SLOTS, load(4, 30), load(2, 2), None, 5_000),  # 16 of the 32 that both carry
        (SLOTS, load(4, 3), load(2, 1), None, TOTAL_WEIGHT),
        (SLOTS, load(4, 0), load(2, 16), 0.5, 5_000),  # half of all are 16: all would be 32
        (SLOTS, load(4, 0), load(2, 16), None, TOTAL_WEIGHT),
        (SLOTS, load(4, None), load(2, None), None, TOTAL_WEIGHT),
        (SLOTS, load(4, 0), load(2, 0), 0.5, TOTAL_WEIGHT),
        (SLOTS, load(4, 30), load(0, 0), None, TOTAL_WEIGHT),  # nobody is there to be spared
        (CACHES, load(4, 0, 700.0, 4_000.0), load(2, 0, 100.0, 500.0), None, 5_000),
        (SLOTS, load(4, 30, 700.0, 4_000.0), load(2, 2, 300.0, 500.0), None, 4_000),  # the fullest counts
    ],
)
def test_ceiling(gate: CapacityGate, stable: PoolLoad, canary: PoolLoad, alone: float | None, expected: int) -> None:
    assert ceiling(gate, stable, canary, canary_alone=alone) == expected


def test_an_outage_that_has_just_begun_does_not_send_the_canary_everything() -> None:
    """The canary's share has risen sixfold, what it carries has not yet: all requests seem to be few."""
    spec = SimpleNamespace(capacity=SLOTS, strategy=Strategy.CANARY, rules=("rule",), stable="stable", canary="canary")
    state = cast(State, SimpleNamespace(spec=spec, active=True))
    limits: Ceilings = {}

    def tick(canary: int, stable: int, effective: int, *, down: bool) -> int:
        nonlocal limits
        arms = (
            SplitArm(pool="canary", declared=500, decided=500, effective=effective),
            SplitArm(pool="stable", declared=9_500, decided=9_500, effective=0, unavailable="down" if down else ""),
        )
        plan = Plan(splits=(Split(rule="rule", arms=arms),))
        loads = {"stable": load(4, stable), "canary": load(2, canary)}
        limits = ceilings(state, plan, loads.__getitem__, limits)
        return limits.get(("rule", "canary"), TOTAL_WEIGHT)

    assert tick(3, 50, 500, down=False) == 3_000  # 16 of 53
    assert tick(4, 0, 3_000, down=True) == 3_500  # not all, although they seem to be 13
    assert tick(18, 0, 3_500, down=True) == 3_000  # 16 of 51
    assert tick(15, 0, 3_000, down=True) == 3_000
    assert tick(5, 0, 3_000, down=True) == 3_500, "there are fewer now: it rises from tick to tick"
    assert tick(3, 5, 500, down=False) == TOTAL_WEIGHT
