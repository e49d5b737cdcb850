"""The life of sites, as text: `traces/*.txt`.

A block is a command with indented lines, `----`, and exactly what came of it:

    policy [mode=… combine=… min=… flaps=… freeze=CRON/SECONDS …]   indented: `tier a b`, `standby c warm=6`, `cap a=10`
    see             indented, one site a line: `a errorRate=0.6 clear load=0.9 ready=2 bad=ip:port`; it stays like that
    wait SECONDS    time passes, observed twice a second
    acked           every gateway has the directives
    second [start=… requests=… failed=… truncated=… retried=…]
    drain, evacuate, activate, failover, failback, freeze, unfreeze, approve, reject   [SITE] [endpoint=… deadline=…]
    restart         the process is killed and comes back with what it saved, ten seconds later
    clock SECONDS   the wall clock is set by so much

What comes of it: `TIME effect`, then the sites that are not simply in service: `SITE phase directive`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from pointsman.core.change import Signature
from pointsman.core.model import TOTAL_WEIGHT
from pointsman.failover import machine
from pointsman.failover.model import Directive, Finding, Member, Observation, Trigger
from pointsman.failover.record import Second
from pointsman.failover.spec import Combine, Failback, FailoverSpec, Freeze, Mode, Role, Safety, Tier
from pointsman.failover.state import (
    Action,
    Command,
    Effect,
    Event,
    FailoverError,
    Observed,
    Phase,
    Programmed,
    RecordClosed,
    Report,
    Served,
    State,
    key_of,
    state_from_json,
    state_to_json,
)
from support.traces import check_trace

TRACES = sorted((Path(__file__).parent / "traces").glob("*.txt"))
POOL = "default/p"
TRIGGERS = {trigger.value: trigger for trigger in Trigger}
ACTIONS = {action.value: action for action in Action}
BEGIN_S = 1_767_268_800.0  # Thursday, 1 January 2026, 12:00 UTC
THRESHOLDS = {Trigger.ERROR_RATE: 0.1, Trigger.LATENCY: 500.0}


class Script:
    """Runs the commands of one file."""

    def __init__(self) -> None:
        self.now_s = BEGIN_S
        self.skew_s = 0.0
        self.state: State | None = None
        self.world: dict[str, Observation] = {}
        self.out: list[str] = []

    def run(self, command: str, lines: list[str]) -> list[str]:
        verb, *words = command.split()
        self.out = []
        try:
            getattr(self, f"do_{verb}", self.do_command)(verb, words, lines)
        except FailoverError as error:
            self.out.append(f"refused: {error}")
        return [*self.out, *self.shown()]

    def do_policy(self, _: str, words: list[str], lines: list[str]) -> None:
        given = dict(word.split("=", 1) for word in words)
        tiers, capacity = [], {}
        for line in lines:
            kind, *names = line.split()
            if kind == "cap":
                capacity |= {name: int(number) for name, number in (one.split("=") for one in names)}
            else:
                warm = [float(name.removeprefix("warm=")) for name in names if name.startswith("warm=")]
                sites = tuple(name for name in names if "=" not in name)
                role = Role.STANDBY if kind == "standby" else Role.ACTIVE
                tiers.append(Tier(sites=sites, role=role, warm_up_s=warm[0] if warm else 0.0))
        cron, _, length = given.get("freeze", "").replace("_", " ").partition("/")
        sites = tuple(sorted(site for tier in tiers for site in tier.sites))
        spec = FailoverSpec(
            name="FailoverPolicy/default/f",
            pools=(POOL,),
            tiers=tuple(tiers),
            sites={POOL: sites},
            capacity=capacity,
            mode=Mode(given.get("mode", "Auto")),
            combine=Combine(given.get("combine", "Any")),
            required=tuple(TRIGGERS[name] for name in given.get("all", "").split(",") if name),
            failback=Failback(max_flaps_per_hour=int(given.get("flaps", "3"))),
            safety=Safety(
                min_active_sites=int(given.get("min", "1")),
                freeze=(Freeze(cron=cron, for_s=float(length)),) if cron else (),
            ),
        )
        self.state = machine.begin(spec, self.wall_s)
        self.world = {site: self.well(site) for site in sites}

    def do_see(self, _: str, __: list[str], lines: list[str]) -> None:
        for line in lines:
            site, *words = line.split()
            self.world[site] = self.seen(site, words)
        self.look()

    def do_wait(self, _: str, words: list[str], __: list[str]) -> None:
        for _ in range(round(float(words[0]) * 2)):
            self.now_s += 0.5
            self.look()

    def do_clock(self, _: str, words: list[str], __: list[str]) -> None:
        self.skew_s += float(words[0])
        self.look()

    def do_restart(self, _: str, __: list[str], ___: list[str]) -> None:
        assert self.state is not None
        self.state = state_from_json(state_to_json(self.state))
        self.now_s += 10.0
        self.look()

    def do_acked(self, _: str, __: list[str], ___: list[str]) -> None:
        assert self.state is not None
        self.happen(Programmed(change=self.state.change))

    def do_second(self, _: str, words: list[str], __: list[str]) -> None:
        given = dict(word.split("=", 1) for word in words)
        counts = {name: int(value) for name, value in given.items() if name != "start"}
        start_s = BEGIN_S + float(given["start"]) if "start" in given else self.wall_s - 1.0
        self.happen(Served(second=Second(start_s=start_s, **counts)))

    def do_command(self, verb: str, words: list[str], _: list[str]) -> None:
        given = dict(word.split("=", 1) for word in words if "=" in word)
        plain = [word for word in words if "=" not in word and word != "force"]
        self.happen(
            Command(
                action=ACTIONS[verb],
                site=plain[0] if plain else "",
                endpoint=given.get("endpoint", ""),
                deadline_s=self.wall_s + float(given["deadline"]) if "deadline" in given else 0.0,
                force="force" in words,
                signature=Signature(actor="alice", via="cli", reason="because"),
            )
        )

    @property
    def wall_s(self) -> float:
        return self.now_s + self.skew_s

    def look(self) -> None:
        self.happen(Observed(observations=tuple(self.world.values()), at_s=self.now_s))

    def happen(self, event: Event) -> None:
        assert self.state is not None
        self.state, effects = machine.step(self.state, event, self.wall_s)
        self.out += [f"{self.now_s - BEGIN_S:g} {text(effect)}" for effect in effects if isinstance(effect, Report)]
        self.out += [record(effect) for effect in effects if isinstance(effect, RecordClosed)]

    def well(self, site: str) -> Observation:
        return Observation(member=Member(pool=POOL, site=site), clear=True, ready=2, endpoints=2)

    def seen(self, site: str, words: list[str]) -> Observation:
        found = self.well(site)
        for word in words:
            name, _, value = word.partition("=")
            if name in TRIGGERS:
                trigger = TRIGGERS[name]
                threshold = THRESHOLDS.get(trigger, 1.0)
                finding = Finding(
                    trigger=trigger, value=float(value or 1), threshold=threshold, samples=50, since_s=self.now_s - 1.0
                )
                found = replace(found, findings=(*found.findings, finding), clear=False)
            elif name == "unknown":
                found = replace(found, clear=None)
            elif name == "load":
                found = replace(found, load=float(value))
            elif name == "requests":
                found = replace(found, requests=int(value))
            elif name == "ready":
                found = replace(found, ready=int(value))
            elif name == "bad":
                found = replace(found, failing_endpoints=tuple(value.split(",")))
        return found

    def shown(self) -> list[str]:
        assert self.state is not None
        lines = []
        for member, directive in machine.directives(self.state).items():
            found = self.state.members[key_of(member)]
            quiet = found.phase is Phase.HEALTHY and directive == Directive()
            if not quiet:
                lines.append(f"  {member.site} {found.phase.value}{meaning(directive)}")
        lines += [f"  proposal: {proposal.action} {proposal.site}" for proposal in self.state.proposals]
        drained = sorted(machine.drained_endpoints(self.state))
        return [*lines, *(f"  out: {endpoint}" for endpoint in drained)]


def meaning(directive: Directive) -> str:
    words = []
    if directive.share != TOTAL_WEIGHT:
        words.append(f"share {directive.share / 100:g}%")
    if directive.spill:
        words.append(f"spill {directive.spill / 100:g}%")
    if directive.max_concurrent:
        words.append(f"cap {directive.max_concurrent}")
    words += [name for name in ("last", "draining") if getattr(directive, name)]
    return f": {', '.join(words)}" if words else ""


def text(effect: Effect) -> str:
    assert isinstance(effect, Report)
    return f"{effect.what}{f' {effect.site}' if effect.site else ''}: {effect.why}"


def record(effect: RecordClosed) -> str:
    one = effect.record
    rto = "none" if one.rto_s is None else f"{one.rto_s:g} s"
    return (
        f"record {one.site} {one.outcome}: trigger {one.trigger}, RTO {rto}, "
        f"{one.failed} failed, {one.truncated} truncated, {one.retried} retried of {one.requests}"
    )


@pytest.mark.parametrize("path", TRACES, ids=[path.stem for path in TRACES])
def test_trace(path: Path, pytestconfig: pytest.Config) -> None:
    check_trace(path, Script().run, rewrite=bool(pytestconfig.getoption("--rewrite")))


def test_a_damaged_state_is_refused() -> None:
    with pytest.raises(FailoverError, match="damaged"):
        state_from_json(b'{"version": 1, "spec": 7}')
    with pytest.raises(FailoverError, match="version 99"):
        state_from_json(b'{"version": 99}')
    with pytest.raises(FailoverError, match="damaged"):
        state_from_json(msgspec.json.encode([1]))


def test_a_ramp_that_waits_says_for_what() -> None:
    script = Script()
    for command, lines in (("policy", ["tier a b"]), ("drain a", []), ("see", ["a unknown"]), ("activate a", [])):
        script.run(command, lines)
    script.run("wait 9", [])
    assert script.state is not None
    assert script.state.members[f"{POOL}@a"].why == "activate by alice: because"
    script.run("wait 2", [])
    assert script.state.members[f"{POOL}@a"].why.startswith("ramp: 5 % until something is known of it")
    script.run("see", ["a"])
    assert script.state.members[f"{POOL}@a"].why == "ramp: 25 %"
