"""The rollout as a state machine: `step(state, event, now_s) -> (state, effects)`, pure.

    Progressing ──► Paused / Holding ──► … ──► Promoting ──► Completed
         └───────────────┴───────────────────────┴──► Aborting ──► Aborted

What always holds: the canary never has more than the weight of the step it is in; without data nothing advances; from
every phase an abort ends at weight 0; whoever saves the state before he acts on the effects can be killed anywhere and
goes on with `resume`. Bad checks roll back in every active phase, also while a person is waited for.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pointsman.rollout.analysis import CheckResult, Verdict
from pointsman.rollout.moves import (
    WAITS,
    Result,
    abort,
    all_in,
    begin,
    complete,
    enter,
    is_dry,
    running,
    wait,
    weights,
)
from pointsman.rollout.orders import obey
from pointsman.rollout.spec import Mode, OnNoData, RolloutSpec
from pointsman.rollout.state import (
    Command,
    Effect,
    Event,
    Phase,
    Programmed,
    Report,
    SpecChanged,
    State,
    Tick,
)
from pointsman.rollout.words import percent, seconds

__all__ = ["begin", "resume", "step"]

MAX_GAP_INTERVALS: Final = 3.0
"""A longer silence between two ticks (a restart, a frozen process, a clock that was set) does not count as watched."""


def resume(state: State) -> list[Effect]:
    """What is to be done after a restart: the saved weight is put in force again, and nothing else."""
    return weights(state)


def step(state: State, event: Event, now_s: float) -> Result:
    """What comes of an event at wall time `now_s`.

    Raises:
        RolloutError: the command makes no sense now.
    """
    match event:
        case Tick():
            return _tick(state, event, now_s)
        case Programmed():
            return _programmed(state, event, now_s)
        case SpecChanged():
            return _spec_changed(state, event.spec, now_s)
        case Command():
            return obey(state, event, now_s)


def _tick(state: State, tick: Tick, now_s: float) -> Result:
    gap_s = now_s - state.ticked_s
    watched_s = gap_s if 0 < gap_s <= MAX_GAP_INTERVALS * state.spec.interval_s else 0.0
    if not state.active:
        return msgspec.structs.replace(state, ticked_s=now_s), []  # what it ended with stays to be read
    state = msgspec.structs.replace(state, ticked_s=now_s, results=tick.results)
    if not state.begun:
        return (state, []) if state.spec.paused else enter(state, 0, now_s, "the rollout began")
    if state.programmed:
        state = msgspec.structs.replace(state, observed_s=state.observed_s + watched_s, requests=tick.requests)
        state = _judged(state, tick.results)
    if (failed := _failed(state)) is not None:
        why = f"check {failed.name} failed: {failed.why}"
        if state.spec.mode is not Mode.MANUAL:
            return abort(state, now_s, why, "")
        if not state.approved:
            return wait(state, Phase.PAUSED, now_s, f"{why}; mode Manual: `abort` rolls back")
    return _advance(state, tick, now_s)


def _judged(state: State, results: tuple[CheckResult, ...]) -> State:
    streaks = {r.name: state.streaks.get(r.name, 0) + 1 for r in results if r.verdict is Verdict.BAD}
    now_bad = streaks.keys()
    good = {r.name for r in results if r.verdict is Verdict.GOOD}
    passed = tuple(
        check.name
        for check in state.spec.checks
        if check.name not in now_bad and (check.name in good or check.name in state.passed)
    )
    return msgspec.structs.replace(state, streaks=streaks, passed=passed)


def _failed(state: State) -> CheckResult | None:
    """The first check that was bad more often in a row than is forgiven."""
    limits = {check.name: check.failure_limit for check in state.spec.checks}
    return next(
        (
            result
            for result in state.results
            if result.name in limits and state.streaks.get(result.name, 0) > limits[result.name]
        ),
        None,
    )


def _advance(state: State, tick: Tick, now_s: float) -> Result:
    """Go on to the next step if nothing keeps the rollout in this one."""
    keeps = _keeps(state)
    if keeps is not None:
        phase, why = keeps
        if phase is Phase.ABORTING:
            return abort(state, now_s, why, "")
        return wait(state, phase, now_s, why)
    if state.last_step:
        return complete(state, now_s)
    if tick.room is not None and tick.room.verdict is not Verdict.GOOD:
        weight = percent(state.spec.steps[state.step + 1].weight)
        return wait(state, Phase.HOLDING, now_s, f"no room for {weight}: {tick.room.why}")
    if state.spec.capacity is not None and tick.room is None:
        return wait(state, Phase.HOLDING, now_s, "the canary's capacity is not known")
    return enter(state, state.step + 1, now_s, _passed_because(state))


def _passed_because(state: State) -> str:
    if state.approved:
        return state.approved
    if lacking := _open_checks(state):
        return f"the step passed without enough data: {'; '.join(lacking)}"
    return "the step passed"


def _keeps(state: State) -> tuple[Phase, str] | None:
    """What the rollout waits for, and the phase to wait in; None when it may go on."""
    onward = running(state)
    if (stopped := _stopped(state)) is not None:
        return Phase.PAUSED, stopped
    if not state.programmed:
        return onward, state.why if state.why.startswith(WAITS) else f"{WAITS} gateways"
    if state.approved:
        return None
    if (wanted := _wants_person(state)) is not None:
        return Phase.PAUSED, wanted
    left_s = state.current.pause_s - state.observed_s
    if left_s > 0:
        return onward, f"{seconds(left_s)} of the step are left"
    return _lacks(state, onward)


def _stopped(state: State) -> str | None:
    if state.spec.paused:
        return "paused by the manifest (spec.paused)"
    return f"paused by {state.held_by}" if state.held_by else None


def _wants_person(state: State) -> str | None:
    if state.current.manual:
        return "the step waits for `promote`"
    if state.spec.mode is Mode.MANUAL and not (state.last_step and all_in(state)):
        return "mode Manual: waits for `promote`"
    return None


def _lacks(state: State, onward: Phase) -> tuple[Phase, str] | None:
    """What is missing although the step's time is over."""
    spec, current = state.spec, state.current
    if all_in(state) and not current.pause_s and not current.min_requests:
        return None  # nobody asked for it to be watched at 100 %
    if state.streaks:
        name = next(iter(state.streaks))
        return onward, f"check {name} is bad, {state.streaks[name]} in a row"
    lacks = [] if spec.on_no_data is OnNoData.CONTINUE else _open_checks(state)
    if state.requests < current.min_requests:
        lacks.insert(0, f"{state.requests} of {current.min_requests} requests")
    if not lacks:
        return None
    phase = Phase.ABORTING if spec.on_no_data is OnNoData.ABORT else Phase.HOLDING
    return phase, f"too little data: {'; '.join(lacks)}"


