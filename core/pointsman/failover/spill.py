"""Overflow into the next tier before a site fails of its load. `regulate` is the rule, `overflow` applies it.

The fill level answers late: requests that were sent stay for their whole life, seconds to minutes. So the share follows
the load slowly, by a model of what the load would be without it, and stands still between the two watermarks.
"""

from __future__ import annotations

from typing import Final

from pointsman.core.model import TOTAL_WEIGHT
from pointsman.failover.draft import Draft, available
from pointsman.failover.ramp import carries
from pointsman.failover.safety import Authority, authority
from pointsman.failover.spec import Role, Spill
from pointsman.failover.state import SpillState, member_of

INTERVAL_S: Final = 2.0
"""Between two changes of a share: each is a new configuration for all pickers."""
GAIN: Final = 0.3
"""Part of the way to the share that the model asks for, that one change goes: half the way in 4 s. With requests of
10 s more than half of it overshoots beyond the lower watermark."""
SMALLEST: Final = 100
"""Shares are changed by at least this and end below it: 1 % is less than the load's own noise."""
FULL: Final = 0.95
"""Fill level of the next tier beyond which it takes no larger share."""


def regulate(share: int, load: float, target_load: float | None, spec: Spill) -> int:
    """The next share (1/10,000) from the present one and the fill levels of the tier that overflows and of the next."""
    if spec.stop <= load < spec.start:
        return share
    going = 1.0 - share / TOTAL_WEIGHT
    demand = max(load, 1e-6) / max(going, 1e-6)
    aim = spec.start - (spec.start - spec.stop) / 4.0 if load >= spec.start else (spec.start + spec.stop) / 2.0
    wanted = max(0.0, 1.0 - aim / demand) * TOTAL_WEIGHT
    new = round(share + GAIN * (wanted - share))
    if load >= spec.start:
        if target_load is not None and target_load >= FULL:
            return share
        new = max(new, share + SMALLEST)
    else:
        new = min(new, share - SMALLEST)
    new = min(max(new, 0), spec.max_share)
    return new if new >= SMALLEST else 0


def overflow(draft: Draft) -> None:
    """Bring the share of each pool that overflows up to date."""
    rules = draft.spec.spill
    for pool, members in draft.pools().items():
        if rules is None:
            draft.spill.pop(pool, None)
            continue
        serving = _serving(draft, members)
        load = _load(draft, serving)
        before = draft.spill.get(pool)
        target = _next(draft, members, serving)
        if not target or not serving:
            _end(draft, pool, "there is no next tier to take it")
            continue
        tier = draft.tier(target[0])
        if before is not None and before.tier != tier:
            _end(draft, pool, "another tier serves")
            before = None
        if authority(draft) is not Authority.AUTOMATION or load is None:
            _keep(draft, pool)
            continue
        _change(draft, pool, load, target)


def _change(draft: Draft, pool: str, load: float, target: list[str]) -> None:
    rules, before = draft.spec.spill, draft.spill.get(pool)
    assert rules is not None
    share = before.share if before is not None else 0
    if before is None and load < rules.start:
        return
    draft.wanted.add(pool)
    if before is not None and draft.clock_s - before.changed_s < INTERVAL_S:
        return
    if not before and not any(_takes(draft, key) for key in target):
        return  # called, and not ready yet
    new = regulate(share, load, _load(draft, target), rules)
    if new == 0:
        _end(draft, pool, f"fill level {load:.0%}")
    elif new != share:
        draft.spill[pool] = SpillState(share=new, tier=draft.tier(target[0]), changed_s=draft.clock_s)
        if before is None:
            draft.report("spill began", f"fill level {load:.0%} of {pool}", target[0])


def _keep(draft: Draft, pool: str) -> None:
    if pool in draft.spill:
        draft.wanted.add(pool)


def _end(draft: Draft, pool: str, why: str) -> None:
    if draft.spill.pop(pool, None) is not None:
        draft.report("spill ended", f"{why} ({pool})")


def _serving(draft: Draft, members: list[str]) -> list[str]:
    """The members of the lowest tier that serves."""
    found = [key for key in members if carries(draft, key)]
    lowest = min((draft.tier(key) for key in found), default=0)
    return [key for key in found if draft.tier(key) == lowest]


def _next(draft: Draft, members: list[str], serving: list[str]) -> list[str]:
    """The members of the next tier that could take the overflow, once they are ready."""
    if not serving:
        return []
    lowest = draft.tier(serving[0])
    above = [
        key for key in members if draft.tier(key) > lowest and available(draft, key) and not draft.members[key].bad
    ]
    ready = [key for key in above if draft.members[key].ready != 0] or above
    tier = min((draft.tier(key) for key in ready), default=0)
    return [key for key in ready if draft.tier(key) == tier]


def _takes(draft: Draft, key: str) -> bool:
    """Whether overflow may be sent there now."""
    tier = draft.spec.tier(member_of(key).site)
    ready = draft.members[key].ready
    return bool(ready) if tier.role is Role.STANDBY and tier.require_ready else ready != 0


def _load(draft: Draft, members: list[str]) -> float | None:
    """Fill level of several sites together, by their capacities where all are known."""
    known = [(key, load) for key in members if (load := draft.members[key].load) is not None]
    if not known:
        return None
    weights = [draft.spec.capacity.get(member_of(key).site, 0) for key, _ in known]
    if not all(weights):
        weights = [1] * len(known)
    return sum(weight * load for weight, (_, load) in zip(weights, known, strict=True)) / sum(weights)
