"""Counters and histograms that one event loop adds to with plain numbers.

Those of prometheus-client take a lock for each addition, so that any thread may add; for the half a dozen additions of
a pick that is a dozen microseconds. They look the same to whoever scrapes.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

MAX_CHILDREN: Final = 1_000
"""Combinations of label values before the rest counts as `other`: names come from the Plan, but Plans change for
years."""


class Tally(Collector):
    """A counter. Without labels it has one child, the empty tuple, from the start.

    `values` is by label values, for whoever adds; `child` says which of them to add to.
    """

    def __init__(self, name: str, text: str, labels: Sequence[str] = (), *, registry: CollectorRegistry) -> None:
        self._name, self._text, self._labels = name, text, tuple(labels)
        self.values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        registry.register(self)

    def add(self, child: tuple[str, ...] = (), amount: float = 1.0) -> None:
        """Add to a child, which is there from then on."""
        values = self.values
        if child not in values and len(values) >= MAX_CHILDREN:
            child = ("other",) * len(child)
        values[child] = values.get(child, 0.0) + amount

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for child, value in self.values.items():
            family.add_metric(child, value)
        yield family


class _Buckets:
    __slots__ = ("counts", "total")

    def __init__(self, count: int) -> None:
        self.counts = [0] * count
        self.total = 0.0


class Histogram(Collector):
    """A histogram with the upper `bounds` of its buckets, ascending; the last, without bound, is added."""

    def __init__(
        self, name: str, text: str, bounds: Sequence[float], labels: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._labels = name, text, tuple(labels)
        self._bounds = tuple(bounds)
        self._names = [floatToGoString(bound) for bound in (*bounds, float("inf"))]
        self._children: dict[tuple[str, ...], _Buckets] = {} if labels else {(): _Buckets(len(self._names))}
        registry.register(self)

    def observe(self, value: float, child: tuple[str, ...] = ()) -> None:
        """Count one value."""
        buckets = self._children.get(child)
        if buckets is None:
            if len(self._children) >= MAX_CHILDREN:
                child = ("other",) * len(child)
            buckets = self._children.setdefault(child, _Buckets(len(self._names)))
        buckets.counts[bisect_left(self._bounds, value)] += 1
        buckets.total += value

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for child, buckets in self._children.items():
            reached = list(zip(self._names, map(float, itertools.accumulate(buckets.counts)), strict=True))
            family.add_metric(child, reached, buckets.total)
        yield family
