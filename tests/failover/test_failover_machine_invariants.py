"""Random lives of sites: what must hold whatever happens, in whatever order, with restarts and clocks that jump."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.core.change import Signature
from pointsman.core.model import TOTAL_WEIGHT
from pointsman.failover import machine
from pointsman.failover.model import Directive, Finding, Member, Observation, Trigger
from pointsman.failover.record import Second
from pointsman.failover.spec import Failback, FailoverSpec, Mode, Role, Safety, Spill, Tier
from pointsman.failover.spill import regulate
from pointsman.failover.state import (
    AVAILABLE,
    AWAY,
    HELD,
    Action,
    Command,
    Directed,
    EndpointsChanged,
    Event,
    FailoverError,
    Observed,
    Phase,
    Programmed,
    Served,
    SpecChanged,
    State,
    member_of,
    state_from_json,
    state_to_json,
)

settings.register_profile("failover", deadline=None, max_examples=80)
QUICK = settings(settings.get_profile("failover"))

POOLS = ("d/p", "d/q")
SITES = ("a", "b", "c", "far")
SITES_OF = {"d/p": ("a", "b", "c", "far"), "d/q": ("a", "c", "far")}
OUTSIDE = "far"
HOUR_S = 3_600.0
WORST = {Trigger.PROBE, Trigger.STALL}

safeties = st.builds(Safety, min_active_sites=st.sampled_from([1, 1, 2]), min_free=st.sampled_from([0.0, 0.2]))
failbacks = st.builds(
    Failback,
    auto=st.just(True),
    hold_down_s=st.sampled_from([5.0, 60.0]),
    healthy_for_s=st.sampled_from([0.0, 30.0]),
    ramp=st.sampled_from([(TOTAL_WEIGHT,), (500, 2_500, TOTAL_WEIGHT)]),
    max_flaps_per_hour=st.integers(1, 3),
)
tierings = st.sampled_from(
    [
        (Tier(sites=("a", "b", "c")),),
        (Tier(sites=("a", "b")), Tier(sites=("c",), role=Role.STANDBY)),
        (Tier(sites=("a",)), Tier(sites=("b",)), Tier(sites=("c",), role=Role.STANDBY, warm_up_s=0.0)),
        (Tier(sites=("c", "b")), Tier(sites=("a",), role=Role.STANDBY, require_ready=False)),
    ]
)


@st.composite
def specs(draw: st.DrawFn, mode: Mode | None = None) -> FailoverSpec:
    return FailoverSpec(
        name="FailoverPolicy/d/f",
        pools=POOLS,
        tiers=draw(tierings),
        sites=SITES_OF,
        capacity=draw(st.sampled_from([{}, {"a": 100, "b": 50, "c": 10}])),
        outside=(OUTSIDE,),
        mode=mode or draw(st.sampled_from([Mode.AUTO, Mode.AUTO, Mode.RECOMMEND, Mode.MANUAL])),
        failback=draw(failbacks),
        safety=draw(safeties),
    )


findings = st.builds(
    Finding,
    trigger=st.sampled_from(Trigger),
    value=st.floats(0.1, 1.0),
    threshold=st.just(0.1),
    samples=st.just(50),
    since_s=st.floats(-20.0, 0.0),
)


@st.composite
def observations(draw: st.DrawFn) -> tuple[Observation, ...]:
    return tuple(
        Observation(
            member=Member(pool=pool, site=site),
            findings=tuple(draw(st.lists(findings, max_size=2))) if draw(st.booleans()) else (),
            clear=draw(st.sampled_from([True, True, False, None])),
            load=draw(st.sampled_from([None, 0.3, 0.7, 0.9, 1.2])),
            ready=draw(st.sampled_from([2, 2, 2, 1, 0])),
            endpoints=2,
            failing_endpoints=draw(st.sampled_from([(), (), ("10.0.0.1:1",), ("10.0.0.1:1", "10.0.0.2:1")])),
        )
        for pool in POOLS
        for site in SITES_OF[pool]
    )


commands = st.builds(
    Command,
    action=st.sampled_from(Action),
    site=st.sampled_from(["a", "b", "c", "far", ""]),
    pool=st.sampled_from(["", "d/p"]),
    endpoint=st.sampled_from(["", "", "", "10.0.0.1:1"]),
    deadline_s=st.sampled_from([0.0, 100.0]),
    force=st.booleans(),
    signature=st.just(Signature(actor="alice", via="test")),
)
seconds = st.builds(Second, start_s=st.floats(-100.0, 20_000.0), requests=st.integers(0, 100), failed=st.integers(0, 3))
events = st.one_of(
    st.builds(Observed, observations=observations(), at_s=st.just(0.0)),
    st.builds(Observed, observations=observations(), at_s=st.just(0.0)),
    commands,
    st.builds(Programmed, change=st.integers(0, 20), missing=st.sampled_from([(), ("g",)])),
    st.builds(Served, second=seconds),
    st.builds(EndpointsChanged, endpoints=st.sampled_from([frozenset[str](), frozenset({"10.0.0.1:1"})])),
    specs().map(lambda spec: SpecChanged(spec=spec)),
)
gaps = st.sampled_from([0.0, 0.1, 1.0, 5.0, 5.0, 5.0, 1_000.0, -500.0])
lives = st.lists(st.tuples(events, gaps, st.integers(0, 4)), min_size=1, max_size=40)


class Life:
    """A state and what is checked of every step that it makes."""

    def __init__(self, spec: FailoverSpec) -> None:
        self.now_s = 1_000.0
        self.state = machine.begin(spec, self.now_s)
        self.returns: dict[str, list[float]] = {}

    def happen(self, event: Event, *, restart: bool = False) -> None:
        before = self.state
        if restart:
            before = state_from_json(state_to_json(before))
            assert before == self.state
        try:
            self.state, effects = machine.step(before, event, self.now_s)
        except FailoverError:
            assert isinstance(event, Command)
            return
        told = [effect.change for effect in effects if isinstance(effect, Directed)]
        assert (told == [self.state.change]) if self.state.change != before.change else not told
        if decided(self.state) != decided(before):
            assert told
        self.check_directives()
        if isinstance(event, Observed):
            self.check_automation(before)
        if isinstance(event, SpecChanged):
            self.returns.clear()  # another budget

    def check_directives(self) -> None:
        found = machine.directives(self.state)
        assert set(found) <= set(self.state.spec.members())
        for member, directive in found.items():
            assert 0 <= directive.share <= TOTAL_WEIGHT
            assert 0 <= directive.spill <= TOTAL_WEIGHT
            if member.site == OUTSIDE:
                assert (directive.share, directive.last, directive.draining) == (0, True, True)

    def check_automation(self, before: State) -> None:
        spec = self.state.spec
        for pool in POOLS:
            was = [key for key, one in before.members.items() if in_pool(key, pool) and one.phase in AVAILABLE]
            now = [key for key, one in self.state.members.items() if in_pool(key, pool) and one.phase in AVAILABLE]
            assert len(now) >= min(spec.safety.min_active_sites, len(was))
        for key, one in self.state.members.items():
            old = before.members[key]
            if old.phase in HELD or (old.phase in AWAY and old.held):
                assert one.phase is old.phase, "what a person took out only a person brings back"
            if one.phase is not old.phase and spec.mode is Mode.MANUAL:
                assert old.phase not in AWAY or one.phase in AWAY, "mode Manual: automation brings nothing back"
                assert one.phase not in AWAY or old.phase in AWAY, "mode Manual: automation leaves nothing"
            if old.phase in AWAY and one.phase in AVAILABLE and one.phase is not Phase.STANDBY:
                self.check_budget(key)
        if spec.mode is not Mode.AUTO or self.state.frozen_by:
            away = {key for key, one in self.state.members.items() if one.phase in AWAY}
            assert away <= {key for key, one in before.members.items() if one.phase in AWAY}

    def check_budget(self, key: str) -> None:
        clock_s = self.state.clock_s
        recent = [at_s for at_s in self.returns.get(key, []) if clock_s - at_s < HOUR_S]
        self.returns[key] = [*recent, clock_s]
        assert len(self.state.members[key].flaps) <= self.state.spec.failback.max_flaps_per_hour


def in_pool(key: str, pool: str) -> bool:
    return member_of(key).pool == pool


def decided(state: State) -> dict[Member, Directive]:
    return {member: replace(one, reason="") for member, one in machine.directives(state).items()}


@QUICK
@given(spec=specs(), life=lives)
def test_whatever_happens(spec: FailoverSpec, life: list[tuple[Event, float, int]]) -> None:
    run = Life(spec)
    for event, gap_s, dice in life:
        run.now_s += gap_s
        run.happen(event, restart=dice == 0)


@settings(QUICK, max_examples=12)
@given(spec=specs(mode=Mode.AUTO), life=lives)
def test_all_is_as_before_when_the_fault_is_gone(spec: FailoverSpec, life: list[tuple[Event, float, int]]) -> None:
    run = Life(spec)
    for event, gap_s, _ in life:
        if not isinstance(event, SpecChanged | Command):
            run.now_s += gap_s
            run.happen(event)
    well = tuple(Observation(member=member, clear=True, load=0.3, ready=2, endpoints=2) for member in spec.members())
    normal = decided(machine.begin(spec, run.now_s))
    for _ in range(1_600):  # two hours: the longest that a flap budget keeps a site away, and a ramp
        run.now_s += 5.0
        run.happen(Observed(observations=well, at_s=0.0))
        if decided(run.state) == normal and not run.state.degraded:  # a suspect is told until it has been calm
            break
    assert decided(run.state) == normal
    assert not run.state.degraded
    assert not run.state.proposals


@pytest.mark.parametrize("budget", [1, 3])
@pytest.mark.parametrize("seed", range(2))
def test_switches_of_a_site_that_flaps_for_hours(budget: int, seed: int) -> None:
    """Never left more often than the budget within any hour, and never faster than hold-downs allow."""
    dice = random.Random(seed)
    spec = FailoverSpec(
        name="FailoverPolicy/d/f",
        pools=("d/p",),
        tiers=(Tier(sites=("a", "b")),),
        sites={"d/p": ("a", "b")},
        failback=Failback(max_flaps_per_hour=budget),
    )
    state, now_s, bad, left = machine.begin(spec, 0.0), 0.0, False, list[float]()
    good = Observation(member=Member(pool="d/p", site="b"), clear=True, ready=2, endpoints=2)
    finding = Finding(trigger=Trigger.PROBE, value=1.0, threshold=0.5, samples=9, since_s=0.0)
    until_s = 0.0
    while now_s < 4 * HOUR_S:
        now_s += 5.0
        if now_s >= until_s:
            bad, until_s = not bad, now_s + dice.choice([5.0, 30.0, 120.0, 300.0])
        site = Observation(
            member=Member(pool="d/p", site="a"),
            findings=(finding,) if bad else (),
            clear=not bad,
            ready=0 if bad else 2,
            endpoints=2,
        )
        before = state.members["d/p@a"].phase
        state, _ = machine.step(state, Observed(observations=(site, good), at_s=0.0), now_s)
        if before not in AWAY and state.members["d/p@a"].phase in AWAY:
            left.append(now_s)
    assert left
    for first, later in zip(left, left[budget:], strict=False):
        assert later - first >= HOUR_S


@pytest.mark.parametrize("lag_s", [0.0, 5.0, 20.0])
@pytest.mark.parametrize("demand", [0.7, 0.9, 1.0, 1.2, 1.4])
def test_spill_settles(lag_s: float, demand: float) -> None:
    """The share stands still in the end, between the watermarks, although the fill level follows late."""
    rules, share, load, shares = Spill(), 0, demand, []
    for _ in range(300):
        for _ in range(4):
            aim = demand * (1 - share / TOTAL_WEIGHT)
            load += (aim - load) * (1.0 if not lag_s else min(1.0, 0.5 / lag_s))
        share = regulate(share, min(load, 1.0), 0.1, rules) if share or load >= rules.start else share
        shares.append(share)
    assert len(set(shares[-100:])) == 1, shares[-20:]
    assert load < rules.start
    assert (share == 0) == (demand < rules.start)


def test_spill_stops_at_its_share_and_at_a_full_target() -> None:
    rules = Spill(max_share=2_000)
    share = 0
    for _ in range(50):
        share = regulate(share, 1.0, 0.2, rules)
    assert share == 2_000
    assert regulate(1_000, 1.0, 0.97, rules) == 1_000
    assert regulate(150, 0.1, None, rules) == 0
