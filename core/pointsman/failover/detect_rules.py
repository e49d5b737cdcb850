"""Judging a member by its requests: errors, latency, stall; and which single endpoints are bad."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pointsman.failover.detect_odds import Test, joint, site_wide
from pointsman.failover.detect_state import EndpointState, Late, MemberState, Rings
from pointsman.failover.detect_triggers import Latency
from pointsman.failover.model import Finding, Trigger
from pointsman.failover.windows import Ring

ERROR_NATS: Final = math.log(1e9)
"""One false alarm in a billion looks, if half of the threshold were the true rate: seven failures in a row suffice, or
0.7 s of 30 % at 100 requests a second."""

SLOW_NATS: Final = math.log(1e5)
"""One in a hundred thousand looks if a third of the requests were slow, which is far from any usual day, on which it is
a few in a hundred: eleven in a row suffice."""

STALL_NATS: Final = math.log(1e6)
STALL_USUAL: Final = 0.1
"""One in a million looks if a tenth of the requests were late: six in a row suffice, and nothing may come meanwhile."""

SILENCE_NATS: Final = 12.0
SILENCE_S: Final = 1.0
"""A stalled site is silent for as long as twelve first bytes usually take (chance: 6 in a million), or a second where
there are few; but engines with long queues give few bytes, so there it must be both."""

USUAL_SLOW: Final = 0.7
"""Part of the share that makes a site slow which is tolerated as usual."""

ERROR_WINDOWS: Final = (3, 5, 8, 12, 20, 30, 40, 50)
SLOW_WINDOWS: Final = (10, 20, 30, 40, 50, 60)
STALL_WINDOWS: Final = (3, 5, 10, 20, 40)
LONG_WINDOWS: Final = (5, 10, 20, 40, 60)
"""Lengths that are looked at, in buckets up to now: the short ones see a total failure early, the long ones a partial
one or one of a quiet site."""

EJECT_WINDOWS: Final = (20, 40, 60)
"""An endpoint alone is slow only for two seconds or longer: garbage collection takes one."""

JOINT_WINDOWS: Final = (10, 20, 30, 40, 50, 60)
"""Two endpoints that are slow in the same second do not both collect garbage (see `joint`)."""

QUIET_REQUESTS: Final = 100
"""Fewer requests in the short windows than this do not show 30 % of failures for sure, so the long ones are asked."""

FRESH_S: Final = 5.0
FRESH_GAPS: Final = 3.0
"""What long windows show still holds while the last bad request is younger than this, or than three times the usual
time between requests."""

Select = Callable[[Rings], Ring]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What to look for: in which ring, in windows of which lengths, by which test for how many requests; and the
    requests that are late now. `joint`: the lengths in which a few endpoints may speak for their site. `back_s`: what
    is longer ago has another reason."""

    ring: Select
    lengths: tuple[int, ...]
    test: Callable[[int], Test]
    late: tuple[Late, ...] = ()
    joint: tuple[int, ...] = ()
    back_s: float = math.inf


def _slowness(latency: Latency) -> Test:
    share = 1.0 - latency.quantile
    return Test(share=share, usual=USUAL_SLOW * share, nats=SLOW_NATS)


def _errors(rings: Rings) -> Ring:
    return rings.errors


def _errors_long(rings: Rings) -> Ring:
    return rings.errors_long


def _slow(rings: Rings) -> Ring:
    return rings.slow


def _slow_long(rings: Rings) -> Ring:
    return rings.slow_long


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A window that is bad at most of a member's endpoints."""

    total: int
    bad: int
    since_s: float
    window_s: float


def judge_errors(member: MemberState, now_s: float) -> Finding | None:
    """The error rate, or nothing."""
    trigger = member.triggers.error_rate
    if trigger is None:
        return None
    test = Test(share=trigger.threshold, usual=trigger.threshold / 2, nats=ERROR_NATS)
    few = Test(share=max(0.5, trigger.threshold), usual=trigger.threshold / 2, nats=ERROR_NATS)
    look = Look(ring=_errors, lengths=ERROR_WINDOWS, test=lambda total: test if total >= trigger.min_requests else few)
    found = _worst(member, now_s, look)
    if found is None and _is_quiet(member.rings.errors, QUIET_REQUESTS):
        found = _lasting(member, now_s, replace(look, ring=_errors_long, lengths=LONG_WINDOWS), member.bad_s)
    if found is None:
        return None
    return Finding(
        trigger=Trigger.ERROR_RATE,
        value=found.bad / found.total,
        threshold=trigger.threshold,
        samples=found.total,
        since_s=found.since_s,
        detail=f"{found.bad} of {found.total} requests failed in {found.window_s:.1f} s",
    )


