"""Prometheus metrics of the picker, which one event loop adds to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from operator import attrgetter

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pointsman.extproc.cost import Terms
from pointsman.extproc.decision import Decision
from pointsman.extproc.feedback import Feedback
from pointsman.extproc.picker import Picker
from pointsman.extproc.tallies import MAX_CHILDREN, Histogram, Tally

_DECISION_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05)
_TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ADDED_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The picker's message timeout, 0.2 s, is one of the bounds: what lies past it went on without a pick."""

_TERMS = tuple(field.name for field in fields(Terms) if field.name not in {"suspect", "degraded"})
"""Those two put an endpoint behind all others by a number larger than any time: it would drown the others' shares."""

_terms_of = attrgetter(*_TERMS)

_END, _PROGRESS, _UNMATCHED = ("end",), ("progress",), ("unmatched",)


class PickerMetrics:
    """The counters and histograms of one picker, on the registry that is passed in."""

    def __init__(self, registry: CollectorRegistry, picker: Picker) -> None:
        self._picks = Tally("pointsman_picks", "Answers of the picker.", ["pool", "outcome"], registry=registry)
        self._duration = Histogram(
            "pointsman_pick_duration_seconds",
            "Time from a request's arrival at the picker to its answer.",
            _DECISION_BUCKETS_S,
            registry=registry,
        )
        self._no_affinity = Tally(
            "pointsman_unreadable_bodies", "Request bodies that gave no prompt.", registry=registry
        )
        self._ttft = Histogram(
            "pointsman_ttft_seconds",
            "Time from a request's first byte to the first body byte of its answer, as Envoy saw it.",
            _TTFT_BUCKETS_S,
            ["pool"],
            registry=registry,
        )
        self._feedback = Tally("pointsman_feedback", "Access log entries by kind.", ["kind"], registry=registry)
        for kind in (_END, _PROGRESS, _UNMATCHED):
            self._feedback.add(kind, 0.0)
        self._errors = Tally(
            "pointsman_extproc_stream_errors", "Streams ended because a peer broke the protocol.", registry=registry
        )
        self._added = Histogram(
            "pointsman_added_latency_seconds",
            "Time from a request's last byte in to its first byte to the endpoint, as Envoy saw it: what a pick adds.",
            _ADDED_BUCKETS_S,
            registry=registry,
        )
        self._retries = Tally(
            "pointsman_upstream_retries", "Further attempts that requests took.", ["pool"], registry=registry
        )
        self._sums = _Sums(registry)
        registry.register(_Sizes(picker))

    def picked(self, decision: Decision, duration_s: float) -> None:
        """Count one answer."""
        self._picks.add((decision.pool, decision.reason or "picked"))
        self._duration.observe(duration_s)
        if decision.problem:
            self._no_affinity.add()
        self._sums.picked(decision)

    def heard(self, entry: Feedback, *, matched: bool) -> None:
        """Count one access log entry; the TTFT once, with the end of the request."""
        self._feedback.add(_UNMATCHED if not matched else _END if entry.ended else _PROGRESS)
        if not entry.ended:
            return
        pool = (entry.cluster,)
        if entry.ttft_ms is not None and entry.cluster:
            self._ttft.observe(entry.ttft_ms / 1000.0, pool)
        if entry.cluster:  # there before the first retry: rates don't see a series that begins
            self._retries.add(pool, max(0.0, entry.attempts - 1.0))
        if entry.attempts <= 1 and entry.added_ms is not None:
            self._added.observe(entry.added_ms / 1000.0)

    def stream_error(self) -> None:
        """Count a stream that was ended for a protocol error."""
        self._errors.add()


class _Sums(Collector):
    """Sums over picks that are added up with plain floats: a counter's child costs a lock for each of a dozen terms."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._cost_ms = [0.0] * len(_TERMS)
        self._tokens: dict[str, list[float]] = {}
        registry.register(self)

    def picked(self, decision: Decision) -> None:
        """Add the terms and tokens of the endpoint that was chosen; nothing for picks without a cost."""
        terms, order, cached = decision.terms, decision.order, decision.cached_tokens
        if terms is None or order is None or cached is None or not decision.endpoints:
            return
        chosen = order[0]
        costs = self._cost_ms
        for index, column in enumerate(_terms_of(terms)):
            costs[index] += column[chosen]
        tokens = self._tokens.get(decision.pool)
        if tokens is None:
            pool = decision.pool if len(self._tokens) < MAX_CHILDREN else "other"
            tokens = self._tokens.setdefault(pool, [0.0, 0.0])
        tokens[0] += decision.prompt_tokens
        tokens[1] += cached[chosen]

    def collect(self) -> Iterator[Metric]:
        cost = CounterMetricFamily(
            "pointsman_pick_cost_seconds", "Expected price of the endpoints chosen, by term.", labels=["term"]
        )
        for name, sum_ms in zip(_TERMS, self._cost_ms, strict=True):
            cost.add_metric([name], float(sum_ms) / 1000.0)
        yield cost
        prompts = CounterMetricFamily(
            "pointsman_pick_prompt_tokens", "Prompt tokens of picks, as the picker counts them.", labels=["pool"]
        )
        hits = CounterMetricFamily(
            "pointsman_pick_prefix_hit_tokens",
            "Prompt tokens of picks that the chosen endpoint should hold in its cache, by the picker's index.",
            labels=["pool"],
        )
        for pool, (prompt, hit) in self._tokens.items():
            prompts.add_metric([pool], float(prompt))
            hits.add_metric([pool], float(hit))
        yield prompts
        yield hits


class _Sizes(Collector):
    """Sizes of the picker's state, read when someone scrapes."""

    def __init__(self, picker: Picker) -> None:
        self._picker = picker

    def collect(self) -> Iterator[Metric]:
        stats = self._picker.stats()
        gauges = (
            ("endpoints", "Endpoints that can be picked.", stats.endpoints),
            ("inflight_requests", "Picked requests that have not ended.", stats.in_flight),
            ("prefix_blocks", "Entries of the prefix index.", stats.prefix_blocks),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"pointsman_picker_{name}", text, value=value)
        yield CounterMetricFamily(
            "pointsman_picker_expired_accounts", "Picks whose end was never heard.", value=stats.expired
        )
