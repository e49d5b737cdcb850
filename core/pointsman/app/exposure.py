"""Who saw which variant, and how it went: ended requests by rule and arm, from Envoy's access log."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from pointsman.core.compile.residency import base_pool
from pointsman.core.model import Plan
from pointsman.extproc.feedback import Feedback

OTHER: Final = "other"
"""Label of what the Plan does not know (any more): labels come from us, never from what a gateway sends."""


_TTFT_BUCKETS_S: Final = (0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)
_DURATION_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Few, because each arm of each rule has them; close together where the bars of rollouts and failover are."""


class Exposure:
    """The counter `pointsman_arm_requests_total{rule, pool, outcome}`, and how long those requests took.

    `outcome`: ok, client_error (4xx: the request was wrong or too much), server_error (5xx, a gRPC status that is the
    server's fault, or broken off), none (the client left before there was an answer).
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counter = Counter(
            "pointsman_arm_requests",
            "Requests that ended, by rule, arm of its split, and outcome.",
            ["rule", "pool", "outcome"],
            registry=registry,
        )
        self._ttft = Histogram(
            "pointsman_arm_ttft_seconds",
            "Time from a request's first byte to the first body byte of its answer, by rule and arm.",
            ["rule", "pool"],
            buckets=_TTFT_BUCKETS_S,
            registry=registry,
        )
        self._duration = Histogram(
            "pointsman_arm_duration_seconds",
            "Time from a request's begin to its end, by rule and arm.",
            ["rule", "pool"],
            buckets=_DURATION_BUCKETS_S,
            registry=registry,
        )
        self._arms: frozenset[tuple[str, str]] = frozenset()
        self._outcomes: dict[tuple[str, str, str], Counter] = {}
        self._times: dict[tuple[str, str], tuple[Histogram, Histogram]] = {}

    def apply(self, plan: Plan) -> None:
        """Take over which rules and arms there are."""
        self._arms = frozenset((split.rule, arm.pool) for split in plan.splits for arm in split.arms)

    def feedback(self, entry: Feedback) -> None:
        """Count one access log entry, if its request has ended."""
        if not entry.ended:
            return
        arm = (entry.route.rpartition("/")[0], base_pool(entry.cluster))
        if arm not in self._arms:
            arm = (OTHER, OTHER)
        key = (*arm, _outcome(entry))
        counter = self._outcomes.get(key)
        if counter is None:
            counter = self._outcomes[key] = self._counter.labels(*key)
        counter.inc()
        times = self._times.get(arm)
        if times is None:
            times = self._times[arm] = (self._ttft.labels(*arm), self._duration.labels(*arm))
        if entry.ttft_ms is not None:
            times[0].observe(entry.ttft_ms / 1000.0)
        if entry.duration_ms:
            times[1].observe(entry.duration_ms / 1000.0)


_SERVER_FAULTS: Final = frozenset({2, 4, 8, 12, 13, 14, 15})
"""gRPC: UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS."""


def _outcome(entry: Feedback) -> str:
    if entry.failed or entry.status >= 500 or entry.grpc_status in _SERVER_FAULTS:
        return "server_error"
    if entry.status >= 400 or entry.grpc_status:
        return "client_error"
    return "ok" if entry.status else "none"
