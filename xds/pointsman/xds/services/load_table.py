"""The load of the fleet: gateway and node × cluster × locality × endpoint, added up and bounded. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from pointsman.xds.services.load import NO_LOAD, Load, LoadReport, Place

ROWS_KEPT: Final = 100_000
"""Rows over all nodes: 100 proxies with 1,000 endpoints each. Past it a new place of a proxy takes the room of its own
oldest, so that no proxy pushes out another's."""

SERIES_KEPT: Final = 10_000
"""Gateway × cluster × site, which become label values; the rest counts as `other`. Names come from the configuration,
but configurations change for years."""

Series = tuple[str, str, str]
"""Gateway, cluster, site."""

OTHER: Final[Series] = ("other", "other", "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRow:
    """What one proxy said of one place. `total` are its counts since the proxy began to report (with the requests
    that run now), `latest` those of its last interval."""

    gateway: str
    node: str
    place: Place
    total: Load
    latest: Load


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadNode:
    """A proxy that reports. `at_s`: when it did last, on the clock of the caller."""

    gateway: str
    node: str
    at_s: float
    interval_s: float
    reports: int


@dataclass(slots=True)
class Totals:
    """Requests of a series since the start; these only grow."""

    succeeded: int = 0
    failed: int = 0
    dropped: int = 0


@dataclass(slots=True)
class _Row:
    succeeded: int = 0
    failed: int = 0
    issued: int = 0
    latest: Load = NO_LOAD
    report: int = 0  # number of the report that `latest` is from


@dataclass(slots=True, kw_only=True)
class _Node:
    gateway: str
    at_s: float
    interval_s: float = 0.0
    reports: int = 0
    rows: dict[Place, _Row] = field(default_factory=dict)  # oldest first


class LoadTable:
    """Takes reports, answers questions."""

    def __init__(self, *, rows_kept: int = ROWS_KEPT, series_kept: int = SERIES_KEPT) -> None:
        self._rows_kept = rows_kept
        self._series_kept = series_kept
        self._nodes: dict[str, _Node] = {}
        self._rows = 0
        self._totals: dict[Series, Totals] = {}
        self.evicted = 0

    def take(self, report: LoadReport, now_s: float) -> None:
        """Add a report. What the proxy does not mention any more has no load in this interval."""
        node = self._nodes.get(report.node)
        if node is None or node.gateway != report.gateway:
            self.forget(report.node)
            node = self._nodes[report.node] = _Node(gateway=report.gateway, at_s=now_s)
        node.at_s, node.interval_s, node.reports = now_s, report.interval_s, node.reports + 1
        for place, load in report.loads:
            self._add(node, place, load)
            if not place.endpoint:
                totals = self._series(report.gateway, place.cluster, place.site)
                totals.succeeded += load.succeeded
                totals.failed += load.failed
        for cluster, count in report.dropped:
            self._series(report.gateway, cluster, "").dropped += count

    def forget(self, node: str) -> None:
        """A proxy does not report any more: its rows go, the totals stay."""
        known = self._nodes.pop(node, None)
        if known is not None:
            self._rows -= len(known.rows)

    def nodes(self) -> list[LoadNode]:
        """The proxies that report, sorted by name."""
        return [
            LoadNode(
                gateway=state.gateway, node=name, at_s=state.at_s, interval_s=state.interval_s, reports=state.reports
            )
            for name, state in sorted(self._nodes.items())
        ]

    def rows(self, node: str = "") -> Iterator[LoadRow]:
        """All rows, or those of one proxy."""
        chosen = sorted(self._nodes) if not node else [node] if node in self._nodes else []
        for name in chosen:
            state = self._nodes[name]
            for place, row in state.rows.items():
                latest = row.latest if row.report == state.reports else NO_LOAD
                total = Load(
                    succeeded=row.succeeded, failed=row.failed, issued=row.issued, in_progress=latest.in_progress
                )
                yield LoadRow(gateway=state.gateway, node=name, place=place, total=total, latest=latest)

    def totals(self) -> Mapping[Series, Totals]:
        """Counts since the start by gateway, cluster and site."""
        return self._totals

    def in_progress(self) -> dict[Series, int]:
        """Requests that run now, by gateway, cluster and site."""
        found = dict.fromkeys(self._totals, 0)
        for row in self.rows():
            if not row.place.endpoint:
                series = (row.gateway, row.place.cluster, row.place.site)
                found[series if series in found else OTHER] += row.latest.in_progress
        return found

    def _add(self, node: _Node, place: Place, load: Load) -> None:
        row = node.rows.get(place)
        if row is None:
            if self._rows >= self._rows_kept:
                self.evicted += 1
                if not node.rows:
                    return
                del node.rows[next(iter(node.rows))]
                self._rows -= 1
            row = node.rows[place] = _Row()
            self._rows += 1
        row.succeeded += load.succeeded
        row.failed += load.failed
        row.issued += load.issued
        row.latest, row.report = load, node.reports

    def _series(self, gateway: str, cluster: str, site: str) -> Totals:
        key = (gateway, cluster, site)
        if key not in self._totals and len(self._totals) >= self._series_kept:
            key = OTHER
        return self._totals.setdefault(key, Totals())
