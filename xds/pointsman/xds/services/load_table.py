"""The load of the fleet: gateway and node × cluster × locality × endpoint, added up and bounded. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from pointsman.xds.services.load import NO_LOAD, Load, LoadReport, Place

ROWS_KEPT: Final = 100_000
"""Rows over all nodes: 100 proxies with 1,000 endpoints each. Past it a new place of a proxy takes the room of the one
of its own that was silent longest, so that no proxy pushes out another's."""

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


@dataclass(slots=True, kw_only=True)
class _Node:
    gateway: str
    at_s: float
    interval_s: float = 0.0
    reports: int = 0
    rows: dict[Place, tuple[Load, Load]] = field(default_factory=dict)  # longest silent first
    active: set[Place] = field(default_factory=set)


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
        silent, node.active = node.active, set()
        for place, load in report.loads:
            self._add(node, place, load)
            node.active.add(place)
            if not place.endpoint:
                totals = self._series(report.gateway, place.cluster, place.site)
                totals.succeeded += load.succeeded
                totals.failed += load.failed
        for place in silent - node.active:
            if place in node.rows:
                node.rows[place] = (_accumulate(node.rows[place][0], NO_LOAD), NO_LOAD)
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
            for place, (total, latest) in state.rows.items():
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
        before = node.rows.pop(place, None)
        node.rows[place] = (load if before is None else _accumulate(before[0], load), load)
        self._rows += before is None
        if self._rows > self._rows_kept:
            del node.rows[next(iter(node.rows))]
            self._rows -= 1
            self.evicted += 1

    def _series(self, gateway: str, cluster: str, site: str) -> Totals:
        key = (gateway, cluster, site)
        if key not in self._totals and len(self._totals) >= self._series_kept:
            key = OTHER
        return self._totals.setdefault(key, Totals())


def _accumulate(total: Load, load: Load) -> Load:
    """Counts add up; what runs is what the last report says."""
    return Load(
        succeeded=total.succeeded + load.succeeded,
        failed=total.failed + load.failed,
        issued=total.issued + load.issued,
        in_progress=load.in_progress,
    )
