"""The metrics of all workers as one: counters, buckets and sizes added up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from pointsman.app.workers.frames import Family

SAME_FOR_ALL: Final = frozenset({"pointsman_picker_endpoints"})
"""Gauges that each worker knows of the whole fleet; the others are sizes of its own, which add up."""


def families_of(registry: CollectorRegistry) -> list[Family]:
    """All metrics of a registry but the times at which counters were made."""
    return [
        (
            metric.name,
            metric.documentation,
            metric.type,
            [(s.name, dict(s.labels), float(s.value)) for s in metric.samples if not s.name.endswith("_created")],
        )
        for metric in registry.collect()
    ]


class WorkerMetrics(Collector):
    """Adds up the latest samples of each worker. What a worker counted before it ended is kept."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._latest: dict[str, list[Family]] = {}
        self._ended: dict[tuple[str, str, tuple[tuple[str, str], ...]], float] = {}
        registry.register(self)

    def took(self, worker: str, families: list[Family]) -> None:
        """A worker's samples."""
        self._latest[worker] = families

    def ended(self, worker: str) -> None:
        """A worker has ended: its counters stay in the sums, so that they never go back; its sizes do not."""
        for name, _, kind, samples in self._latest.pop(worker, []):
            if kind != "gauge":
                for sample, labels, value in samples:
                    key = (name, sample, tuple(sorted(labels.items())))
                    self._ended[key] = self._ended.get(key, 0.0) + value

    def collect(self) -> Iterator[Metric]:
        """One family for each name, whoever has it."""
        metrics: dict[str, Metric] = {}
        sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        for families in self._latest.values():
            for name, documentation, kind, samples in families:
                metrics.setdefault(name, Metric(name, documentation, kind))
                values = sums.setdefault(name, {})
                for sample, labels, value in samples:
                    key = (sample, tuple(sorted(labels.items())))
                    values[key] = value if name in SAME_FOR_ALL else values.get(key, 0.0) + value
        for (name, sample, label_items), value in self._ended.items():
            if name in sums:
                key = (sample, label_items)
                sums[name][key] = sums[name].get(key, 0.0) + value
        for name, metric in metrics.items():
            for (sample, label_items), value in sums[name].items():
                metric.add_sample(sample, dict(label_items), value)
            yield metric
