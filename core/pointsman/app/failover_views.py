"""What scrapes tell of endpoints, and who waits for an answer, as failover sees it. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from pointsman.core.arm_names import whole_pool
from pointsman.extproc.inflight import Silent
from pointsman.extproc.table import EndpointTable
from pointsman.failover.model import EndpointView, Member, Waiting

HANGS_S: Final = 0.5
"""A page that takes so long is not coming: it usually takes milliseconds, and gateways' probes wait 0.6 s."""

ABSENT_S: Final = 1.0
"""Without a good page for so long, and with the last try in vain, nobody is there: one try alone is a lost packet."""


def endpoint_views(
    table: EndpointTable, absent: Mapping[str, int], asked_at_s: Mapping[str, float], now_s: float
) -> dict[str, EndpointView]:
    """By `ip:port`, for the endpoints of the Plan. `absent`: tries in a row that found nobody there; `asked_at_s`: when
    the page that is being waited for was asked."""
    found = {}
    keys = table.keys()
    for key in keys:
        row = table.row(key)
        if row is None:
            continue
        age_s = now_s - float(table.seen_at_s[row])
        hangs = now_s - asked_at_s.get(key, now_s) >= HANGS_S
        found[key] = EndpointView(
            endpoint=key,
            metrics_age_s=_known(age_s),
            scrape_failing=hangs or (absent.get(key, 0) > 0 and age_s >= ABSENT_S),
            waiting=_known(float(table.seen_waiting[row])),
            kv_usage=_known(float(table.seen_kv_usage[row])),
            rtt_ms=_known(float(table.rtt_ms[row])),
        )
    return found


def waiting_of(
    silent: Iterable[Silent], members: Mapping[tuple[str, str], Member], now_s: float
) -> dict[Member, list[Waiting]]:
    """Who has no first byte yet, by member. `members`: (pool, endpoint) → member."""
    found: dict[Member, list[Waiting]] = {}
    for one in silent:
        member = members.get((whole_pool(one.pool), one.endpoint))
        if member is not None:
            found.setdefault(member, []).append(
                Waiting(
                    endpoint=one.endpoint,
                    age_ms=(now_s - one.opened_at_s) * 1_000,
                    expected_ms=one.expected_ms,
                    silent_ms=one.silent_ms,
                )
            )
    return found


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
