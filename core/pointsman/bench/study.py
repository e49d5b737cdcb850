"""Runs policies over scenarios and seeds, and finds GORGO's best weights: what the commands do, without a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pointsman.bench.catalogue import CATALOGUE, GORGO_BEST, GORGO_GRID, VARIANTS, Entry, gorgo_of
from pointsman.bench.measure import over_seeds, run, spread
from pointsman.bench.report import Row
from pointsman.bench.scenario import Scenario, Slice

Note = Callable[[str], None]

POLICIES = (*list(CATALOGUE)[:-1], GORGO_BEST, "oracle")
"""Names that are run when none is asked for, in the order of the tables."""


def best_gorgo(scenario: Scenario, note: Note) -> Entry:
    """The point of the grid with the least mean on the tuning slice (one seed): what its tuner could find at best."""
    tuning = scenario.on(Slice.TUNE)
    workload = tuning.build(0)
    means = {}
    for weights in GORGO_GRID:
        means[weights] = run(tuning.fleet, workload, gorgo_of(weights).make(0))[0].mean_ms
    best = min(means, key=lambda weights: means[weights])
    note(f"GORGO's grid on {tuning.title}: best {best[0]:g}/1/{best[1]:g}, mean {means[best]:.0f} ms")
    return gorgo_of(best)


def study(
    scenario: Scenario, policies: Sequence[str], seeds: Sequence[int], note: Note, *, scrape_ms: float = 200.0
) -> Iterator[Row]:
    """Each policy over the seeds of one scenario, in the order given, as they are done."""
    for name in policies:
        entry = best_gorgo(scenario, note) if name == GORGO_BEST else (CATALOGUE | VARIANTS)[name]
        period_ms = entry.scrape_ms or scrape_ms
        found = spread(over_seeds(scenario.fleet, scenario.build, entry.make, seeds, scrape_ms=period_ms))
        note(f"{scenario.title}: {entry.title}: mean {found['mean_ms'].mean:,.0f} ms")
        yield Row(
            scenario=scenario.title,
            policy=name,
            title=entry.title,
            scrape_ms=period_ms,
            seeds=tuple(seeds),
            spreads=found,
        )