def judge_latency(member: MemberState, now_s: float) -> Finding | None:
    """Slow first bytes, or nothing; a member whose engines have queues is full, not slow."""
    trigger = member.triggers.latency
    if trigger is None or not member.baseline.known or member.busy:
        return None
    test = _slowness(trigger)
    late = tuple(one for one in member.late if one.began_s > member.busy_s) if trigger.in_flight else ()
    calm_s = now_s - member.busy_s  # what came while there were queues is theirs
    look = Look(ring=_slow, lengths=SLOW_WINDOWS, test=lambda _: test, late=late, joint=JOINT_WINDOWS, back_s=calm_s)
    found = _worst(member, now_s, look)
    if found is None and _is_quiet(member.rings.slow, 2 * math.ceil(SLOW_NATS)):
        slow_s = max([member.slow_s, *(one.at_s for one in late)])
        found = _lasting(
            member, now_s, replace(look, ring=_slow_long, lengths=LONG_WINDOWS, joint=(), back_s=math.inf), slow_s
        )
    if found is None:
        return None
    excess_ms = _excess_ms(member, now_s - found.window_s, late, trigger.quantile)
    return Finding(
        trigger=Trigger.LATENCY,
        value=excess_ms,
        threshold=trigger.delta_ms,
        samples=found.total,
        since_s=found.since_s,
        detail=f"first bytes {excess_ms:.0f} ms later than usual, {found.bad} of {found.total} are slow "
        f"in {found.window_s:.1f} s",
    )


def judge_stall(member: MemberState, now_s: float) -> Finding | None:
    """Requests wait, and none has had its first byte meanwhile."""
    trigger = member.triggers.stall
    if trigger is None:
        return None
    # What was sent while there were queues may be what is left of them.
    calm = [one for one in member.late if member.busy or one.began_s > member.busy_s]
    late = tuple(one for one in calm if one.excess_ms >= trigger.late_ms)
    if not late:
        return None
    test = Test(share=1.0, usual=STALL_USUAL, nats=STALL_NATS)
    found = _worst(member, now_s, Look(ring=_slow, lengths=STALL_WINDOWS, test=lambda _: test, late=late))
    if found is None and _is_quiet(member.rings.slow, 2 * math.ceil(STALL_NATS)):
        look = Look(ring=_slow_long, lengths=LONG_WINDOWS, test=lambda _: test, late=late)
        found = _lasting(member, now_s, look, max(one.at_s for one in late))
    if found is None or not _is_silent(member, now_s):
        return None
    worst_ms = max(one.excess_ms for one in late)
    return Finding(
        trigger=Trigger.STALL,
        value=worst_ms,
        threshold=trigger.late_ms,
        samples=found.total,
        since_s=min(one.began_s for one in late),
        detail=f"{found.bad} requests wait and none has had a byte, the oldest {worst_ms:.0f} ms later than usual",
    )


def _is_silent(member: MemberState, now_s: float) -> bool:
    """No first byte has been told of for so long that it is no chance at the usual rate."""
    ring = member.rings.slow
    wanted_s = SILENCE_NATS * ring.size * ring.bucket_s / ring.total if ring.total else SILENCE_S
    wanted_s = max(wanted_s, SILENCE_S) if member.busy else min(wanted_s, SILENCE_S)
    buckets = min(ring.size, max(STALL_WINDOWS[0], math.ceil(wanted_s / ring.bucket_s)))
    stretched = member.stretched(ring, buckets, now_s)  # what came while we did not look is not heard of yet
    if stretched <= ring.size:
        return not ring.count(stretched)[0]
    longer = member.rings.slow_long
    stretched = math.ceil(stretched * ring.bucket_s / longer.bucket_s)
    return stretched <= longer.size and not longer.count(stretched)[0]


def failing_endpoints(member: MemberState, now_s: float) -> tuple[str, ...]:
    """Endpoints that fail or are slow by themselves while the others are well; none when half of the site is not.

    Where only a few are asked at all (a shared prefix keeps the requests together) and each of them is slow, nobody can
    say whether it is the site: they are listed, the requests go to the others, and those tell.
    """
    rings = member.rings
    if not (rings.errors.bad or rings.slow.bad or member.late):
        return ()
    bad = [key for key, endpoint in member.endpoints.items() if _fails(member, key, endpoint, now_s)]
    latency = member.triggers.latency
    if not bad and latency is not None and rings.slow.bad + len(member.late) >= _slowness(latency).needs():
        asked = {key: endpoint for key, endpoint in member.endpoints.items() if _is_asked(member, key, endpoint, now_s)}
        if all(_slow_by_itself(member, key, endpoint, now_s) is not None for key, endpoint in asked.items()):
            bad = list(asked)
    return tuple(sorted(bad)) if 2 * len(bad) <= len(member.endpoints) else ()


def _fails(member: MemberState, key: str, endpoint: EndpointState, now_s: float) -> bool:
    rings, triggers = endpoint.rings, member.triggers
    if not (rings.errors.bad or rings.slow.bad or member.late):
        return False
    rings.advance(now_s)
    if triggers.error_rate is not None and rings.errors.bad:
        rate = triggers.error_rate
        test = Test(share=min(1.0, 2 * rate.threshold), usual=rate.threshold / 2, nats=ERROR_NATS)
        enough = rings.errors.bad >= test.needs()
        if enough and any(test.holds(*rings.errors.count(length)) for length in ERROR_WINDOWS):
            return True
    slow = _slow_by_itself(member, key, endpoint, now_s)
    if slow is None or triggers.latency is None:
        return False
    length, total, bad = slow
    everywhere, bad_everywhere = _with_late(member.rings.slow, length, member.late, now_s)
    share = 1.0 - triggers.latency.quantile
    return bad_everywhere - bad < USUAL_SLOW * share / 2 * (everywhere - total)


