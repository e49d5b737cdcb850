"""The commands of `pointsman bench`."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import Console

from pointsman.bench.catalogue import CATALOGUE, VARIANTS
from pointsman.bench.document import write_into
from pointsman.bench.fit import Fitted, Trial, fit, means
from pointsman.bench.floor import floor, shared_cache
from pointsman.bench.joint import PRODUCTION, Wiring
from pointsman.bench.kinds import KINDS, TIME_SCALES
from pointsman.bench.measure import run
from pointsman.bench.plots import write_plots
from pointsman.bench.regret import WORST_SHARE, Judged, regrets
from pointsman.bench.report import as_json, markdown, table
from pointsman.bench.results import load_rows, merged, missing, save_rows
from pointsman.bench.scenario import Scenario, Slice
from pointsman.bench.study import POLICIES, study
from pointsman.core.errors import PointsmanError
from pointsman.extproc.cost import CostModel

EXIT_REFUSED: Final = 1
ORDER: Final = (*POLICIES, *VARIANTS)
TABLE_COLUMNS: Final = 190
LOADS: Final = [str(load) for load in TIME_SCALES]


@click.command("policy", context_settings={"show_default": True})
@click.option("--trace", type=click.Path(path_type=Path), help="Trace in Mooncake's format, for A and B.")
@click.option(
    "--workload", "workloads", multiple=True, type=click.Choice(list(KINDS)), default=["C"], help="Repeatable."
)
@click.option("--load", "loads", multiple=True, type=click.Choice(LOADS), default=["77"], help="% of what RR can do.")
@click.option(
    "--policy", "policies", multiple=True, type=click.Choice([*POLICIES, *VARIANTS]), help="Repeatable; all by default."
)
@click.option("--robustness", is_flag=True, help="Our own policy with late scrapes and wrong rates against itself.")
@click.option(
    "--slice", "part", type=click.Choice([s.value for s in Slice]), default="report", help="Part of the trace."
)
@click.option("--seeds", type=click.IntRange(1, 100), default=3, help="How many runs of each policy.")
@click.option("--scrape-ms", type=click.FloatRange(1, 60_000), default=200.0, help="Between two scrapes of a replica.")
@click.option("--duration", "duration_s", type=click.FloatRange(1, 900), default=900.0, help="Seconds of the slice.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures here, row by row.")
@click.option("--add", is_flag=True, help="Keep the rows that the --json file has and run only those that it lacks.")
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False), help="Write SVG plots into this folder.")
@click.option("--docs", type=click.Path(path_type=Path, exists=True), help="Write the tables into this page.")
@click.option(
    "-o", "output", type=click.Choice(["table", "json", "markdown"]), default="table", help="On standard output."
)
def policy_command(
    *,
    trace: Path | None,
    workloads: tuple[str, ...],
    loads: tuple[str, ...],
    policies: tuple[str, ...],
    robustness: bool,
    part: str,
    seeds: int,
    scrape_ms: float,
    duration_s: float,
    json_file: Path | None,
    add: bool,
    plots: Path | None,
    docs: Path | None,
    output: str,
) -> None:
    """Compare routing policies on traces, in virtual time. All figures are simulated.

    \b
    Example:
      pointsman bench policy --workload C --policy joint --policy llm-d --seeds 1
    """
    console, notes = Console(width=TABLE_COLUMNS), Console(stderr=True)
    names = policies or (("joint", *VARIANTS) if robustness else POLICIES)
    if add and json_file is None:
        raise click.UsageError("--add goes on with the file of --json, and none is named")
    try:
        scenarios = [
            Scenario(workload=w, load=int(load), part=Slice(part), trace=trace, duration_s=duration_s)
            for w in workloads
            for load in loads
        ]
        rows = load_rows(json_file) if add and json_file is not None else []
        for scenario in scenarios:
            due = missing(rows, scenario.title, names, range(seeds)) if add else names
            for row in study(
                scenario, due, range(seeds), lambda text: notes.print(text, style="dim"), scrape_ms=scrape_ms
            ):
                rows = merged(rows, [row], ORDER)
                if json_file is not None:
                    save_rows(json_file, rows)
            found = [row for row in rows if row.scenario == scenario.title and row.policy in names]
            if output == "table":
                console.print(table(scenario.title, found))
            elif output == "markdown":
                click.echo(f"### {scenario.title} (simulated)\n\n{markdown(found)}")
        if docs is not None:
            write_into(docs, rows, VARIANTS)
    except PointsmanError as error:
        click.echo(f"pointsman bench policy: {error}", err=True)
        sys.exit(EXIT_REFUSED)
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(as_json(rows))).decode())
    if plots is not None:
        for path in write_plots(plots, [row for row in rows if row.policy not in VARIANTS]):
            notes.print(f"written: {path}", style="dim")


@click.command("fit", context_settings={"show_default": True})
@click.option("--trace", type=click.Path(path_type=Path), help="Trace in Mooncake's format, for A and B.")
@click.option(
    "--workload", "workloads", multiple=True, type=click.Choice(list(KINDS)), default=["C"], help="Repeatable."
)
@click.option("--load", "loads", multiple=True, type=click.Choice(LOADS), default=["77", "92"], help="Repeatable.")
@click.option("--seeds", type=click.IntRange(1, 100), default=1, help="Runs of each trial.")
@click.option("--passes", type=click.IntRange(1, 10), default=1, help="Rounds through the constants.")
@click.option("--production/--shared", default=True, help="Three pickers fed by the access log, or one shared state.")
@click.option("--duration", "duration_s", type=click.FloatRange(1, 900), default=900.0, help="Seconds of each slice.")
def fit_command(
    *,
    trace: Path | None,
    workloads: tuple[str, ...],
    loads: tuple[str, ...],
    seeds: int,
    passes: int,
    production: bool,
    duration_s: float,
) -> None:
    """Fit the constants of the cost model on the tuning slice and judge them on the other. Simulated.

    \b
    Example:
      pointsman bench fit --workload C --load 77
    """
    notes = Console(stderr=True)
    try:
        scenarios = [
            Scenario(workload=w, load=int(load), part=Slice.TUNE, trace=trace, duration_s=duration_s)
            for w in workloads
            for load in loads
        ]
        wirings = [PRODUCTION if production else Wiring()]
        found = fit(
            means(scenarios, range(seeds), wirings),
            CostModel(),
            passes=passes,
            note=lambda text: notes.print(text, style="dim"),
        )
        judge = means([scenario.on(Slice.REPORT) for scenario in scenarios], range(seeds), wirings)
        old_ms = judge(found.before)
        new_ms = judge(found.after) if found.after != found.before else old_ms
    except PointsmanError as error:
        click.echo(f"pointsman bench fit: {error}", err=True)
        sys.exit(EXIT_REFUSED)
    for line in fit_lines(found, scenarios, old_ms, new_ms):
        click.echo(line)


def fit_lines(
    found: Fitted, scenarios: list[Scenario], old_ms: tuple[float, ...], new_ms: tuple[float, ...]
) -> list[str]:
    """The result for people: what changed, and mean TTFT on both slices."""
    changed = [
        f"{f.name}: {getattr(found.before, f.name):g} → {getattr(found.after, f.name):g}"
        for f in fields(CostModel)
        if getattr(found.before, f.name) != getattr(found.after, f.name)
    ]
    best: Trial = min((t for t in found.trials if t.model == found.after), key=lambda t: t.measure)
    lines = [f"simulated; {len(found.trials)} trials on the tuning slice", *(changed or ["no constant changed"])]
    for n, scenario in enumerate(scenarios):
        lines.append(
            f"{scenario.workload} at {scenario.load} %: mean TTFT, tuning slice {found.trials[0].means_ms[n]:,.0f} → "
            f"{best.means_ms[n]:,.0f} ms, reporting slice {old_ms[n]:,.0f} → {new_ms[n]:,.0f} ms"
        )
    return lines


@click.command("regret", context_settings={"show_default": True})
@click.option("--trace", type=click.Path(path_type=Path), help="Trace in Mooncake's format, for A and B.")
@click.option("--workload", type=click.Choice(list(KINDS)), default="C", help="What is asked of what.")
@click.option("--load", type=click.Choice(LOADS), default="77", help="% of what RR can do.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the arrivals.")
@click.option("--duration", "duration_s", type=click.FloatRange(1, 900), default=900.0, help="Seconds of the slice.")
def regret_command(*, trace: Path | None, workload: str, load: str, seed: int, duration_s: float) -> None:
    """Where we choose otherwise than the greedy oracle, on the tuning slice. Simulated.

    \b
    Example:
      pointsman bench regret --workload C --load 92
    """
    try:
        scenario = Scenario(workload=workload, load=int(load), part=Slice.TUNE, trace=trace, duration_s=duration_s)
        asked = scenario.build(seed)
        judged = Judged()
        measured, _ = run(scenario.fleet, asked, judged)
    except PointsmanError as error:
        click.echo(f"pointsman bench regret: {error}", err=True)
        sys.exit(EXIT_REFUSED)
    found = regrets(judged.choices, asked.warm_up_ms)
    click.echo(
        f"simulated; {scenario.title}, seed {seed}: mean TTFT {measured.mean_ms:,.0f} ms, {found.requests:,} requests, "
        f"{found.agreed:.1%} chosen alike; regret {found.mean_ms:.1f} ms in the mean, "
        f"{found.worst:.0%} of it in the worst {WORST_SHARE:.0%}"
    )
    for cause, part in found.parts.items():
        click.echo(f"{part:6.1%}  {cause.value}")


@click.command("floor", context_settings={"show_default": True})
@click.option("--trace", type=click.Path(path_type=Path), help="Trace in Mooncake's format, for A and B.")
@click.option("--workload", type=click.Choice(list(KINDS)), default="C", help="What is asked of what.")
@click.option("--load", type=click.Choice(LOADS), default="77", help="% of what RR can do.")
@click.option("--policy", "names", type=click.Choice(list(CATALOGUE)), multiple=True, default=("joint", "oracle"))
@click.option("--seeds", type=click.IntRange(1, 100), default=3, help="How many runs of each policy.")
@click.option("--duration", "duration_s", type=click.FloatRange(1, 900), default=900.0, help="Seconds of the slice.")
def floor_command(
    *, trace: Path | None, workload: str, load: str, names: tuple[str, ...], seeds: int, duration_s: float
) -> None:
    """What is left for a router to save: TTFT, split, on the reporting slice. Simulated.

    \b
    Example:
      pointsman bench floor --workload C --policy joint --policy llm-d
    """
    try:
        scenario = Scenario(workload=workload, load=int(load), trace=trace, duration_s=duration_s)
        asked = [scenario.build(seed) for seed in range(seeds)]
    except PointsmanError as error:
        click.echo(f"pointsman bench floor: {error}", err=True)
        sys.exit(EXIT_REFUSED)
    click.echo(f"simulated; {scenario.title}; mean TTFT in ms, {seeds} seeds")
    for name in names:
        splits = []
        for seed, one in enumerate(asked):
            _, outcomes = run(scenario.fleet, one, CATALOGUE[name].make(seed))
            splits.append(floor(scenario.fleet, one, outcomes))
        mean, own, wire = (
            sum(values) / seeds for values in zip(*((s.mean_ms, s.own_ms, s.wire_ms) for s in splits), strict=True)
        )
        click.echo(
            f"{CATALOGUE[name].title}: {mean:,.1f} = own prefill {own:,.1f} + wire {wire:,.1f} + the rest "
            f"{mean - own - wire:,.1f}"
        )
    for times in (1.0, 2.0, 100.0):
        hit = sum(shared_cache(scenario.fleet, one, times=times) for one in asked) / seeds
        click.echo(f"hits of one shared cache, {times:g} times as large as all replicas': {hit:.3f}")
