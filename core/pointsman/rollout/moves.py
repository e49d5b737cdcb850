"""The moves of a rollout: each gives the state that it leads to and what is to be done for it. `machine` decides which
one is due, `orders` which one a person wants."""

from __future__ import annotations

from typing import Final

import msgspec

from pointsman.core.model import TOTAL_WEIGHT
from pointsman.rollout.spec import Mode, RolloutSpec, Strategy
from pointsman.rollout.state import Effect, NewEvidence, Phase, Report, SetWeight, State
from pointsman.rollout.words import percent

Result = tuple[State, list[Effect]]

WAITS: Final = "waits for"
DRY: Final = "a dry run: no weight is set"


def begin(spec: RolloutSpec, now_s: float, *, attempt: int = 1, why: str = "") -> Result:
    """A new rollout at its first step; one that the manifest pauses waits before it, at weight 0."""
    state = State(spec=spec, attempt=attempt, started_s=now_s, changed_s=now_s, ticked_s=now_s)
    if spec.paused:
        state = msgspec.structs.replace(
            state, phase=Phase.PAUSED, begun=False, programmed=is_dry(spec), why="paused by the manifest (spec.paused)"
        )
        return state, [Report(what="paused", why=state.why), NewEvidence(), *weights(state)]
    return enter(state, 0, now_s, why or "the rollout began")


def enter(state: State, number: int, now_s: float, why: str) -> Result:
    """Into a step: its weight, new evidence, and nothing of what the former step knew."""
    weight = state.spec.steps[number].weight
    site = state.spec.steps[number].site
    place = f"step {number + 1} of {len(state.spec.steps)}, {percent(weight)}" + (f" at {site}" if site else "")
    state = msgspec.structs.replace(
        state,
        phase=running(msgspec.structs.replace(state, step=number)),
        begun=True,
        step=number,
        weight=weight,
        programmed=is_dry(state.spec),
        observed_s=0.0,
        requests=0,
        approved="",
        passed=(),
        streaks={},
        results=(),
        why=DRY if is_dry(state.spec) else f"{WAITS} gateways",
        changed_s=now_s,
    )
    return state, [Report(what=place, why=why), NewEvidence(), *weights(state)]


def complete(state: State, now_s: float) -> Result:
    """The end of the last step."""
    shadow = state.spec.strategy is Strategy.SHADOW
    why = "the shadow run is over, nothing is mirrored any more" if shadow else "the canary has all requests"
    if is_dry(state.spec):
        why = "the dry run would have given the canary all requests"
    state = msgspec.structs.replace(
        state, phase=Phase.COMPLETED, weight=0 if shadow else state.weight, why=why, changed_s=now_s, streaks={}
    )
    return state, [Report(what="completed", why=why), *(weights(state) if shadow else [])]


def abort(state: State, now_s: float, why: str, by: str) -> Result:
    """Back to what the policy leaves an aborted canary. `by`: who wants it, empty for the rollout itself."""
    state = msgspec.structs.replace(
        state,
        phase=Phase.ABORTED if is_dry(state.spec) else Phase.ABORTING,
        begun=True,
        weight=min(state.weight, state.spec.abort_weight),
        programmed=is_dry(state.spec),
        late=False,
        approved="",
        held_by="",
        why=why,
        changed_s=now_s,
    )
    return state, [Report(what="rolled back", why=why, by=by), *weights(state)]


def wait(state: State, phase: Phase, now_s: float, why: str) -> Result:
    """Stay in the step, in this phase; told when it is another phase than before."""
    if state.phase is phase:
        return msgspec.structs.replace(state, why=why), []
    told: list[Effect] = [Report(what=phase.value.lower(), why=why)] if phase in {Phase.PAUSED, Phase.HOLDING} else []
    return msgspec.structs.replace(state, phase=phase, why=why, changed_s=now_s), told


def weights(state: State) -> list[Effect]:
    """Put the state's weight in force; a dry run never does."""
    return [] if is_dry(state.spec) else [SetWeight(weight=state.weight)]


def is_dry(spec: RolloutSpec) -> bool:
    """Whether it decides and sets nothing."""
    return spec.mode is Mode.DRY_RUN


def all_in(state: State) -> bool:
    """Whether the canary has all requests, if there are sites those of its site."""
    return state.spec.strategy is not Strategy.SHADOW and state.current.weight == TOTAL_WEIGHT


def running(state: State) -> Phase:
    """The phase of a step that nothing keeps."""
    return Phase.PROMOTING if all_in(state) and state.last_step else Phase.PROGRESSING
