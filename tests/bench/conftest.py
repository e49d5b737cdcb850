"""A fleet that stands still, for asking a policy what it would do, and small workloads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from pointsman.bench.fleet import Fleet, Region
from pointsman.bench.policy import Sample
from pointsman.bench.workload import Arrival, Sessions, Workload
from pointsman.sim.engine import Engine

BLOCK = 512


class Still:
    """A world at a moment that the test chooses; nothing moves by itself."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.now_ms = 0.0
        self.engines: Sequence[Engine] = [Engine(fleet.engine_config(n)) for n in range(fleet.size)]
        self.wires: dict[int, list[Arrival]] = {}

    def flying(self, replica: int) -> Sequence[Arrival]:
        return self.wires.get(replica, [])

    def later(self, at_ms: float, action: Callable[[], None]) -> None:
        raise AssertionError("nothing is to happen later here")


def small_fleet(**options: int) -> Fleet:
    """Two regions of two replicas, 2 ms inside and 80 ms between them: replicas 0 and 1 in east, 2 and 3 in west."""
    regions = (Region(name="east", replicas=2), Region(name="west", replicas=2, usd_per_gpu_hour=5.0))
    return Fleet(regions=regions, rtt_ms=((2.0, 80.0), (80.0, 2.0)), **options)


def asking(number: int, tokens: int = 1024, *, gateway: int = 0, block: int | None = None, session: int = 0) -> Arrival:
    """A prompt of whole blocks of its own, or of those that begin with `block`."""
    first = 1_000 * (number + 1) if block is None else block
    return Arrival(
        id=number,
        at_ms=0.0,
        gateway=gateway,
        input_tokens=tokens,
        output_tokens=10,
        blocks=tuple(range(first, first + -(-tokens // BLOCK))),
        session=session,
    )


def sample(waiting: int = 0, running: int = 0, kv_usage: float = 0.0) -> Sample:
    return Sample(waiting, running, kv_usage)


@pytest.fixture
def still() -> Still:
    return Still(small_fleet())


@pytest.fixture(scope="session")
def minute() -> Workload:
    """Half a minute of multi-turn sessions at two gateways: 300 requests."""
    return Sessions(rate=10.0, duration_s=30.0, shares=(2.0, 1.0)).build(3)
