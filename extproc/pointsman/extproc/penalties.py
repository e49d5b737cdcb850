"""Failures of endpoints in the table: 429, 503 and broken connections cost milliseconds that fade."""

from __future__ import annotations

import numpy as np

from pointsman.extproc.signals import faded_penalty_ms
from pointsman.extproc.table import EndpointTable

PENALTY_MS = 2_000.0
"""What one 429, 503 or broken connection costs an endpoint at first: more than any prefill it could save."""

MAX_RETRY_AFTER_S = 30.0
"""Longest `Retry-After` of an endpoint that is believed; past it the endpoint is tried again like after any failure."""

MAX_PENALTY_MS = 20_000.0
"""Failures in a row: enough to be the last resort, forgotten within half a minute."""


def penalise(table: EndpointTable, row: int, now_s: float, retry_after_s: float = 0.0) -> None:
    """Count a failure; with `Retry-After` its penalty begins to fade when that is over."""
    faded = float(faded_penalty_ms(table, np.array([row]), now_s)[0])
    table.penalty_ms[row] = min(MAX_PENALTY_MS, faded + PENALTY_MS)
    table.penalty_at_s[row] = max(table.penalty_at_s[row], now_s + min(retry_after_s, MAX_RETRY_AFTER_S))
