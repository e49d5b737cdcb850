"""From what a replay saw to the figures of its report. Pure: no clock, no output.

Latencies are of the requests that succeeded. Each is given in wall time and, when the replay ran at another speed than
1, in trace time too (wall time × speed): that is what upstreams would show which run at that speed themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from pointsman.replay.load import Failure, RequestRecord
from pointsman.replay.upstreams import Counters, Upstream

MAX_EXAMPLES: Final = 5
"""Failures that a report quotes; the rest is counted."""

LATE_MS: Final = 50.0
"""A generator that is later than this at the 99th percentile gets a note: 50 ms is a tenth of a usual TTFT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """All that a replay saw. `wall_s` runs from its start to the end of the last request.

    `before` and `after` are the upstreams' counters by upstream key. `notes` say what could not be learnt and why.
    """

    trace: str
    gateway: str
    model: str
    speed: float
    seed: int
    jitter_ms: float
    planned: int
    sent: int
    records: tuple[RequestRecord, ...]
    wall_s: float
    interrupted: bool = False
    upstreams: tuple[Upstream, ...] = ()
    before: Mapping[str, Counters] = field(default_factory=dict)
    after: Mapping[str, Counters] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Mean, percentiles (linear between neighbours) and maximum, all in ms."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float

    def scaled(self, factor: float) -> Quantiles:
        """Each figure times `factor`."""
        return Quantiles(
            mean=self.mean * factor,
            p50=self.p50 * factor,
            p95=self.p95 * factor,
            p99=self.p99 * factor,
            max=self.max * factor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One latency in wall time and in trace time (None at speed 1, where it is the same)."""

    wall: Quantiles
    trace: Quantiles | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixHits:
    """Prompt tokens found in prefix caches. `ratio` is None when no token was looked up."""

    hit_tokens: int
    query_tokens: int
    ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The part of a site, pool or replica.

    `requests` are the successful ones that name it in their answer, `share` is their part of all successful ones
    (0..1). `prefix` is by its own counters, None where there are none.
    """

    name: str
    requests: int
    share: float
    prefix: PrefixHits | None = None
    site: str = ""
    pool: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The figures of a replay. Tokens per second are over the wall time of the whole replay."""

    trace: str
    gateway: str
    model: str
    speed: float
    seed: int
    jitter_ms: float
    interrupted: bool
    planned: int
    sent: int
    succeeded: int
    failed: int
    unfinished: int
    failures: dict[str, int]
    failure_examples: list[str]
    wall_s: float
    ttft_ms: Timing | None
    e2e_ms: Timing | None
    generator_late_ms: Quantiles | None
    prompt_tokens: int
    output_tokens: int
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    prefix_by_upstreams: PrefixHits | None
    prefix_by_clients: PrefixHits | None
    sites: list[Share]
    pools: list[Share]
    replicas: list[Share]
    notes: list[str]


def make_report(result: ReplayResult) -> Report:
    """Work out the figures."""
    good = [r for r in result.records if r.failure is None]
    bad = sorted((r for r in result.records if r.failure is not None), key=lambda r: r.index)
    failures = Counter(failure_name(r) for r in bad)
    late_ms = quantiles([r.late_ms for r in result.records])
    prompt_tokens = sum(r.prompt_tokens for r in good)
    output_tokens = sum(r.output_tokens for r in good)
    gained = {key: counters.since(result.before[key]) for key, counters in result.after.items() if key in result.before}
    replicas = _replicas(good, result.upstreams, gained)
    notes = list(result.notes)
    if late_ms is not None and late_ms.p99 > LATE_MS:
        notes.append(f"the generator itself was late (p99 {late_ms.p99:.0f} ms): latencies contain its lateness")
    return Report(
        trace=result.trace,
        gateway=result.gateway,
        model=result.model,
        speed=result.speed,
        seed=result.seed,
        jitter_ms=result.jitter_ms,
        interrupted=result.interrupted,
        planned=result.planned,
        sent=result.sent,
        succeeded=len(good),
        failed=len(bad),
        unfinished=result.sent - len(result.records),
        failures=dict(sorted(failures.items(), key=lambda item: (-item[1], item[0]))),
        failure_examples=[f"request {r.index}: {failure_name(r)}: {r.detail}" for r in bad[:MAX_EXAMPLES]],
        wall_s=result.wall_s,
        ttft_ms=_timing([r.ttft_ms for r in good if r.ttft_ms is not None], result.speed),
        e2e_ms=_timing([r.e2e_ms for r in good], result.speed),
        generator_late_ms=late_ms,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        prompt_tokens_per_s=prompt_tokens / result.wall_s if result.wall_s else 0.0,
        output_tokens_per_s=output_tokens / result.wall_s if result.wall_s else 0.0,
        prefix_by_upstreams=_sum_counters(gained.values()) if gained else None,
        prefix_by_clients=_client_prefix(good),
        sites=_grouped(replicas, lambda share: share.site),
        pools=_grouped(replicas, lambda share: share.pool),
        replicas=replicas,
        notes=notes,
    )


def report_json(report: Report) -> bytes:
    """The report as one JSON object, indented, with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def quantiles(values: Sequence[float]) -> Quantiles | None:
    """Of any number of values; None for none."""
    if not values:
        return None
    p50, p95, p99 = np.quantile(values, (0.5, 0.95, 0.99)).tolist()
    return Quantiles(mean=float(np.mean(values)), p50=p50, p95=p95, p99=p99, max=max(values))


def failure_name(record: RequestRecord) -> str:
    """The class of a failure as reports show it, refusals with their status."""
    if record.failure is None:
        return ""
    return f"status {record.status}" if record.failure is Failure.STATUS else record.failure.value


def prefix_hits(hit_tokens: float, query_tokens: float) -> PrefixHits:
    """Counts with their ratio."""
    return PrefixHits(
        hit_tokens=round(hit_tokens),
        query_tokens=round(query_tokens),
        ratio=hit_tokens / query_tokens if query_tokens else None,
    )


def _timing(values_ms: Sequence[float], speed: float) -> Timing | None:
    wall = quantiles(values_ms)
    if wall is None:
        return None
    return Timing(wall=wall, trace=wall.scaled(speed) if speed != 1 else None)


def _sum_counters(gained: Iterable[Counters]) -> PrefixHits:
    found = list(gained)
    return prefix_hits(sum(c.hit_tokens for c in found), sum(c.query_tokens for c in found))


def _client_prefix(good: Iterable[RequestRecord]) -> PrefixHits | None:
    """By the usage in the answers: only those count that tell `cached_tokens`."""
    told = [(r.cached_tokens, r.prompt_tokens) for r in good if r.cached_tokens is not None]
    return prefix_hits(sum(t[0] for t in told), sum(t[1] for t in told)) if told else None


def _replicas(
    good: Sequence[RequestRecord], upstreams: Iterable[Upstream], gained: Mapping[str, Counters]
) -> list[Share]:
    """One share for each known upstream, then one for each name that answers gave and no upstream has."""
    served = Counter(r.replica for r in good)
    known = list(upstreams)
    # A name that several upstreams bear says nothing about which of them served.
    unique = {name for name, count in Counter(u.name for u in known).items() if count == 1}
    shares = []
    for upstream in known:
        requests = served.pop(upstream.name, 0) if upstream.name in unique else 0
        counters = gained.get(upstream.key)
        shares.append(
            Share(
                name=upstream.name,
                requests=requests,
                share=requests / len(good) if good else 0.0,
                prefix=_sum_counters([counters]) if counters is not None else None,
                site=upstream.site,
                pool=upstream.pool,
            )
        )
    shares.sort(key=lambda s: (s.site, s.pool, s.name))
    return shares + [Share(name=name, requests=n, share=n / len(good)) for name, n in sorted(served.items())]


def _grouped(replicas: Iterable[Share], group_of: Callable[[Share], str]) -> list[Share]:
    """Shares of the same group added up; those without a group stay out of it."""
    groups: dict[str, list[Share]] = {}
    for share in replicas:
        if group_of(share):
            groups.setdefault(group_of(share), []).append(share)
    return [
        Share(
            name=name,
            requests=sum(m.requests for m in members),
            share=sum(m.share for m in members),
            prefix=_sum_prefix([m.prefix for m in members if m.prefix is not None]),
        )
        for name, members in sorted(groups.items())
    ]


def _sum_prefix(parts: Sequence[PrefixHits]) -> PrefixHits | None:
    if not parts:
        return None
    return prefix_hits(sum(p.hit_tokens for p in parts), sum(p.query_tokens for p in parts))
