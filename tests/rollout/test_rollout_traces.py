"""The life of rollouts, as text: `traces/*.txt`.

A block is a command with indented lines, `----`, and exactly what came of it:

    policy [name=value…]         begin, or edit, a rollout; indented: `step 5% 60s | manual | min=100`, `check errors`
    at SECONDS                   the clock stands there now
    tick [check=verdict…] [n=requests] [room=verdict]
    acked / acked WEIGHT% / missing NAMES…
    promote, promote-full, pause, resume, abort, undo, retry [reason]
    restart                      the process is killed and comes back with what it saved

What comes of it: `phase step weight: why`, then the effects in their order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from pointsman.rollout import machine
from pointsman.rollout.analysis import CheckResult, Verdict
from pointsman.rollout.spec import (
    CapacityGate,
    Check,
    Comparison,
    Limit,
    Mode,
    OnNoData,
    RolloutSpec,
    Source,
    Step,
    Strategy,
)
from pointsman.rollout.state import (
    Command,
    Effect,
    Event,
    NewEvidence,
    Programmed,
    Report,
    RolloutError,
    SetWeight,
    SpecChanged,
    State,
    Tick,
    Verb,
)
from support.traces import check_trace

TRACES = sorted((Path(__file__).parent / "traces").glob("*.txt"))
SOME_LIMIT = Limit(comparison=Comparison.ABSOLUTE, value=0.5)
VERBS = {verb.value: verb for verb in Verb}
CAMEL = {"onNoData": "on_no_data"}


class Script:
    """Runs the commands of one file."""

    def __init__(self) -> None:
        self.state: State | None = None
        self.now_s = 1_000_000.0

    def run(self, command: str, lines: list[str]) -> list[str]:
        verb, *words = command.split()
        if verb == "at":
            self.now_s = 1_000_000.0 + float(words[0])
            return []
        try:
            if verb == "policy":
                return self.policy(words, lines)
            if verb == "restart":
                return self.restart()
            return self.happen(self.event(verb, words))
        except RolloutError as error:
            return [f"refused: {error}"]

    def policy(self, words: list[str], lines: list[str]) -> list[str]:
        spec = spec_from(words, lines)
        if self.state is not None:
            return self.happen(SpecChanged(spec=spec))
        self.state, effects = machine.begin(spec, self.now_s)
        return self.shown(effects)

    def restart(self) -> list[str]:
        """What is saved is JSON: it has to say everything."""
        saved = msgspec.json.encode(self.state)
        self.state = msgspec.json.decode(saved, type=State)
        return self.shown(machine.resume(self.state))

    def event(self, verb: str, words: list[str]) -> Event:
        assert self.state is not None
        if verb == "tick":
            given = dict(word.split("=") for word in words)
            requests = int(given.pop("n", 0))
            room = given.pop("room", None)
            results = tuple(result(name, verdict) for name, verdict in given.items())
            return Tick(results=results, requests=requests, room=result("capacity", room) if room else None)
        if verb == "acked":
            return Programmed(weight=percent(words[0]) if words else self.state.weight)
        if verb == "missing":
            return Programmed(weight=self.state.weight, missing=tuple(words))
        return Command(verb=VERBS[verb], by="alice", reason=" ".join(words))

    def happen(self, event: Event) -> list[str]:
        assert self.state is not None
        self.state, effects = machine.step(self.state, event, self.now_s)
        return self.shown(effects)

    def shown(self, effects: list[Effect]) -> list[str]:
        state = self.state
        assert state is not None
        place = f"{state.phase.value} {state.step + 1}/{len(state.spec.steps)} {state.weight / 100:g} %"
        return [f"{place}: {state.why}", *(describe(effect) for effect in effects)]


def spec_from(words: list[str], lines: list[str]) -> RolloutSpec:
    given: dict[str, Any] = dict(word.split("=", 1) for word in words)
    kinds = {"strategy": Strategy, "mode": Mode, "onNoData": OnNoData}
    settings = {CAMEL.get(name, name): kinds[name](value) for name, value in given.items() if name in kinds}
    capacity = CapacityGate(min_free=float(given["minFree"])) if "minFree" in given else None
    return RolloutSpec(
        name="default/chat",
        rules=("HTTPRoute/default/chat/main",),
        stable="default/v1",
        canary=given.get("canary", "default/v2"),
        steps=tuple(step_from(line.split()[1:]) for line in lines if line.startswith("step")),
        checks=tuple(check_from(line.split()[1:]) for line in lines if line.startswith("check")),
        interval_s=5.0,
        capacity=capacity,
        paused=given.get("paused") == "yes",
        **settings,
    )


def step_from(words: list[str]) -> Step:
    pause = next((float(word[:-1]) for word in words[1:] if word.endswith("s")), 0.0)
    wanted = next((int(word.removeprefix("min=")) for word in words if word.startswith("min=")), 0)
    return Step(weight=percent(words[0]), pause_s=pause, manual="manual" in words, min_requests=wanted)


def check_from(words: list[str]) -> Check:
    name, *rest = words
    forgiven = next((int(word.removeprefix("forgiven=")) for word in rest if word.startswith("forgiven=")), 0)
    source = Source.WEBHOOK if "webhook" in rest else Source.REQUESTS
    return Check(name=name, source=source, limit=SOME_LIMIT, must_catch=SOME_LIMIT, failure_limit=forgiven)


def percent(text: str) -> int:
    return round(float(text.removesuffix("%")) * 100)


def result(name: str, verdict: str) -> CheckResult:
    known = {one.value.lower(): one for one in Verdict}
    return CheckResult(name=name, verdict=known[verdict], why=f"it is {verdict}")


def describe(effect: Effect) -> str:
    match effect:
        case SetWeight(weight=weight):
            return f"  set {weight / 100:g} %"
        case NewEvidence():
            return "  new evidence"
        case Report(what=what, why=why, by=by):
            return f"  report {what}: {why}" + (f" (by {by})" if by else "")


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_trace(path: Path, request: pytest.FixtureRequest) -> None:
    check_trace(path, Script().run, rewrite=request.config.getoption("--rewrite", default=False))


def test_there_are_traces() -> None:
    assert len(TRACES) >= 8
