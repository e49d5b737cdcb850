"""In-flight load between the endpoint table and what pickers tell each other."""

from __future__ import annotations

import numpy as np

from pointsman.extproc.gossip import EndpointLoad, Loads
from pointsman.extproc.signals import own_backlog_ms
from pointsman.extproc.table import EndpointTable


def own_loads(table: EndpointTable, now_s: float) -> dict[str, EndpointLoad]:
    """What this picker has in flight, for each endpoint with a request."""
    rows = np.flatnonzero(table.requests)
    backlog_us = own_backlog_ms(table, rows, now_s) * 1000.0
    return {
        table.key(int(row)): EndpointLoad(
            requests=int(table.requests[row]),
            backlog_us=round(float(left_us)),
            pending_tokens=int(table.pending_tokens[row]),
            context_tokens=int(table.context_tokens[row]),
            fresh_kv_tokens=int(table.fresh_kv_tokens[row]),
        )
        for row, left_us in zip(rows, backlog_us, strict=True)
    }


def set_remote_loads(table: EndpointTable, loads: Loads) -> None:
    """What all other pickers have in flight; endpoints that are not named have none, unknown ones are ignored."""
    columns = (
        table.remote_requests,
        table.remote_backlog_ms,
        table.remote_pending_tokens,
        table.remote_context_tokens,
        table.remote_fresh_kv_tokens,
    )
    for column in columns:
        column.fill(0)
    for endpoint, load in loads.items():
        row = table.row(endpoint)
        if row is not None:
            table.remote_requests[row] = load.requests
            table.remote_backlog_ms[row] = load.backlog_us / 1000.0
            table.remote_pending_tokens[row] = load.pending_tokens
            table.remote_context_tokens[row] = load.context_tokens
            table.remote_fresh_kv_tokens[row] = load.fresh_kv_tokens
