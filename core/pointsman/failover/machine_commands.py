"""What people and TrafficOperations want: checked whole, then done whole. Part of `machine`."""

from __future__ import annotations

from typing import Final

from pointsman.failover import record_keeping
from pointsman.failover.draft import Draft, available
from pointsman.failover.machine_leave import fail
from pointsman.failover.ramp import begin_ramp, carries, lower_carries
from pointsman.failover.safety import DEAD, concurrent_drains, frozen, refuge, too_full
from pointsman.failover.state import (
    AWAY,
    HELD,
    Action,
    Command,
    EndpointDrain,
    FailoverError,
    Phase,
    Proposal,
    key_of,
    member_of,
)

_HELD_PHASE: Final = {Action.DRAIN: Phase.DRAINED, Action.EVACUATE: Phase.EVACUATED}
_CUT_SHORT: Final = {True: frozenset({Phase.RAMPING}), False: frozenset[Phase]()}
"""Forced, what is on its way back already skips the rest of its ramp, which may wait for requests that never come."""
_DONE: Final = {
    Action.DRAIN: "drained",
    Action.EVACUATE: "evacuated",
    Action.ACTIVATE: "activated",
    Action.FAILOVER: "failed over",
    Action.FAILBACK: "failing back",
    Action.FREEZE: "frozen",
    Action.UNFREEZE: "unfrozen",
    Action.APPROVE: "approved",
    Action.REJECT: "rejected",
}


def obey(draft: Draft, command: Command) -> None:
    """Do what is wanted.

    Raises:
        FailoverError: it makes no sense now, or leaves too little; nothing was done.
    """
    match command.action:
        case Action.FREEZE | Action.UNFREEZE:
            draft.frozen_by = command.signature.actor if command.action is Action.FREEZE else ""
            _tell(draft, command, "")
        case Action.APPROVE | Action.REJECT:
            _answer(draft, command)
        case Action.DRAIN | Action.EVACUATE if command.endpoint:
            _drain_endpoint(draft, command)
        case Action.ACTIVATE if command.endpoint:
            _activate_endpoint(draft, command)
        case Action.DRAIN | Action.EVACUATE:
            _take_out(draft, command)
        case Action.ACTIVATE:
            _bring_in(draft, command, _out(draft, command, HELD | _CUT_SHORT[command.force]))
        case Action.FAILOVER:
            _fail_over(draft, command)
        case Action.FAILBACK:
            _bring_in(draft, command, _out(draft, command, AWAY | _CUT_SHORT[command.force]))


def _out(draft: Draft, command: Command, phases: frozenset[Phase]) -> list[str]:
    """What the command may bring back: an operation that ends brings back what it took out, and nothing else."""
    return [
        key
        for key in _targets(draft, command)
        if draft.members[key].phase in phases and command.operation in ("", draft.members[key].operation)
    ]


def _targets(draft: Draft, command: Command) -> list[str]:
    """Members that the command names."""
    found = [
        key
        for key in sorted(draft.members)
        if (not command.site or member_of(key).site == command.site)
        and (not command.pool or member_of(key).pool == command.pool)
    ]
    if not command.site and command.action is not Action.FAILBACK:
        raise FailoverError(f"{command.action.value} needs a site: one of {_sites(draft)}")
    if not found:
        where = f"pool {command.pool} at site {command.site}" if command.pool else f"site {command.site}"
        raise FailoverError(f"{draft.spec.name} leads no {where}; it leads {_sites(draft)}")
    return found


def _sites(draft: Draft) -> str:
    return ", ".join(sorted({member_of(key).site for key in draft.members})) or "no site"


def _take_out(draft: Draft, command: Command) -> None:
    """Drain or evacuate a site. Planned work respects more rules than an emergency."""
    phase = _HELD_PHASE[command.action]
    wanted = [key for key in _targets(draft, command) if draft.members[key].phase is not phase]
    planned = command.action is Action.DRAIN
    if planned and not command.force:
        if why := frozen(draft):
            raise FailoverError(f"{command.site} is not drained: {why}; evacuate, or force it")
        most = draft.spec.safety.max_concurrent_drains
        if concurrent_drains(draft, command.site) >= most:
            raise FailoverError(f"{command.site} is not drained: {most} other site(s) are out (maxConcurrentDrains)")
    _check_rest(draft, command, wanted, bad=1 if planned else DEAD)
    for key in wanted:
        if planned and not command.force and available(draft, key) and too_full(draft, key):
            raise FailoverError(
                f"{command.site} is not drained: the others would have too little free capacity (minFreeCapacity)"
            )
    for key in wanted:
        _hold(draft, key, command, phase)


def _hold(draft: Draft, key: str, command: Command, phase: Phase) -> None:
    serving = available(draft, key) and not lower_carries(draft, key)
    said = _said(command)
    draft.enter(
        key,
        phase,
        said,
        left_s=draft.clock_s,
        well_s=0.0,
        step=0,
        held=True,
        by=command.signature.actor,
        deadline_s=command.deadline_s,
        operation=command.operation,
    )
    draft.degraded.pop(key, None)
    draft.withdraw(key)
    if serving:
        record_keeping.opened(draft, key, trigger=record_keeping.OPERATOR, why=said, by=command.signature.actor)
    _tell(draft, command, key)


