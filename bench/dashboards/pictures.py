"""`python bench/dashboards/pictures.py --drills FOLDER`: pictures of the dashboards with the data of a real run.

The run is that of `make test-observability`: two simulated sites behind a real Envoy, a rollout, a failover, and a real
Prometheus that scrapes once a second. Each panel's own queries are asked for the whole time. Drills take longer, so
their reports come from a folder: `pointsman drill all --report drills`.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from pointsman.app.observe.boards import DASHBOARDS  # noqa: E402
from pointsman.app.observe.grafana import Dashboard, Panel, Query, concrete  # noqa: E402
from pointsman.app.observe.picture import Series, Span, picture  # noqa: E402
from support.observed import Observed, observed  # noqa: E402

BEFORE_S = 8.0
"""Quiet time with traffic before the first event, so that one sees what changes."""


async def draw(out: Path, drills: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        async with observed(Path(folder), ROOT / "deploy" / "prometheus" / "rules") as run:
            await asyncio.sleep(BEFORE_S)
            for report in drills.glob("*.json"):
                run.drills.mkdir(exist_ok=True)
                shutil.copy2(report, run.drills)
            await run.roll_out()
            await run.fail_over_and_back()
            await asyncio.sleep(BEFORE_S)
            span = Span(begin_s=run.began_s, end_s=time.time())
            for name, board in DASHBOARDS.items():
                (out / f"{name}.svg").write_text(picture(board, await data(run, board, span), span, run.events))
                print(out / f"{name}.svg")


async def data(run: Observed, board: Dashboard, span: Span) -> dict[str, list[Series]]:
    """The series of each panel, by its title."""
    return {
        panel.title: [one for query in panel.queries for one in await _series(run, panel, query, span)]
        for panel in board.panels()
    }


async def _series(run: Observed, panel: Panel, query: Query, span: Span) -> list[Series]:
    # Rates over 10 s show what a minute of run has to show; Grafana takes four scrapes at least.
    found = await run.prometheus.range(concrete(query.expr, window="10s"), span.begin_s, span.end_s)
    return [
        Series(legend=_legend(query, one["metric"], panel), labels=one["metric"], points=_numbers(one["values"]))
        for one in found
    ]


def _legend(query: Query, labels: dict[str, str], panel: Panel) -> str:
    if not query.legend:
        return "" if panel.kind == "stat" else " ".join(labels.values())
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), query.legend).strip()


def _numbers(values: list[tuple[float, str]]) -> list[tuple[float, float]]:
    return [(when_s, float(value)) for when_s, value in values if value not in {"NaN", "+Inf", "-Inf"}]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "dashboards")
    parser.add_argument(
        "--drills", type=Path, required=True, help="Reports of drills, as `pointsman drill` keeps them."
    )
    given = parser.parse_args()
    asyncio.run(draw(given.out, given.drills))
