"""What a rollout remembers, what may happen to it, and what it wants done: the vocabulary of `machine.step`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

import msgspec

from pointsman.core.errors import PointsmanError
from pointsman.core.model import TOTAL_WEIGHT
from pointsman.rollout.analysis import CheckResult
from pointsman.rollout.spec import Mode, RolloutSpec, Step, Strategy

VERSION: Final = 1
"""Of the saved state. A state of a later version is refused rather than misread."""


class RolloutError(PointsmanError):
    """A command that makes no sense in the present phase; nothing was changed."""


class Phase(Enum):
    PROGRESSING = "Progressing"
    PAUSED = "Paused"  # waits for a person; still analysed, still rolled back
    HOLDING = "Holding"  # would go on, but there is too little data or capacity
    PROMOTING = "Promoting"  # everything goes to the canary, and is watched as the last step says
    COMPLETED = "Completed"
    ABORTING = "Aborting"  # no weight is left to the canary; not every gateway has said so yet
    ABORTED = "Aborted"


ACTIVE: Final = frozenset({Phase.PROGRESSING, Phase.PAUSED, Phase.HOLDING, Phase.PROMOTING})


class State(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout. `weight` (1/10,000) is what the gateways have or are about to get: the canary's share, or with Shadow
    the mirrored one. With sites it is that of the gateways at the step's site, and `weight_at` tells those of others.

    `begun`: false while the manifest keeps it from its first step. `programmed`: every connected gateway has
    acknowledged `weight`; the step's time, `observed_s`, only counts from then on and while somebody watches.
    `approved`: who said that the step may end; `held_by`: who paused it; both empty for nobody. `passed` are the
    checks that were good since the step began, `streaks` the bad verdicts in a row. `changed_s` and `ticked_s` are
    wall time. `late`: gateways took longer to follow an abort than they should.
    """

    spec: RolloutSpec
    phase: Phase = Phase.PROGRESSING
    step: int = 0
    weight: int = 0
    begun: bool = True
    programmed: bool = False
    observed_s: float = 0.0
    requests: int = 0
    approved: str = ""
    held_by: str = ""
    passed: tuple[str, ...] = ()
    streaks: dict[str, int] = msgspec.field(default_factory=dict)
    results: tuple[CheckResult, ...] = ()
    attempt: int = 1
    why: str = ""
    started_s: float = 0.0
    changed_s: float = 0.0
    ticked_s: float = 0.0
    late: bool = False
    version: int = VERSION

    def weight_at(self, site: str) -> int:
        """The canary's share (1/10,000) at the gateways of a site; those of sites that nobody ordered go last."""
        sites = self.spec.sites
        if not sites:
            return self.weight
        ours = sites.index(site) if site in sites else len(sites) - 1
        current = sites.index(self.current.site)
        if ours == current:
            return self.weight
        if ours > current:
            return 0
        return self.spec.abort_weight if self.phase in {Phase.ABORTING, Phase.ABORTED} else TOTAL_WEIGHT

    @property
    def current(self) -> Step:
        """The step in progress, or the last one that was."""
        return self.spec.steps[min(self.step, len(self.spec.steps) - 1)]

    @property
    def last_step(self) -> bool:
        return self.step >= len(self.spec.steps) - 1

    @property
    def active(self) -> bool:
        """Whether it still decides by itself."""
        return self.phase in ACTIVE

    @property
    def stable_serves(self) -> bool:
        """Whether the stable pool has requests that the canary can be held against."""
        return self.spec.strategy is Strategy.SHADOW or self.spec.mode is Mode.DRY_RUN or self.weight < TOTAL_WEIGHT


# What may happen.


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """An interval has passed: the verdicts of all checks, the canary's requests in this step, and room for the next.

    `room` is the capacity gate's verdict for the weight of the next step, None without a gate.
    """

    results: tuple[CheckResult, ...] = ()
    requests: int = 0
    room: CheckResult | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Programmed:
    """How far the gateways are with `weight`; `missing` are those that have not acknowledged it."""

    weight: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecChanged:
    """The manifest is another one."""

    spec: RolloutSpec


class Verb(Enum):
    PROMOTE = "promote"
    PROMOTE_FULL = "promote-full"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    UNDO = "undo"
    RETRY = "retry"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a person wants. `by` is who, `reason` why."""

    verb: Verb
    by: str = "somebody"
    reason: str = ""


Event = Tick | Programmed | SpecChanged | Command


# What is to be done. The state is saved before any of it.


@dataclass(frozen=True, slots=True, kw_only=True)
class SetWeight:
    """Give the canary this share (with Shadow: mirror it), and tell how far the gateways are with `Programmed`."""

    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvidence:
    """Forget what was seen under the former weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Something that operators want to hear of: for the log, the audit trail and notifications."""

    what: str
    why: str
    by: str = ""


Effect = SetWeight | NewEvidence | Report
