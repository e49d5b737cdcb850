"""Each baseline on a situation made by hand: it takes what its formula says."""

from __future__ import annotations

from typing import TypeVar

import pytest

from bench.conftest import Still, asking, sample
from pointsman.bench.affinity import AIBrix, LlmD, SGLang, SkyWalker
from pointsman.bench.balancers import LeastOutstanding, PowerOfTwo, RoundRobin, SessionRing
from pointsman.bench.ledger import Ledger, PrefixRecord
from pointsman.bench.oracle import Oracle
from pointsman.bench.priced import Dynamo, Gorgo, LMetric, Lpwl
from pointsman.sim.sequence import Sequence

P = TypeVar("P", bound=Ledger)


def bound(policy: P, still: Still) -> P:
    policy.bind(still)
    return policy


def load(policy: Ledger, requests: list[int]) -> None:
    """Put this many small requests on each replica; they have had their first token."""
    number = 10_000
    for replica, count in enumerate(requests):
        for _ in range(count):
            arrival = asking(number, 512)
            policy.sent(arrival, replica)
            policy.first_token(arrival, replica)
            number += 1


def test_round_robin_takes_turns_and_each_gateway_its_own(still: Still) -> None:
    everywhere = bound(RoundRobin(), still)
    assert [everywhere.choose(asking(n)) for n in range(5)] == [0, 1, 2, 3, 0]
    local = bound(RoundRobin(local=True), still)
    chosen = [local.choose(asking(n, gateway=gateway)) for n, gateway in enumerate((0, 1, 1, 0, 1))]
    assert chosen == [0, 2, 3, 1, 2]


def test_least_outstanding_counts_until_the_end(still: Still) -> None:
    policy = bound(LeastOutstanding(), still)
    load(policy, [1, 2, 0, 1])
    arrival = asking(1)
    assert policy.choose(arrival) == 2
    policy.first_token(arrival, 2)
    assert policy.requests == [1, 2, 1, 1]
    policy.ended(arrival, 2)
    assert policy.choose(asking(2)) == 2
    local = bound(LeastOutstanding(local=True), still)
    load(local, [1, 2, 0, 0])
    assert local.choose(asking(1, gateway=0)) == 0


def test_the_better_of_two_is_never_the_fullest(still: Still) -> None:
    policy = bound(PowerOfTwo(seed=1), still)
    load(policy, [0, 0, 0, 9])
    chosen = {policy.choose(asking(n)) for n in range(12)}
    assert chosen == {0, 1, 2}


def test_a_session_stays_and_a_bounded_one_moves_on_when_its_replica_is_full(still: Still) -> None:
    plain = bound(SessionRing(), still)
    home = plain.choose(asking(0, session=7))
    assert {plain.choose(asking(n, session=7)) for n in range(1, 9)} == {home}
    assert len({plain.choose(asking(n, session=n)) for n in range(20, 60)}) == 4
    bounded = bound(SessionRing(load_factor=1.25), still)
    chosen = [bounded.choose(asking(n, session=7)) for n in range(8)]
    assert chosen[0] == home
    assert max(chosen.count(replica) for replica in range(4)) == 3  # ceil(1.25 × 8 / 4)


def test_sglang_matches_unless_little_is_cached_or_counts_are_out_of_balance(still: Still) -> None:
    policy = bound(SGLang(), still)
    policy.prefixes.insert(2, [500, 501, 502, 503])
    policy.prefixes.insert(0, [1])
    policy.prefixes.insert(1, [2])
    assert policy.choose(asking(1, 3 * 512, block=500)) == 2
    assert policy.choose(asking(2, 14 * 512, block=500)) == 3  # 4 of 14 blocks are not above 0.3: the smallest tree
    load(policy, [64, 0, 70, 64])
    assert policy.choose(asking(3, 3 * 512, block=500)) == 1


def test_aibrix_follows_the_prefix_within_a_deviation_of_the_mean(still: Still) -> None:
    policy = bound(AIBrix(), still)
    policy.prefixes.insert(1, [500, 501])
    policy.prefixes.insert(2, [500])
    load(policy, [2, 2, 2, 2])
    assert policy.choose(asking(1, block=500)) == 1
    load(policy, [0, 3, 0, 0])  # 2, 6, 2, 2: mean 3 and deviation 1.7
    assert policy.choose(asking(2, block=500)) == 2
    load(policy, [0, 9, 4, 0])  # more than 8 between the most and the least
    assert policy.choose(asking(3, block=500)) in {0, 3}


def test_llm_d_adds_queue_cache_and_prefix(still: Still) -> None:
    policy = bound(LlmD(), still)
    for replica, (waiting, usage) in enumerate(((4, 0.1), (0, 0.9), (2, 0.5), (0, 0.5))):
        policy.scraped(0, replica, sample(waiting=waiting, kv_usage=usage))
    assert policy.choose(asking(1, block=500)) == 3  # 0 + 1.8, 2 + 0.2, 1 + 1.0, 2 + 1.0
    assert policy.choose(asking(2, block=500)) == 3  # 3 more for the prefix
    policy.scraped(0, 3, sample(waiting=8, kv_usage=1.0))
    assert policy.choose(asking(3, block=900)) == 0  # 1 + 1.8, 2 + 0.2, 1.5 + 1.0, 0
    assert policy.choose(asking(4, block=500)) == 3  # 3.0 beats 2.8 by the prefix alone


