"""What the model servers' own pages said, kept for Prometheus on its way to the picker.

A fleet of thousands of endpoints must not make thousands of series here: values are added up by pool and site. Where
single endpoints are to be looked at Prometheus scrapes the model servers themselves; `pointsman status` shows each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pointsman.core.clock import Clock
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.core.model import AppProtocol, Plan, Pool
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc.scrape import Signals

STALE_S: Final = 10.0
"""Age from which a signal tells nothing of an engine's queue: fifty scrapes, and twice the longest pause between two
tries of an endpoint that does not answer."""

_COUNTERS: Final = (
    ("prefix_queries_total", "pointsman_engine_prefix_lookup_tokens", "Prompt tokens that engines looked up."),
    ("prefix_hits_total", "pointsman_engine_prefix_hit_tokens", "Prompt tokens that engines had in their caches."),
    ("generation_tokens_total", "pointsman_engine_generated_tokens", "Tokens that engines generated."),
    ("preemptions_total", "pointsman_engine_preemptions", "Requests that engines put back for lack of memory."),
)
"""Field of `EngineMetrics`, name and help of the metric."""

_Where = tuple[str, str]
"""Pool and site."""


@dataclass(slots=True)
class _Seen:
    """The last page of an endpoint."""

    at_s: float
    metrics: EngineMetrics


@dataclass(slots=True)
class _Group:
    """The endpoints of a pool at a site."""

    running: float = 0.0
    waiting: float = 0.0
    kv_usage: list[float] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)
    stale: int = 0
    never: int = 0


class Upstreams(Collector):
    """Passes scrapes on to the picker (or its workers) and adds them up. `holder` says which endpoints there are."""

    def __init__(self, target: Signals, holder: PlanHolder, registry: CollectorRegistry, clock: Clock) -> None:
        self._target = target
        self._holder = holder
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._where: dict[str, _Where] = {}
        self._plan: Plan | None = None
        self._sums: dict[_Where, list[float]] = {}
        self._pages: dict[_Where, float] = {}
        registry.register(self)

    def signals(self, key: str, metrics: EngineMetrics | None = None, *, rtt_ms: float | None = None) -> bool:
        """As `Picker.signals`."""
        if metrics is not None:
            self._take(key, metrics)
        return self._target.signals(key, metrics, rtt_ms=rtt_ms)

    def models(self, key: str, names: frozenset[str] | None, adapters: frozenset[str] = frozenset()) -> None:
        """As `Picker.models`."""
        self._target.models(key, names, adapters)

    def refused(self, key: str) -> None:
        """As `Picker.refused`."""
        self._target.refused(key)

    def _take(self, key: str, metrics: EngineMetrics) -> None:
        self._follow()
        where = self._where.get(key)
        if where is None:
            return
        before = self._seen.get(key)
        self._seen[key] = _Seen(self._clock.monotonic_s(), metrics)
        self._pages[where] = self._pages.get(where, 0.0) + 1.0
        sums = self._sums.setdefault(where, [0.0] * len(_COUNTERS))
        for index, (name, _, _) in enumerate(_COUNTERS):
            sums[index] += _growth(getattr(before.metrics, name) if before else None, getattr(metrics, name))

    def _follow(self) -> None:
        """Take over which endpoints there are; those that left are forgotten, what they counted is kept."""
        plan = self._holder.plan
        if plan is self._plan:
            return
        self._plan = plan
        self._where = {e.key: (pool.name, e.site) for pool in _scraped(plan) for e in pool.endpoints()}
        self._seen = {key: seen for key, seen in self._seen.items() if key in self._where}

    def collect(self) -> Iterator[Metric]:
        """Gauges of what is there, counters of what was ever seen."""
        self._follow()
        groups = self._groups()
        gauges = {
            name: GaugeMetricFamily(f"pointsman_engine_{name}", text, labels=["pool", "site"])
            for name, text in (
                ("running_requests", "Requests that engines run, by their own count."),
                ("waiting_requests", "Requests that wait in engines, by their own count."),
                ("kv_usage_ratio", "Mean share of the engines' KV caches that is in use."),
                ("signal_age_seconds", "Age of the oldest last scrape among the endpoints that were ever scraped."),
                ("stale_endpoints", f"Endpoints whose last scrape is older than {STALE_S:g} s, or that had none."),
            )
        }
        for where, group in sorted(groups.items()):
            gauges["running_requests"].add_metric(where, group.running)
            gauges["waiting_requests"].add_metric(where, group.waiting)
            if group.kv_usage:
                gauges["kv_usage_ratio"].add_metric(where, sum(group.kv_usage) / len(group.kv_usage))
            if group.ages_s:
                gauges["signal_age_seconds"].add_metric(where, max(group.ages_s))
            gauges["stale_endpoints"].add_metric(where, group.stale + group.never)
        yield from gauges.values()
        scrapes = CounterMetricFamily(
            "pointsman_engine_scrapes", "Pages of model servers that were read.", labels=["pool", "site"]
        )
        for where, pages in sorted(self._pages.items()):
            scrapes.add_metric(where, pages)
        yield scrapes
        for index, (_, metric, text) in enumerate(_COUNTERS):
            counter = CounterMetricFamily(metric, text, labels=["pool", "site"])
            for where, sums in sorted(self._sums.items()):
                counter.add_metric(where, sums[index])
            yield counter

    def _groups(self) -> dict[_Where, _Group]:
        now_s = self._clock.monotonic_s()
        groups: dict[_Where, _Group] = {}
        for key, where in self._where.items():
            group = groups.setdefault(where, _Group())
            seen = self._seen.get(key)
            if seen is None:
                group.never += 1
                continue
            group.ages_s.append(now_s - seen.at_s)
            if now_s - seen.at_s > STALE_S:  # what it said then is no load of now
                group.stale += 1
                continue
            group.running += seen.metrics.running or 0.0
            group.waiting += seen.metrics.waiting or 0.0
            if seen.metrics.kv_usage is not None:
                group.kv_usage.append(seen.metrics.kv_usage)
        return groups


def _scraped(plan: Plan | None) -> Iterator[Pool]:
    """The pools whose endpoints have a page: those that speak only gRPC have none."""
    for pool in plan.pools if plan else ():
        if pool.app_protocol is AppProtocol.HTTP:
            yield pool


def _growth(before: float | None, now: float | None) -> float:
    """What a counter grew by; one that fell has begun anew with the engine. The first sight counts nothing: the engine
    may have run for weeks."""
    if before is None or now is None or not math.isfinite(now):
        return 0.0
    return now - before if now >= before else now
