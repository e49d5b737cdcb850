"""The simulation: every request ends, the same seed gives the same figures, wires take their time, and the production
picker is what decides."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.conftest import asking, small_fleet
from pointsman.bench.affinity import LlmD, SkyWalker
from pointsman.bench.balancers import LeastOutstanding, RoundRobin
from pointsman.bench.catalogue import CATALOGUE
from pointsman.bench.joint import ALONE, PRODUCTION, Joint, Wiring, key_of, plan_of
from pointsman.bench.ledger import Ledger
from pointsman.bench.measure import FIGURES, run, spread, zero_load_ms
from pointsman.bench.policy import Policy, Sample
from pointsman.bench.simulate import Outcome, Simulation
from pointsman.bench.workload import Arrival, Workload, prompt_bytes
from pointsman.extproc.picker import Picker
from pointsman.extproc.table import PREFILL_MS_PER_TOKEN


def outcomes(policy: Policy, arrivals: tuple[Arrival, ...], scrape_ms: float = 200.0) -> list[Outcome]:
    return Simulation(small_fleet(), arrivals, policy, scrape_ms=scrape_ms).run()


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_request_ends_once_under_every_policy(name: str, minute: Workload) -> None:
    arrivals = minute.arrivals[:120]
    found = outcomes(CATALOGUE[name].make(1), arrivals)
    assert sorted(o.arrival.id for o in found) == [a.id for a in arrivals]
    for outcome in found:
        assert 0 < outcome.ttft_ms <= outcome.e2e_ms
        assert 0 <= outcome.cached_tokens < outcome.arrival.input_tokens
        assert outcome.ttft_ms >= small_fleet().rtt(outcome.arrival.gateway, outcome.replica)


@pytest.mark.parametrize("name", ["p2c", "llm-d", "skywalker", "joint", "joint-production"])
def test_the_same_seed_gives_the_same_result(name: str, minute: Workload) -> None:
    first, second = (run(small_fleet(), minute, CATALOGUE[name].make(5))[0] for _ in range(2))
    assert first == second


def test_books_are_empty_at_the_end(minute: Workload) -> None:
    policy = LlmD(seed=1)
    outcomes(policy, minute.arrivals)
    for column in (policy.requests, policy.raw_tokens, policy.pending, policy.unstarted, policy.context):
        assert column == [0, 0, 0, 0]


class Fixed(Ledger):
    """Always the same replica; notes what it hears and when."""

    replica = 2

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, float]] = []
        self.seen: list[tuple[int, float, Sample]] = []

    def choose(self, arrival: Arrival) -> int:
        self.heard.append(("choose", self.world.now_ms))
        return self.replica

    def first_token(self, arrival: Arrival, replica: int) -> None:
        self.heard.append(("first", self.world.now_ms))

    def ended(self, arrival: Arrival, replica: int) -> None:
        self.heard.append(("end", self.world.now_ms))

    def scraped(self, view: int, replica: int, sample: Sample) -> None:
        self.seen.append((replica, self.world.now_ms, sample))


def test_a_remote_request_pays_half_a_round_trip_each_way() -> None:
    fleet = small_fleet()
    policy = Fixed()
    (outcome,) = Simulation(fleet, (asking(0, 1000, gateway=0),), policy).run()
    alone_ms = zero_load_ms(fleet, 0, 1000) - fleet.rtt(0, 0)
    assert outcome.ttft_ms == pytest.approx(80.0 + alone_ms)
    assert [word for word, _ in policy.heard] == ["choose", "first", "end"]
    assert policy.heard[1][1] == pytest.approx(outcome.ttft_ms)
    assert policy.heard[2][1] == pytest.approx(outcome.e2e_ms)


def test_scrapes_are_seen_after_half_a_round_trip_and_not_before() -> None:
    arrivals = tuple(
        Arrival(id=n, at_ms=at_ms, gateway=0, input_tokens=600, output_tokens=100, blocks=(n, n + 50), session=n)
        for n, at_ms in enumerate((141.0, 201.0, 239.0, 241.0))
    )
    policy = Fixed()
    policy.per_region = True
    Simulation(small_fleet(), arrivals, policy, scrape_ms=100.0).run()
    of_remote = [(at_ms, sample.waiting + sample.running) for replica, at_ms, sample in policy.seen if replica == 2]
    assert of_remote == [(141.0, 0), (241.0, 1)]  # those of 100 and 200 ms; at 200 the first request has arrived


def test_held_requests_go_in_order_when_there_is_room() -> None:
    arrivals = tuple(asking(n, 4_000) for n in range(12))
    found = outcomes(SkyWalker(seed=1), arrivals)
    assert len(found) == 12
    by_id = {o.arrival.id: o.ttft_ms for o in found}
    assert max(by_id[n] for n in range(4)) < min(by_id[n] for n in range(8, 12))


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(st.floats(0, 2_000), st.integers(1, 9_000), st.integers(1, 40), st.integers(0, 1), st.integers(0, 3)),
        min_size=1,
        max_size=25,
    ),
    st.sampled_from(["least-outstanding", "skywalker", "joint-production"]),
)
def test_any_requests_end(requests: list[tuple[float, int, int, int, int]], name: str) -> None:
    arrivals = tuple(
        Arrival(
            id=number,
            at_ms=at_ms,
            gateway=gateway,
            input_tokens=tokens,
            output_tokens=made,
            blocks=tuple(range(100 * session, 100 * session + -(-tokens // 512))),
            session=session,
        )
        for number, (at_ms, tokens, made, gateway, session) in enumerate(sorted(requests))
    )
    simulation = Simulation(small_fleet(), arrivals, CATALOGUE[name].make(0))
    found = simulation.run()
    assert {o.arrival.id for o in found} == set(range(len(arrivals)))
    assert sum(simulation.prefill_tokens) >= sum(o.arrival.input_tokens - o.cached_tokens for o in found)
    for engine in simulation.engines:
        assert (engine.waiting, engine.running) == (0, 0)
        engine.kv.check()


def test_cache_aware_routing_hits_more_than_turns(minute: Workload) -> None:
    turns, _ = run(small_fleet(), minute, RoundRobin())
    ours, _ = run(small_fleet(), minute, Joint())
    assert ours.hit > turns.hit
    assert ours.mean_ms < turns.mean_ms
    assert ours.usd_per_1k < turns.usd_per_1k
    both = spread([turns, ours])
    assert set(both) == set(FIGURES)
    assert both["mean_ms"].low == ours.mean_ms
    assert both["mean_ms"].high == turns.mean_ms


# Our own policy is the production picker


def test_every_decision_is_the_production_pickers(monkeypatch: pytest.MonkeyPatch, minute: Workload) -> None:
    decided: list[str] = []
    original = Picker.pick

    def pick(self: Picker, request):
        decision = original(self, request)
        decided.append(decision.endpoints[0])
        return decision

    monkeypatch.setattr(Picker, "pick", pick)
    arrivals = minute.arrivals[:60]
    policy = Joint()
    served = {o.arrival.id: o.replica for o in outcomes(policy, arrivals)}
    keys = [endpoint.key for endpoint in plan_of(small_fleet()).pools[0].endpoints()]
    assert decided == [keys[served[a.id]] for a in arrivals]
    assert policy.pickers[0].stats().picks == len(arrivals)


@pytest.mark.parametrize(
    "wiring",
    [Wiring(), Wiring(shared=False), Wiring(shared=False, gossip_ms=100.0), Wiring(local=True), ALONE, PRODUCTION],
)
def test_pickers_learn_of_every_end(wiring: Wiring, minute: Workload) -> None:
    policy = Joint(wiring=wiring)
    simulation = Simulation(small_fleet(), minute.arrivals, policy)
    found = simulation.run()
    simulation._until(simulation.now_ms + 5_000.0)  # the last entries and deltas are on their way
    assert [picker.stats().in_flight for picker in policy.pickers] == [0] * (1 if wiring.shared else 2)
    assert all(picker.stats().unmatched_feedback == 0 for picker in policy.pickers)
    if wiring.local:
        assert all(small_fleet().region_of[o.replica] == o.arrival.gateway for o in found)


def test_wrong_rates_are_learnt_unless_that_is_switched_off() -> None:
    """Half the true rates look twice too fast: more than the tolerance, so they are put right."""
    arrivals = tuple(
        Arrival(
            id=n,
            at_ms=n * 400.0,
            gateway=0,
            input_tokens=2_000 + 50 * n,
            output_tokens=2,
            blocks=tuple(range(100 * n, 100 * n + 8)),
            session=n,
        )
        for n in range(60)
    )
    rates = []
    for wiring in (Wiring(), Wiring(rate_error=0.5), Wiring(rate_error=0.5, calibrate=False)):
        policy = Joint(wiring=wiring)
        outcomes(policy, arrivals)
        table = policy.pickers[0].table
        rates.append(table.prefill_ms[[0, 1]] / PREFILL_MS_PER_TOKEN)
    assert rates[0].tolist() == [1.0, 1.0]
    assert all(0.7 < rate < 1.2 for rate in rates[1])
    assert rates[2].tolist() == [0.5, 0.5]


def test_deltas_tell_a_peer_of_the_load() -> None:
    arrivals = (
        Arrival(id=0, at_ms=0.0, gateway=0, input_tokens=60_000, output_tokens=5, blocks=tuple(range(118)), session=0),
        Arrival(id=1, at_ms=900.0, gateway=0, input_tokens=100, output_tokens=5, blocks=(900,), session=1),
    )
    policy = Joint(wiring=Wiring(shared=False, gossip_ms=100.0))
    simulation = Simulation(small_fleet(), arrivals, policy)
    simulation._policy.bind(simulation)
    simulation._until(0.0)
    simulation._offer(arrivals[0])
    simulation._until(139.0)  # the next update is at 100 ms, and half a round trip on its way
    assert policy.asked(1).table.remote_pending_tokens.sum() == 0
    simulation._until(141.0)
    assert policy.asked(1).table.remote_pending_tokens.sum() == 60_000
    assert policy.pickers[1].stats().in_flight == 0
    assert policy.pickers[1].stats().prefix_blocks == policy.pickers[0].stats().prefix_blocks > 0


def test_the_plan_and_the_prompts_are_what_production_would_see() -> None:
    fleet = small_fleet()
    plan = plan_of(fleet)
    assert [endpoint.site for endpoint in plan.pools[0].endpoints()] == ["east", "east", "west", "west"]
    assert plan.pools[0].endpoints()[2].name == key_of(2)
    long, short = asking(1, 1500, block=70), asking(2, 1100, block=70)
    assert len(prompt_bytes(long)) == 6_000
    assert prompt_bytes(long).startswith(prompt_bytes(short))
    assert prompt_bytes(asking(3, 1100, block=71))[:2048] == prompt_bytes(long)[2048:4096]


def test_least_outstanding_beats_turns_under_load() -> None:
    heavy = tuple(
        Arrival(
            id=n,
            at_ms=n * 150.0,
            gateway=n % 2,
            input_tokens=12_000 if n % 4 == 0 else 500,
            output_tokens=20,
            blocks=tuple(range(100 * n, 100 * n + (24 if n % 4 == 0 else 1))),
            session=n,
        )
        for n in range(60)
    )
    turns = outcomes(RoundRobin(), heavy)
    least = outcomes(LeastOutstanding(seed=1), heavy)
    assert sum(o.ttft_ms for o in least) < sum(o.ttft_ms for o in turns)
