"""Dashboards, rules, runbooks and the page of metrics agree with each other and with the code. Needs no Prometheus."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pointsman.app.cli import main
from pointsman.app.observe.boards import DASHBOARDS
from pointsman.app.observe.grafana import COLUMNS, Dashboard, concrete, dashboard_json
from pointsman.app.observe.rules import ALERTS, RECORDINGS
from pointsman.app.observe.write import files, write

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs" / "runbooks"
PAGES = sorted(path for path in RUNBOOKS.glob("*.md") if path.name != "README.md")
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
NAME = re.compile(r"\bpointsman_[a-z0-9_]+")


def documented() -> set[str]:
    """Names of docs/metrics.md, as they are exported."""
    return set(re.findall(r"^\| `(pointsman_\w+)` \|", METRICS, re.MULTILINE))


def expressions() -> Iterator[tuple[str, str]]:
    for name, board in DASHBOARDS.items():
        for panel in board.panels():
            yield from ((f"{name}: {panel.title}", query.expr) for query in panel.queries)
        yield from ((f"{name}: {annotation.name}", annotation.expr) for annotation in board.annotations)
        yield from ((f"{name}: ${variable.name}", variable.metric) for variable in board.variables)
    yield from ((recording.name, recording.expr) for recording in RECORDINGS)
    yield from ((alert.name, alert.expr) for alert in ALERTS)


def test_what_is_checked_in_is_what_the_code_writes(tmp_path: Path) -> None:
    write(tmp_path)
    for name, content in files().items():
        assert (tmp_path / name).read_text(encoding="utf-8") == content
        there = ROOT / "deploy" / name
        assert there.exists(), f"{name} is not checked in: run `make dashboards`"
        assert there.read_text(encoding="utf-8") == content, f"{name} is out of date: run `make dashboards`"
    kept = {path.name for path in (ROOT / "deploy" / "grafana" / "dashboards").iterdir()}
    assert kept == {f"{name}.json" for name in DASHBOARDS}


@pytest.mark.parametrize("board", DASHBOARDS.values(), ids=DASHBOARDS)
def test_a_dashboard_is_what_grafana_reads(board: Dashboard) -> None:
    found = json.loads(json.dumps(dashboard_json(board)))
    assert 8 <= len(found["uid"]) <= 40
    identities = [panel["id"] for panel in found["panels"]]
    assert len(set(identities)) == len(identities)
    taken: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= COLUMNS
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        references = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(references)) == len(references)
        assert all(target["expr"] for target in panel.get("targets", ()))
    titles = [panel.title for panel in board.panels()]
    assert len(set(titles)) == len(titles)
    variables = {variable["name"] for variable in found["templating"]["list"]}
    used = set(
        re.findall(r'"\$(\w+)"', json.dumps([query.expr for panel in board.panels() for query in panel.queries]))
    )
    assert {name.rstrip("\\") for name in used} <= variables | {"__rate_interval"}


def test_every_expression_names_metrics_that_are_documented() -> None:
    known = documented()
    recorded = {recording.name for recording in RECORDINGS}
    histograms = {f"{name}_{part}" for name in known for part in ("bucket", "sum", "count")}
    for place, expr in expressions():
        left = concrete(expr)
        for name in sorted(recorded, key=len, reverse=True):
            left = left.replace(name, "recorded")
        for name in NAME.findall(left):
            assert name in known | histograms, f"{place}: {name} is not in docs/metrics.md"
        assert "$" not in left, f"{place}: {left}"


def test_every_metric_of_the_code_is_documented() -> None:
    known = documented()
    for folder in ("core", "xds", "extproc"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in _metric_names(path):
                assert {name, f"{name}_total", f"{name}_info"} & known, f"{path.name}: {name} is not in docs/metrics.md"


def _metric_names(path: Path) -> Iterator[str]:
    """First arguments of what makes metrics, where they are plain words."""
    text = path.read_text(encoding="utf-8")
    if "prometheus_client" not in text:
        return
    makers = {"Counter", "Gauge", "Histogram", "Info", "CounterMetricFamily", "GaugeMetricFamily"}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in makers and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and NAME.fullmatch(first.value):
                yield first.value


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    assert {page.name for page in PAGES} == {alert.runbook for alert in ALERTS}
    listed = re.findall(r"\]\((\w+\.md)\)", (RUNBOOKS / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(alert.runbook for alert in ALERTS)
    assert len({alert.name for alert in ALERTS}) == len(ALERTS) >= 15
    rules = files("https://example.org/pages")["prometheus/rules/alerts.yaml"]
    for alert in ALERTS:
        assert f"runbook_url: https://example.org/pages/{alert.name}.md" in rules


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_runbook_can_be_followed(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    alert = next(alert for alert in ALERTS if alert.runbook == page.name)
    assert text.startswith(f"# {alert.name}\n\nSeverity `{alert.severity.value}`, ")
    assert ("at once" if alert.hold == "0s" else f"held for {alert.hold}") in text.splitlines()[2]
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["What it means", "How to see it", "What to do"]
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (page.parent / link).exists(), link
    for link in re.findall(r"\bdocs/[\w/.-]+\.md", text):
        assert (ROOT / link).exists(), link
    for words in re.findall(r"`pointsman ([^`]+)`", text):
        _command(words.split())
    flat = " ".join(text.split())
    titles = {one.title for board in DASHBOARDS.values() for one in (*board.panels(), *board.rows)}
    for line in re.findall(r"Dashboard \*[\w ]+\*: (.+?)(?= - |##|$)", flat):
        for title in re.findall(r'"([^"]+)"', line):
            assert title in titles, f"there is no panel {title!r}"


def _command(words: list[str]) -> None:
    """Fails where the command line has no such command."""
    command: click.Command = main
    context = click.Context(command)
    for word in words:
        if not isinstance(command, click.Group):
            return
        found = command.get_command(context, word)
        assert found is not None, f"there is no `pointsman {' '.join(words)}`"
        command = found
