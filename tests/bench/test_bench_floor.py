"""The floor under a mean TTFT, and what one shared cache would hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from click.testing import CliRunner

from bench.conftest import small_fleet
from pointsman.bench.balancers import RoundRobin
from pointsman.bench.cli import floor_command
from pointsman.bench.floor import floor, shared_cache
from pointsman.bench.measure import zero_load_ms
from pointsman.bench.simulate import Simulation
from pointsman.bench.workload import Workload


def test_one_request_alone_pays_the_floor_and_nothing_else(minute: Workload) -> None:
    fleet = small_fleet()
    alone = replace(minute, arrivals=minute.arrivals[:1], warm_up_ms=0.0)
    outcomes = Simulation(fleet, alone.arrivals, RoundRobin(seed=0)).run()
    found = floor(fleet, alone, outcomes)
    assert found.rest_ms == pytest.approx(0.0, abs=0.5)
    arrival, replica = outcomes[0].arrival, outcomes[0].replica
    away_ms = fleet.rtt(arrival.gateway, replica) - fleet.rtt(arrival.gateway, fleet.local[arrival.gateway][0])
    assert found.own_ms + found.wire_ms == pytest.approx(
        zero_load_ms(fleet, arrival.gateway, arrival.input_tokens) + away_ms, abs=0.5
    )


def test_what_waits_is_not_in_the_floor(minute: Workload) -> None:
    fleet = small_fleet()
    outcomes = Simulation(fleet, minute.arrivals, RoundRobin(seed=0)).run()
    found = floor(fleet, replace(minute, warm_up_ms=0.0), outcomes)
    assert 0.0 < found.own_ms < found.mean_ms
    assert found.rest_ms > 0.0
    with pytest.raises(ValueError, match="warm-up"):
        floor(fleet, replace(minute, warm_up_ms=1e12), outcomes)


def test_a_shared_cache_holds_what_was_asked_last(minute: Workload) -> None:
    fleet = small_fleet()
    one = minute.arrivals[0]
    blocks = len(one.full_blocks)
    twice = replace(minute, arrivals=(one, replace(one, id=1)), warm_up_ms=0.0)
    whole = shared_cache(fleet, twice)
    assert whole == pytest.approx(min(blocks, (one.input_tokens - 1) // 512) * 512 / (2 * one.input_tokens))
    assert shared_cache(fleet, twice, times=0.0) == 0.0
    assert shared_cache(fleet, minute, times=100.0) >= shared_cache(fleet, minute, times=0.1)


def test_the_command_tells_the_parts() -> None:
    result = CliRunner().invoke(floor_command, ["--duration", "6", "--seeds", "1"])
    assert result.exit_code == 0, result.output
    assert "own prefill" in result.output
    assert "one shared cache" in result.output
