"""Who saw which variant: ended requests counted by rule and arm, from Envoy's access log."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter

from pointsman.core.model import Plan
from pointsman.extproc.feedback import Feedback

OTHER: Final = "other"
"""Label of what the Plan does not know (any more): labels come from us, never from what a gateway sends."""


class Exposure:
    """The counter `pointsman_arm_requests_total{rule, pool, outcome}`.

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
        self._arms: frozenset[tuple[str, str]] = frozenset()

    def apply(self, plan: Plan) -> None:
        """Take over which rules and arms there are."""
        self._arms = frozenset((split.rule, arm.pool) for split in plan.splits for arm in split.arms)

    def feedback(self, entry: Feedback) -> None:
        """Count one access log entry, if its request has ended."""
        if not entry.ended:
            return
        arm = (entry.route.rpartition("/")[0], entry.cluster)
        rule, pool = arm if arm in self._arms else (OTHER, OTHER)
        self._counter.labels(rule, pool, _outcome(entry)).inc()


_SERVER_FAULTS: Final = frozenset({2, 4, 8, 12, 13, 14, 15})
"""gRPC: UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS."""


def _outcome(entry: Feedback) -> str:
    if entry.failed or entry.status >= 500 or entry.grpc_status in _SERVER_FAULTS:
        return "server_error"
    if entry.status >= 400 or entry.grpc_status:
        return "client_error"
    return "ok" if entry.status else "none"
