"""Tables, JSON, plots and the commands; all of them say that figures are simulated."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from rich.console import Console

from pointsman.bench.cli import fit_command, fit_lines, policy_command
from pointsman.bench.fit import fit
from pointsman.bench.measure import FIGURES, Spread
from pointsman.bench.plots import over_load, write_plots
from pointsman.bench.report import Row, as_json, markdown, table
from pointsman.bench.scenario import Scenario, Slice
from pointsman.bench.svg import Bar, bars, lines
from pointsman.extproc.cost import CostModel


def row(policy: str, mean: float, load: int = 77) -> Row:
    spreads = {name: Spread(mean=mean, low=mean * 0.9, high=mean * 1.2) for name in FIGURES}
    scenario = Scenario(workload="C", load=load)
    return Row(
        scenario=scenario.title, policy=policy, title=policy.title(), scrape_ms=200.0, seeds=(0, 1, 2), spreads=spreads
    )


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")]


def test_table_json_and_markdown() -> None:
    rows = [row("joint", 320.0), row("llm-d", 1_540.5)]
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table("C, 77 % load, report slice", rows))
    shown = captured.get()
    assert "simulated: C, 77 % load" in shown
    assert "320 (288-384)" in shown
    assert "seeds 0, 1, 2" in shown
    data = json.loads(json.dumps(as_json(rows)))
    assert data["simulated"] is True
    assert data["rows"][1]["spreads"]["hit"] == {"mean": 1540.5, "low": pytest.approx(1386.45), "high": 1848.6}
    lines_of = markdown(rows).splitlines()
    assert lines_of[0].startswith("| policy | mean | p50 |")
    assert {line.count("|") for line in lines_of} == {13}


def test_bars_are_well_formed_and_longer_for_more() -> None:
    svg = bars(
        "A <plot>", "ms", [Bar(label="a & b", value=100, low=90, high=110), Bar(label="c", value=900, low=9, high=999)]
    )
    assert "A <plot> (simulated)" in texts(svg)
    assert "a & b" in texts(svg)
    widths = [float(node.get("width", "0")) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("rect")]
    assert 0 < widths[1] < widths[2]


def test_lines_hold_every_series() -> None:
    svg = lines("Over load", "load", "ms", {"one": [(77, 100.0), (92, 900.0)], "two": [(77, 50.0), (92, 60.0)]})
    root = ElementTree.fromstring(svg)
    assert len([node for node in root.iter() if node.tag.endswith("polyline")]) == 2
    assert {"one", "two", "77", "92"} <= set(texts(svg))
    assert lines("One", "load", "ms", {"one": [(77, 100.0)]})


def test_plots_for_each_scenario_and_over_the_load(tmp_path: Path) -> None:
    rows = [row("joint", 300.0), row("oracle", 290.0), row("joint", 500.0, 92), row("oracle", 450.0, 92)]
    paths = write_plots(tmp_path / "new", rows)
    assert [path.name for path in paths] == [
        "c-77-load-report-slice.svg",
        "c-92-load-report-slice.svg",
        "c-over-load.svg",
    ]
    assert over_load(rows, "C") == {"Joint": [(77.0, 300.0), (92.0, 500.0)], "Oracle": [(77.0, 290.0), (92.0, 450.0)]}
    assert over_load(rows, "A") == {}


# Fitting, on a landscape that is known


def test_fit_finds_the_lowest_point_and_leaves_what_does_not_matter() -> None:
    asked: list[CostModel] = []

    def measure(model: CostModel) -> tuple[float, ...]:
        asked.append(model)
        return (100.0 + abs(model.rtt_weight - 2.0), 50.0 + 1e-4 * model.shadow_weight)

    found = fit(measure, CostModel(), grid={"rtt_weight": (1.0, 2.0, 3.0), "shadow_weight": (0.0, 8.0)}, passes=5)
    assert found.after == CostModel(rtt_weight=2.0)
    assert len(asked) == len(found.trials)
    assert found.trials[0].measure == 1.0
    assert min(t.measure for t in found.trials) == pytest.approx(math.sqrt(100 / 101), abs=1e-4)
    scenarios = [Scenario(workload="C", part=Slice.TUNE), Scenario(workload="C", load=92, part=Slice.TUNE)]
    text = fit_lines(found, scenarios, (110.0, 60.0), (99.0, 61.0))
    assert text[0].startswith("simulated; ")
    assert "rtt_weight: 3 → 2" in text
    assert text[-1] == "C at 92 %: mean TTFT, tuning slice 50 → 50 ms, reporting slice 60 → 61 ms"


# Commands


def test_policy_command_writes_json_and_plots(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        policy_command,
        [
            *("--seeds", "1", "--duration", "8", "--policy", "joint", "--policy", "round-robin", "-o", "markdown"),
            *("--json", str(tmp_path / "out.json"), "--plots", str(tmp_path / "plots")),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "### C, 77 % load, report slice (simulated)" in result.output
    rows = json.loads((tmp_path / "out.json").read_bytes())["rows"]
    assert [r["policy"] for r in rows] == ["joint", "round-robin"]
    assert rows[0]["spreads"]["requests"]["mean"] > 50
    assert (tmp_path / "plots" / "c-77-load-report-slice.svg").exists()


def test_policy_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    missing = CliRunner().invoke(policy_command, ["--workload", "A"])
    assert missing.exit_code == 1
    assert "--trace FILE, or only C" in missing.output
    wrong = CliRunner().invoke(policy_command, ["--workload", "A", "--trace", str(tmp_path / "none.jsonl")])
    assert wrong.exit_code == 1
    assert "cannot be read" in wrong.output
    assert CliRunner().invoke(policy_command, ["--policy", "magic"]).exit_code == 2


def test_fit_command_reports_both_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.bench.fit.GRID", {"rtt_weight": (3.0, 2.0)})
    result = CliRunner().invoke(fit_command, ["--duration", "5", "--load", "77", "--shared"])
    assert result.exit_code == 0, result.output
    assert "simulated; 2 trials on the tuning slice" in result.output
    assert "reporting slice" in result.output
