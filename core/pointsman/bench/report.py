"""Results of the benchmark as a table, as JSON and as Markdown. Every one of them says that it is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from pointsman.bench.measure import Spread

SIMULATED = "simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy of one scenario over the seeds; the keys of `spreads` are the fields of `Figures`."""

    scenario: str
    policy: str
    title: str
    scrape_ms: float
    seeds: tuple[int, ...]
    spreads: dict[str, Spread]


COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("mean", "mean_ms", ",.0f"),
    ("p50", "p50_ms", ",.0f"),
    ("p95", "p95_ms", ",.0f"),
    ("p99", "p99_ms", ",.0f"),
    ("slowdown", "slowdown", ".2f"),
    ("p99 slowdown", "slowdown_p99", ".1f"),
    ("hit", "hit", ".3f"),
    ("x-region", "cross", ".2f"),
    ("ITL p95", "itl_p95_ms", ",.0f"),
    ("E2E p95", "e2e_p95_ms", ",.0f"),
    ("$/1k", "usd_per_1k", ".2f"),
)
"""(heading, field of `Figures`, format)."""

WITH_RANGE = frozenset({"mean_ms", "p95_ms"})
"""Figures that are shown with the lowest and highest of the seeds; JSON has them all."""


def cell(row: Row, field: str, form: str) -> str:
    """The mean over the seeds, for the main figures with their range."""
    spread = row.spreads[field]
    text = format(spread.mean, form)
    if field in WITH_RANGE and len(row.seeds) > 1:
        text += f" ({format(spread.low, form)}-{format(spread.high, form)})"
    return text


def table(title: str, rows: Sequence[Row]) -> Table:
    """For a terminal."""
    seeds = ", ".join(str(seed) for seed in rows[0].seeds) if rows else ""
    made = Table(title=f"{SIMULATED}: {title}; TTFT in ms, seeds {seeds}", title_justify="left")
    made.add_column("policy")
    for heading, _, _ in COLUMNS:
        made.add_column(heading, justify="right")
    for row in rows:
        made.add_row(row.title, *(cell(row, field, form) for _, field, form in COLUMNS))
    return made


def markdown(rows: Sequence[Row]) -> str:
    """For the documentation."""
    lines = [
        "| policy | " + " | ".join(heading for heading, _, _ in COLUMNS) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    lines += [
        f"| {row.title} | " + " | ".join(cell(row, field, form) for _, field, form in COLUMNS) + " |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything, with the range of each figure over the seeds."""
    return {SIMULATED: True, "rows": [asdict(row) for row in rows]}
