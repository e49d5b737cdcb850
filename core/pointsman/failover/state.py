"""What failover remembers, what may happen to it, and what it wants done: the vocabulary of `machine.step`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

import msgspec

from pointsman.core.change import Signature
from pointsman.core.errors import PointsmanError
from pointsman.core.json_text import decode
from pointsman.failover.model import Finding, Member, Observation, Trigger
from pointsman.failover.record import Record, Second
from pointsman.failover.spec import FailoverSpec

VERSION: Final = 1
"""Of the saved state. A state of another version is refused rather than misread."""


class FailoverError(PointsmanError):
    """A command that makes no sense now, or that would leave too little; nothing was changed."""


class Phase(Enum):
    """Of one pool at one site."""

    HEALTHY = "Healthy"
    SUSPECT = "Suspect"  # a trigger holds, and it is not left: too few sites, a freeze, or a person decides
    FAILED = "Failed"
    HOLD_DOWN = "HoldDown"  # it looks well again, and waits
    RAMPING = "Ramping"
    STANDBY = "Standby"  # a lower tier serves
    WARMING_UP = "WarmingUp"  # a standby that was called: not ready yet, or its cap still grows
    DRAINED = "Drained"
    EVACUATED = "Evacuated"


AWAY: Final = frozenset({Phase.FAILED, Phase.HOLD_DOWN})
"""Left by automation or by `failover`: a last resort."""
HELD: Final = frozenset({Phase.DRAINED, Phase.EVACUATED})
"""Taken out by a person; only a person brings it back."""
AVAILABLE: Final = frozenset(Phase) - AWAY - HELD
"""May get requests; stand-bys do as soon as they are needed."""
SERVING: Final = frozenset({Phase.HEALTHY, Phase.SUSPECT, Phase.RAMPING})


class MemberState(msgspec.Struct, frozen=True, kw_only=True):
    """A pool at a site. Times are of `State.clock_s` but for `deadline_s`, `fault_s`, `detected_s`: wall time, 0: none.

    `entered_s`: since when the phase (and the step of a ramp) lasts. `left_s`: when it was left. `well_s`: for how long
    it has been well since. `step`: of the ramp or the warm-up. `flaps`: when automation took it out of service.
    `severity`: how bad it was when it was left. `held`: a person sent it away, so that only a person brings it back;
    `rejected`: a person refused to leave it for what is seen now. `operation`: the id of the operation that holds it.
    `why` and `evidence` are for people. `fault_s` and `detected_s`: of what is bad now. `forced_s`: when a person
    brought it back against what was seen, None: nobody did. `calm_s`: since when nothing bad is seen of a suspect.
    """

    phase: Phase
    entered_s: float = 0.0
    left_s: float = 0.0
    well_s: float = 0.0
    step: int = 0
    flaps: tuple[float, ...] = ()
    severity: int = 0
    held: bool = False
    rejected: bool = False
    by: str = ""
    operation: str = ""
    deadline_s: float = 0.0
    why: str = ""
    evidence: tuple[str, ...] = ()
    # What was seen of it last.
    bad: int = 0
    clear: bool | None = None
    load: float | None = None
    ready: int | None = None
    triggers: tuple[Trigger, ...] = ()
    fault_s: float = 0.0
    detected_s: float = 0.0
    forced_s: float | None = None
    calm_s: float | None = None


class EndpointDrain(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint that gets no new requests. `until_s` (clock): when automation takes it back, 0: only a person or its
    disappearance ends it. `deadline_s` (wall): when it will be gone, 0: not known. `gone_s` (clock): since when the
    Plan has no such endpoint. `times`: how often automation took it out within the last hour."""

    pool: str = ""
    site: str = ""
    until_s: float = 0.0
    deadline_s: float = 0.0
    gone_s: float | None = None
    times: int = 1
    automatic: bool = False
    by: str = ""
    why: str = ""
    operation: str = ""


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """A decision that waits for a person: `failover` or `failback` of a member."""

    action: Literal["failover", "failback"]
    pool: str
    site: str
    why: str
    since_s: float  # wall time


