"""The span of a pick: below the gateway's span, which Envoy names in the gRPC metadata of each ext_proc stream.

A pick whose trace nobody samples costs a look at that metadata, and no span. A span tells of the decision, never of the
prompt: names out of the manifests, numbers, and of what clients choose the request id and the model, cut.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from pointsman.core.compile.residency import base_pool
from pointsman.core.tracing import (
    MAX_TEXT,
    TRACEPARENT,
    Attribute,
    Span,
    SpanKind,
    SpanSink,
    TraceParent,
    new_span_id,
    parse_traceparent,
)
from pointsman.extproc.decision import Decision

PICK: Final = "pick"
"""Name of the span."""


class PickTracer:
    """Makes the spans of one picker."""

    def __init__(self, spans: SpanSink) -> None:
        self._spans = spans

    def parent(self, metadata: Iterable[tuple[str, Any]] | None) -> TraceParent | None:
        """The gateway's span, by the metadata of a stream; None where it sent none, or where it is not sampled."""
        for key, value in metadata or ():
            if key == TRACEPARENT:
                found = parse_traceparent(value)
                return found if found is not None and found.sampled else None
        return None

    def picked(self, parent: TraceParent, decision: Decision, took_s: float) -> None:
        """A pick has just been made, and took this long."""
        end_ns = time.time_ns()
        self._spans.add(
            Span(
                name=PICK,
                trace_id=parent.trace_id,
                span_id=new_span_id(),
                parent_id=parent.span_id,
                kind=SpanKind.SERVER,
                start_ns=end_ns - int(took_s * 1e9),
                end_ns=end_ns,
                attributes=pick_attributes(decision),
                error=decision.reason if decision.status >= 400 else "",
            )
        )


def pick_attributes(decision: Decision) -> dict[str, Attribute]:
    """What a span says of a decision. `pointsman.pool` is the arm that the split chose."""
    found: dict[str, Attribute] = {
        "pointsman.pool": base_pool(decision.pool)[:MAX_TEXT],
        "pointsman.outcome": decision.reason or "picked",
        "pointsman.policy": decision.policy,
        "pointsman.pick": decision.pick_id,
        "pointsman.rule": decision.route[:MAX_TEXT],
        "pointsman.request_id": decision.request_id[:MAX_TEXT],
        "pointsman.prompt_tokens": decision.prompt_tokens,
    }
    if decision.model:
        found["gen_ai.request.model"] = (decision.asked_model or decision.model)[:MAX_TEXT]
    if decision.asked_model:
        found["pointsman.model"] = decision.model[:MAX_TEXT]
    if decision.codes is not None:
        filtered = int(np.count_nonzero(decision.codes))
        found["pointsman.candidates"] = len(decision.codes) - filtered
        found["pointsman.filtered"] = filtered
    if decision.endpoints:
        found["pointsman.endpoint"] = decision.endpoints[0]
        found["pointsman.fallbacks"] = len(decision.endpoints) - 1
        if decision.order is not None and decision.scores is not None and decision.cached_tokens is not None:
            best = decision.order[0]
            found["pointsman.cost_ms"] = round(float(decision.scores[best]), 3)
            found["pointsman.cached_tokens"] = int(decision.cached_tokens[best])
    return found
