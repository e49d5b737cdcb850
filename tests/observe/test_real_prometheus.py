"""Every query of the dashboards, their variables and the recording rules, against a Prometheus that watched a real run.

The run has traffic, a rollout and a failover, so every one of them must have data.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pointsman.app.drill.session import ReportFolder
from pointsman.app.observe.boards import DASHBOARDS
from pointsman.app.observe.grafana import concrete
from pointsman.app.observe.rules import ALERTS, RECORDINGS
from pointsman.failover.report import Run
from support.observed import Observed, observed
from support.waiting import eventually

pytestmark = [pytest.mark.observability, pytest.mark.e2e, pytest.mark.timeout(300)]

METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"
RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules"


def queries() -> dict[str, str]:
    """Where it stands → expression, as Grafana would send it."""
    found = {}
    for name, board in DASHBOARDS.items():
        for panel in board.panels():
            for number, query in enumerate(panel.queries):
                found[f"{name}: {panel.title} [{number}]"] = concrete(query.expr)
        for variable in board.variables:
            found[f"{name}: ${variable.name}"] = f"count by ({variable.label}) ({variable.metric})"
        for annotation in board.annotations:
            found[f"{name}: annotation {annotation.name}"] = concrete(annotation.expr)
    for recording in RECORDINGS:
        found[f"recorded {recording.name}"] = recording.name
    return found


async def test_every_query_has_data(tmp_path: Path) -> None:
    async with observed(tmp_path, RULES) as run:
        ReportFolder(run.drills).add(Run(kind="crash", site="us-east", rto_s=0.4), "<svg/>")
        await run.roll_out()
        await run.fail_over_and_back()
        missing = queries()

        async def all_have_data() -> bool:
            for place, expr in list(missing.items()):
                series = await run.prometheus.range(expr, run.began_s, time.time())
                if any(_numbers(one["values"]) for one in series):
                    del missing[place]
            return not missing

        try:
            await eventually(all_have_data, timeout_s=40)
        except AssertionError:
            listed = "\n".join(f"{place}\n    {expr}" for place, expr in missing.items())
            raise AssertionError(f"{len(missing)} queries without data:\n{listed}") from None
        await _alerts_make_sense(run)
        await _pages_are_documented(run)


async def _pages_are_documented(run: Observed) -> None:
    """What both control planes export is what docs/metrics.md says: name, type, labels and words."""
    rows = {}
    for line in METRICS.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            name, kind, labels, words = (cell.strip() for cell in line.strip("|").split(" | "))
            rows[name.strip("`")] = (kind, set(re.findall(r"`(\w+)`", labels)), words)
    exported = set()
    for target in await run.prometheus.query("up"):
        async with run.fleet.session.get(f"http://{target['metric']['instance']}/metrics") as response:
            page = await response.text()
        for family in text_string_to_metric_families(page):
            if not family.name.startswith("pointsman_"):
                continue
            name = f"{family.name}_total" if family.type == "counter" else family.name
            exported.add(name)
            assert name in rows, f"{name} is not documented"
            kind, labels, words = rows[name]
            assert (family.type, family.documentation) == (kind, words), name
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == labels, sample
                assert not sample.name.endswith("_created")
    assert exported == rows.keys(), "documented and not exported"


async def _alerts_make_sense(run: Observed) -> None:
    """Their expressions are accepted, and what nobody provoked is silent."""
    for alert in ALERTS:
        await run.prometheus.query(alert.expr)
    firing = {one["metric"]["alertname"] for one in await run.prometheus.query('ALERTS{alertstate="firing"}')}
    assert firing <= PROVOKED, firing - PROVOKED


PROVOKED = {"PointsmanSiteFailed", "PointsmanFailoverLostRequests", "PointsmanErrors", "PointsmanGatewayGone"}
"""By the faults of the run; and the second control plane has a gateway that nobody runs."""


def _numbers(values: list[tuple[float, str]]) -> bool:
    return any(value not in {"NaN", "+Inf", "-Inf"} for _, value in values)
