"""The detector, one rule at a time: who is judged by what, and what is no evidence."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.failover.baseline import Baseline
from pointsman.failover.detect import Detector
from pointsman.failover.detect_odds import Test as Odds
from pointsman.failover.detect_odds import evidence
from pointsman.failover.detect_triggers import AbsentAction, Combine, MetricsAbsent, Probe, Triggers
from pointsman.failover.model import EndpointView, Finding, Member, Observation, Sample, Trigger, Waiting
from pointsman.failover.windows import Ring

SITE = Member(pool="default/llama", site="a")
OTHER = Member(pool="default/llama", site="b")
KEYS = tuple(f"a-{number}:8000" for number in range(4))
UP = EndpointView(endpoint="", metrics_age_s=0.1, waiting=0.0, kv_usage=0.4, rtt_ms=2.0)

Views = dict[Member, list[EndpointView]]


def views(keys: Iterable[str] = KEYS, like: EndpointView = UP) -> Views:
    return {SITE: [replace(like, endpoint=key) for key in keys]}


class World:
    """A detector and its clock. `send` makes requests at even times, `look` decides ten times a second."""

    def __init__(self, triggers: Triggers | None = None, seen: Views | None = None) -> None:
        self.detector = Detector(triggers)
        self.now_s = 1_000.0
        self.seen = seen or views()
        self.waiting: list[Waiting] = []
        self._number = 0

    def look(self) -> Observation:
        return self.detector.observe(self.now_s, {SITE: self.waiting}, self.seen)[0]

    def send(
        self, seconds: float, per_s: float, make: Callable[[int], Sample | None], *, until: Trigger | None = None
    ) -> Observation:
        """Requests for some seconds, or until a trigger is found; the last observation."""
        found = self.look()
        for _ in range(round(seconds * 10)):
            for _ in range(round(per_s / 10)):
                sample = make(self._number)
                self._number += 1
                if sample is not None:
                    self.detector.add(SITE, replace(sample, at_s=self.now_s))
            self.now_s += 0.1
            found = self.look()
            if until is not None and until in triggers_of(found):
                break
        return found


def triggers_of(observation: Observation) -> set[Trigger]:
    return {finding.trigger for finding in observation.findings}


def only(observation: Observation) -> Finding:
    (finding,) = observation.findings
    return finding


def key_of(number: int) -> str:
    return KEYS[number % len(KEYS)]


def well(number: int) -> Sample:
    return Sample(at_s=0.0, endpoint=key_of(number), ttft_ms=110.0 + number % 7, expected_ms=100.0)


def slower(by_ms: float) -> Callable[[int], Sample]:
    return lambda number: replace(well(number), ttft_ms=110.0 + number % 7 + by_ms)


def failing(share: float, keys: Iterable[str] = KEYS) -> Callable[[int], Sample]:
    chosen, draw = set(keys), random.Random(1)

    def make(number: int) -> Sample:
        bad = key_of(number) in chosen and draw.random() < share
        return Sample(at_s=0.0, endpoint=key_of(number), failed=bad, retried=bad)

    return make


@pytest.fixture
def world() -> World:
    """A site that has been well for ten seconds."""
    world = World()
    assert world.send(10.0, 50.0, well) == Observation(
        member=SITE,
        clear=True,
        load=0.4 / 0.95,
        ready=4,
        endpoints=4,
        requests=pytest.approx(250, abs=5),
        baseline=True,
    )
    return world


# Errors.


def test_a_site_where_all_fails_is_found_after_a_few_requests_and_one_with_a_third_later(world: World) -> None:
    began_s = world.now_s
    finding = only(world.send(2.0, 50.0, failing(1.0), until=Trigger.ERROR_RATE))
    assert finding.trigger is Trigger.ERROR_RATE
    assert finding.samples <= 30
    assert finding.since_s == pytest.approx(began_s, abs=0.11)
    assert only(World().send(5.0, 50.0, failing(0.3), until=Trigger.ERROR_RATE)).value >= 0.1


@pytest.mark.parametrize("per_s", [10.0, 100.0])
def test_two_in_a_hundred_are_no_fault(per_s: float) -> None:
    world = World()
    draw = random.Random(3)
    for _ in range(60):
        found = world.send(1.0, per_s, lambda n: replace(well(n), failed=draw.random() < 0.02))
        assert not found.findings
        assert not found.failing_endpoints


def test_one_endpoint_that_fails_is_listed_and_its_site_is_not_blamed(world: World) -> None:
    found = world.send(3.0, 50.0, failing(1.0, KEYS[:1]))
    assert not found.findings
    assert found.failing_endpoints == KEYS[:1]
    assert found.ready == 3
    assert Trigger.ERROR_RATE in triggers_of(world.send(3.0, 50.0, failing(1.0, KEYS[:3]), until=Trigger.ERROR_RATE))


def test_refusals_for_load_are_saturation(world: World) -> None:
    def refused(number: int) -> Sample:
        return Sample(at_s=0.0, endpoint=key_of(number), overloaded=True)

    assert triggers_of(world.send(5.0, 50.0, refused)) == {Trigger.SATURATION}


def test_attempts_that_were_given_up_where_load_is_refused_count_as_load(world: World) -> None:
    def given_up(number: int) -> Sample:
        if number % 5 == 0:
            return Sample(at_s=0.0, endpoint=key_of(number), overloaded=True)
        return Sample(at_s=0.0, endpoint=key_of(number), failed=True, retried=True)

    assert Trigger.ERROR_RATE not in triggers_of(world.send(5.0, 50.0, given_up))


def test_a_full_site_that_dies_is_not_taken_for_full_for_ever(world: World) -> None:
    """Its last scrape told of a queue, and attempts that are given up there are no sign of life."""
    world.seen = views(like=replace(UP, waiting=40.0))
    world.send(3.0, 50.0, well)
    world.seen = {**views(like=replace(UP, waiting=40.0, scrape_failing=True)), OTHER: [replace(UP, endpoint="b:80")]}
    gone = world.send(2.0, 50.0, failing(1.0), until=Trigger.ERROR_RATE)
    assert Trigger.ERROR_RATE in triggers_of(gone)
    assert Trigger.PROBE in triggers_of(world.send(2.0, 50.0, failing(1.0), until=Trigger.PROBE))


def test_a_night_with_a_request_in_five_seconds_is_judged_too() -> None:
    world = World(seen=views(KEYS[:1]))
    found = world.look()
    for _ in range(10):
        world.detector.add(SITE, Sample(at_s=world.now_s, endpoint=KEYS[0], failed=True))
        found = world.send(5.0, 0.0, well)
    assert only(found).trigger is Trigger.ERROR_RATE
    assert not world.send(60.0, 0.0, well).findings  # and is over when nothing fails any more


def test_what_a_person_brought_back_is_judged_by_what_comes_from_then_on(world: World) -> None:
    world.waiting = silent(20)
    assert world.send(3.0, 50.0, failing(1.0)).findings
    world.detector.pardon(SITE, world.now_s)
    pardoned = world.look()
    assert (pardoned.findings, pardoned.failing_endpoints, pardoned.baseline) == ((), (), True)
    assert not world.send(2.0, 50.0, well).findings
    assert world.send(1.0, 50.0, failing(1.0), until=Trigger.ERROR_RATE).findings


def test_what_does_not_answer_has_a_second_to_prove_that_it_serves(world: World) -> None:
    world.seen = {**views(like=replace(UP, scrape_failing=True)), OTHER: [replace(UP, endpoint="b:80")]}
    assert world.send(3.0, 0.0, well, until=Trigger.PROBE).findings
    world.detector.pardon(SITE, world.now_s)
    assert not world.send(1.0, 0.0, well).findings
    assert triggers_of(world.send(1.0, 0.0, well, until=Trigger.PROBE)) == {Trigger.PROBE}


# Latency.


def test_half_a_second_is_found_and_three_tenths_are_not(world: World) -> None:
    for _ in range(30):
        assert not world.send(1.0, 50.0, slower(300.0)).findings
    world = World()
    world.send(10.0, 50.0, well)
    finding = only(world.send(2.0, 50.0, slower(500.0), until=Trigger.LATENCY))
    assert finding.trigger is Trigger.LATENCY
    assert finding.value == pytest.approx(500.0, abs=20.0)
    assert finding.threshold == 500.0


def test_the_baseline_does_not_follow_a_fault(world: World) -> None:
    for _ in range(30):
        assert triggers_of(world.send(2.0, 50.0, slower(600.0))) == {Trigger.LATENCY}
    assert not world.send(10.0, 50.0, well).findings


def test_the_baseline_outlives_a_night_without_traffic(world: World) -> None:
    world.send(1_000.0, 0.0, well)
    assert only(world.send(3.0, 50.0, slower(600.0), until=Trigger.LATENCY)).trigger is Trigger.LATENCY


def test_long_prompts_take_long_and_are_no_fault() -> None:
    def prompt(scale: float) -> Callable[[int], Sample]:
        """An engine that is a third slower than the picker believes."""

        def make(number: int) -> Sample:
            expected_ms = scale * (50.0 + 30.0 * (number % 10))
            return Sample(at_s=0.0, endpoint=key_of(number), expected_ms=expected_ms, ttft_ms=20 + 1.35 * expected_ms)

        return make

    world = World()
    world.send(20.0, 50.0, prompt(1.0))
    for _ in range(10):
        assert not world.send(1.0, 50.0, prompt(8.0)).findings
    fixed = replace(Triggers().latency, normalised=False)
    world = World(replace(Triggers(), latency=fixed))
    world.send(20.0, 50.0, prompt(1.0))
    assert Trigger.LATENCY in triggers_of(world.send(5.0, 50.0, prompt(8.0), until=Trigger.LATENCY))


def test_a_full_site_is_not_called_slow(world: World) -> None:
    world.seen = views(like=replace(UP, waiting=10.0))
    assert not world.send(5.0, 50.0, slower(2_000.0)).findings
    world.seen = views(like=replace(UP, waiting=40.0))
    found = world.send(5.0, 50.0, slower(2_000.0))
    assert triggers_of(found) == {Trigger.SATURATION}
    assert found.load == pytest.approx(40 / 32)
    assert found.clear is False


def test_what_a_queue_held_up_is_no_fault_once_the_queue_is_gone(world: World) -> None:
    world.seen = views(like=replace(UP, waiting=40.0))
    world.send(20.0, 50.0, slower(4_000.0))
    world.seen = views(like=replace(UP, waiting=0.0))
    drained = world.send(4.0, 50.0, slower(4_000.0))  # sent while there was a queue
    assert drained.clear is False, "nobody is sent back to it yet"
    assert not drained.findings
    found = world.send(5.0, 50.0, slower(4_000.0), until=Trigger.LATENCY)  # nothing explains these
    assert triggers_of(found) == {Trigger.LATENCY}


def test_one_slow_endpoint_is_listed_after_two_seconds_and_not_after_one(world: World) -> None:
    def one_slow(number: int) -> Sample:
        return slower(800.0)(number) if key_of(number) == KEYS[2] else well(number)

    assert not world.send(0.8, 50.0, one_slow).failing_endpoints
    found = world.send(3.0, 50.0, one_slow)
    assert (found.findings, found.failing_endpoints) == ((), KEYS[2:3])


def at(keys: tuple[str, ...], make: Callable[[int], Sample]) -> Callable[[int], Sample]:
    """All requests at these endpoints, as where prompts share a prefix."""
    return lambda number: replace(make(number), endpoint=keys[number % len(keys)])


def test_where_one_is_asked_and_slow_it_is_listed_and_the_next_one_speaks_for_the_site(world: World) -> None:
    world.send(3.0, 50.0, at(KEYS[:1], well))
    found = world.send(2.0, 50.0, at(KEYS[:1], slower(800.0)))
    assert (found.findings, found.failing_endpoints) == ((), KEYS[:1])
    assert not world.send(0.1, 50.0, at(KEYS[1:2], slower(800.0))).findings
    assert triggers_of(world.send(0.3, 50.0, at(KEYS[1:2], slower(800.0)))) == {Trigger.LATENCY}


def test_two_that_are_asked_and_slow_speak_for_the_site_unless_others_are_well(world: World) -> None:
    world.send(3.0, 50.0, at(KEYS[:2], well))
    assert not world.send(0.4, 50.0, at(KEYS[:2], slower(800.0))).findings
    finding = only(world.send(0.6, 50.0, at(KEYS[:2], slower(800.0)), until=Trigger.LATENCY))
    assert finding.value == pytest.approx(800.0, abs=20.0)
    world = World()
    world.send(10.0, 50.0, well)
    for _ in range(10):
        assert not world.send(1.0, 50.0, lambda n: slower(800.0)(n) if n % 4 < 2 else well(n)).findings


def test_two_with_a_queue_do_not_speak_for_the_site(world: World) -> None:
    waiting = {key: 10.0 if key in KEYS[:2] else 0.0 for key in KEYS}
    world.seen = {SITE: [replace(UP, endpoint=key, waiting=waiting[key]) for key in KEYS]}
    for _ in range(10):
        assert not world.send(1.0, 50.0, at(KEYS[:2], slower(800.0))).findings


def test_plain_completions_say_nothing_of_the_first_byte(world: World) -> None:
    def plain(number: int) -> Sample:
        return Sample(at_s=0.0, endpoint=key_of(number), ttft_ms=9_000.0)

    found = world.send(5.0, 50.0, plain)
    assert (found.findings, found.clear) == ((), True)


def test_clients_that_leave_early_say_nothing_and_those_that_leave_late_do(world: World) -> None:
    def left(after_ms: float) -> Callable[[int], Sample]:
        return lambda n: Sample(at_s=0.0, endpoint=key_of(n), expected_ms=100.0, waited_ms=after_ms)

    assert not world.send(5.0, 50.0, left(150.0)).findings
    assert triggers_of(world.send(5.0, 50.0, left(900.0), until=Trigger.LATENCY)) == {Trigger.LATENCY}


def test_what_does_not_answer_is_gone_since_its_last_sign_of_life(world: World) -> None:
    world.send(3.0, 0.0, well)
    ages = dict(zip(KEYS, (3.0, 1.5, 2.0, 0.1), strict=True))
    world.seen = {
        SITE: [replace(UP, endpoint=key, metrics_age_s=age, scrape_failing=age > 1.0) for key, age in ages.items()]
    }
    assert only(world.look()).since_s == pytest.approx(world.now_s - 1.5)
    world.seen = views(like=replace(UP, metrics_age_s=None, scrape_failing=True))
    assert only(world.look()).since_s == pytest.approx(world.now_s - 3.0, abs=0.11)


def test_a_client_that_leaves_without_an_answer_is_no_answer(world: World) -> None:
    """Impatient clients of a site that is gone must not prove that it is there."""
    world.seen = views(like=replace(UP, metrics_age_s=3.0, scrape_failing=True))
    gone = world.send(3.0, 50.0, lambda n: Sample(at_s=0.0, endpoint=key_of(n), waited_ms=90.0), until=Trigger.PROBE)
    assert Trigger.PROBE in triggers_of(gone)
    assert gone.clear is False


# Stall.


def silent(count: int, keys: Iterable[str] = KEYS, *, silent_ms: float = 1_000.0) -> list[Waiting]:
    chosen = tuple(keys)
    return [
        Waiting(endpoint=chosen[n % len(chosen)], age_ms=silent_ms + 50.0, expected_ms=100.0, silent_ms=silent_ms)
        for n in range(count)
    ]


def test_a_stall_is_found_without_any_answer(world: World) -> None:
    world.waiting = silent(20)
    finding = only(world.send(1.5, 0.0, well, until=Trigger.STALL))
    assert finding.trigger is Trigger.STALL
    assert finding.since_s < world.now_s - 1.0


def test_requests_that_the_gateway_has_not_reported_are_no_evidence(world: World) -> None:
    world.waiting = [replace(one, age_ms=30_000.0, silent_ms=0.0) for one in silent(50)]
    found = world.send(3.0, 0.0, well)
    assert not found.findings


def test_a_pause_of_one_endpoint_is_no_stall_of_the_site(world: World) -> None:
    world.waiting = silent(30, KEYS[:1])
    found = world.send(1.5, 50.0, lambda n: None if key_of(n) == KEYS[0] else well(n))
    assert not found.findings


def test_a_few_hopeless_requests_among_many_good_ones_are_no_stall(world: World) -> None:
    for second in range(30):
        world.waiting = silent(20, silent_ms=1_000.0 * (second + 1))
        assert not world.send(1.0, 50.0, well).findings


# What is known without requests.


def test_scrapes_that_find_nobody_count_where_no_request_is_answered() -> None:
    gone = replace(UP, scrape_failing=True, metrics_age_s=3.0)
    world = World(seen={**views(like=gone), OTHER: [replace(UP, endpoint="b-0:8000")]})
    found = world.look()
    assert (triggers_of(found), found.ready, found.clear) == ({Trigger.PROBE}, 0, False)
    assert not world.send(1.0, 50.0, well).findings  # requests are answered: the scraper's way is broken
    world.seen[OTHER] = [replace(gone, endpoint="b-0:8000")]
    world.send(10.0, 0.0, well)
    assert not world.look().findings  # nobody can be scraped anywhere: that is us


@pytest.mark.parametrize(("limit", "gone"), [(0.5, 3), (0.25, 2), (1.0, 4)])
def test_so_many_endpoints_must_be_gone_as_the_policy_says(limit: float, gone: int) -> None:
    dead = replace(UP, scrape_failing=True, metrics_age_s=3.0)
    world = World(Triggers(probe=Probe(failing=limit)))
    for count in range(gone):
        world.seen = {SITE: views(KEYS[:count], dead)[SITE] + views(KEYS[count:])[SITE]}
        assert (world.look().findings, world.look().ready) == ((), 4 - count)
    world.seen = {SITE: views(KEYS[:gone], dead)[SITE] + views(KEYS[gone:])[SITE]}
    finding = only(world.look())
    assert (finding.trigger, finding.value, finding.threshold) == (Trigger.PROBE, gone / 4, limit)


@pytest.mark.parametrize(("action", "found"), [(AbsentAction.NEUTRAL, False), (AbsentAction.FAILOVER, True)])
def test_absent_metrics_say_nothing_unless_the_policy_says_so(action: AbsentAction, found: bool) -> None:
    triggers = Triggers(probe=None, metrics_absent=MetricsAbsent(action=action))
    gone = replace(UP, scrape_failing=True, metrics_age_s=11.0)
    world = World(triggers, {**views(like=gone), OTHER: [replace(UP, endpoint="b-0:8000")]})
    assert (Trigger.METRICS_ABSENT in triggers_of(world.look())) is found
    world.seen = {**views(like=replace(gone, scrape_failing=False)), OTHER: world.seen[OTHER]}
    assert not world.look().findings


def test_without_traffic_scrapes_tell_whether_a_site_is_clear() -> None:
    assert World().look().clear is True
    assert World(seen=views(like=EndpointView(endpoint=""))).look().clear is None
    assert World(seen=views(like=replace(UP, metrics_age_s=8.0))).look().clear is False
    world = World()
    world.look()
    world.seen = views(like=replace(UP, rtt_ms=502.0))
    assert world.look().clear is False


# The whole.


def test_all_triggers_together_and_triggers_that_are_off() -> None:
    world = World(Triggers(latency=None, stall=None, combine=Combine.ALL))
    assert not world.send(3.0, 50.0, failing(1.0)).findings  # the probes do not say so
    world.seen = views(like=replace(UP, scrape_failing=True))
    assert triggers_of(world.send(1.0, 50.0, failing(1.0))) == {Trigger.ERROR_RATE, Trigger.PROBE}
    world = World(Triggers(error_rate=None, latency=None, stall=None, probe=None))
    assert not world.send(3.0, 50.0, failing(1.0)).findings


def test_members_that_are_gone_are_forgotten(world: World) -> None:
    world.detector.observe(world.now_s, {}, {OTHER: []})
    found = world.send(0.1, 0.0, well)
    assert (found.requests, found.findings) == (0, ())


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=60), st.integers(1, 64))
@settings(deadline=None)
def test_a_ring_counts_what_is_young_enough(events: list[tuple[float, bool]], length: int) -> None:
    ring = Ring(bucket_s=0.1, size=64)
    kept: list[tuple[int, bool]] = []
    for at_s, bad in sorted(events):
        ring.add(at_s, bad=bad)
        kept.append((int(at_s * 10.0), bad))
    ring.advance(20.0)
    young = [bad for bucket, bad in kept if 200 - bucket < length]
    assert ring.count(length) == (len(young), sum(young))
    everything = [bad for bucket, bad in kept if 200 - bucket < 64]
    assert (ring.total, ring.bad) == (len(everything), sum(everything))


@given(st.integers(1, 40), st.floats(0.01, 0.4))
def test_chance_is_never_stronger_than_it_is_said_to_be(total: int, usual: float) -> None:
    for bad in range(total + 1):
        chance = math.fsum(math.comb(total, k) * usual**k * (1.0 - usual) ** (total - k) for k in range(bad, total + 1))
        assert chance <= math.exp(-evidence(total, bad, usual)) * (1 + 1e-9)
    test = Odds(share=0.5, usual=usual, nats=math.log(1e6))
    needed = test.needs()
    assert test.holds(needed, needed)
    assert not test.holds(needed - 1, needed - 1)


def test_a_baseline_is_a_line_that_a_few_wild_samples_do_not_move() -> None:
    baseline, draw = Baseline(), random.Random(1)
    for number in range(2_000):
        now_s = number * 0.5
        expected_ms = draw.uniform(20.0, 800.0)
        took_ms = 30.0 + 1.4 * expected_ms if draw.random() > 0.1 else draw.uniform(0.0, 5_000.0)
        baseline.add(now_s, expected_ms, took_ms)
        baseline.settle(now_s, suspicious=False)
    assert baseline.usual_ms(100.0) == pytest.approx(170.0, rel=0.25)
    assert baseline.usual_ms(700.0) == pytest.approx(1_010.0, rel=0.1)
