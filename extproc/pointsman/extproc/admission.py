"""Whether a request is let in at all: by its objective, when even the best endpoint would miss it.

A pool with InferenceObjectives or a bound for shedding has an `Admission`; others have what the picker was given, if
anything. A request names its objective (`InferenceObjective`) in a header; one
that names none is judged by vLLM's `priority` in its body, which counts the other way round there: lower goes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pointsman.core.model import Objective, Plan

SHED_MS = 10_000.0
"""Expected TTFT past which requests of negative priority are refused: ten seconds of queue are the next quarter of an
hour's trouble for those who pay, when those who can wait go on filling it."""

MAX_RETRY_AFTER_S = 60
"""Longest wait that a client is told: nobody knows the queue in a minute."""


NO_OBJECTIVE = Objective()


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Objectives by name, and the one of requests that name none or one that is not known."""

    objectives: Mapping[str, Objective] = field(default_factory=dict)
    default: Objective = NO_OBJECTIVE
    shed_ms: float = SHED_MS

    def retry_after_s(self, expected_ms: float, *, objective: str = "", body_priority: int = 0) -> int:
        """Seconds after which the client may try again, 0: let in. `expected_ms` is the best endpoint's TTFT."""
        wanted = self.objectives.get(objective, self.default)
        priority = wanted.priority if objective in self.objectives else wanted.priority - body_priority
        bounds = [wanted.ttft_ms] if wanted.ttft_ms is not None else []
        if priority < 0:
            bounds.append(self.shed_ms)
        late_ms = expected_ms - min(bounds, default=math.inf)
        return 0 if late_ms <= 0.0 else min(MAX_RETRY_AFTER_S, math.ceil(late_ms / 1000.0))


def admissions(plan: Plan) -> dict[str, Admission]:
    """The admissions that a Plan declares, by pool."""
    return {
        pool.name: Admission(
            objectives={objective.name: objective for objective in pool.objectives},
            shed_ms=SHED_MS if pool.shed_after_ms is None else pool.shed_after_ms,
        )
        for pool in plan.pool_views()
        if pool.objectives or pool.shed_after_ms is not None
    }
