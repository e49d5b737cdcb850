"""Which plots are made of the results: one with bars for each scenario, one over the load where there are several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from pointsman.bench.report import Row
from pointsman.bench.svg import Bar, bars, lines

OVER_LOAD = ("round-robin", "least-outstanding", "llm-d", "llm-d-local", "gorgo-best", "lpwl", "joint", "oracle")
"""Policies that are drawn over the load; eight lines can be told apart."""

_LOAD = re.compile(r"^(?P<workload>\w+), (?P<load>\d+) % load, (?P<part>\w+) slice$")


def write_plots(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Write the SVG files into a folder (made if needed); returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for scenario, found in groupby(rows, key=lambda row: row.scenario):
        name = re.sub(r"[^a-z0-9]+", "-", scenario.lower()).strip("-")
        path = folder / f"{name}.svg"
        path.write_text(bars(f"Mean TTFT: {scenario}", "ms", [_bar(row) for row in found]))
        written.append(path)
    for workload in sorted({match["workload"] for row in rows if (match := _LOAD.match(row.scenario))}):
        series = over_load(rows, workload)
        if len({load for points in series.values() for load, _ in points}) > 1:
            path = folder / f"{workload.lower()}-over-load.svg"
            path.write_text(lines(f"Mean TTFT of workload {workload}", "load in % of round robin's", "ms", series))
            written.append(path)
    return written


def over_load(rows: Sequence[Row], workload: str) -> dict[str, list[tuple[float, float]]]:
    """(load, mean TTFT) of the main policies, by title."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        match = _LOAD.match(row.scenario)
        if match and match["workload"] == workload and row.policy in OVER_LOAD:
            name = "GORGO, best of grid" if row.policy == "gorgo-best" else row.title
            series.setdefault(name, []).append((float(match["load"]), row.spreads["mean_ms"].mean))
    return {name: sorted(points) for name, points in series.items()}


def _bar(row: Row) -> Bar:
    kind = "oracle" if row.policy == "oracle" else "ours" if row.policy.startswith("joint") else "other"
    mean = row.spreads["mean_ms"]
    return Bar(label=row.title, value=mean.mean, low=mean.low, high=mean.high, kind=kind)