def _open_checks(state: State) -> list[str]:
    """Checks that have not passed in this step, with what they said last."""
    said = {result.name: result for result in state.results}
    found = []
    for check in state.spec.checks:
        if check.name in state.passed or not _applies(state, check.name):
            continue
        result = said.get(check.name)
        found.append(f"{check.name}: {result.why if result else 'no answer yet'}")
    return found


def _applies(state: State, name: str) -> bool:
    """Nothing is asked of a canary that has no requests by design: a step of weight 0 looks at outside checks only."""
    asked_of_requests = {check.name for check in state.spec.request_checks}
    return state.weight > 0 or name not in asked_of_requests


def _programmed(state: State, event: Programmed, now_s: float) -> Result:
    if event.weight != state.weight:
        return state, []  # of a weight that is no longer wanted
    if event.missing:
        why = f"{WAITS} gateways: {', '.join(event.missing)}"
        if _too_late(state, now_s):
            told = f"not everywhere after {state.spec.abort_within_s:g} s: {', '.join(event.missing)}"
            return msgspec.structs.replace(state, late=True), [Report(what="abort late", why=told)]
        return (state if state.programmed else msgspec.structs.replace(state, why=_but(state, why))), []
    if state.phase is Phase.ABORTING:
        return msgspec.structs.replace(state, phase=Phase.ABORTED, programmed=True, changed_s=now_s), [
            Report(what="aborted", why=state.why)
        ]
    if state.programmed:
        return state, []
    why = "every gateway has the weight" if state.why.startswith(WAITS) else state.why
    return msgspec.structs.replace(state, programmed=True, why=why), []


def _too_late(state: State, now_s: float) -> bool:
    return state.phase is Phase.ABORTING and not state.late and now_s - state.changed_s >= state.spec.abort_within_s


def _but(state: State, why: str) -> str:
    """The reason of an abort is kept while gateways are waited for."""
    return state.why if state.phase is Phase.ABORTING else why


def _spec_changed(state: State, spec: RolloutSpec, now_s: float) -> Result:
    if is_dry(spec) and not is_dry(state.spec) and state.weight and spec.identity == state.spec.identity:
        # Real weights are in force, and nobody asked for another change of them: the next rollout will be dry.
        spec = msgspec.structs.replace(spec, mode=state.spec.mode)
    if spec == state.spec:
        return state, []
    if spec.identity != state.spec.identity:
        return begin(spec, now_s, why="the policy names another release")
    if is_dry(spec) is not is_dry(state.spec):
        return begin(spec, now_s, why="a dry run" if is_dry(spec) else "the dry run is over")
    return _edited(state, spec, now_s)


def _edited(state: State, spec: RolloutSpec, now_s: float) -> Result:
    """Edited while it runs: if the steps moved, it is in the last one that asks for no more than what is in force."""
    number = min(state.step, len(spec.steps) - 1)
    site = state.current.site
    if state.active and state.begun and (spec.steps[number].weight, spec.steps[number].site) != (state.weight, site):
        there = [(i, one.weight) for i, one in enumerate(spec.steps) if one.site == site]
        fitting = [i for i, weight in there if weight <= state.weight]
        changed = msgspec.structs.replace(state, spec=spec)
        return enter(changed, fitting[-1] if fitting else there[0][0], now_s, "the steps were edited")
    kept = {check.name for check in spec.checks if _same_check(state.spec, spec, check.name)}
    state = msgspec.structs.replace(
        state,
        spec=spec,
        step=number,
        passed=tuple(name for name in state.passed if name in kept),
        streaks={name: count for name, count in state.streaks.items() if name in kept},
    )
    return state, [Report(what="policy edited", why="the manifest changed")]


def _same_check(before: RolloutSpec, after: RolloutSpec, name: str) -> bool:
    old = next((check for check in before.checks if check.name == name), None)
    return old == next((check for check in after.checks if check.name == name), None)
