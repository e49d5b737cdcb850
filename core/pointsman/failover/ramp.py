"""The way back of a site that was left, and the way in of a standby. Part of `machine`."""

from __future__ import annotations

from typing import Final

from pointsman.core.model import TOTAL_WEIGHT
from pointsman.failover.directives import WARM_UP
from pointsman.failover.draft import HOUR_S, Draft, available
from pointsman.failover.model import Trigger
from pointsman.failover.safety import Authority, authority, frozen
from pointsman.failover.spec import Failback, Role
from pointsman.failover.state import AWAY, MemberState, Phase, State, member_of

MAX_HOLD_S: Final = 3_600.0
"""Longest hold-down after several flaps: an hour later the flap budget is whole again anyway."""


def come_back(draft: Draft) -> None:
    """Let time pass for members that are away, and for those that ramp."""
    for key, found in sorted(draft.members.items()):
        if found.phase is Phase.FAILED and not found.held and not found.bad and found.clear:
            hold_s = _hold_s(draft, key)
            draft.enter(key, Phase.HOLD_DOWN, f"looks well; hold-down {hold_s:g} s", well_s=0.0)
        elif found.phase is Phase.HOLD_DOWN:
            _hold(draft, key, found)
        elif found.phase is Phase.RAMPING:
            _ramp(draft, key, found)


def begin_ramp(draft: Draft, key: str, why: str) -> None:
    """Take a member in again: by the ramp, or at once where nothing else serves or nothing is asked of it now."""
    draft.withdraw(key)
    if lower_carries(draft, key):
        draft.enter(key, Phase.STANDBY, "", held=False, by="", operation="", step=0)
    elif not any(carries(draft, other) for other in draft.peers(key)):
        draft.enter(key, Phase.HEALTHY, "", held=False, by="", operation="", step=0)
    else:
        draft.enter(key, Phase.RAMPING, why, held=False, by="", operation="", step=0)
        _finish_ramp(draft, key)


def engage(draft: Draft) -> None:
    """Call stand-bys where no lower tier serves, send them back where one does, and warm up those that were called."""
    for pool, members in draft.pools().items():
        for key in sorted(members, key=lambda key: (draft.tier(key), key)):
            found, needed = draft.members[key], _needed(draft, key, pool)
            if found.phase in {Phase.HEALTHY, Phase.WARMING_UP, Phase.RAMPING} and not needed:
                if lower_carries(draft, key):
                    draft.enter(key, Phase.STANDBY, "", step=0)
                    draft.report("standby released", "a lower tier serves", key)
            elif found.phase is Phase.STANDBY and needed:
                _call(draft, key)
        _nothing_serves(draft, members)
    for key, found in sorted(draft.members.items()):
        if found.phase is Phase.WARMING_UP:
            _warm_up(draft, key, found)


def carries(draft: Draft, key: str) -> bool:
    """Whether the member takes what its tier is asked for."""
    found = draft.members[key]
    return found.phase in {Phase.HEALTHY, Phase.SUSPECT, Phase.WARMING_UP} and found.ready != 0


def lower_carries(draft: Draft, key: str) -> bool:
    """Whether a lower tier of the same pool serves."""
    tier = draft.tier(key)
    return any(draft.tier(other) < tier and carries(draft, other) for other in draft.peers(key))


def _needed(draft: Draft, key: str, pool: str) -> bool:
    """Whether the member's tier is asked for: no lower one serves, or the next lower one wants relief."""
    if not lower_carries(draft, key):
        return True
    if pool not in draft.wanted:
        return False
    lower = [draft.tier(other) for other in draft.peers(key) if carries(draft, other)]
    between = [
        tier
        for other in draft.peers(key)
        if available(draft, other)
        and min(lower) < (tier := draft.tier(other)) < draft.tier(key)
        and draft.members[other].ready != 0
    ]
    return not between


def _call(draft: Draft, key: str) -> None:
    if draft.spec.tier(member_of(key).site).role is Role.STANDBY:
        draft.enter(key, Phase.WARMING_UP, "called", step=0)
        draft.report("standby called", "no lower tier serves, or it needs relief", key, level="warning")
    else:
        draft.enter(key, Phase.HEALTHY, "")
        draft.report("next tier serves", "no lower tier serves, or it needs relief", key, level="warning")


def _nothing_serves(draft: Draft, members: list[str]) -> None:
    """With nothing else in service a ramp makes no sense: what ramps gets everything."""
    if any(carries(draft, key) for key in members):
        return
    for key in members:
        if draft.members[key].phase is Phase.RAMPING and draft.members[key].ready != 0:
            draft.enter(key, Phase.HEALTHY, "")
            draft.report("ramp cut short", "nothing else serves", key, level="warning")


