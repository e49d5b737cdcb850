"""Fits the constants of the cost model on the tuning slice: one constant after the other, over a small grid each.

The measure is the geometric mean over the scenarios of mean TTFT, each against the same scenario with the constants as
they were, so that no scenario outweighs another by being slow. A step must gain `MIN_GAIN`: seeds differ by 1 to 3 %,
and constants should not follow noise. Nothing is read from the reporting slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from pointsman.bench.joint import Joint, Wiring
from pointsman.bench.measure import over_seeds, spread
from pointsman.bench.scenario import Scenario
from pointsman.extproc.cost import CostModel

MIN_GAIN = 0.003
"""What a change must gain in the measure to be taken."""

GRID: dict[str, tuple[float, ...]] = {
    "rtt_weight": (1.0, 1.5, 2.0, 3.0, 4.0),
    "shadow_base": (0.0, 0.5, 1.0),
    "shadow_weight": (0.0, 0.5, 1.0, 2.0, 4.0),
    "stick_weight": (0.0, 0.5, 1.0, 2.0),
    "decode_ms_per_request": (0.0, 0.02, 0.1, 0.3),
    "residence_ms": (5_000.0, 10_000.0, 20_000.0),
}
"""The constants without a physical value of their own, or with one that the fleet may bend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One set of constants: `measure` (1.0: as good as the old ones) and mean TTFT in ms of each scenario."""

    model: CostModel
    measure: float
    means_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The constants found, and how the old and the new ones do on the slice that was not used."""

    before: CostModel
    after: CostModel
    trials: tuple[Trial, ...]


Measure = Callable[[CostModel], tuple[float, ...]]


def means(scenarios: Sequence[Scenario], seeds: Sequence[int], wirings: Sequence[Wiring]) -> Measure:
    """Mean TTFT in ms of a cost model in each scenario with each wiring."""

    def measure(model: CostModel) -> tuple[float, ...]:
        return tuple(
            spread(
                over_seeds(scenario.fleet, scenario.build, lambda _seed, w=wiring: Joint(model, w), seeds)  # type: ignore[misc]
            )["mean_ms"].mean
            for scenario in scenarios
            for wiring in wirings
        )

    return measure


def fit(
    measure: Measure,
    start: CostModel,
    *,
    grid: dict[str, tuple[float, ...]] | None = None,
    passes: int = 1,
    note: Callable[[str], None] = lambda _text: None,
) -> Fitted:
    """Coordinate search from `start`; ends early after a pass that changed nothing."""
    reference = measure(start)
    best = Trial(model=start, measure=1.0, means_ms=reference)
    trials = [best]
    for _ in range(passes):
        before = best
        for name, values in (grid or GRID).items():
            for value in values:
                if value == getattr(best.model, name):
                    continue
                model = CostModel(**{**asdict(best.model), name: value})
                found = measure(model)
                trial = Trial(model=model, measure=_geometric(found, reference), means_ms=found)
                trials.append(trial)
                taken = trial.measure < best.measure - MIN_GAIN
                note(f"{name} = {value:g}: {trial.measure:.4f}{' taken' if taken else ''}")
                if taken:
                    best = trial
        if best is before:
            break
    return Fitted(before=start, after=best.model, trials=tuple(trials))


def _geometric(found: Sequence[float], reference: Sequence[float]) -> float:
    return math.exp(math.fsum(math.log(a / b) for a, b in zip(found, reference, strict=True)) / len(found))
