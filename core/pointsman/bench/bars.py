"""The ratios that the design asks for, worked out from the rows of a study: reached, missed, and what the oracle gets.

A ratio is another policy's figure over ours. The oracle's is the same with the oracle in our place: where it misses a
bar as well, greedy routing cannot reach it at this load on this fleet, whatever it knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pointsman.bench.report import Row
from pointsman.bench.scenario import Slice

OURS = "joint"
ORACLE = "oracle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """`figure` of `against` over ours must be `least` or more, on each of `workloads` at `load` %."""

    load: int
    against: str
    title: str
    figure: str
    least: float
    workloads: str = "AC"


BARS: tuple[Bar, ...] = (
    Bar(load=77, against="llm-d", title="llm-d default, all regions", figure="mean_ms", least=1.7),
    Bar(load=77, against="llm-d", title="llm-d default, all regions", figure="p50_ms", least=1.7),
    Bar(load=77, against="llm-d-local", title="llm-d default, per region", figure="mean_ms", least=1.25),
    Bar(load=77, against="llm-d-local", title="llm-d default, per region", figure="p95_ms", least=1.25),
    Bar(load=77, against="gorgo-best", title="GORGO, best of grid", figure="p50_ms", least=1.5, workloads="A"),
    Bar(load=77, against="gorgo-best", title="GORGO, best of grid", figure="mean_ms", least=1.2, workloads="C"),
    Bar(load=77, against="round-robin", title="round robin", figure="mean_ms", least=3.0),
    Bar(load=77, against="least-outstanding", title="least outstanding", figure="mean_ms", least=2.3),
    Bar(load=92, against="llm-d", title="llm-d default, all regions", figure="mean_ms", least=1.7),
    Bar(load=102, against="llm-d", title="llm-d default, all regions", figure="mean_ms", least=1.0),
    Bar(load=102, against="llm-d-local", title="llm-d default, per region", figure="mean_ms", least=1.0),
    Bar(load=102, against="gorgo-best", title="GORGO, best of grid", figure="mean_ms", least=1.0),
    Bar(load=77, against="llm-d-local", title="llm-d default, per region", figure="mean_ms", least=1.4, workloads="R"),
    Bar(
        load=77, against="llm-d-local", title="llm-d default, per region", figure="e2e_p95_ms", least=1.5, workloads="R"
    ),
)
"""Design section 6; the last two are goals of the study behind it for unequal regions."""

AT_MOST: tuple[tuple[int, str, str, float], ...] = (
    (77, OURS, "above the greedy oracle", 1.10),
    (92, OURS, "above the greedy oracle", 1.10),
    (102, OURS, "above the greedy oracle", 1.10),
    (77, "joint-production", "3 pickers, gossip, ALS: above the greedy oracle", 1.10),
    (77, "joint-isolated", "3 pickers, no gossip: above the greedy oracle", 1.25),
    (77, "joint-alone", "3 pickers, no gossip, ALS: above the greedy oracle", 1.25),
)
"""(load, policy, title, highest ratio of its mean to the oracle's)."""

CHANGE = 0.05
"""How much the mean may change when signals are late or rates are wrong."""


def bars_table(rows: Sequence[Row]) -> str:
    """Markdown; a bar whose rows are missing says so. Bold is reached."""
    find = {(row.scenario, row.policy): row for row in rows}

    def figure(workload: str, load: int, policy: str, name: str) -> float | None:
        row = find.get((f"{workload}, {load} % load, {Slice.REPORT.value} slice", policy))
        return None if row is None else row.spreads[name].mean

    lines = ["| at | against | figure | bar | workload | reached | the oracle |", "|---|---|---|---:|---|---:|---:|"]
    for bar in BARS:
        for workload in bar.workloads:
            values = [figure(workload, bar.load, policy, bar.figure) for policy in (bar.against, OURS, ORACLE)]
            against, ours, oracle = values
            what = (
                f"| {bar.load} % | {bar.title} | {bar.figure.removesuffix('_ms').replace('_', ' ')} | ≥ {bar.least:g} "
            )
            lines.append(f"{what}| {workload} | {_ratio(against, ours, bar.least)} | {_ratio(against, oracle, None)} |")
    for load, policy, title, most in AT_MOST:
        for workload in "AC":
            ours, oracle = figure(workload, load, policy, "mean_ms"), figure(workload, load, ORACLE, "mean_ms")
            lines.append(
                f"| {load} % | {title} | mean | ≤ {most - 1:.0%} | {workload} | {_above(ours, oracle, most)} | |"
            )
    return "\n".join(lines) + "\n"


def _ratio(against: float | None, ours: float | None, least: float | None) -> str:
    if against is None or ours is None:
        return "not run"
    text = f"{against / ours:.2f}"
    if least is None:
        return text
    if against / ours >= least:
        return f"**{text}**"
    return f"{text} (short)" if float(text) < least else f"{against / ours:.3f} (short)"


def _above(ours: float | None, oracle: float | None, most: float) -> str:
    if ours is None or oracle is None:
        return "not run"
    text = f"{ours / oracle - 1.0:+.1%}"
    return f"**{text}**" if ours / oracle <= most else f"{text} (short)"


def change_table(rows: Sequence[Row]) -> str:
    """Markdown: how the mean changes against `joint` of the same scenario, for each of `rows` but that."""
    ours = {row.scenario: row.spreads["mean_ms"] for row in rows if row.policy == OURS}
    lines = ["| scenario | what is different | mean TTFT, ms | change |", "|---|---|---:|---:|"]
    for row in rows:
        base = ours.get(row.scenario)
        if base is None or row.policy == OURS:
            continue
        mean = row.spreads["mean_ms"]
        change = mean.mean / base.mean - 1.0
        text = f"{change:+.1%}" if abs(change) < CHANGE else f"{change:+.1%} (above {CHANGE:.0%})"
        lines.append(f"| {row.scenario} | {row.title} | {mean.mean:,.0f} ({mean.low:,.0f}-{mean.high:,.0f}) | {text} |")
    return "\n".join(lines) + "\n"