def _warm_up(draft: Draft, key: str, found: MemberState) -> None:
    """Its cap grows while a lower tier still serves. Where none does it gets all at once: a cold engine is better than
    a refusal."""
    tier = draft.spec.tier(member_of(key).site)
    if found.ready == 0 or (tier.require_ready and found.ready is None):
        draft.put(key, entered_s=draft.clock_s, step=0, why="called; no endpoint is ready yet")
        return
    if not lower_carries(draft, key):
        draft.enter(key, Phase.HEALTHY, "")
        draft.report("standby serves", "nothing else does", key)
        return
    part_s = tier.warm_up_s / len(WARM_UP)
    step = int((draft.clock_s - found.entered_s) / part_s) if part_s else len(WARM_UP)
    if step >= len(WARM_UP):
        draft.enter(key, Phase.HEALTHY, "")
        draft.report("standby serves", "warmed up", key)
    elif step > found.step:
        draft.put(key, step=step, why=f"warms up: {WARM_UP[step] * 100 // TOTAL_WEIGHT} % of its capacity")


def hold_left_s(state: State, found: MemberState) -> float:
    """What is left of a member's hold-down, if it stays well; 0 for one that is in none."""
    if found.phase is not Phase.HOLD_DOWN:
        return 0.0
    flaps = sum(state.clock_s - at_s < HOUR_S for at_s in found.flaps)
    held_s = _doubled_s(state.spec.failback, flaps) - (state.clock_s - found.left_s)
    return max(0.0, held_s, state.spec.failback.healthy_for_s - found.well_s)


def _hold_s(draft: Draft, key: str) -> float:
    return _doubled_s(draft.spec.failback, draft.flaps(key))


def _doubled_s(failback: Failback, flaps: int) -> float:
    return float(min(failback.hold_down_s * 2.0 ** max(0, flaps - 1), MAX_HOLD_S))


def _hold(draft: Draft, key: str, found: MemberState) -> None:
    if found.bad or found.clear is False:
        draft.enter(key, Phase.FAILED, "; ".join(found.evidence) or "not well", well_s=0.0)
        draft.withdraw(key, "failback")
        return
    failback = draft.spec.failback
    found = draft.put(key, well_s=found.well_s + (draft.passed_s if found.clear else 0.0))
    waited_s, hold_s = draft.clock_s - found.left_s, _hold_s(draft, key)
    if waited_s < hold_s or found.well_s < failback.healthy_for_s:
        return
    who = authority(draft)
    if not draft.may_return(key):
        oldest = min(at_s for at_s in found.flaps if draft.clock_s - at_s < HOUR_S)
        _waits(
            draft,
            key,
            f"left {draft.flaps(key)} times within an hour: stays away for up to an hour more, or until `failback`",
            since_s=oldest,
        )
    elif who is Authority.PEOPLE or not failback.auto:
        _waits(draft, key, "well again; `failback` brings it back")
    elif who is Authority.PROPOSES:
        draft.propose("failback", key, f"well for {found.well_s:.0f} s")
    elif found.ready != 0:
        begin_ramp(draft, key, f"well for {found.well_s:.0f} s")
        draft.report("failing back", f"well for {found.well_s:.0f} s", key)


def _waits(draft: Draft, key: str, why: str, since_s: float = 0.0) -> None:
    if draft.members[key].why != why:
        draft.put(key, why=why)
        draft.report("stays away", why, key, level="warning" if since_s else "info")


def _ramp(draft: Draft, key: str, found: MemberState) -> None:
    """One step further when the interval has passed, it is well, and it is not full; bad ones are left elsewhere."""
    if draft.clock_s - found.entered_s < draft.spec.failback.ramp_interval_s:
        return
    idle = found.clear is None and not found.bad and not any(draft.members[peer].clear for peer in draft.peers(key))
    if found.clear is None and not found.bad and not idle:
        step = draft.spec.failback.ramp[found.step] / 100
        draft.put(key, why=f"ramp: {step:g} % until something is known of it: no metrics, too few requests")
    # Where nothing is known of any site of the pool nothing is asked of it: there is no evidence to wait for.
    if found.bad or not (found.clear or idle) or Trigger.SATURATION in found.triggers or frozen(draft):
        return
    share = draft.spec.failback.ramp[found.step + 1]
    draft.enter(key, Phase.RAMPING, f"ramp: {share / 100:g} %", step=found.step + 1)
    _finish_ramp(draft, key)


def _finish_ramp(draft: Draft, key: str) -> None:
    found, ramp = draft.members[key], draft.spec.failback.ramp
    if ramp[found.step] >= TOTAL_WEIGHT:
        draft.enter(key, Phase.HEALTHY, "", step=0)
        draft.report("back to normal", "the ramp is complete", key)


def away(draft: Draft, key: str) -> bool:
    """Whether automation or a person left the member."""
    return draft.members[key].phase in AWAY
