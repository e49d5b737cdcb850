"""The picker's verbs together: affinity, herding, feedback, restarts, refusals, explanation, agreement of pickers."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.fleet import POOL, make_plan
from pointsman.core.clock import ManualClock
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.core.model import Health, Plan, Site
from pointsman.extproc import Feedback, Picker, PickPolicy, PickRequest
from pointsman.extproc.engines import has_restarted
from pointsman.extproc.penalties import MAX_PENALTY_MS
from pointsman.extproc.request import read_body

NEAR = [f"10.0.0.{n}:8000" for n in range(1, 5)]
FAR = [f"10.1.0.{n}:8000" for n in range(1, 5)]


def picker_of(policy: PickPolicy = PickPolicy.JOINT, instance: str = "p") -> Picker:
    picker = Picker(ManualClock(), policy=policy, instance=instance)
    picker.apply(make_plan({"near": NEAR, "far": FAR}))
    for key in NEAR:
        picker.signals(key, rtt_ms=1.0)
    for key in FAR:
        picker.signals(key, rtt_ms=80.0)
    return picker


def asking(text: str, *, affinity: str = "", request_id: str = "", **fields: object) -> PickRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    return PickRequest(pool=POOL, body=read_body(json.dumps(body).encode()), affinity=affinity, request_id=request_id)


LONG = "the quick brown fox jumps over the lazy dog. " * 400  # 18 KB, 4,500 tokens


def done(picker: Picker, pick_id: str, **fields: object) -> None:
    values: dict[str, object] = {"status": 200, "ttft_ms": 100.0, **fields}
    picker.feedback(Feedback(pick_id=pick_id, ended=True, **values))  # type: ignore[arg-type]


def test_a_conversation_returns_to_its_cache() -> None:
    picker = picker_of()
    first = picker.pick(asking(LONG))
    done(picker, first.pick_id)
    second = picker.pick(asking(LONG + "and then?"))
    assert second.endpoints[0] == first.endpoints[0]
    assert second.cached_tokens is not None
    assert second.cached_tokens.max() > 4_000


def test_a_cached_prefix_far_away_loses_to_the_network_when_it_is_short_and_wins_when_it_is_long() -> None:
    picker = picker_of()
    row = picker.table.row(FAR[0])
    assert row is not None
    for words, site in ((60, "near"), (2_000, "far")):
        request = asking("unique prefix number " + str(words) + " word" * words)
        picker.apply(make_plan({"near": NEAR, "far": FAR}, health=dict.fromkeys([*NEAR, *FAR[1:]], Health.DRAINING)))
        done(picker, picker.pick(request).pick_id)  # only FAR[0] is ready
        picker.apply(make_plan({"near": NEAR, "far": FAR}))
        chosen = picker.pick(request)
        done(picker, chosen.pick_id)
        assert chosen.endpoints[0] in {"near": NEAR, "far": FAR[:1]}[site]


def test_a_burst_of_cold_requests_does_not_herd() -> None:
    picker = picker_of()
    chosen = Counter(picker.pick(asking(f"{n} {LONG}")).endpoints[0] for n in range(16))
    assert set(chosen) >= set(NEAR)
    assert max(chosen.values()) <= 4


def test_short_equal_requests_spread_by_what_runs() -> None:
    picker = picker_of()
    chosen = Counter(picker.pick(asking("hi")).endpoints[0] for _ in range(8))
    assert chosen == Counter(dict.fromkeys(NEAR, 2))


def test_tenants_with_different_salts_share_no_prefix() -> None:
    picker = picker_of()
    done(picker, picker.pick(asking(LONG, cache_salt="a")).pick_id)
    decision = picker.pick(asking(LONG, cache_salt="b"))
    assert decision.cached_tokens is not None
    assert not decision.cached_tokens.any()


def test_pickers_without_shared_state_agree_on_an_idle_fleet() -> None:
    one, other = picker_of(instance="a"), picker_of(instance="b")
    for number in range(20):
        request = asking(f"question {number}", affinity=f"user-{number}")
        first, second = one.pick(request), other.pick(request)
        assert first.endpoints == second.endpoints
        assert first.pick_id != second.pick_id
        done(one, first.pick_id)
        done(other, second.pick_id)


def test_the_list_starts_near_and_crosses_sites() -> None:
    decision = picker_of().pick(asking("hi"))
    assert decision.endpoints[0] in NEAR
    assert decision.endpoints[1] in FAR, "the second attempt leaves a site that is lost"
    assert set(decision.endpoints[:5]) > set(NEAR)
    assert decision.destination == ",".join(decision.endpoints)


def test_a_busy_site_spills() -> None:
    picker = picker_of()
    busy = EngineMetrics(waiting=50.0, running=200.0, kv_usage=0.9)
    for key in NEAR:
        picker.signals(key, busy)
    for key in FAR:
        picker.signals(key, EngineMetrics(waiting=0.0, running=0.0, kv_usage=0.0))
    assert picker.pick(asking("hi")).endpoints[0] in FAR


@pytest.mark.parametrize("status", [429, 503, 502])
def test_failures_cost_and_are_forgiven(status: int) -> None:
    clock = ManualClock()
    picker = Picker(clock)
    picker.apply(make_plan({"near": NEAR[:1], "far": FAR[:1]}))
    picker.signals(NEAR[0], rtt_ms=1.0)
    picker.signals(FAR[0], rtt_ms=80.0)
    first = picker.pick(asking("hi"))
    assert first.endpoints[0] == NEAR[0]
    done(picker, first.pick_id, status=status, upstream=NEAR[0])
    assert picker.pick(asking("hi")).endpoints[0] == FAR[0]
    for _ in range(50):
        done(picker, picker.pick(asking("hi")).pick_id, status=status, upstream=NEAR[0])
    assert picker.table.penalty_ms[picker.table.row(NEAR[0])] <= MAX_PENALTY_MS
    clock.advance(60.0)
    assert picker.pick(asking("hi")).endpoints[0] == NEAR[0]


def test_a_client_error_costs_nothing() -> None:
    picker = picker_of()
    decision = picker.pick(asking("hi"))
    done(picker, decision.pick_id, status=400, upstream=decision.endpoints[0])
    assert not picker.table.penalty_ms.any()


def test_a_retry_teaches_where_the_prefix_is() -> None:
    picker = picker_of()
    decision = picker.pick(asking(LONG))
    done(picker, decision.pick_id, upstream=FAR[3])
    again = picker.pick(asking(LONG))
    assert again.endpoints[0] == FAR[3]


def test_a_running_retry_is_counted_where_it_runs() -> None:
    picker = picker_of()
    decision = picker.pick(asking(LONG))
    picker.feedback(Feedback(pick_id=decision.pick_id, ended=False, upstream=FAR[3], status=200))
    first, second = picker.table.row(decision.endpoints[0]), picker.table.row(FAR[3])
    assert (picker.table.requests[first], picker.table.requests[second]) == (0, 1)
    assert picker.table.pending_tokens[second] > 4_000
    done(picker, decision.pick_id, upstream=FAR[3])
    assert not picker.table.pending_tokens.any()


def test_a_restarted_engine_has_an_empty_cache() -> None:
    picker = picker_of()
    first = picker.pick(asking(LONG))
    done(picker, first.pick_id)
    row = picker.table.row(first.endpoints[0])
    assert row is not None
    assert picker.index.blocks(row) > 0
    assert not picker.signals(first.endpoints[0], EngineMetrics(waiting=0.0, start_time_s=100.0))
    assert not picker.signals(first.endpoints[0], EngineMetrics(waiting=0.0, start_time_s=100.0))
    assert picker.index.blocks(row) > 0
    assert picker.signals(first.endpoints[0], EngineMetrics(waiting=0.0, start_time_s=200.0))
    assert picker.index.blocks(row) == 0


@pytest.mark.parametrize(
    ("before", "after", "restarted"),
    [
        (None, EngineMetrics(start_time_s=5.0), False),
        (EngineMetrics(start_time_s=5.0), EngineMetrics(start_time_s=6.0), True),
        (EngineMetrics(prompt_tokens_total=9.0), EngineMetrics(prompt_tokens_total=3.0), True),
        (EngineMetrics(prompt_tokens_total=3.0), EngineMetrics(prompt_tokens_total=9.0), False),
        (EngineMetrics(prompt_tokens_total=3.0), EngineMetrics(), False),
        (EngineMetrics(prefix_queries_total=3.0), EngineMetrics(prefix_queries_total=0.0), True),
    ],
)
def test_restarts_are_seen(before: EngineMetrics | None, after: EngineMetrics, restarted: bool) -> None:
    assert has_restarted(before, after) is restarted


def test_capacity_bounds_the_index_and_large_blocks_round_down() -> None:
    picker = picker_of()
    for key in (*NEAR, *FAR):
        picker.signals(key, EngineMetrics(waiting=0.0, block_tokens=128, capacity_tokens=1_280))
    first = picker.pick(asking(LONG))
    row = picker.table.row(first.endpoints[0])
    assert row is not None
    assert picker.index.blocks(row) == 20
    done(picker, first.pick_id)
    picker.index.set_capacity(row, 64 * 3)  # 192 tokens are one whole block of 128
    cached = picker.pick(asking(LONG)).cached_tokens
    assert cached is not None
    assert cached.max() == 128


def test_a_prompt_that_is_cached_whole_computes_its_last_block_again() -> None:
    picker = picker_of()
    for key in (*NEAR, *FAR):
        picker.signals(key, EngineMetrics(waiting=0.0, block_tokens=128, capacity_tokens=128_000))
    body = read_body(json.dumps({"model": "m", "prompt": "word" * 256}).encode())
    for _ in range(2):
        cached = picker.pick(PickRequest(pool=POOL, body=body)).cached_tokens
    assert cached is not None
    assert cached.max() == 128


def test_host_tier_counts_as_room_for_prefixes() -> None:
    picker = picker_of()
    for key in (*NEAR, *FAR):
        picker.signals(key, EngineMetrics(waiting=0.0, block_tokens=64, capacity_tokens=640, host_tokens=640))
    row = picker.table.row(picker.pick(asking(LONG)).endpoints[0])
    assert row is not None
    assert picker.index.blocks(row) == 20
    assert picker.table.capacity_tokens[row] == 640


def test_refusals_and_their_reasons() -> None:
    picker = picker_of()
    unknown = picker.pick(PickRequest(pool="default/other"))
    assert (unknown.status, unknown.reason, unknown.endpoints) == (0, "unknown-pool", ())
    drained = make_plan({"near": NEAR}, health=dict.fromkeys(NEAR, Health.DRAINING))
    picker.apply(drained)
    assert (picker.pick(asking("hi")).status, picker.pick(asking("hi")).reason) == (503, "no-ready-endpoint")
    picker.apply(make_plan({"near": []}))
    assert picker.pick(asking("hi")).status == 503
    picker.apply(make_plan({"near": NEAR}, sites=(Site(name="near", jurisdictions=frozenset({"US"})),)))
    stay = PickRequest(pool=POOL, residency=frozenset({"EU"}))
    assert (picker.pick(stay).status, picker.pick(stay).reason) == (451, "residency")
    assert len(picker.inflight) == 0


def test_a_removed_endpoint_keeps_its_accounts_until_they_end() -> None:
    picker = picker_of()
    decision = picker.pick(asking(LONG))
    picker.apply(make_plan({"far": FAR}))
    assert len(picker.inflight) == 1
    done(picker, decision.pick_id, upstream=decision.endpoints[0])
    assert len(picker.inflight) == 0
    picker.apply(make_plan({"far": FAR}))
    assert picker.index.total_blocks == 0


def test_feedback_of_unknown_picks_is_counted_and_ignored() -> None:
    picker = picker_of()
    assert picker.feedback(Feedback(pick_id="nobody", ended=True, status=200)) is None
    assert picker.feedback(Feedback(pick_id="", ended=True, status=503, upstream=NEAR[0])) is None
    assert picker.stats().unmatched_feedback == 2
    assert picker.table.penalty_ms[picker.table.row(NEAR[0])] > 0  # a failure counts whoever sent the request


def test_lost_logs_expire() -> None:
    clock = ManualClock()
    picker = Picker(clock, expiry_s=10.0)
    picker.apply(make_plan({"near": NEAR}))
    picker.pick(asking("hi"))
    clock.advance(10.0)
    picker.pick(asking("hi"))
    assert len(picker.inflight) == 1
    assert picker.stats().expired == 1


def test_explain_tells_candidates_terms_and_reasons() -> None:
    picker = picker_of()
    picker.apply(make_plan({"near": NEAR[:2], "far": FAR[:1]}, health={NEAR[0]: Health.UNHEALTHY}))
    decision = picker.pick(asking(LONG, request_id="req-1"))
    found = picker.explain("req-1")
    assert found is decision is picker.explain(decision.pick_id)
    told = decision.explain()
    json.dumps(told)
    assert told["filtered"] == {NEAR[0]: "unhealthy"}
    assert [c["endpoint"] for c in told["candidates"]] == [NEAR[1], FAR[0]]
    best = told["candidates"][0]
    assert best["score_ms"] == pytest.approx(sum(best["terms_ms"].values()), abs=0.01)
    assert best["terms_ms"]["network"] == 3.0
    assert picker.explain("unknown") is None
    assert picker.pick(PickRequest(pool="none", request_id="req-2")).explain()["reason"] == "unknown-pool"


def test_only_recent_decisions_are_kept() -> None:
    picker = Picker(ManualClock(), recent=3)
    picker.apply(make_plan({"near": NEAR}))
    for number in range(10):
        picker.pick(asking("hi", request_id=f"r{number % 5}"))
    assert len(picker.recent()) == 3
    assert picker.explain("r9") is None
    assert picker.explain("r4") is not None
    assert picker.explain("r0") is None
    assert len(picker._recent._by_request) == 3


@pytest.mark.parametrize("policy", list(PickPolicy))
def test_each_policy_uses_all_ready_endpoints_and_counts(policy: PickPolicy) -> None:
    picker = picker_of(policy)
    picker.apply(make_plan({"near": NEAR, "far": FAR}, health={NEAR[0]: Health.DRAINING}))
    picks = [picker.pick(asking(f"{n} {LONG}")) for n in range(140)]
    chosen = Counter(decision.endpoints[0] for decision in picks)
    assert set(chosen) == {*NEAR[1:], *FAR}
    if policy in (PickPolicy.ROUND_ROBIN, PickPolicy.LEAST_OUTSTANDING):
        assert set(chosen.values()) == {20}
    assert picker.table.requests.sum() == len(picker.inflight) == 140
    for decision in picks:
        done(picker, decision.pick_id)
    assert picker.table.requests.sum() == picker.table.pending_tokens.sum() == 0


STEP = st.one_of(
    st.tuples(st.just("pick"), st.integers(0, 40)),
    st.tuples(st.just("end"), st.integers(0, 30)),
    st.tuples(st.just("first"), st.integers(0, 30)),
    st.tuples(st.just("plan"), st.sets(st.integers(0, 7))),
    st.tuples(st.just("tick"), st.integers(0, 90)),
)


@given(st.lists(STEP, max_size=60))
def test_whatever_happens_picks_are_ready_endpoints_and_accounts_add_up(steps: list[tuple[str, object]]) -> None:
    clock = ManualClock()
    picker = Picker(clock)
    every = [*NEAR, *FAR]
    ready = set(every)
    picker.apply(make_plan({"near": NEAR, "far": FAR}))
    picks: list[str] = []
    for verb, value in steps:
        match verb, value:
            case "pick", int(number):
                decision = picker.pick(asking(f"{number % 3} " + "word " * (number * 50)))
                assert set(decision.endpoints) <= ready
                assert len(set(decision.endpoints)) == len(decision.endpoints)
                assert bool(decision.endpoints) == bool(ready)
                picks.append(decision.pick_id)
            case (("end" | "first"), int(number)) if number < len(picks):
                upstream = every[number % 8]
                picker.feedback(
                    Feedback(pick_id=picks[number], ended=verb == "end", ttft_ms=5.0, status=200, upstream=upstream)
                )
            case "plan", set(numbers):
                ready = {every[n] for n in numbers}
                picker.apply(
                    make_plan({"near": [k for k in NEAR if k in ready], "far": [k for k in FAR if k in ready]})
                )
            case "tick", int(seconds):
                clock.advance(float(seconds))
        assert picker.table.requests.sum() == len(picker.inflight)
        assert (picker.table.pending_ms >= 0).all()
    clock.advance(1_000.0)
    picker.expire()
    for name in ("requests", "pending_ms", "pending_tokens", "context_tokens", "fresh_kv_tokens"):
        assert not getattr(picker.table, name).any()
    picker.apply(Plan())
    assert picker.index.total_blocks == 0


@pytest.mark.parametrize("policy", PickPolicy)
def test_the_candidates_of_an_explanation_stand_in_the_order_of_the_pick(policy: PickPolicy) -> None:
    """Near ties are broken by load and hash, so the scores alone do not give the order."""
    picker = picker_of(policy)
    for key in NEAR:
        picker.signals(key, EngineMetrics(running=ord(key[7]) % 3, waiting=0.0), rtt_ms=1.0 + ord(key[7]) % 2 / 10.0)
    for number in range(20):
        told = picker.pick(asking(f"question {number}")).explain()
        shown = [candidate["endpoint"] for candidate in told["candidates"]]
        assert shown[0] == told["endpoints"][0]
        assert sorted(shown) == sorted([*NEAR, *FAR])
        head = told["endpoints"][:2]
        assert [key for key in shown if key in head] == head, "behind them another site is moved up"
