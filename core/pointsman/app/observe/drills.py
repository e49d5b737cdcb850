"""What drills have shown: reports of `pointsman drill … --report`, from the folder `drills` of the state folder."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final

import msgspec
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pointsman.app.failover_status import RTO_BUCKETS_S
from pointsman.core.json_text import decode
from pointsman.failover.report import Run

log = structlog.get_logger()

FOLDER: Final = "drills"
"""Below the state folder."""

NEWEST: Final = 500
"""Reports that are read: 20 runs of each kind. Reading them takes 50 ms, once."""

LABELS: Final = ("drill", "site", "set_up")
Labels = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A report: `stamp` tells that its file has not changed, `run` is None where it is no report."""

    stamp: tuple[int, int]
    run: Run | None

    @property
    def at_s(self) -> float:
        """Wall time of the file: reports do not tell when they were made."""
        return self.stamp[0] / 1e9


class DrillReports(Collector):
    """The series `pointsman_drill_*`. The folder need not be there; files are read again when they change."""

    def __init__(self, state: Path, registry: CollectorRegistry) -> None:
        self._folder = state / FOLDER
        self._kept: dict[Path, Kept] = {}
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """A drill that clients never saw the end of took for ever: +Inf, and not in the sum. An aborted one has no
        time at all."""
        self._read()
        runs: dict[Labels, list[tuple[float, Run]]] = {}
        for kept in self._kept.values():
            if kept.run is not None and not kept.run.aborted:
                runs.setdefault((kept.run.kind, kept.run.site, kept.run.set_up), []).append((kept.at_s, kept.run))
        took = HistogramMetricFamily(
            "pointsman_drill_rto_seconds",
            "From the fault that a drill made to the first good second, as clients saw it; of the reports kept.",
            labels=LABELS,
        )
        last = GaugeMetricFamily(
            "pointsman_drill_last_rto_seconds",
            "Recovery time of the last drill of its kind; +Inf: clients did not see it end.",
            labels=LABELS,
        )
        when = GaugeMetricFamily(
            "pointsman_drill_last_timestamp_seconds", "When the last drill of its kind was reported.", labels=LABELS
        )
        for labels, found in sorted(runs.items()):
            found.sort(key=lambda one: (one[0], one[1].number))
            times_s = [math.inf if run.rto_s is None else run.rto_s for _, run in found]
            took.add_metric(labels, _buckets(times_s), sum(time_s for time_s in times_s if math.isfinite(time_s)))
            last.add_metric(labels, times_s[-1])
            when.add_metric(labels, found[-1][0])
        yield from (took, last, when)

    def _read(self) -> None:
        """Look at what changed; the others are known."""
        stamps = {}
        for path in self._folder.glob("*.json"):
            try:
                found = path.stat()
            except OSError:  # gone meanwhile, or a link to itself: the other metrics are wanted all the same
                continue
            stamps[path] = (found.st_mtime_ns, found.st_size)
        newest = sorted(stamps, key=lambda path: stamps[path], reverse=True)[:NEWEST]
        before, self._kept = self._kept, {}
        for path in newest:
            known = before.get(path)
            unchanged = known is not None and known.stamp == stamps[path]
            self._kept[path] = known if known and unchanged else Kept(stamp=stamps[path], run=_report(path))


def _report(path: Path) -> Run | None:
    try:
        return decode(path.read_bytes(), Run)
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("this is no report of a drill: take it out of the folder", file=str(path), problem=str(error))
        return None


def _buckets(times_s: list[float]) -> list[tuple[str, float]]:
    """Upper bound → how many took no longer."""
    counts = [0] * (len(RTO_BUCKETS_S) + 1)
    for time_s in times_s:
        counts[bisect_left(RTO_BUCKETS_S, time_s)] += 1
    names = [*map(str, RTO_BUCKETS_S), "+Inf"]
    return list(zip(names, map(float, accumulate(counts)), strict=True))