def _is_asked(member: MemberState, key: str, endpoint: EndpointState, now_s: float) -> bool:
    endpoint.rings.advance(now_s)
    return bool(endpoint.rings.slow.count(EJECT_WINDOWS[0])[0]) or any(one.endpoint == key for one in member.late)


def _slow_by_itself(
    member: MemberState, key: str, endpoint: EndpointState, now_s: float
) -> tuple[int, int, int] | None:
    """The window, its requests and the slow ones of them, where an endpoint is slow; None where it is not."""
    latency, rings = member.triggers.latency, endpoint.rings
    late = tuple(one for one in member.late if one.endpoint == key)
    if latency is None or endpoint.busy or member.busy or not (rings.slow.bad or late):
        return None
    rings.advance(now_s)
    slow = _slowness(latency)
    if rings.slow.bad + len(late) < slow.needs():
        return None
    for length in EJECT_WINDOWS:
        buckets = member.stretched(rings.slow, length, now_s) if late else length
        total, bad = _with_late(rings.slow, buckets, late if buckets <= rings.slow.size else (), now_s)
        if slow.holds(total, bad):
            return min(buckets, rings.slow.size), total, bad
    return None


def _worst(member: MemberState, now_s: float, look: Look) -> Bad | None:
    """The shortest window that is bad at most endpoints.

    What was told counts at once. Who is silent counts in windows of so much time in which we looked: a window in which
    we did not has only the silent in it.
    """
    ring = look.ring(member.rings)
    most = int(min(ring.size, look.back_s / ring.bucket_s))
    lengths = {length: length for length in look.lengths if length * ring.bucket_s <= look.back_s}
    stretched = {length: member.stretched(ring, length, now_s) for length in lengths}
    if stretched == lengths:
        return _shortest(member, now_s, look, lengths)
    told = replace(look, late=())
    within = {length: buckets for length, buckets in stretched.items() if buckets <= most}
    return (
        _shortest(member, now_s, told, lengths)
        or _shortest(member, now_s, look, within)
        or _shortest(member, now_s, told, {max(lengths): most})
    )


def _shortest(member: MemberState, now_s: float, look: Look, lengths: Mapping[int, int]) -> Bad | None:
    """`lengths`: those of the look, and how many buckets each has."""
    late = look.late
    whole = look.ring(member.rings)
    if whole.bad + len(late) < look.test(0).needs():
        return None
    for length, buckets in lengths.items():
        total, bad = _with_late(whole, buckets, late, now_s)
        test = look.test(total)
        if not test.holds(total, bad):
            continue
        for endpoint in member.endpoints.values():
            endpoint.rings.advance(now_s)
        counts = {
            key: _with_late(look.ring(endpoint.rings), buckets, [one for one in late if one.endpoint == key], now_s)
            for key, endpoint in member.endpoints.items()
        }
        held = site_wide(test, list(counts.values()), len(member.endpoints))
        if not held and length in look.joint:
            calm = [count for key, count in counts.items() if not member.endpoints[key].busy]
            held = joint(test, calm, [count for key, count in counts.items() if member.endpoints[key].busy])
        if held:
            since_s = min([whole.first_bad_s(buckets), *(one.began_s for one in late)])
            return Bad(total=total, bad=bad, since_s=since_s, window_s=buckets * whole.bucket_s)
    return None


def _lasting(member: MemberState, now_s: float, look: Look, bad_s: float) -> Bad | None:
    """A long window that is bad, while what is bad in it is not over: the last was at `bad_s`."""
    found = _worst(member, now_s, look)
    if found is None or now_s - bad_s > max(FRESH_S, FRESH_GAPS * found.window_s / found.total):
        return None
    return found


def _with_late(ring: Ring, length: int, late: Sequence[Late], now_s: float) -> tuple[int, int]:
    """(all, bad) of a window, with the requests that became late in it."""
    total, bad = ring.count(length)
    began_s = now_s - length * ring.bucket_s
    waiting = sum(one.at_s >= began_s for one in late)
    return total + waiting, bad + waiting


def _is_quiet(ring: Ring, requests: int) -> bool:
    return ring.total < requests


def _excess_ms(member: MemberState, began_s: float, late: Sequence[Late], quantile: float) -> float:
    """The quantile of what the requests of a window took more than usual."""
    values = [excess for at_s, excess in member.excesses if at_s >= began_s]
    values = sorted([*values, *(one.excess_ms for one in late if one.at_s >= began_s)])
    return values[min(len(values) - 1, int(quantile * len(values)))] if values else 0.0
