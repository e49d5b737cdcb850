"""A state that is being changed by one event: what `machine.step` works on, and nobody else sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final, Literal

import msgspec

from pointsman.core.change import Signature
from pointsman.failover.directives import directives, drained_endpoints
from pointsman.failover.model import Directive, Member
from pointsman.failover.record import Record
from pointsman.failover.spec import FailoverSpec
from pointsman.failover.state import (
    AVAILABLE,
    Directed,
    Effect,
    MemberState,
    Phase,
    Proposal,
    RecordClosed,
    Report,
    State,
    key_of,
    member_of,
)

MAX_GAP_S: Final = 5.0
"""A longer silence between two events (a restart, a frozen process, a clock that was set forward) counts as this: no
hold or ramp goes on while nobody watches."""

HOUR_S: Final = 3_600.0


class Draft:
    """A state with its collections open for changes. `finish` makes a state and effects of it."""

    def __init__(self, before: State, now_s: float) -> None:
        gap_s = now_s - before.now_s
        self.before = before
        self.spec: FailoverSpec = before.spec
        self.now_s = now_s
        self.passed_s = min(max(0.0, gap_s), MAX_GAP_S)
        self.clock_s = before.clock_s + self.passed_s
        self.members = dict(before.members)
        self.endpoints = dict(before.endpoints)
        self.spill = dict(before.spill)
        self.degraded = dict(before.degraded)
        self.proposals = list(before.proposals)
        self.open = list(before.open)
        self.records = list(before.records)
        self.seconds = before.seconds
        self.frozen_by = before.frozen_by
        self.in_window = before.in_window
        self.programmed = before.programmed
        self.wanted: set[str] = set()
        """Pools that need another site now: their stand-bys are called."""
        self.effects: list[Effect] = []
        self._pools: dict[str, list[str]] = {}
        self._pooled: set[str] = set()

    @property
    def change(self) -> int:
        """Number that the directives get if this event changes them."""
        return self.before.change + 1

    def put(self, key: str, **changes: Any) -> MemberState:
        """Change a member."""
        self.members[key] = msgspec.structs.replace(self.members[key], **changes)
        return self.members[key]

    def enter(self, key: str, phase: Phase, why: str, **changes: Any) -> MemberState:
        """Put a member into a phase."""
        return self.put(key, phase=phase, entered_s=self.clock_s, why=why, **changes)

    def peers(self, key: str) -> list[str]:
        """The same pool at other sites."""
        return [other for other in self.pools()[member_of(key).pool] if other != key]

    def pools(self) -> dict[str, list[str]]:
        """Keys of the members of each pool."""
        if self._pooled != self.members.keys():  # asked for each member ten times a second
            self._pools = {}
            for key in self.members:
                self._pools.setdefault(member_of(key).pool, []).append(key)
            self._pooled = set(self.members)
        return self._pools

    def tier(self, key: str) -> int:
        """Number of the member's tier."""
        return self.spec.tier_of(member_of(key).site)

    def flaps(self, key: str) -> int:
        """How often automation took the member out of service within the last hour."""
        return sum(self.clock_s - at_s < HOUR_S for at_s in self.members[key].flaps)

    def may_return(self, key: str) -> bool:
        """Whether the flap budget lets automation bring the member back."""
        return self.flaps(key) < self.spec.failback.max_flaps_per_hour

    def report(
        self,
        what: str,
        why: str,
        key: str = "",
        *,
        level: Literal["info", "warning"] = "info",
        signature: Signature | None = None,
        evidence: Iterable[str] = (),
    ) -> None:
        """Tell operators."""
        member = member_of(key) if key else Member(pool="", site="")
        self.effects.append(
            Report(
                what=what,
                why=why,
                pool=member.pool,
                site=member.site,
                level=level,
                signature=signature,
                evidence=tuple(evidence),
            )
        )

    def propose(self, action: Literal["failover", "failback"], key: str, why: str) -> None:
        """Ask a person, once."""
        member = member_of(key)
        if not any((p.action, p.pool, p.site) == (action, member.pool, member.site) for p in self.proposals):
            self.proposals.append(
                Proposal(action=action, pool=member.pool, site=member.site, why=why, since_s=self.now_s)
            )
            self.report(f"{action} proposed", f"{why}; `approve` does it", key, level="warning")

    def withdraw(self, key: str, action: str = "") -> None:
        """Drop proposals for a member that no longer fit."""
        member = member_of(key)
        self.proposals = [
            p for p in self.proposals if (p.pool, p.site) != (member.pool, member.site) or action not in ("", p.action)
        ]

    def close(self, record: Record) -> None:
        """Keep a record that is over, and tell of it."""
        self.effects.append(RecordClosed(record=record))
        self.records.append(record)

    def finish(self) -> tuple[State, tuple[Effect, ...]]:
        """The state after the event, and what is to be done."""
        state = State(
            spec=self.spec,
            members=self.members,
            endpoints=self.endpoints,
            spill=self.spill,
            proposals=tuple(self.proposals),
            degraded=self.degraded,
            change=self.before.change,
            programmed=self.programmed,
            frozen_by=self.frozen_by,
            in_window=self.in_window,
            clock_s=self.clock_s,
            now_s=self.now_s,
            open=tuple(self.open),
            records=tuple(self.records),
            seconds=self.seconds,
        )
        changed = _differs(state, self.before)
        changed = changed or drained_endpoints(state) != drained_endpoints(self.before)
        if not changed and not any(record.change > state.change for record in self.open):
            return state, tuple(self.effects)
        state = msgspec.structs.replace(state, change=self.change)
        return state, (Directed(change=self.change), *self.effects)


def _differs(state: State, before: State) -> bool:
    """Whether other directives are in force. Most steps decide nothing, and are told by what directives come from."""
    if state.spec is before.spec and _causes(state) == _causes(before):
        return False
    return _in_force(state) != _in_force(before)


def _causes(state: State) -> tuple[object, ...]:
    shares = {pool: (spill.share, spill.tier) for pool, spill in state.spill.items()}
    return shares, {key: (found.phase, found.step) for key, found in state.members.items()}


def _in_force(state: State) -> dict[Member, Directive]:
    """The directives without their reasons: other words are no other decision."""
    return {member: replace(one, reason="") for member, one in directives(state).items()}


def available(draft: Draft, key: str) -> bool:
    """Whether the member may get requests."""
    return draft.members[key].phase in AVAILABLE


def keys(spec: FailoverSpec) -> list[str]:
    """Members that the machine leads: those in a tier, where residency allows them."""
    return [
        key_of(member)
        for member in spec.members()
        if member.site not in spec.outside and spec.tier_of(member.site) < len(spec.tiers)
    ]
