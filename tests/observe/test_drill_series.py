"""Reports of drills as metrics."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from pointsman.app.drill.session import ReportFolder
from pointsman.app.observe.drills import DrillReports
from pointsman.failover.report import Run


def test_reports_are_told_by_kind_and_the_last_of_each_is_told_apart(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    DrillReports(tmp_path, registry)
    assert b"rto_seconds_bucket" not in generate_latest(registry), "there is no folder yet"

    folder = ReportFolder(tmp_path / "drills")
    for number, run in enumerate(
        (
            Run(kind="crash", site="us", rto_s=0.4),
            Run(kind="crash", site="us", rto_s=2.0, number=2),
            Run(kind="crash", site="us", rto_s=9.0, number=3, aborted="too many failed"),
            Run(kind="stall", site="eu", set_up="real"),
        )
    ):
        folder.add(run, "<svg/>")
        path = tmp_path / "drills" / f"{run.kind}-{run.number}.json"
        os.utime(path, (1_000 + number, 1_000 + number))
    (tmp_path / "drills" / "notes.json").write_text("[]", encoding="utf-8")

    crash = {"drill": "crash", "site": "us", "set_up": "embedded"}
    assert registry.get_sample_value("pointsman_drill_rto_seconds_count", crash) == 2
    assert registry.get_sample_value("pointsman_drill_rto_seconds_sum", crash) == 2.4
    assert registry.get_sample_value("pointsman_drill_rto_seconds_bucket", {**crash, "le": "0.5"}) == 1
    assert registry.get_sample_value("pointsman_drill_rto_seconds_bucket", {**crash, "le": "2.0"}) == 2
    assert registry.get_sample_value("pointsman_drill_last_rto_seconds", crash) == 2.0
    assert registry.get_sample_value("pointsman_drill_last_timestamp_seconds", crash) == 1_001
    stall = {"drill": "stall", "site": "eu", "set_up": "real"}
    assert registry.get_sample_value("pointsman_drill_last_rto_seconds", stall) == float("inf")
    assert registry.get_sample_value("pointsman_drill_rto_seconds_bucket", {**stall, "le": "300.0"}) == 0
    assert registry.get_sample_value("pointsman_drill_rto_seconds_count", stall) == 1
    assert registry.get_sample_value("pointsman_drill_rto_seconds_sum", stall) == 0

    (tmp_path / "drills" / "crash-2.json").unlink()
    assert registry.get_sample_value("pointsman_drill_last_rto_seconds", crash) == 0.4
    (tmp_path / "drills" / "stall-1.json").write_text("{", encoding="utf-8")
    assert registry.get_sample_value("pointsman_drill_last_rto_seconds", stall) is None, "it was read again"


def test_a_file_that_cannot_be_looked_at_takes_no_other_metric_away(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    DrillReports(tmp_path, registry)
    folder = ReportFolder(tmp_path / "drills")
    folder.add(Run(kind="crash", site="us", rto_s=0.4), "<svg/>")
    (tmp_path / "drills" / "itself.json").symlink_to("itself.json")
    assert b"pointsman_drill_rto_seconds_bucket" in generate_latest(registry)
