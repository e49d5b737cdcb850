"""What goes with a pool when another policy leads it. Pure.

A policy that is added, renamed or removed while a site is out must not bring the site back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec.structs import replace

from pointsman.failover.spec import FailoverSpec
from pointsman.failover.state import AWAY, HELD, Phase, State, member_of

LASTING: Final = AWAY | HELD | {Phase.RAMPING}
"""Phases that go with the pool; what else a policy thinks of a site follows from its own tiers."""


def going_on(
    states: Iterable[State], specs: Mapping[str, FailoverSpec], pools: Mapping[str, tuple[str, ...]]
) -> dict[str, FailoverSpec]:
    """Defaults that are to lead their pools although nothing asks for it now: a pool whose slices at one site were
    deleted needs no failover, but what was decided of that site must hold when they come back. `pools`: those that
    want failover, and their sites."""
    led = {pool for spec in specs.values() for pool in spec.pools}
    found = {}
    for state in states:
        (pool, *more) = state.spec.pools or ("",)
        if state.spec.policy or more or pool in led or pool not in pools:
            continue
        lasting = any(one.phase in LASTING for one in state.members.values())
        if lasting or any(not one.automatic for one in state.endpoints.values()):
            found[state.spec.name] = replace(state.spec, sites={pool: pools[pool]})
    return found


def frozen_by_all(states: Iterable[State]) -> str:
    """Who froze every policy, "" where not all are frozen by the same: a policy that comes then is frozen, too."""
    by = {state.frozen_by for state in states}
    return by.pop() if len(by) == 1 else ""


def left_by(states: Iterable[State], specs: Mapping[str, FailoverSpec]) -> tuple[State, ...]:
    """The states with what their policies lead no more, and nothing else; `specs` are the policies by their names."""
    found = []
    for state in states:
        spec = specs.get(state.spec.name)
        led = spec.pools if spec is not None else ()
        members = {
            key: one for key, one in state.members.items() if one.phase in LASTING and member_of(key).pool not in led
        }
        endpoints = {key: one for key, one in state.endpoints.items() if not one.automatic and one.pool not in led}
        if members or endpoints:
            found.append(replace(state, members=members, endpoints=endpoints))
    return tuple(found)


def take_over(state: State, pools: Iterable[str], left: Iterable[State]) -> State:
    """The state with what others left of these pools, its times by the state's own clock. What it knows itself stays,
    but for sites that it has in service."""
    mine = set(pools)
    members, endpoints = dict(state.members), dict(state.endpoints)
    for other in left:
        later_s = state.clock_s - other.clock_s
        for key, one in other.members.items():
            known = members.get(key)
            if member_of(key).pool in mine and (known is None or known.phase not in LASTING):
                members[key] = replace(
                    one,
                    entered_s=one.entered_s + later_s,
                    left_s=one.left_s + later_s,
                    flaps=tuple(at_s + later_s for at_s in one.flaps),
                )
        for key, drain in other.endpoints.items():
            if drain.pool in mine:
                gone_s = None if drain.gone_s is None else drain.gone_s + later_s
                endpoints.setdefault(key, replace(drain, gone_s=gone_s))
    if (members, endpoints) == (state.members, state.endpoints):
        return state
    return replace(state, members=members, endpoints=endpoints)
