"""Load of the candidates: in-flight accounts and the scraped metrics, fused by the larger of the two.

Own accounts are exact and immediate, those of other pickers a tenth of a second old; but they know only what pickers
sent. Scrapes know all but are late: a scraped value loses weight with its age and gives way to the mean of the other
candidates. What is not known is neutral, never idle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pointsman.extproc.table import Chosen, EndpointTable, Floats

AGE_HALF_LIFE_S = 5.0
"""Age at which a scrape counts half: one scrape (0.2 s) late costs 3 % of its weight, 30 s without one is neutral."""

GRACE_S = 1.5
"""How late the report of a first token may be: Envoy logs running requests every half second and sends them every
50 ms; the rest is for a busy machine."""

PENALTY_HALF_LIFE_S = 2.0
"""How fast the penalty for a 429 or 503 fades: queues drain in seconds, and Envoy ejects what keeps failing."""

RAMP_S = 30.0
"""How long an endpoint that joins a running pool counts as loaded as the others: its cache is empty, its graphs are not
compiled, and all pickers see it idle at once (facts 5.3: slow start of 30 to 60 s)."""


PENALTY_GONE_S = 60.0
"""Age from which a penalty is nothing: thirty half-lives, a billionth of it."""

_NOTHING = np.zeros(4_096)
_NOTHING.flags.writeable = False


def nothing(count: int) -> Floats:
    """A column of zeros, to be read only."""
    return _NOTHING[:count] if count <= len(_NOTHING) else np.zeros(count)


def is_nothing(column: Floats) -> bool:
    """True for a column that `nothing` has given; others may be zero as well."""
    return column.base is _NOTHING


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Load:
    """Columns over the candidates, of all pickers together. Times in ms, `running` in requests, tokens in tokens.

    `capacity_tokens` is NaN where the engine has not told it.
    """

    backlog_ms: Floats
    pending_tokens: Floats
    running: Floats
    context_tokens: Floats
    kv_tokens: Floats
    capacity_tokens: Floats
    rtt_ms: Floats
    penalty_ms: Floats
    ramp_ms: Floats  # part of the backlog that is only caution towards newcomers
    late_ms: Floats  # part of the backlog that is only caution towards silent ones


def fuse(table: EndpointTable, rows: Chosen, now_s: float, mean_prefill_ms: float) -> Load:
    """What the candidates carry now. `mean_prefill_ms` turns a queue of unknown requests into time."""
    weight = np.exp2((table.seen_at_s[rows] - now_s) / AGE_HALF_LIFE_S)
    waiting, running, usage = blend(table.seen[:, rows], weight)
    capacity = table.capacity_tokens[rows]
    seen_kv = np.fmax(usage * capacity, 0.0)  # NaN is 0
    sent = (table.sent[:, rows] + table.sent_elsewhere[:, rows]).astype(np.float64)
    late = lateness_ms(table, rows, now_s) if _any_late(table, rows, now_s) else None
    backlog = _undelayed_backlog_ms(table, rows, now_s)
    backlog += table.remote_backlog_ms[rows]
    if late is not None:
        backlog += late
    engines = table.engines[rows]
    if np.maximum.reduce(engines, initial=1.0) > 1.0:  # behind a gateway the work is divided between many
        sent /= engines
        backlog /= engines
        late = None if late is None else late / engines
    requests, pending, context, fresh_kv = sent
    queue = waiting * mean_prefill_ms
    foreseen = None if late is None else np.maximum(backlog - late, queue)
    np.maximum(backlog, queue, out=backlog)
    return Load(
        backlog_ms=backlog,
        pending_tokens=pending,
        running=np.maximum(requests, running),
        context_tokens=np.maximum(context, seen_kv),
        kv_tokens=np.maximum(fresh_kv, seen_kv),
        capacity_tokens=capacity,
        rtt_ms=_rtt(table, rows),
        penalty_ms=faded_penalty_ms(table, rows, now_s),
        ramp_ms=_ramp(backlog, table.added_at_s[rows], now_s),
        late_ms=nothing(len(backlog)) if foreseen is None else backlog - foreseen,
    )


def faded_penalty_ms(table: EndpointTable, rows: Chosen, now_s: float) -> Floats:
    """What is left of the penalties; one that lies ahead (`Retry-After`) has not begun to fade."""
    at_s = table.penalty_at_s[rows]
    if np.maximum.reduce(at_s, initial=-np.inf) < now_s - PENALTY_GONE_S:
        return nothing(len(at_s))
    ahead_s = np.minimum(0.0, at_s - now_s)
    return np.asarray(table.penalty_ms[rows] * np.exp2(ahead_s / PENALTY_HALF_LIFE_S), dtype=np.float64)


def own_backlog_ms(table: EndpointTable, rows: Chosen, now_s: float) -> Floats:
    """What should be left of the prefills that we sent, and how late the oldest of them is.

    An endpoint that has given no sign for a time is expected to need as long again: one that stalls is left alone, and
    one that is slower than we believe gets less.
    """
    return np.asarray(_undelayed_backlog_ms(table, rows, now_s) + lateness_ms(table, rows, now_s), dtype=np.float64)


def _undelayed_backlog_ms(table: EndpointTable, rows: Chosen, now_s: float) -> Floats:
    left = table.backlog_at_s[rows] - now_s
    left *= 1000.0
    left += table.backlog_ms[rows]
    return np.maximum(left, 0.0, out=left)


def _any_late(table: EndpointTable, rows: Chosen, now_s: float) -> bool:
    return bool(np.minimum.reduce(table.due_at_s[rows], initial=np.inf) < now_s - GRACE_S)


def lateness_ms(table: EndpointTable, rows: Chosen, now_s: float) -> Floats:
    """How late the oldest of our prefills is."""
    return np.maximum((now_s - GRACE_S - table.due_at_s[rows]) * 1000.0, 0.0)


def blend(values: Floats, weight: Floats) -> Floats:
    """Each value drawn towards the weighted mean of its row by 1 − weight; NaN is the mean, and 0 when nobody knows."""
    total_weight = float(np.add.reduce(weight))
    if total_weight > 0.0:
        means = (values @ weight / total_weight)[..., np.newaxis]
        if not np.isnan(means).any():
            drawn = values - means
            drawn *= weight
            drawn += means
            return np.asarray(drawn, dtype=np.float64)
    return _blend_unknown(values, weight)


def _blend_unknown(values: Floats, weight: Floats) -> Floats:
    unknown = np.isnan(values)
    trust = np.where(unknown, 0.0, weight)
    trusted = trust * np.where(unknown, 0.0, values)
    total = np.add.reduce(trust, axis=-1, keepdims=True)
    mean = np.add.reduce(trusted, axis=-1, keepdims=True) / np.where(total > 0.0, total, 1.0)
    return np.asarray(trusted + (1.0 - trust) * mean, dtype=np.float64)


def _rtt(table: EndpointTable, rows: Chosen) -> Floats:
    """The round trip to each candidate's site: the shortest that any candidate there has measured.

    Endpoints of a site share its network; what one measures above that is its server's own slowness, which the backlog
    counts already. A site without a measurement has the mean of the others, or 0 when there is none.
    """
    measured = table.rtt_ms[rows]
    if len(table.site_names) == 1:
        shortest = float(np.fmin.reduce(measured, initial=np.inf))
        return nothing(len(measured)) if math.isinf(shortest) else np.full(len(measured), shortest)
    sites = table.site[rows]
    nearest = np.full(len(table.site_names), np.inf)
    np.fmin.at(nearest, sites, measured)
    rtt = nearest[sites]
    unknown = np.isinf(rtt)
    if unknown.any():
        rtt[unknown] = float(rtt[~unknown].mean()) if not unknown.all() else 0.0
    return rtt


def _ramp(backlog: Floats, added_at_s: Floats, now_s: float) -> Floats:
    """What newcomers lack to the mean backlog of the others, fading over `RAMP_S`."""
    if np.maximum.reduce(added_at_s, initial=-np.inf) <= now_s - RAMP_S:
        return nothing(len(backlog))
    age_s = now_s - added_at_s
    fresh = age_s < RAMP_S
    if not fresh.any() or fresh.all():
        return np.zeros(len(backlog))
    missing = np.maximum(0.0, float(backlog[~fresh].mean()) - backlog)
    return missing * (1.0 - np.minimum(age_s, RAMP_S) / RAMP_S)
