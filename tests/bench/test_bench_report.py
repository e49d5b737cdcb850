"""Tables, JSON, plots and the commands; all of them say that figures are simulated."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from rich.console import Console

from pointsman.bench.bars import bars_table, change_table
from pointsman.bench.catalogue import VARIANTS
from pointsman.bench.cli import fit_command, fit_lines, policy_command
from pointsman.bench.document import MARKS, write_into
from pointsman.bench.fit import fit
from pointsman.bench.measure import FIGURES, Spread
from pointsman.bench.plots import over_load, write_plots
from pointsman.bench.report import Row, as_json, markdown, table
from pointsman.bench.results import load_rows, merged, missing, save_rows
from pointsman.bench.scenario import Scenario, Slice
from pointsman.bench.svg import Bar, bars, lines
from pointsman.core.errors import ConfigError
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


# The design's bars, and the page that tells of them


def test_bars_say_what_is_reached_what_is_short_and_what_was_not_run() -> None:
    rows = [row("joint", 100.0), row("oracle", 95.0), row("llm-d", 171.0), row("llm-d-local", 120.0)]
    text = bars_table(rows)
    assert "| 77 % | llm-d default, all regions | mean | ≥ 1.7 | C | **1.71** | 1.80 |" in text
    assert "| 77 % | llm-d default, per region | mean | ≥ 1.25 | C | 1.20 (short) | 1.26 |" in text
    assert "| 77 % | llm-d default, all regions | mean | ≥ 1.7 | A | not run | not run |" in text
    assert "| 77 % | above the greedy oracle | mean | ≤ 10% | C | **+5.3%** | |" in text
    assert "(short)" in bars_table([row("joint", 120.0), row("oracle", 95.0)])
    assert "| 1.698 (short) | 1.79 |" in bars_table([row("joint", 100.0), row("oracle", 95.0), row("llm-d", 169.8)])


def test_changes_are_told_against_our_own_row_of_the_scenario() -> None:
    rows = [row("joint", 200.0), row("joint-rates-half", 204.0), row("joint-scrape-5s", 220.0), row("joint", 1.0, 92)]
    lines_of = change_table(rows).splitlines()
    assert len(lines_of) == 4
    assert lines_of[2].endswith("| +2.0% |")
    assert lines_of[3].endswith("| +10.0% (above 5%) |")


PAGE = "head\n" + "".join(f"<!-- policy {m}: begin -->\nold\n<!-- policy {m}: end -->\ntext {m}\n" for m in MARKS)


def test_a_page_gets_its_tables_and_keeps_its_text(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    rows = [row("joint", 100.0), row("oracle", 95.0), row("joint-rates-half", 104.0)]
    write_into(page, rows, VARIANTS)
    first = page.read_text()
    assert "old" not in first
    assert all(f"text {mark}" in first for mark in MARKS)
    assert "#### C, 77 % load, report slice" in first
    assert first.count("Joint-Rates-Half") == 1  # compared with ourselves, not in the table of policies
    write_into(page, rows, VARIANTS)
    assert page.read_text() == first


def test_a_page_without_the_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace("robustness: end", "robustness"))
    with pytest.raises(ConfigError, match="markers are missing"):
        write_into(page, [row("joint", 1.0)], VARIANTS)
    assert "old" in page.read_text()


def test_our_pages_have_the_markers() -> None:
    text = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    assert all(f"<!-- policy {m}: begin -->\n" in text and f"<!-- policy {m}: end -->" in text for m in MARKS)


# A study that goes on


def test_rows_are_kept_and_only_what_lacks_is_due(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    assert load_rows(path) == []
    first = [row("joint", 300.0), row("llm-d", 500.0, 92)]
    save_rows(path, first)
    assert load_rows(path) == first
    title = first[0].scenario
    assert missing(first, title, ["joint", "llm-d"], range(3)) == ["llm-d"]
    assert missing(first, title, ["joint"], range(2)) == ["joint"]
    newer = [row("joint", 310.0), row("p2c", 900.0)]
    found = merged(first, newer, ["p2c", "joint", "llm-d"])
    assert [(r.policy, r.spreads["mean_ms"].mean) for r in found] == [
        ("p2c", 900.0),
        ("joint", 310.0),
        ("llm-d", 500.0),
    ]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"rows": 3}', b'{"rows": [{"policy": 1}]}'])
def test_a_file_that_is_not_ours_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="rows"):
        load_rows(path)


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
    assert [r["policy"] for r in rows] == ["round-robin", "joint"]  # the order of the tables
    assert rows[0]["spreads"]["requests"]["mean"] > 50
    assert (tmp_path / "plots" / "c-77-load-report-slice.svg").exists()


def test_a_study_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    page, rows = tmp_path / "page.md", tmp_path / "rows.json"
    page.write_text(PAGE)
    save_rows(rows, [replace(row("round-robin", 999.0), seeds=(0,))])
    options = ["--seeds", "1", "--duration", "5", "--policy", "least-outstanding", "--policy", "round-robin"]
    result = CliRunner().invoke(policy_command, [*options, "--json", str(rows), "--add", "--docs", str(page)])
    assert result.exit_code == 0, result.output
    assert [r.policy for r in load_rows(rows)] == ["round-robin", "least-outstanding"]
    assert load_rows(rows)[0].spreads["mean_ms"].mean == 999.0
    assert "least outstanding (all)" in page.read_text()
    assert CliRunner().invoke(policy_command, ["--add"]).exit_code == 2


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