class SpillState(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a pool's requests may overflow into `tier`; `changed_s` is of `State.clock_s`."""

    share: int
    tier: int
    changed_s: float


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Failover of one policy. `members` and `spill` have keys "pool@site" and pool.

    `clock_s` counts the seconds in which somebody watched: it stands still while the process is down, and a wall clock
    that is set does not move it. All holds, ramps and budgets go by it. `now_s` is the wall time of the last event.
    `change` numbers the directives. `frozen_by`: who froze it, "" for nobody.
    """

    spec: FailoverSpec
    members: dict[str, MemberState] = msgspec.field(default_factory=dict)
    endpoints: dict[str, EndpointDrain] = msgspec.field(default_factory=dict)
    spill: dict[str, SpillState] = msgspec.field(default_factory=dict)
    proposals: tuple[Proposal, ...] = ()
    degraded: dict[str, str] = msgspec.field(default_factory=dict)
    change: int = 0
    programmed: int = 0
    frozen_by: str = ""
    in_window: bool = False
    clock_s: float = 0.0
    now_s: float = 0.0
    open: tuple[Record, ...] = ()
    records: tuple[Record, ...] = ()
    seconds: tuple[Second, ...] = ()
    version: int = VERSION

    def member(self, member: Member) -> MemberState | None:
        """What is remembered of a pool at a site."""
        return self.members.get(key_of(member))


def key_of(member: Member) -> str:
    """Key of a member in `State.members`."""
    return f"{member.pool}@{member.site}"


@functools.lru_cache(maxsize=16_384)  # asked for every member many times a second
def member_of(key: str) -> Member:
    """The member of a key."""
    pool, _, site = key.rpartition("@")
    return Member(pool=pool, site=site)


# What may happen.


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the detector sees now, ten times a second. `at_s` is the monotonic clock that `Finding.since_s` is of."""

    observations: tuple[Observation, ...]
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecChanged:
    """The manifest, or where its pools have endpoints, is another."""

    spec: FailoverSpec


NOBODY: Final = Signature(actor="somebody", via="")


class Action(Enum):
    DRAIN = "drain"  # planned: respects freezes, concurrent drains and free capacity
    EVACUATE = "evacuate"  # at once: only the minimum of active sites can stop it
    ACTIVATE = "activate"  # ends a drain or an evacuation, through the ramp
    FAILOVER = "failover"  # leave a site as if it had failed, until `failback`
    FAILBACK = "failback"  # bring it back now, through the ramp
    FREEZE = "freeze"
    UNFREEZE = "unfreeze"
    APPROVE = "approve"
    REJECT = "reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a person or a TrafficOperation wants.

    `site` names a site, `pool` one pool there ("": all pools), `endpoint` (`ip:port`) one endpoint. `deadline_s` (wall
    time): when the endpoint or the site will be gone, 0: not known. `force`: beyond the safety rules, and without the
    ramp. `operation`: id of the TrafficOperation that takes something out, or brings back only what it took out.
    """

    action: Action
    site: str = ""
    pool: str = ""
    endpoint: str = ""
    deadline_s: float = 0.0
    force: bool = False
    operation: str = ""
    signature: Signature = NOBODY


@dataclass(frozen=True, slots=True, kw_only=True)
class Programmed:
    """How far the gateways are with the directives numbered `change`; `missing` have not acknowledged them."""

    change: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What clients of the policy's pools got in one second of wall time, all gateways together."""

    second: Second


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointsChanged:
    """The `ip:port` of all endpoints that the Plan has for the policy's pools."""

    endpoints: frozenset[str]


Event = Observed | SpecChanged | Command | Programmed | Served | EndpointsChanged


# What is to be done. The state is saved before any of it.


@dataclass(frozen=True, slots=True, kw_only=True)
class Directed:
    """Put `machine.directives(state)` and `machine.drained_endpoints(state)` in force, and tell how far the gateways
    are with `Programmed(change=…)`."""

    change: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Something that operators want to hear of: for the log, the audit trail and notifications."""

    what: str
    why: str
    pool: str = ""
    site: str = ""
    level: Literal["info", "warning"] = "info"
    signature: Signature | None = None
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordClosed:
    """A fault is over, or nobody could tell; see `Record`."""

    record: Record


Effect = Directed | Report | RecordClosed


def severity(findings: tuple[Finding, ...]) -> int:
    """How bad a site is: 0 well, 1 slow or some errors, 2 mostly errors, 3 dead."""
    dead = {Trigger.STALL, Trigger.PROBE, Trigger.METRICS_ABSENT}
    worst = 0
    for finding in findings:
        if finding.trigger in dead:
            worst = max(worst, 3)
        elif finding.trigger is Trigger.ERROR_RATE and finding.value >= MOSTLY_ERRORS:
            worst = max(worst, 2)
        else:
            worst = max(worst, 1)
    return worst


MOSTLY_ERRORS: Final = 0.5
"""Error rate from which a site helps nobody: it does not matter then how full the others are."""


def state_to_json(state: State) -> bytes:
    """The state as a JSON document; `state_from_json` gives an equal one back."""
    return msgspec.json.encode(state)


def state_from_json(content: bytes) -> State:
    """The state that was saved.

    Raises:
        FailoverError: it is damaged, or of another version. It is never taken for empty: that would undo fail-overs.
    """
    try:
        version = decode(content, _Versioned).version
    except msgspec.MsgspecError as error:
        raise FailoverError(f"the saved failover state is damaged: {error}; mend it, or move it away") from error
    if version != VERSION:
        raise FailoverError(f"the saved failover state has version {version}, this Pointsman reads {VERSION}")
    try:
        return decode(content, State)
    except msgspec.MsgspecError as error:
        raise FailoverError(f"the saved failover state is damaged: {error}; mend it, or move it away") from error


class _Versioned(msgspec.Struct):
    version: int
