"""Leaving a site: what was seen becomes suspicion, a proposal or a decision. Part of `machine`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pointsman.failover import record_keeping
from pointsman.failover.draft import HOUR_S, Draft, available
from pointsman.failover.model import Finding, Observation, Trigger
from pointsman.failover.safety import DEAD, MOSTLY_DEAD, Authority, authority, refuge, too_full
from pointsman.failover.spec import Combine
from pointsman.failover.state import (
    SERVING,
    EndpointDrain,
    MemberState,
    Phase,
    key_of,
    member_of,
    severity,
)

EJECT_S: Final = 30.0
"""First time out of a single bad endpoint; doubled with each further one within an hour. Envoy's own ejection of what
fails visibly is 5 s; what only the detector sees, as slowness, ends less quickly."""
MAX_EJECT_S: Final = 600.0

CALM_S: Final = 5.0
"""A suspect is none any more after so long without evidence: as long as errors are judged back. What comes and goes on
a busy machine is one suspicion, told once, and not many."""

PROVEN_REQUESTS: Final = 50
PROVEN_S: Final = 2.0
"""Requests in five seconds, and seconds, in which a site that was forced back must have been well to be judged as any
other: what is slow is found by so many within two seconds."""

MOST_TELLING: Final = (
    Trigger.PROBE,
    Trigger.STALL,
    Trigger.ERROR_RATE,
    Trigger.LATENCY,
    Trigger.METRICS_ABSENT,
)
"""Of several triggers that hold at once the first of these names the fault: a dead site is also slow."""


def note(draft: Draft, observation: Observation, at_s: float) -> None:
    """Remember what was seen of a member."""
    key = key_of(observation.member)
    if key not in draft.members:
        return
    before = draft.members[key]
    bad = _bad(draft, observation.findings)
    decisive = [one for one in observation.findings if one.trigger in draft.spec.decisive]
    full = any(one.trigger is Trigger.SATURATION for one in observation.findings)
    load = max(observation.load or 0.0, 1.0) if full else observation.load
    found = draft.put(
        key,
        bad=bad,
        clear=observation.clear,
        load=load,
        ready=observation.ready,
        triggers=tuple(sorted((one.trigger for one in observation.findings), key=lambda trigger: trigger.value)),
    )
    if bad:
        since_s = min(one.since_s for one in decisive)
        fault_s = draft.now_s - max(0.0, at_s - since_s)
        begun = not before.bad
        draft.put(
            key,
            evidence=tuple(_evidence(one) for one in decisive),
            fault_s=fault_s if begun else before.fault_s,
            detected_s=draft.now_s if begun else before.detected_s,
        )
    elif before.bad or found.fault_s:
        draft.put(key, fault_s=0.0, detected_s=0.0)
    if found.forced_s is not None:
        _prove(draft, key, well=bool(found.clear) and observation.requests >= PROVEN_REQUESTS)
    if found.rejected and found.phase is not Phase.SUSPECT:
        draft.put(key, rejected=False)


def _prove(draft: Draft, key: str, *, well: bool) -> None:
    """What was forced back is judged as any other once it has been well, or after its hold-down."""
    found = draft.members[key]
    well_s = found.well_s + draft.passed_s if well else 0.0
    over = found.forced_s is None or draft.clock_s - found.forced_s >= draft.spec.failback.hold_down_s
    draft.put(key, well_s=well_s, forced_s=None if over or well_s >= PROVEN_S else found.forced_s)


def leave_bad_ones(draft: Draft) -> None:
    """Leave what is bad, the worst first, as far as it is allowed; the others are suspects."""
    for key in sorted(draft.members, key=lambda key: (-draft.members[key].bad, key)):
        found = draft.members[key]
        if found.bad and available(draft, key):
            if found.calm_s is not None:
                draft.put(key, calm_s=None)
            _judge(draft, key, found)
        elif found.phase is Phase.SUSPECT:
            _calm(draft, key, found)
    for key in [key for key in draft.degraded if key not in draft.members]:
        del draft.degraded[key]


def _calm(draft: Draft, key: str, found: MemberState) -> None:
    """Nothing bad is seen of a suspect; it is trusted again after a while."""
    draft.withdraw(key, "failover")
    if found.calm_s is None:
        draft.put(key, calm_s=draft.clock_s)
    elif draft.clock_s - found.calm_s >= CALM_S:
        draft.enter(key, Phase.HEALTHY, "", calm_s=None, rejected=False)
        draft.degraded.pop(key, None)
        draft.report("no longer suspect", "what was seen is gone", key)


def fail(draft: Draft, key: str, why: str, *, by: str = "", operation: str = "", recall: Iterable[str] = ()) -> None:
    """Take a member out of service; `by` a person, who alone brings it back then."""
    found = draft.members[key]
    for other in recall:
        _recall(draft, other)
    serving = found.phase in SERVING or found.phase is Phase.WARMING_UP
    flaps = tuple(at_s for at_s in found.flaps if draft.clock_s - at_s < HOUR_S)
    draft.enter(
        key,
        Phase.FAILED,
        why,
        left_s=draft.clock_s,
        well_s=0.0,
        step=0,
        severity=found.bad or DEAD,
        flaps=(*flaps, draft.clock_s) if serving and not by else flaps,
        held=bool(by),
        by=by,
        operation=operation,
        forced_s=None,
        calm_s=None,
    )
    draft.degraded.pop(key, None)
    draft.withdraw(key)
    if serving:
        seen = [trigger.value for trigger in MOST_TELLING if trigger in found.triggers]
        trigger = record_keeping.OPERATOR if by or not seen else seen[0]
        record_keeping.opened(draft, key, trigger=trigger, why=why, by=by)


def eject(draft: Draft, observation: Observation) -> None:
    """Take single bad endpoints out for a while: never more than half of a member's, never the last that is ready."""
    key = key_of(observation.member)
    if key not in draft.members or not available(draft, key) or authority(draft) is not Authority.AUTOMATION:
        return
    member = observation.member
    out = sum(
        drain.automatic and draft.clock_s < drain.until_s and (drain.pool, drain.site) == (member.pool, member.site)
        for drain in draft.endpoints.values()
    )
    room = min(observation.endpoints // 2, observation.ready - 1) - out
    for endpoint in sorted(observation.failing_endpoints):
        before = draft.endpoints.get(endpoint)
        if room <= 0 or (before is not None and (not before.automatic or draft.clock_s < before.until_s)):
            continue
        times = before.times + 1 if before is not None else 1
        out_s = min(EJECT_S * 2 ** (times - 1), MAX_EJECT_S)
        draft.endpoints[endpoint] = EndpointDrain(
            pool=member.pool,
            site=member.site,
            until_s=draft.clock_s + out_s,
            times=times,
            automatic=True,
            why="the others at its site do better",
        )
        draft.report("endpoint taken out", f"{endpoint} for {out_s:g} s: the others at its site do better", key)
        room -= 1


def _judge(draft: Draft, key: str, found: MemberState) -> None:
    who, why = authority(draft), "; ".join(found.evidence)
    if who is Authority.PEOPLE:
        _suspect(draft, key, f"{why}; mode Manual: `failover` leaves it")
        return
    if found.rejected:
        _suspect(draft, key, f"{why}; a person refused to leave it")
        return
    if found.forced_s is not None and found.bad < MOSTLY_DEAD:
        for_s = draft.spec.failback.hold_down_s
        _suspect(draft, key, f"{why}; kept: a person forced it back, which holds for {for_s:g} s against this")
        return
    place = refuge(draft, key, found.bad)
    if place.waits:
        draft.wanted.add(member_of(key).pool)
    if place.refusal:
        _suspect(draft, key, f"kept: {place.refusal}", degraded=True)
    elif found.bad < MOSTLY_DEAD and too_full(draft, key):
        _suspect(draft, key, "kept: the other sites have too little free capacity", degraded=True)
    elif who is Authority.PROPOSES:
        _suspect(draft, key, f"{why}; waits for a person")
        draft.propose("failover", key, why)
    else:
        fail(draft, key, why, recall=place.recall)
        what = "failed over" if found.phase is not Phase.STANDBY else "standby failed"
        draft.report(what, why, key, level="warning", evidence=found.evidence)


def _suspect(draft: Draft, key: str, why: str, *, degraded: bool = False) -> None:
    """Keep a bad member in service, and say why when that is new."""
    found = draft.members[key]
    known = draft.degraded.get(key)
    if degraded:
        draft.degraded[key] = why
    else:
        draft.degraded.pop(key, None)
    if found.phase is not Phase.SUSPECT:
        draft.enter(key, Phase.SUSPECT, why)
    else:
        draft.put(key, why=why)
    if degraded and known != why:
        draft.report("degraded", f"{why} ({'; '.join(found.evidence)})", key, level="warning")
    elif not degraded and found.phase is not Phase.SUSPECT:
        draft.report("suspect", why, key, level="warning")


def _recall(draft: Draft, key: str) -> None:
    """Bring a member back at once, because what serves is worse."""
    draft.enter(key, Phase.HEALTHY, "", held=False, step=0)
    draft.withdraw(key)
    draft.report("recalled", "what serves now is worse", key, level="warning")


def _bad(draft: Draft, findings: tuple[Finding, ...]) -> int:
    """Severity of what counts, 0 if it is not enough to leave a site."""
    decisive = tuple(one for one in findings if one.trigger in draft.spec.decisive)
    if draft.spec.combine is Combine.ALL and not set(draft.spec.required) <= {one.trigger for one in decisive}:
        return 0
    return severity(decisive)


def _evidence(finding: Finding) -> str:
    detail = f" ({finding.detail})" if finding.detail else ""
    return f"{finding.trigger.value} {finding.value:g} over {finding.threshold:g}{detail}"
