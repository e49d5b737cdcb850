"""Judging a member by what is known of its endpoints without requests: probes, scrapes, queues, KV caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pointsman.failover.detect_state import SLOW_PART, MemberState
from pointsman.failover.detect_triggers import AbsentAction, Saturation
from pointsman.failover.model import EndpointView, Finding, Trigger

STALE_S: Final = 5.0
"""Age from which a queue that was scraped says nothing about now."""

ANSWERED_S: Final = 1.2
"""A request that was answered so lately proves that an endpoint is there, whatever scrapes say: longer than a pause of
one second, and short enough for a black hole to be left within two."""

DEFAULT_LIMITS: Final = Saturation()
"""What a full endpoint is where no trigger says it."""

RTT_RISE: Final = 0.001
"""Part by which the usual time of a scrape follows a longer one at each look, ten times a second: a minute and a half;
it follows a shorter one at once."""


def is_down(member: MemberState, view: EndpointView, now_s: float, *, blind: bool) -> bool:
    """Whether nobody is there. `blind`: scrapes fail everywhere, so they say something about us."""
    return view.scrape_failing and not blind and _is_unanswered(member, view, now_s)


def _is_unanswered(member: MemberState, view: EndpointView, now_s: float) -> bool:
    """No request was answered lately, as far as we would have heard of it."""
    good_s = member.endpoint(view.endpoint).good_s
    return now_s - good_s > ANSWERED_S and now_s - good_s - member.attention.missed_s(good_s) > ANSWERED_S


def judge_probes(member: MemberState, views: Sequence[EndpointView], now_s: float, *, blind: bool) -> Finding | None:
    """So many endpoints are gone as the policy says, or nothing."""
    trigger = member.triggers.probe
    if trigger is None or not views:
        return None
    down = [view for view in views if is_down(member, view, now_s, blind=blind)]
    if len(down) <= trigger.failing * len(views) and len(down) < len(views):
        return None
    return Finding(
        trigger=Trigger.PROBE,
        value=len(down) / len(views),
        threshold=trigger.failing,
        samples=len(views),
        since_s=max(_alive_s(member, view, now_s) for view in down),
        detail=f"{len(down)} of {len(views)} endpoints do not answer",
    )


def _alive_s(member: MemberState, view: EndpointView, now_s: float) -> float:
    """The last sign of life of an endpoint, a scrape or an answer: its fault began after it. Now, if none is known."""
    scraped_s = now_s - view.metrics_age_s if view.metrics_age_s is not None else float("-inf")
    last_s = max(scraped_s, member.endpoint(view.endpoint).good_s)
    return last_s if last_s > float("-inf") else now_s


def judge_absence(member: MemberState, views: Sequence[EndpointView], now_s: float, *, blind: bool) -> Finding | None:
    """Metrics have been absent for long while scrapes fail and no request is answered, where the policy asks for it."""
    trigger = member.triggers.metrics_absent
    if trigger is None or trigger.action is AbsentAction.NEUTRAL or blind:
        return None
    gone = [
        view
        for view in views
        if view.scrape_failing
        and (view.looked_age_s is None or view.looked_age_s > trigger.after_s)
        and _is_unanswered(member, view, now_s)
    ]
    if 2 * len(gone) <= len(views):
        return None
    age_s = min((view.metrics_age_s for view in gone if view.metrics_age_s is not None), default=trigger.after_s)
    return Finding(
        trigger=Trigger.METRICS_ABSENT,
        value=age_s,
        threshold=trigger.after_s,
        samples=len(gone),
        since_s=now_s - age_s,
        detail=f"no metrics of {len(gone)} of {len(views)} endpoints for {age_s:.0f} s",
    )


def judge_load(member: MemberState, views: Sequence[EndpointView], now_s: float) -> tuple[float | None, Finding | None]:
    """The fill level (1.0: full; None: not known), and saturation when most endpoints have been full for long enough.

    A site that refuses requests for load is full, whatever its queues say.
    """
    trigger = member.triggers.saturation
    limits = trigger or DEFAULT_LIMITS
    levels = [level for view in views if (level := _level(view, limits)) is not None]
    load = sum(levels) / len(levels) if levels else None
    total, refused = member.overloads.total, member.overloads.bad
    refusing = refused >= 5 and refused >= 0.1 * total
    if refusing:
        load = max(1.0, load or 0.0)
    full = sum(level >= 1.0 for level in levels)
    if not (refusing or (levels and 2 * full > len(views))):
        member.load_s = None
        return load, None
    if member.load_s is None:
        member.load_s = now_s
    if trigger is None or now_s - member.load_s < trigger.for_s:
        return load, None
    return load, Finding(
        trigger=Trigger.SATURATION,
        value=load or 1.0,
        threshold=1.0,
        samples=len(levels) or total,
        since_s=member.load_s,
        detail=f"{full} of {len(views)} endpoints are full"
        + (f", {refused} of {total} requests were refused" if refusing else ""),
    )


def _level(view: EndpointView, limits: Saturation) -> float | None:
    if view.looked_age_s is None or view.looked_age_s > STALE_S:
        return None
    queue = view.waiting / limits.queue if view.waiting is not None and limits.queue > 0 else None
    cache = view.kv_usage / limits.kv if view.kv_usage is not None and limits.kv > 0 else None
    if queue is None or cache is None:
        return queue if cache is None else cache
    return max(queue, cache)


def follow_rtt(member: MemberState, views: Sequence[EndpointView], *, suspicious: bool) -> None:
    """The usual time of a scrape: the shortest of the endpoints, which share a network."""
    rtt_ms = min((view.rtt_ms for view in views if view.rtt_ms is not None and view.answers), default=None)
    if rtt_ms is None:
        return
    if member.rtt_ms is None or rtt_ms < member.rtt_ms:
        member.rtt_ms = rtt_ms
    elif not suspicious and not _far(member, rtt_ms):
        member.rtt_ms += RTT_RISE * (rtt_ms - member.rtt_ms)


def probes_say(member: MemberState, views: Sequence[EndpointView]) -> bool | None:
    """Whether a member without traffic is well: most endpoints answer scrapes, soon enough and without a full queue.

    None when nothing is known of them.
    """
    if not any(view.metrics_age_s is not None or view.scrape_failing for view in views):
        return None
    limits = member.triggers.saturation or DEFAULT_LIMITS
    well = [
        view
        for view in views
        if view.answers
        and not (view.rtt_ms is not None and _far(member, view.rtt_ms))
        and (_level(view, limits) or 0.0) < 1.0
    ]
    return 2 * len(well) > len(views)


def _far(member: MemberState, rtt_ms: float) -> bool:
    """A scrape takes so much longer than usual as would make requests slow."""
    delta_ms = member.triggers.latency.delta_ms if member.triggers.latency else 500.0
    return member.rtt_ms is not None and rtt_ms - member.rtt_ms >= SLOW_PART * delta_ms
