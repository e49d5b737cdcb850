"""What a state of failover means for gateways and pickers. Pure, and a function of the state alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pointsman.core.model import TOTAL_WEIGHT
from pointsman.failover.model import Directive, Member
from pointsman.failover.spec import Role
from pointsman.failover.state import AWAY, HELD, EndpointDrain, MemberState, Phase, State, member_of

WARM_UP: Final = (2_500, 5_000, TOTAL_WEIGHT)
"""Shares of its capacity that a standby gets while it warms up beside a tier that serves: caches are cold and kernels
not compiled yet, and a quarter of the requests finds out as well as all of them whether it works."""


def directives(state: State) -> Mapping[Member, Directive]:
    """What shall be done with each member of the policy, also with those that need nothing.

    A site that is out and has no endpoint has one, too: what comes back there must not be used before it was looked at.
    """
    members = dict.fromkeys((*state.spec.members(), *map(member_of, state.members)))
    return {member: _directive(state, member) for member in members}


def drained_endpoints(state: State) -> frozenset[str]:
    """Endpoints (`ip:port`) that get no new requests."""
    return frozenset(key for key, drain in state.endpoints.items() if holds(drain, state.clock_s))


def holds(drain: EndpointDrain, clock_s: float) -> bool:
    """Whether the endpoint is out now: one that automation took out comes back, and is remembered for a while."""
    return not drain.automatic or clock_s < drain.until_s


def _directive(state: State, member: Member) -> Directive:
    spec = state.spec
    if member.site in spec.outside:
        return Directive(share=0, last=True, draining=True, reason="residency forbids the site")
    found = state.member(member)
    if found is None:
        return Directive(share=0, last=True, reason="no tier of the policy names the site")
    if found.phase in HELD:
        return Directive(share=0, last=True, draining=True, reason=found.why)
    if found.phase in AWAY:
        return Directive(share=0, last=True, reason=found.why)
    share = spec.failback.ramp[found.step] if found.phase is Phase.RAMPING else TOTAL_WEIGHT
    spill = state.spill.get(member.pool)
    spills = spill is not None and spill.tier == spec.tier_of(member.site)
    return Directive(
        share=share,
        spill=spill.share if spill is not None and spills else 0,
        max_concurrent=_cap(state, member, found),
        reason=found.why if found.phase in {Phase.SUSPECT, Phase.RAMPING, Phase.WARMING_UP} else "",
    )


def _cap(state: State, member: Member, found: MemberState) -> int:
    """A standby carries its capacity and no more, and less of it while it warms up."""
    if state.spec.tier(member.site).role is not Role.STANDBY:
        return 0
    capacity = state.spec.capacity.get(member.site, 0)
    part = WARM_UP[found.step] if found.phase is Phase.WARMING_UP else TOTAL_WEIGHT
    return -(-capacity * part // TOTAL_WEIGHT)
