"""Whole rollouts in virtual time; `bench/rollout/false_alarms.py` does a thousand of each."""

from __future__ import annotations

import pytest

from pointsman.rollout.rehearsal import ArmModel, World, rehearse
from pointsman.rollout.spec import Check, Comparison, Limit, Metric, RolloutSpec, Step
from pointsman.rollout.state import Phase

SPEC = RolloutSpec(
    name="d/r",
    rules=("x",),
    stable="d/s",
    canary="d/c",
    steps=(*(Step(weight=weight, pause_s=60) for weight in (200, 1_000, 5_000)), Step(weight=10_000)),
    checks=(
        Check(
            name="errors",
            limit=Limit(comparison=Comparison.DIFFERENCE, value=0.01),
            must_catch=Limit(comparison=Comparison.DIFFERENCE, value=0.04),
        ),
        Check(
            name="ttft",
            metric=Metric.TTFT,
            quantile=0.95,
            limit=Limit(comparison=Comparison.RATIO, value=1.2),
            must_catch=Limit(comparison=Comparison.RATIO, value=1.5),
        ),
    ),
)
ROLLOUTS = 15
REQUESTS_PER_S = 200.0


def phases(canary: ArmModel) -> list[Phase]:
    world = World(requests_per_s=REQUESTS_PER_S, canary=canary)
    return [rehearse(SPEC, world, seed).phase for seed in range(ROLLOUTS)]


@pytest.mark.parametrize(
    "canary",
    [ArmModel(), ArmModel(error_rate=0.015, ttft_ms=360.0), ArmModel(error_rate=0.0, ttft_ms=200.0)],
    ids=["same", "at both limits", "better"],
)
def test_good_canaries_arrive(canary: ArmModel) -> None:
    assert phases(canary) == [Phase.COMPLETED] * ROLLOUTS


@pytest.mark.parametrize(
    "canary",
    [ArmModel(error_rate=0.05), ArmModel(error_rate=1.0), ArmModel(ttft_ms=450.0), ArmModel(ttft_ms=1_100.0)],
    ids=["5 % errors", "100 % errors", "+50 % TTFT", "+800 ms TTFT"],
)
def test_bad_canaries_are_taken_back(canary: ArmModel) -> None:
    assert set(phases(canary)) <= {Phase.ABORTED, Phase.ABORTING}


def test_bad_canaries_hurt_few() -> None:
    found = rehearse(SPEC, World(requests_per_s=REQUESTS_PER_S, canary=ArmModel(error_rate=1.0)), 1)
    assert found.weight == 200, "it never got beyond the first step"
    assert found.failed < 40


def test_one_that_goes_bad_late_is_taken_back() -> None:
    world = World(requests_per_s=REQUESTS_PER_S, worse_from=5_000, worse=ArmModel(error_rate=0.1))
    found = rehearse(SPEC, world, 1)
    assert (found.phase, found.step, found.weight) == (Phase.ABORTED, 2, 5_000)


def test_without_requests_it_never_ends() -> None:
    found = rehearse(SPEC, World(requests_per_s=0.0), 1, limit_s=3_600)
    assert (found.phase, found.step) == (Phase.HOLDING, 0)
