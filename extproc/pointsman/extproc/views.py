"""What the scrapes tell of an endpoint, for whoever judges it."""

from __future__ import annotations

import math
from typing import NamedTuple

from pointsman.extproc.table import EndpointTable, Floats


class Seen(NamedTuple):
    """The last scrape of an endpoint and its age; None: never told. `rtt_ms`: until the first byte of the page."""

    age_s: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    rtt_ms: float | None = None


def seen(table: EndpointTable, key: str, now_s: float) -> Seen:
    """Look an endpoint (`ip:port`) up; one that is not in the table was never seen."""
    row = table.row(key)
    if row is None:
        return Seen()
    at_s = float(table.seen_at_s[row])
    return Seen(
        age_s=now_s - at_s if math.isfinite(at_s) else None,
        waiting=_known(table.seen_waiting, row),
        kv_usage=_known(table.seen_kv_usage, row),
        rtt_ms=_known(table.rtt_ms, row),
    )


def _known(column: Floats, row: int) -> float | None:
    value = float(column[row])
    return None if math.isnan(value) else value
