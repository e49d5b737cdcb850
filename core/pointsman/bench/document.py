"""Writes the tables of a study into a page, between two markers; the text around them is people's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path

from pointsman.bench.bars import bars_table, change_table
from pointsman.bench.report import Row, markdown
from pointsman.core.errors import ConfigError, Problem

MARKS = ("bars", "robustness", "tables")
"""The parts; each stands between `<!-- policy NAME: begin -->` and `<!-- policy NAME: end -->`."""


def parts(rows: Sequence[Row], variants: Collection[str]) -> dict[str, str]:
    """The text of each part. `variants`: policies that are compared with our own and stand in a table of their own."""
    tables = []
    for scenario, found in groupby((row for row in rows if row.policy not in variants), key=lambda row: row.scenario):
        tables.append(f"#### {scenario}\n\n{markdown(list(found))}")
    compared = [row for row in rows if row.policy in variants or row.policy == "joint"]
    return {"bars": bars_table(rows), "robustness": change_table(compared), "tables": "\n".join(tables)}


def write_into(page: Path, rows: Sequence[Row], variants: Collection[str]) -> None:
    """Put the parts into a page. Raises `ConfigError` for a page without the markers."""
    text = page.read_text()
    for name, part in parts(rows, variants).items():
        begin, end = f"<!-- policy {name}: begin -->\n", f"<!-- policy {name}: end -->"
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            mend = f"put {begin.strip()} and {end} where the part belongs"
            raise ConfigError(Problem(file=str(page), line=0, field=name, what="the markers are missing", mend=mend))
        text = f"{head}{begin}{part}{end}{tail}"
    page.write_text(text)
