"""What scrapes tell of endpoints, and who waits for an answer, as failover sees it. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from pointsman.core.arm_names import whole_pool
from pointsman.core.attention import ATTENTIVE, Attention
from pointsman.extproc.inflight import Silent
from pointsman.extproc.table import EndpointTable
from pointsman.failover.model import EndpointView, Member, Waiting

HANGS_S: Final = 0.5
"""A page that takes so long is not coming: it usually takes milliseconds, and gateways' probes wait 0.6 s."""

ABSENT_S: Final = 1.0
"""Without a good page for so long, and with the last try in vain, nobody is there: one try alone is a lost packet."""


PROVEN: Final = 2
"""Tries in vain that need no more proof, however late we were: what timed out for our own sake is not counted."""


class Scrapes(Protocol):
    """How scraping goes, by endpoint. `absent`: tries in a row that found nobody there; `asked_at_s`: since when a page
    is awaited (monotonic)."""

    absent: dict[str, int]
    asked_at_s: dict[str, float]


def endpoint_views(
    table: EndpointTable, scrapes: Scrapes, now_s: float, attention: Attention = ATTENTIVE
) -> dict[str, EndpointView]:
    """By `ip:port`, for the endpoints of the Plan. Waits are timed without what `attention` missed of them."""
    found = {}
    keys = table.keys()
    for key in keys:
        row = table.row(key)
        if row is None:
            continue
        seen_at_s, asked_s = float(table.seen_at_s[row]), scrapes.asked_at_s.get(key, now_s)
        age_s, missed_s = now_s - seen_at_s, attention.missed_s(seen_at_s)
        hangs = now_s - asked_s - attention.missed_s(asked_s) >= HANGS_S
        absent = scrapes.absent.get(key, 0)
        looked_s = age_s if absent >= PROVEN else age_s - missed_s
        found[key] = EndpointView(
            endpoint=key,
            metrics_age_s=_known(age_s),
            scrape_failing=hangs or (absent > 0 and looked_s >= ABSENT_S),
            waiting=_known(float(table.seen_waiting[row])),
            kv_usage=_known(float(table.seen_kv_usage[row])),
            rtt_ms=_known(float(table.rtt_ms[row])),
            missed_s=missed_s,
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
