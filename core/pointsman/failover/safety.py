"""What automation must not do: leave too few sites, fill the rest beyond its capacity, act while it is frozen. Pure.

"Better" is the word of this module: a member may be left for others that are better than it is. So a dead site is left
for a slow one, of two bad sites the less bad one is kept, and there is never no site at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from pointsman.core.cron import last_match, parse_cron
from pointsman.failover.draft import Draft, available
from pointsman.failover.spec import Mode, Role, Safety
from pointsman.failover.state import HELD, MemberState, Phase, member_of

DEAD: Final = 3
MOSTLY_DEAD: Final = 2
"""Severities from which it does not matter how full the other sites are: this one serves hardly anybody."""


class Authority(Enum):
    """Who decides now."""

    AUTOMATION = "automation"
    PROPOSES = "proposes"
    PEOPLE = "people"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuge:
    """Where the requests of a member can go. `recall` must be brought back for it. `refusal`: why it is not enough, ""
    if it is. `waits`: a standby could be enough once it is ready."""

    recall: tuple[str, ...] = ()
    refusal: str = ""
    waits: bool = False


def authority(draft: Draft) -> Authority:
    """Who decides: while it is frozen automation only proposes."""
    if draft.spec.mode is Mode.MANUAL:
        return Authority.PEOPLE
    if draft.spec.mode is Mode.RECOMMEND or frozen(draft):
        return Authority.PROPOSES
    return Authority.AUTOMATION


def frozen(draft: Draft) -> str:
    """Why nothing is decided without a person now, "" if it is."""
    if draft.frozen_by:
        return f"frozen by {draft.frozen_by}"
    return "in a freeze window of the policy" if draft.in_window else ""


def in_window(safety: Safety, now_s: float) -> bool:
    """Whether a freeze window is open."""
    return any(last_match(parse_cron(one.cron), now_s, one.for_s) is not None for one in safety.freeze)


def refuge(draft: Draft, key: str, bad: int) -> Refuge:
    """Where the requests of a member that is `bad` (a severity) can go, by `Safety.min_active_sites`."""
    good = [other for other in draft.peers(key) if _better(draft, other, bad)]
    needed = draft.spec.safety.min_active_sites - len(good)
    if needed <= 0:
        return Refuge()
    reserve = sorted(
        (other for other in draft.peers(key) if _in_reserve(draft, other, bad)),
        key=lambda other: (_severity(draft.members[other]), draft.tier(other), other),
    )
    if needed <= len(reserve):
        return Refuge(recall=tuple(reserve[:needed]))
    waits = any(
        available(draft, other) and draft.members[other].bad < bad and not _ready(draft, other)
        for other in draft.peers(key)
    )
    left = "no standby is ready yet" if waits else "no other site is better"
    if draft.spec.safety.min_active_sites > 1:
        left = f"fewer than {draft.spec.safety.min_active_sites} other sites are better (minActiveSites)"
    return Refuge(refusal=left, waits=waits)


def too_full(draft: Draft, key: str) -> bool:
    """Whether the others would have too little free capacity; no where load or capacity is not known."""
    spec = draft.spec
    others = [other for other in draft.peers(key) if _better(draft, other, 1)]
    demand, room = 0.0, 0.0
    for one in [key, *others]:
        found, capacity = draft.members[one], spec.capacity.get(member_of(one).site, 0)
        load = 0.0 if found.load is None and found.phase in {Phase.STANDBY, Phase.WARMING_UP} else found.load
        if load is None or not capacity:
            return False
        demand += load * capacity
        room += 0.0 if one == key else capacity
    return demand > (1.0 - spec.safety.min_free) * room


def concurrent_drains(draft: Draft, site: str) -> int:
    """Other sites that people keep out."""
    return len({member_of(key).site for key, found in draft.members.items() if found.phase in HELD} - {site})


def _better(draft: Draft, key: str, bad: int) -> bool:
    return available(draft, key) and draft.members[key].bad < bad and _ready(draft, key)


def _ready(draft: Draft, key: str) -> bool:
    """Active sites count as ready until it is known that they are not; a standby must be seen ready."""
    ready, tier = draft.members[key].ready, draft.spec.tier(member_of(key).site)
    if tier.role is Role.STANDBY and tier.require_ready:
        return bool(ready)
    return ready != 0


def _in_reserve(draft: Draft, key: str, bad: int) -> bool:
    found = draft.members[key]
    away = found.phase is Phase.HOLD_DOWN or found.phase is Phase.FAILED
    return away and not found.held and _severity(found) < bad and _ready(draft, key) and draft.may_return(key)


def _severity(found: MemberState) -> int:
    """Of a member that was left: as it was then, unless there is evidence of how it is now."""
    return found.bad if found.bad or found.clear else found.severity
