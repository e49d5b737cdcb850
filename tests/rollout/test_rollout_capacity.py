"""Can the canary carry the next step?"""

from __future__ import annotations

import pytest

from pointsman.rollout.analysis import Verdict
from pointsman.rollout.capacity import PoolLoad, room
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