def test_llm_d_sees_only_the_first_4096_tokens(still: Still) -> None:
    policy = bound(LlmD(), still)
    first = asking(1, 20 * 512, block=500)
    policy.scraped(0, 1, sample(kv_usage=0.0))
    for replica in (0, 2, 3):
        policy.scraped(0, replica, sample(kv_usage=0.5))
    assert policy.choose(first) == 1
    policy.scraped(0, 1, sample(kv_usage=0.9))
    fork = asking(2, 40 * 512, block=500)  # the first 8 of its 80 blocks count as the whole of it
    assert policy.choose(fork) == 1


def test_skywalker_pushes_only_to_the_idle_local_first_and_holds_the_rest(still: Still) -> None:
    policy = bound(SkyWalker(), still)
    policy.prefixes.insert(1, [500, 501])
    policy.prefixes.insert(2, [500, 501])
    requests = [asking(n, block=500) for n in range(5)]
    assert policy.choose(requests[0]) == 1
    assert [policy.choose(r) for r in requests[1:]] == [0, 2, 3, None]
    policy.first_token(requests[2], 2)
    assert policy.choose(requests[4]) == 2


def test_gorgo_weighs_round_trip_uncached_and_whole_queued_prompts(still: Still) -> None:
    policy = bound(Gorgo(), still)
    first = asking(1, 1024, block=500)
    chosen = policy.choose(first)
    assert chosen in {0, 1}  # 2 + 1024 against 80 + 1024
    assert policy.choose(asking(2, 1024, block=500)) == 1 - chosen  # 1024 queued: nothing is left of the cached 1023
    policy.first_token(first, chosen)
    assert policy.raw_tokens[chosen] == 1024  # held to the end, not to the first token
    policy.ended(first, chosen)
    assert policy.choose(asking(3, 1024, block=500)) == chosen
    far = bound(Gorgo(rtt_weight=13.0), still)
    far.raw_tokens[:] = [1_000, 1_015, 0, 0]
    assert far.choose(asking(4)) == 0  # 26 + 1000 against 1040
    near = bound(Gorgo(rtt_weight=1.0), still)
    near.raw_tokens[:] = [1_000, 1_015, 0, 0]
    assert near.choose(asking(4)) in {2, 3}


def test_gorgo_never_forgets_a_prefix(still: Still) -> None:
    policy = bound(Gorgo(), still)
    for n in range(900):
        policy.prefixes.insert(0, [n])
    assert policy.cached(0, asking(1, 1024, block=0)) == 1023  # the last token is always computed
    assert bound(Lpwl(), still).prefixes.size(0) == 0
    bounded = PrefixRecord(1, 1024)
    bounded.insert(0, [1, 2, 3])
    assert bounded.matched(0, [1, 2, 3]) == 2  # the tail goes first


def test_lmetric_multiplies_pending_work_by_the_batch(still: Still) -> None:
    policy = bound(LMetric(), still)
    load(policy, [1, 3, 2, 5])
    policy.pending[:] = [6_000, 1_000, 3_000, 0]
    assert policy.choose(asking(1, 1024)) == 3  # 7024, 6072, 8048, 5120
    load(policy, [0, 0, 0, 1])
    assert policy.choose(asking(2, 1024)) == 1  # 5 is 6 now, and 1,024 are pending there
    policy.requests[0] = 0
    assert policy.choose(asking(3, 1024)) == 0  # an empty one costs nothing, whatever is pending


def test_lpwl_adds_pending_and_uncached(still: Still) -> None:
    policy = bound(Lpwl(), still)
    policy.prefixes.insert(3, [500, 501])
    policy.pending[:] = [400, 300, 900, 1_200]
    assert policy.choose(asking(1, 2048, block=500)) == 3  # 2448, 2348, 2948, 2224
    assert policy.pending[3] == 2_224
    assert policy.choose(asking(2, 2048)) == 1
    local = bound(Lpwl(local=True), still)
    local.pending[:] = [400, 300, 0, 0]
    assert local.choose(asking(3, gateway=0)) == 1


def test_dynamo_prices_a_resident_token_like_a_token_to_prefill(still: Still) -> None:
    policy = bound(Dynamo(), still)
    policy.prefixes.insert(0, [500, 501])
    policy.context[:] = [3_200, 1_600, 1_600, 1_600]
    policy.pending[:] = [0, 0, 800, 800]
    # In blocks of 16: (0 + 1)/16 + 200 + 64, 64 + 100 + 64, 50 + 64 + 100 + 64
    assert policy.choose(asking(1, 1024, block=500)) == 1


def test_the_oracle_sees_engines_caches_and_wires(still: Still) -> None:
    policy = bound(Oracle(), still)
    assert policy.choose(asking(1, 1024, gateway=1)) in {2, 3}
    busy = still.engines[0]
    for n in range(4):
        busy.submit(0.0, Sequence(id=n, block_hashes=(), prompt_tokens=8_000, output_tokens=10))
    assert policy.choose(asking(2, 1024)) == 1
    still.wires[1] = [asking(3, 40_000)]
    still.engines[2].submit(0.0, Sequence(id=9, block_hashes=[500, 501, 502], prompt_tokens=1_600, output_tokens=1))
    still.engines[2].advance(10_000.0)
    assert policy.choose(asking(4, 1_600, block=500)) == 2  # 80 ms away, and its three blocks are worth 110 ms
    tokens, area = busy.prefill_ahead()
    assert tokens == 32_000
    assert area == pytest.approx(4 * 8_000 * 4_000)
