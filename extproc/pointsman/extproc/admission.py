"""Whether a request is let in at all: by its objective, when even the best endpoint would miss it.

Off unless the picker is given an `Admission`. A request names its objective (`InferenceObjective`) in a header; one
that names none is judged by vLLM's `priority` in its body, which counts the other way round there: lower goes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

SHED_MS = 10_000.0
"""Expected TTFT past which requests of negative priority are refused: ten seconds of queue are the next quarter of an
hour's trouble for those who pay, when those who can wait go on filling it."""

MAX_RETRY_AFTER_S = 60
"""Longest wait that a client is told: nobody knows the queue in a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What requests of one kind need. Negative `priority`: can be shed. `ttft_ms`: later is useless; None: no bound."""

    priority: int = 0
    ttft_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Objectives by name, and the one of requests that name none or one that is not known."""

    objectives: Mapping[str, Objective] = field(default_factory=dict)
    default: Objective = Objective()
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