def _check_rest(draft: Draft, command: Command, wanted: list[str], bad: int) -> None:
    """Whether each pool that loses a member keeps the minimum of active sites; only an emergency recalls others."""
    if command.force:
        return
    for key in wanted:
        if not available(draft, key):
            continue
        place = refuge(draft, key, max(bad, draft.members[key].bad))
        if place.refusal or (place.recall and command.action is Action.DRAIN):
            left = place.refusal or "the others are not back in service yet"
            if place.refusal and not place.waits and draft.spec.safety.min_active_sites == 1:
                left = "no other site would be left that is well"
            raise FailoverError(
                f"{member_of(key).pool} is not taken from {command.site}: {left}; force it if it must be"
            )


def _fail_over(draft: Draft, command: Command) -> None:
    wanted = [key for key in _targets(draft, command) if available(draft, key)]
    if not wanted:
        raise FailoverError(f"{command.site} is out of service already")
    _check_rest(draft, command, wanted, bad=DEAD)
    for key in wanted:
        place = refuge(draft, key, max(DEAD, draft.members[key].bad))
        fail(
            draft,
            key,
            _said(command),
            by=command.signature.actor,
            operation=command.operation,
            recall=place.recall,
        )
        _tell(draft, command, key)


def _bring_in(draft: Draft, command: Command, keys: list[str]) -> None:
    """End a drain, or bring a site back that was left. What is bad right now is left alone, unless forced."""
    if not keys:
        what = "drained" if command.action is Action.ACTIVATE else "waiting to come back"
        raise FailoverError(f"{command.site or draft.spec.name} is not {what}")
    still_bad = [key for key in keys if draft.members[key].bad]
    if still_bad and command.action is Action.FAILBACK and not command.force:
        seen = "; ".join(draft.members[still_bad[0]].evidence)
        raise FailoverError(f"{member_of(still_bad[0]).site} is still bad: {seen}; force it if it must be")
    for key in keys:
        draft.put(key, flaps=(), held=False, by="", deadline_s=0.0, operation="")
        if command.force:
            found = draft.members[key]
            forced_s = draft.clock_s if found.bad or found.clear is False else None
            # What was seen was seen before: the detector forgets it, too (`Detector.pardon`).
            draft.enter(key, Phase.HEALTHY, "", step=0, forced_s=forced_s, well_s=0.0, bad=0, triggers=(), evidence=())
        elif draft.members[key].bad:
            others = any(carries(draft, other) for other in draft.peers(key))
            draft.enter(key, Phase.FAILED if others else Phase.SUSPECT, "activated, and still bad")
        else:
            begin_ramp(draft, key, _said(command))
        _tell(draft, command, key)


def _drain_endpoint(draft: Draft, command: Command) -> None:
    """One endpoint, as before its machine is reclaimed. It ends when the endpoint is gone, or by `activate`."""
    for member in draft.spec.members():
        here = member.site == command.site and command.pool in ("", member.pool)
        found = draft.members.get(key_of(member))
        if not here or found is None or command.force or command.action is Action.EVACUATE:
            continue
        if found.ready == 1 and refuge(draft, key_of(member), 1).refusal:
            raise FailoverError(f"{command.endpoint} is the last that serves {member.pool}; force it if it must be")
    draft.endpoints[command.endpoint] = EndpointDrain(
        pool=command.pool,
        site=command.site,
        deadline_s=command.deadline_s,
        by=command.signature.actor,
        why=_said(command),
        operation=command.operation,
    )
    _tell(draft, command, "")


def _activate_endpoint(draft: Draft, command: Command) -> None:
    found = draft.endpoints.get(command.endpoint)
    if found is None or command.operation not in ("", found.operation):
        raise FailoverError(f"{command.endpoint} is not drained")
    del draft.endpoints[command.endpoint]
    _tell(draft, command, "")


def _answer(draft: Draft, command: Command) -> None:
    """Approve or reject what was proposed."""
    answered = [p for p in draft.proposals if command.site in ("", p.site) and command.pool in ("", p.pool)]
    if not answered:
        raise FailoverError(f"nothing is proposed for {command.site or draft.spec.name}")
    if command.action is Action.APPROVE:
        for proposal in answered:
            _check_proposal(draft, proposal)
    for proposal in answered:
        key = _key(proposal)
        draft.withdraw(key, proposal.action)
        if command.action is Action.REJECT:
            if proposal.action == "failover":
                draft.put(key, rejected=True)
            else:
                draft.put(key, left_s=draft.clock_s, well_s=0.0)  # asked again after another hold-down
        elif proposal.action == "failover":
            recall = refuge(draft, key, draft.members[key].bad).recall
            fail(draft, key, f"{proposal.why}; approved: {_said(command)}", recall=recall)
        else:
            begin_ramp(draft, key, f"{proposal.why}; approved: {_said(command)}")
        _tell(draft, command, key)


def _check_proposal(draft: Draft, proposal: Proposal) -> None:
    if proposal.action == "failover":
        found = refuge(draft, _key(proposal), draft.members[_key(proposal)].bad)
        if found.refusal:
            raise FailoverError(f"{proposal.site} is kept: {found.refusal}")


def _key(proposal: Proposal) -> str:
    return f"{proposal.pool}@{proposal.site}"


def _said(command: Command) -> str:
    reason = f": {command.signature.reason}" if command.signature.reason else ""
    return f"{command.action.value} by {command.signature.actor}{reason}"


def _tell(draft: Draft, command: Command, key: str) -> None:
    what = f"endpoint {_DONE[command.action]}" if command.endpoint else _DONE[command.action]
    why = f"{_said(command)} ({command.endpoint})" if command.endpoint else _said(command)
    draft.report(what, why, key, signature=command.signature)
