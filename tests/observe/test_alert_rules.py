"""Each alert fires when it is provoked and is silent when not, by Prometheus' own tool."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from observe.alert_cases import CASES, Case
from pointsman.app.observe.rules import ALERTS, rule_files
from support.prometheus import promtool

pytestmark = pytest.mark.observability

ROOT = Path(__file__).parents[2]
RULES = [ROOT / "deploy" / "prometheus" / "rules" / name for name in rule_files()]


def _tests(name: str, case: Case) -> list[dict[str, Any]]:
    firing = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
    return [
        {
            "name": f"{name} {what}",
            "interval": "15s",
            "input_series": [{"series": series_name, "values": values} for series_name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": f"{firing} > 0",
                    "eval_time": case.at,
                    "exp_samples": [{"labels": "{}", "value": 1}] if what == "fires" else [],
                }
            ],
        }
        for what, series in (("fires", case.fire), ("is silent", case.silent))
    ]


def _run(folder: Path, tests: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    path = folder / "tests.yaml"
    path.write_text(
        yaml.safe_dump({"rule_files": [str(rule) for rule in RULES], "evaluation_interval": "15s", "tests": tests})
    )
    return subprocess.run([promtool(), "test", "rules", path], capture_output=True, text=True, check=False, timeout=60)


def test_every_alert_has_a_case() -> None:
    assert set(CASES) == {alert.name for alert in ALERTS}
    assert len(CASES) >= 15


def test_the_rules_are_valid() -> None:
    assert len(RULES) == 2
    done = subprocess.run([promtool(), "check", "rules", *RULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(CASES))
def test_it_fires_when_provoked_and_only_then(name: str, tmp_path: Path) -> None:
    done = _run(tmp_path, _tests(name, CASES[name]))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_case_can_fail(tmp_path: Path) -> None:
    """What makes one alert fire is not silence: the cases above do not pass by accident."""
    case = CASES["PointsmanErrors"]
    turned = Case(fire=case.silent, silent=case.fire, at=case.at)
    said = _run(tmp_path, _tests("PointsmanErrors", turned))
    assert said.returncode != 0
    assert said.stdout.count("PointsmanErrors") + said.stderr.count("PointsmanErrors") >= 2
