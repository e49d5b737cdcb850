"""Opening, following and closing RTO records while a state changes."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pointsman.failover.draft import Draft
from pointsman.failover.record import GIVE_UP_S, HISTORY_S, IDLE_S, KEPT, SILENCE_S, Record, Second
from pointsman.failover.state import member_of

OPERATOR: Final = "operator"
CLOCK_SLACK_S: Final = 1.0
"""Seconds that begin this much before the last one were measured by another clock: the history begins anew."""


def opened(draft: Draft, key: str, *, trigger: str, why: str, by: str = "") -> None:
    """A member was taken out of service: a new record, or one more pool of the site's open one."""
    member, found = member_of(key), draft.members[key]
    for number, record in enumerate(draft.open):
        if record.site == member.site and (record.by == by or not by):
            pools = tuple(sorted({*record.pools, member.pool}))
            draft.open[number] = replace(record, pools=pools, change=draft.change, programmed_s=0.0)
            return
    fault_s = draft.now_s if by else min(found.fault_s or draft.now_s, draft.now_s)
    record = Record(
        site=member.site,
        pools=(member.pool,),
        trigger=trigger,
        fault_s=fault_s,
        detected_s=draft.now_s if by else min(found.detected_s or draft.now_s, draft.now_s),
        decided_s=draft.now_s,
        change=draft.change,
        why=why,
        by=by,
        evidence=found.evidence,
        opened_s=draft.clock_s,
    )
    for second in draft.seconds:
        record = _counted(record, second)
    draft.open.append(record)


def programmed(draft: Draft, change: int) -> None:
    """Every gateway has acknowledged the directives up to this number."""
    draft.programmed = max(draft.programmed, change)
    draft.open = [
        replace(record, programmed_s=draft.now_s) if not record.programmed_s and record.change <= change else record
        for record in draft.open
    ]


def served(draft: Draft, second: Second) -> None:
    """One more second of what clients got."""
    history = draft.seconds
    if history and second.start_s < history[-1].start_s - CLOCK_SLACK_S:
        history = ()
    draft.seconds = (*(one for one in history if one.end_s > second.end_s - HISTORY_S), second)
    still = []
    for record in draft.open:
        counted = _counted(record, second)
        if record.programmed_s and second.start_s >= record.programmed_s and second.good:
            asked_s = max([record.programmed_s, *(one.end_s for one in history if one.requests)])
            idle = second.start_s - asked_s > IDLE_S
            recovered = replace(counted, recovered_s=second.start_s, outcome="recovered")
            _close(draft, replace(counted, outcome="silent") if idle else recovered)
        else:
            still.append(counted)
    draft.open = still


def expire(draft: Draft) -> None:
    """Close what cannot be told any more: nobody asked for anything, or it did not get well."""
    still = []
    for record in draft.open:
        age_s = draft.clock_s - record.opened_s
        quiet = record.programmed_s and age_s > SILENCE_S
        asked = any(one.requests for one in draft.seconds if one.end_s > record.programmed_s)
        if quiet and not asked:
            _close(draft, replace(record, outcome="silent"))
        elif age_s > GIVE_UP_S:
            _close(draft, replace(record, outcome="unrecovered"))
        else:
            still.append(record)
    draft.open = still


def _counted(record: Record, second: Second) -> Record:
    if second.end_s <= record.fault_s:
        return record
    return replace(
        record,
        requests=record.requests + second.requests,
        failed=record.failed + second.failed,
        truncated=record.truncated + second.truncated,
        retried=record.retried + second.retried,
    )


def _close(draft: Draft, record: Record) -> None:
    draft.close(record)
    draft.records = draft.records[-KEPT:]
    rto_s, rto = record.rto_s, draft.spec.rto
    if rto_s is None and record.outcome == "unrecovered":
        draft.report(
            "not recovered", f"no good second within {GIVE_UP_S:g} s of leaving {record.site}", level="warning"
        )
    elif rto_s is not None and rto_s > min(rto.objective_s, rto.alert_above_s):
        missed = f"; the objective is {rto.objective_s:g} s" if rto_s > rto.objective_s else ""
        draft.report("recovery was slow", f"{record.site}: RTO {rto_s:.2f} s{missed}", level="warning")
