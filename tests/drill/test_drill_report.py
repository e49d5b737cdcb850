"""Reports of drills: bars, verdicts, table, picture, and the folder that collects them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.app.drill.kinds import KINDS
from pointsman.app.drill.session import ReportError, ReportFolder, as_json, rows
from pointsman.failover.outcome import Baseline, Counts, Seen
from pointsman.failover.report import Bars, Moment, Row, Run, markdown, misses, run_text, table_text
from pointsman.failover.timeline import timeline

GOOD = Run(
    kind="crash",
    site="us-east",
    rto_s=0.25,
    counts=Counts(requests=100, ok=99, truncated=1, reasons=(("ClientPayloadError", 1),)),
    moments=(Moment(at_s=0.0, what="us-east-0 is killed"), Moment(at_s=0.25, what="recovered, as clients see it")),
)
BAR = Bars(rto_s=1, failed=0)


@pytest.mark.parametrize(
    ("run", "bars", "missed"),
    [
        (GOOD, BAR, ()),
        (Run(kind="crash", site="a", rto_s=1.5), BAR, ("RTO 1.50 s > 1 s",)),
        (Run(kind="crash", site="a"), BAR, ("never recovered",)),
        (Run(kind="crash", site="a"), Bars(), ()),
        (Run(kind="crash", site="a", rto_s=0.1, relapses=3), BAR, ("3 relapses",)),
        (Run(kind="crash", site="a", rto_s=0.1, counts=Counts(failed=2)), BAR, ("2 failed",)),
        (Run(kind="crash", site="a", counts=Counts(failed=2)), Bars(failed_streamed=0), ()),
        (
            Run(kind="crash", site="a", counts=Counts(failed=2, failed_streamed=1)),
            Bars(failed_streamed=0),
            ("1 failed with streamed answers",),
        ),
        (Run(kind="flapping", site="a", switches=3), Bars(switches=2), ("3 switches",)),
        (
            Run(kind="crash", site="a", counts=Counts(silent=1)),
            Bars(),
            ("1 cut answers that ended as if they were whole",),
        ),
        (Run(kind="crash", site="a", aborted="it took longer than 1 s"), Bars(), ("aborted: it took longer than 1 s",)),
    ],
)
def test_what_is_missed_is_said(run: Run, bars: Bars, missed: tuple[str, ...]) -> None:
    assert misses(run, bars) == missed


def test_a_run_as_text() -> None:
    assert run_text(GOOD, BAR).split("\n") == [
        "crash at us-east, run 1 (embedded)",
        "    +0.00 s  us-east-0 is killed",
        "    +0.25 s  recovered, as clients see it",
        "  100 requests: 99 ok, 0 failed, 1 truncated, 0 rejected, 0 slow",
        "    1 × ClientPayloadError",
        "  RTO 0.25 s; bar RTO ≤ 1 s, 0 failed: met",
    ]


def test_the_table_counts_all_runs_and_hides_no_bad_one() -> None:
    slow = Run(kind="crash", site="us-east", number=2, rto_s=1.75, counts=Counts(requests=50, ok=50, slow=7))
    lost = Run(kind="latency", site="us-east", counts=Counts(requests=10, ok=10), switches=1)
    table = [Row(kind="crash", bars=BAR, runs=(GOOD, slow)), Row(kind="latency", bars=Bars(rto_s=5), runs=(lost,))]
    head, _, *lines, end = markdown(table).split("\n")
    assert head.split(" | ")[2:6] == ["RTO p50", "RTO max", "requests", "failed"]
    assert lines == [
        "| crash | 2 | 1.00 s | 1.75 s | 150 | 0 | 0 | 1 | 7 | 0 | 0 | RTO ≤ 1 s, 0 failed | no (1 of 2 missed) |",
        "| latency | 1 | never | never | 10 | 0 | 0 | 0 | 0 | 0 | 1 | RTO ≤ 5 s | no (1 of 1 missed) |",
    ]
    assert end == ""
    assert len({len(line.split(" | ")) for line in (head, *lines)}) == 1
    assert [line.split()[0] for line in table_text(table).split("\n")] == ["drill", "crash", "latency"]


names = st.text(max_size=30)
seen = st.builds(
    Seen,
    source=st.just("probe"),
    gateway=names,
    stream=st.booleans(),
    start_s=st.floats(min_value=0, max_value=20),
    end_s=st.floats(min_value=0, max_value=20),
    status=st.sampled_from([0, 200, 429, 503]),
    complete=st.booleans(),
    replica=st.sampled_from(["a-0", "b-0", ""]),
)


@settings(max_examples=40)
@given(st.lists(seen, max_size=40), st.text(alphabet="<>&\"' abc", max_size=20))
def test_a_picture_is_well_formed_and_shows_each_request_and_each_moment(found: list[Seen], title: str) -> None:
    base = Baseline(streamed_p99_ms=10, plain_p99_ms=10)
    moments = [Moment(at_s=-1.0, what=f"before {title}"), Moment(at_s=0.5, what="after")]
    picture = timeline(title, found, moments, {"a-0": "a", "b-0": "b"}, base, fault_s=5)
    root = ET.fromstring(picture)
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == title
    assert any(text.endswith("after") for text in texts)
    bars = [
        element for element in root.iter("{http://www.w3.org/2000/svg}rect") if element.get("y") not in {None, "33"}
    ]
    assert bool(bars) is bool(found)


def test_a_folder_collects_runs_of_several_calls(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    for number in (1, 2):
        ReportFolder(folder).add(Run(kind="crash", site="us-east", number=number, rto_s=0.5), "<svg/>")
    ReportFolder(folder).add(Run(kind="stall", site="us-east", rto_s=3), "<svg/>")
    reports = ReportFolder(folder)
    assert [(row.kind, len(row.runs), row.met) for row in rows(reports.runs())] == [
        ("crash", 2, True),
        ("stall", 1, False),
    ]
    reports.write_table()
    assert "| crash | 2 |" in (folder / "report.md").read_text()
    assert "stall at us-east, run 1" in (folder / "report.txt").read_text()
    assert sorted(path.name for path in folder.glob("*.svg")) == ["crash-1.svg", "crash-2.svg", "stall-1.svg"]
    value = as_json(reports.runs())
    assert value["met"] is False
    assert value["drills"][1]["runs"][0]["missed"] == ("RTO 3.00 s > 2 s",)


def test_a_foreign_file_in_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(ReportError, match=r"notes\.json is no report of a drill: .*take it out"):
        ReportFolder(tmp_path).runs()


def test_every_bar_of_the_catalogue_is_said_in_words() -> None:
    assert all(kind.bars.text() for kind in KINDS.values())
    assert KINDS["blackhole"].bars.text() == "RTO ≤ 2 s, 0 failed on streaming routes"
