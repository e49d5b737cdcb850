"""What a person wants of a rollout: whether it makes sense now, and the move that it is."""

from __future__ import annotations

import msgspec

from pointsman.rollout.moves import Result, abort, begin, enter, running, wait
from pointsman.rollout.spec import Strategy
from pointsman.rollout.state import Command, Effect, Phase, Report, RolloutError, State, Verb


def obey(state: State, command: Command, now_s: float) -> Result:
    """What comes of a command.

    Raises:
        RolloutError: it makes no sense in the present phase; nothing was changed.
    """
    said = f"{command.verb.value} by {command.by}" + (f": {command.reason}" if command.reason else "")
    match command.verb:
        case Verb.ABORT:
            _need(state.active, state, "abort", "`undo` takes a completed one back")
            return abort(state, now_s, said, command.by)
        case Verb.UNDO:
            _need(state.phase not in {Phase.ABORTED, Phase.ABORTING}, state, "undo", "`retry` starts again")
            _need(state.spec.strategy is not Strategy.SHADOW or state.active, state, "undo", "it left nothing behind")
            return abort(state, now_s, said, command.by)
        case Verb.RETRY:
            _need(state.phase is Phase.ABORTED, state, "retry", "only an aborted one can be tried again")
            return begin(state.spec, now_s, attempt=state.attempt + 1, why=said)
        case Verb.PAUSE:
            _need(state.active, state, "pause", "it does not change any more")
            held = msgspec.structs.replace(state, held_by=command.by, approved="")
            return _told(wait(held, Phase.PAUSED, now_s, said), said, command.by)
        case Verb.RESUME:
            _need(state.active, state, "resume", "`retry` starts an aborted one again")
            if state.spec.paused:
                raise RolloutError("the manifest pauses this rollout: set spec.paused to false there")
            _need(bool(state.held_by), state, "resume", "nobody paused it; `promote` ends a step that waits")
            free = msgspec.structs.replace(state, held_by="", phase=running(state), why=said, changed_s=now_s)
            return free, [Report(what="resumed", why=said, by=command.by)]
        case Verb.PROMOTE | Verb.PROMOTE_FULL:
            return _promote(state, command, said, now_s)


def _promote(state: State, command: Command, said: str, now_s: float) -> Result:
    _need(state.active, state, "promote", "`retry` starts an aborted one again")
    if state.spec.paused:
        raise RolloutError("the manifest pauses this rollout: set spec.paused to false there")
    if command.verb is Verb.PROMOTE_FULL and not state.last_step:
        free = msgspec.structs.replace(state, held_by="")
        return _told(enter(free, len(state.spec.steps) - 1, now_s, said), said, command.by)
    approved = msgspec.structs.replace(
        state,
        approved=said,
        held_by="",
        phase=running(state),
        why=said,
        changed_s=now_s,
    )
    return approved, [Report(what="promoted", why=said, by=command.by)]


def _told(result: Result, said: str, by: str) -> Result:
    state, effects = result
    reports = [effect for effect in effects if isinstance(effect, Report)]
    named: list[Effect] = [Report(what=reports[0].what if reports else "noted", why=said, by=by)]
    return state, named + [effect for effect in effects if not isinstance(effect, Report)]


def _need(condition: bool, state: State, verb: str, mend: str) -> None:
    if not condition:
        raise RolloutError(f"{state.spec.name} is {state.phase.value}: it can't {verb}; {mend}")
