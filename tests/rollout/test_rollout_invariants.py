"""Random lives of rollouts: what must hold whatever happens, in whatever order, with restarts anywhere."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.core.model import TOTAL_WEIGHT
from pointsman.rollout import machine
from pointsman.rollout.analysis import CheckResult, Verdict
from pointsman.rollout.capacity import NAME as CAPACITY
from pointsman.rollout.spec import CapacityGate, Check, Comparison, Limit, Mode, OnNoData, RolloutSpec, Step, Strategy
from pointsman.rollout.state import (
    Command,
    Effect,
    Event,
    Phase,
    Programmed,
    RolloutError,
    SetWeight,
    SpecChanged,
    State,
    Tick,
    Verb,
)

settings.register_profile("rollouts", deadline=None, max_examples=60)
QUICK = settings(settings.get_profile("rollouts"))
LIMIT = Limit(comparison=Comparison.ABSOLUTE, value=0.5)
CHECKS = tuple(Check(name=name, limit=LIMIT, must_catch=LIMIT, failure_limit=n) for name, n in (("a", 0), ("b", 2)))
weights = st.lists(st.integers(1, TOTAL_WEIGHT - 1), max_size=5, unique=True).map(sorted)


@st.composite
def specs(draw: st.DrawFn, **fixed: object) -> RolloutSpec:
    steps = tuple(
        Step(
            weight=weight,
            pause_s=draw(st.sampled_from([0.0, 5.0, 60.0])),
            manual=draw(st.booleans()) and draw(st.booleans()),
            min_requests=draw(st.sampled_from([0, 0, 50])),
        )
        for weight in [*draw(weights), TOTAL_WEIGHT]
    )
    chosen: dict[str, object] = {
        "strategy": draw(st.sampled_from([Strategy.CANARY, Strategy.CANARY, Strategy.SHADOW])),
        "mode": draw(st.sampled_from([Mode.AUTO, Mode.AUTO, Mode.MANUAL, Mode.DRY_RUN])),
        "on_no_data": draw(st.sampled_from(OnNoData)),
        "paused": draw(st.integers(0, 5)) == 0,
        "capacity": draw(st.sampled_from([None, None, CapacityGate(min_free=0.2)])),
        "revision": draw(st.sampled_from(["", "", "2"])),
        **fixed,
    }
    return RolloutSpec(name="d/r", rules=("x",), stable="d/s", canary="d/c", steps=steps, checks=CHECKS, **chosen)  # type: ignore[arg-type]


def results(verdicts: st.SearchStrategy[Verdict]) -> st.SearchStrategy[tuple[CheckResult, ...]]:
    return st.tuples(*(verdicts.map(lambda v, n=check.name: CheckResult(name=n, verdict=v)) for check in CHECKS))


room = st.none() | st.sampled_from(Verdict).map(lambda v: CheckResult(name=CAPACITY, verdict=v))
ticks = st.builds(Tick, results=results(st.sampled_from(Verdict)), requests=st.integers(0, 100), room=room)
good_ticks = st.builds(Tick, results=results(st.just(Verdict.GOOD)), requests=st.just(100), room=st.none())
commands = st.builds(Command, verb=st.sampled_from(Verb), by=st.just("alice"))
KINDS = ("tick", "good", "good", "acked", "acked", "missing", "command", "restart", "spec")


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[str, object, float]]:
    """(kind, event, seconds since the one before)"""
    found: list[tuple[str, object, float]] = []
    for _ in range(draw(st.integers(1, 25))):
        kind = draw(
            st.sampled_from(["tick", "good", "good", "acked", "acked", "missing", "command", "restart", "spec"])
        )
        event: object = None
        if kind in {"tick", "good"}:
            event = draw(ticks if kind == "tick" else good_ticks)
        elif kind == "command":
            event = draw(commands)
        elif kind == "spec":
            event = draw(specs())
        found.append((kind, event, draw(st.sampled_from([0.0, 1.0, 5.0, 5.0, 1000.0, -50.0]))))
    return found


class Life:
    """A rollout with a shell that may be killed between saving and acting: `in_force` is what gateways have."""

    def __init__(self, spec: RolloutSpec) -> None:
        self.now_s = 0.0
        self.in_force: int | None = None
        self.state, effects = machine.begin(spec, self.now_s)
        self.act(effects)

    def happen(self, event: Event, *, killed: bool = False) -> list[Effect]:
        try:
            state, effects = machine.step(self.state, event, self.now_s)
        except RolloutError:
            return []
        self.state = saved(state)
        if not killed:
            self.act(effects)
        return effects

    def act(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, SetWeight):
                self.in_force = effect.weight

    def restart(self) -> None:
        self.state = saved(self.state)
        self.act(machine.resume(self.state))

    def live(self, kind: str, event: object, after_s: float) -> list[Effect]:
        self.now_s += after_s
        if kind == "restart":
            self.restart()
            return []
        if kind == "acked":
            return self.happen(Programmed(weight=self.state.weight))
        if kind == "missing":
            return self.happen(Programmed(weight=self.state.weight, missing=("gateway",)))
        if kind == "spec":
            assert isinstance(event, RolloutSpec)
            return self.happen(SpecChanged(spec=event))
        assert isinstance(event, (Tick, Command))
        return self.happen(event)


def saved(state: State) -> State:
    """Through the file and back."""
    back = msgspec.json.decode(msgspec.json.encode(state), type=State)
    assert back == state
    return back


def allowed(state: State) -> int:
    """The most that a canary may have now."""
    if state.phase in {Phase.ABORTING, Phase.ABORTED}:
        return 0
    if state.phase is Phase.COMPLETED:  # what came later does not take it back, as other steps in the manifest
        return TOTAL_WEIGHT
    return state.spec.steps[state.step].weight if state.begun else 0


@QUICK
@given(specs(), lives())
def test_never_more_than_the_step_allows(spec: RolloutSpec, life: list[tuple[str, object, float]]) -> None:
    rollout = Life(spec)
    for kind, event, after_s in life:
        rollout.live(kind, event, after_s)
        assert rollout.state.weight <= allowed(rollout.state)
        if rollout.state.spec.mode is not Mode.DRY_RUN:
            assert rollout.in_force == rollout.state.weight


@QUICK
@given(specs(), lives(), st.sampled_from([Verb.ABORT, Verb.UNDO]))
def test_an_abort_ends_at_nothing_from_everywhere(
    spec: RolloutSpec, life: list[tuple[str, object, float]], verb: Verb
) -> None:
    rollout = Life(spec)
    for event in life:
        rollout.live(*event)
    was_active = rollout.state.active
    effects = rollout.happen(Command(verb=verb))
    if was_active:
        assert effects, "an active rollout can always be aborted"
        assert rollout.state.phase in {Phase.ABORTING, Phase.ABORTED}
        assert rollout.state.weight == 0
        assert rollout.state.spec.mode is Mode.DRY_RUN or rollout.in_force == 0
        rollout.happen(Programmed(weight=0))
        assert rollout.state.phase is Phase.ABORTED
        rollout.live("good", Tick(), 5.0)
        assert rollout.state.weight == 0


@QUICK
@given(specs(), lives(), st.data())
def test_killed_anywhere_no_weight_jumps(
    spec: RolloutSpec, life: list[tuple[str, object, float]], data: st.DataObject
) -> None:
    """After a kill between saving and acting, gateways have the weight before or the one that was decided."""
    rollout = Life(spec)
    for kind, event, after_s in life:
        if kind in {"tick", "good", "command"} and data.draw(st.booleans()):
            before = rollout.in_force
            rollout.now_s += after_s
            assert isinstance(event, (Tick, Command))
            rollout.happen(event, killed=True)
            assert rollout.in_force == before
            rollout.restart()
            assert rollout.state.spec.mode is Mode.DRY_RUN or rollout.in_force == rollout.state.weight
        else:
            rollout.live(kind, event, after_s)


no_verdict = results(st.sampled_from([Verdict.NO_DATA, Verdict.TOO_FEW]))
empty_ticks = st.builds(Tick, results=no_verdict | st.just(()), requests=st.integers(0, 100), room=room)


@QUICK
@given(specs(on_no_data=OnNoData.HOLD, strategy=Strategy.CANARY), st.lists(empty_ticks, min_size=1, max_size=30))
def test_without_data_nothing_advances(spec: RolloutSpec, life: list[Tick]) -> None:
    if len(spec.steps) == 1 and not spec.steps[0].pause_s:
        return  # a plan that asks for everything at once
    rollout = Life(spec)
    for tick in life:
        rollout.happen(Programmed(weight=rollout.state.weight))
        rollout.live("tick", tick, 5.0)
        assert rollout.state.step == 0
        assert rollout.state.phase is not Phase.COMPLETED


@QUICK
@given(specs(mode=Mode.AUTO, paused=False, capacity=None), st.integers(1, 9))
def test_a_good_canary_arrives(spec: RolloutSpec, restart_every: int) -> None:
    rollout = Life(spec)
    good = Tick(results=tuple(CheckResult(name=check.name, verdict=Verdict.GOOD) for check in CHECKS), requests=100)
    for turn in range(20 * len(spec.steps)):
        rollout.live("acked", None, 0.0)
        rollout.live("good", good, 5.0)
        if rollout.state.phase is Phase.PAUSED:
            rollout.live("command", Command(verb=Verb.PROMOTE), 0.0)
        if turn % restart_every == 0:
            rollout.restart()
    assert rollout.state.phase is Phase.COMPLETED
    assert rollout.in_force == (0 if spec.strategy is Strategy.SHADOW else TOTAL_WEIGHT)


@QUICK
@given(specs(mode=Mode.AUTO, paused=False), st.integers(0, 4))
def test_forgiven_is_what_the_limit_says(spec: RolloutSpec, times: int) -> None:
    """Check b may be bad twice in a row, and not a third time."""
    rollout = Life(spec)
    rollout.live("acked", None, 0.0)
    bad = Tick(results=(CheckResult(name="b", verdict=Verdict.BAD),))
    for _ in range(times):
        rollout.live("tick", bad, 1.0)
    if not rollout.state.spec.steps[0].pause_s:
        return  # it may have advanced in between, and counts anew
    assert (rollout.state.weight == 0) is (times >= 3)


def test_a_saved_state_of_another_kind_is_refused() -> None:
    state, _ = machine.begin(RolloutSpec(name="d/r", rules=("x",), stable="d/s", canary="d/c"), 0.0)
    text = msgspec.json.encode(state).replace(b'"Promoting"', b'"Flying"')
    try:
        msgspec.json.decode(text, type=State)
    except msgspec.ValidationError:
        return
    raise AssertionError("an unknown phase was taken")
