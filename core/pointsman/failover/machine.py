"""Failover as a state machine: `step(state, event, now_s) -> (state, effects)`, pure.

    Healthy ──► Suspect ──► Failed ──► HoldDown ──► Ramping ──► Healthy      Standby ──► WarmingUp ──► Healthy
                               ▲──────────┴────────────┘                     by people: Drained, Evacuated

Each pool at each site has a phase. What always holds: automation never leaves fewer than `minActiveSites` sites of a
pool in service, and with all of them bad it keeps the least bad one; a member returns by automation at most
`maxFlapsPerHour` times within an hour; what residency forbids gets nothing, whatever fails; what a person took out only
a person brings back. Whoever saves the state before he acts on the effects can be killed anywhere and goes on with what
`directives` says. `now_s` is wall time; holds and budgets go by `State.clock_s`, which a clock that jumps can't move.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pointsman.failover import record_keeping
from pointsman.failover.directives import directives, drained_endpoints
from pointsman.failover.draft import HOUR_S, Draft, keys
from pointsman.failover.machine_commands import obey
from pointsman.failover.machine_leave import eject, leave_bad_ones, note
from pointsman.failover.ramp import come_back, engage
from pointsman.failover.safety import frozen, in_window
from pointsman.failover.spec import FailoverSpec
from pointsman.failover.spill import overflow
from pointsman.failover.state import (
    AWAY,
    HELD,
    Command,
    Effect,
    EndpointsChanged,
    Event,
    MemberState,
    Observed,
    Phase,
    Programmed,
    Served,
    SpecChanged,
    State,
    member_of,
)

__all__ = ["begin", "directives", "drained_endpoints", "step"]

FORGET_GONE_S: Final = 60.0
"""An endpoint that is gone for this long is forgotten: a new one under its address is another one. Shorter gaps are
those of a Kubernetes watch that starts anew."""


_REMEMBERED: Final = AWAY | HELD | {Phase.RAMPING}
"""Phases of a site that last while it has no endpoints."""


def begin(spec: FailoverSpec, now_s: float) -> State:
    """Everything in service, stand-bys standing by; nothing was seen yet."""
    draft = Draft(State(spec=spec, now_s=now_s), now_s)
    draft.in_window = in_window(spec.safety, now_s)
    _fit_members(draft)
    state, _ = draft.finish()
    return state


def step(state: State, event: Event, now_s: float) -> tuple[State, tuple[Effect, ...]]:
    """What comes of an event at wall time `now_s`. The state is to be saved when there are effects, and else now and
    then: what is lost is the progress of timers.

    Raises:
        FailoverError: a command makes no sense now; nothing was changed.
    """
    draft = Draft(state, now_s)
    match event:
        case Observed():
            _observe(draft, event)
        case Command():
            obey(draft, event)
            engage(draft)
        case SpecChanged():
            draft.spec = event.spec
            _window(draft)
            _fit_members(draft)
        case Programmed():
            if not event.missing:
                record_keeping.programmed(draft, event.change)
        case Served():
            record_keeping.served(draft, event.second)
        case EndpointsChanged():
            _fit_endpoints(draft, event.endpoints)
    return draft.finish()


def _observe(draft: Draft, event: Observed) -> None:
    _window(draft)
    for observation in event.observations:
        note(draft, observation, event.at_s)
        eject(draft, observation)
    leave_bad_ones(draft)
    come_back(draft)
    overflow(draft)
    engage(draft)
    _deadlines(draft)
    record_keeping.expire(draft)


def _window(draft: Draft) -> None:
    """Whether a freeze window is open now."""
    before = draft.in_window
    draft.in_window = in_window(draft.spec.safety, draft.now_s)
    if draft.in_window is not before and not draft.frozen_by:
        draft.report("freeze began" if draft.in_window else "freeze ended", frozen(draft) or "the window has closed")


def _fit_members(draft: Draft) -> None:
    """Members that are new begin in service; those that are no more are forgotten.

    A site without endpoints is not one of them where it was out of service: it is what a drained site comes to while
    its pods are replaced, and they must not be served by before somebody says so.
    """
    wanted = keys(draft.spec)
    known = draft.members
    draft.members = {key: known.get(key) or MemberState(phase=Phase.HEALTHY, entered_s=draft.clock_s) for key in wanted}
    for key, found in known.items():
        if found.phase in _REMEMBERED and _is_empty(draft.spec, key):
            draft.members[key] = replace(found, bad=0, clear=None, load=None, ready=0, triggers=())
    last_step = len(draft.spec.failback.ramp) - 1
    for key, found in draft.members.items():
        if found.phase is Phase.RAMPING and found.step >= last_step:
            draft.put(key, step=max(0, last_step - 1))
        if key not in known and draft.tier(key):
            draft.put(key, phase=Phase.STANDBY)
    pools = {key.rpartition("@")[0] for key in wanted}
    draft.spill = {pool: spill for pool, spill in draft.spill.items() if pool in pools}
    draft.degraded = {key: why for key, why in draft.degraded.items() if key in draft.members}
    draft.proposals = [p for p in draft.proposals if f"{p.pool}@{p.site}" in draft.members]
    engage(draft)


def _is_empty(spec: FailoverSpec, key: str) -> bool:
    """Whether a pool of the policy has no endpoint at the member's site, where it might have some."""
    member = member_of(key)
    return member.pool in spec.pools and member.site not in (*spec.sites.get(member.pool, ()), *spec.outside)


def _fit_endpoints(draft: Draft, present: frozenset[str]) -> None:
    """Forget drained endpoints that have been gone for a while."""
    for key, drain in list(draft.endpoints.items()):
        if key in present:
            if drain.gone_s is not None:
                draft.endpoints[key] = replace(drain, gone_s=None)
        elif drain.gone_s is None:
            draft.endpoints[key] = replace(drain, gone_s=draft.clock_s)


def _deadlines(draft: Draft) -> None:
    """Tell of deadlines that have passed; drop endpoints that are gone, or that automation took out long ago."""
    for key, found in draft.members.items():
        if found.deadline_s and draft.now_s >= found.deadline_s:
            draft.put(key, deadline_s=0.0)
            draft.report("deadline passed", found.why, key)
    for key, drain in list(draft.endpoints.items()):
        gone = drain.gone_s is not None and draft.clock_s - drain.gone_s >= FORGET_GONE_S
        if gone or (drain.automatic and draft.clock_s >= drain.until_s + HOUR_S):
            del draft.endpoints[key]
        elif drain.deadline_s and draft.now_s >= drain.deadline_s:
            draft.endpoints[key] = replace(drain, deadline_s=0.0)
            draft.report("deadline passed", f"{key}: {drain.why}")
