"""What scrapes tell of endpoints, as failover sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from pointsman.extproc.table import EndpointTable
from pointsman.failover.model import EndpointView

ABSENT_TRIES: Final = 3
"""Tries in a row that found nobody: one is a lost packet, two a restart of the network's state."""


def endpoint_views(table: EndpointTable, absent: Mapping[str, int], now_s: float) -> dict[str, EndpointView]:
    """By `ip:port`, for the endpoints of the Plan. `absent`: tries in a row that found nobody there."""
    found = {}
    keys = table.keys()
    for key in keys:
        row = table.row(key)
        if row is None:
            continue
        age_s = now_s - float(table.seen_at_s[row])
        found[key] = EndpointView(
            endpoint=key,
            metrics_age_s=_known(age_s),
            scrape_failing=absent.get(key, 0) >= ABSENT_TRIES,
            waiting=_known(float(table.seen_waiting[row])),
            kv_usage=_known(float(table.seen_kv_usage[row])),
            rtt_ms=_known(float(table.rtt_ms[row])),
        )
    return found


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
