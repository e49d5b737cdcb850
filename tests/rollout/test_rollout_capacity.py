"""Can the canary carry the next step?"""

from __future__ import annotations

import pytest

from pointsman.core.model import TOTAL_WEIGHT
from pointsman.rollout.analysis import Verdict
from pointsman.rollout.capacity import PoolLoad, ceiling, room
from pointsman.rollout.spec import CapacityGate

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
