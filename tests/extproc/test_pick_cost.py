"""The cost formula term by term, the fused signals, the filters and the order of the list."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.fleet import POOL, make_plan
from pointsman.core.model import Health, Site
from pointsman.extproc.cost import CostModel, score
from pointsman.extproc.filters import Filtered, filter_rows
from pointsman.extproc.pick import by_cost, by_outstanding, by_turn, rendezvous, top
from pointsman.extproc.signals import AGE_HALF_LIFE_S, GRACE_S, PENALTY_HALF_LIFE_S, RAMP_S, Load, blend, fuse
from pointsman.extproc.table import EndpointTable, PoolRows

KEYS = [f"10.0.0.{n + 1}:8000" for n in range(4)]
MODEL = CostModel()
P, A = 0.066, 1.32e-6


def fleet(**columns: list[float]) -> EndpointTable:
    table = EndpointTable()
    table.sync(make_plan({"east": KEYS[:2], "west": KEYS[2:]}), 0.0)
    table.backlog_at_s[:4] = 0.0
    for name, values in columns.items():
        getattr(table, name)[:4] = values
    return table


def pool_of(table: EndpointTable) -> PoolRows:
    pool = table.pool(POOL)
    assert pool is not None
    return pool


def load_of(table: EndpointTable, now_s: float = 0.0, mean_ms: float = 100.0) -> Load:
    return fuse(table, pool_of(table).rows, now_s, mean_ms)


def terms_of(table: EndpointTable, tokens: int, cached: list[float], *, model: CostModel = MODEL, now_s: float = 0.0):
    return score(
        model,
        table,
        pool_of(table).rows,
        load=load_of(table, now_s),
        prompt_tokens=tokens,
        cached_tokens=np.array(cached, dtype=float),
    )


# Cost


def test_an_idle_fleet_costs_network_and_half_as_much_again_as_own_prefill() -> None:
    terms = terms_of(fleet(rtt_ms=[0, 0, 80, 80]), 1000, [0, 0, 0, 0])
    own = P * 1000 + A * 1000 * 500
    assert terms.total() == pytest.approx(3 * np.array([0, 0, 80, 80]) + 1.5 * own)


def test_own_prefill_counts_attention_over_the_cached_part() -> None:
    terms = terms_of(fleet(), 8000, [0, 4000, 7000, 8000])
    uncached = np.array([8000, 4000, 1000, 16])  # never less than one block
    assert terms.own == pytest.approx(P * uncached + A * uncached * (8000 - uncached / 2))


def test_the_shadow_price_grows_with_the_backlog_of_the_fleet() -> None:
    table = fleet(backlog_ms=[1000, 1000, 0, 0])
    terms = terms_of(table, 1000, [0, 0, 0, 0])
    assert terms.shadow == pytest.approx((0.5 + 500 / 500) * terms.own)
    assert terms.backlog == pytest.approx([1000, 1000, 0, 0])


@pytest.mark.parametrize(
    ("backlogs", "counted"),
    [([8000, 100, 200, 0], 200), ([500, 500, 500, 0], 375), ([8000, 0], 4000), ([700], 700)],
)
def test_one_long_prompt_does_not_make_the_fleet_full(backlogs: list[float], counted: float) -> None:
    """The upper median where it is less than the mean; with two endpoints it never is."""
    table = fleet(backlog_ms=(backlogs * 4)[:4])
    rows = pool_of(table).rows[: len(backlogs)]
    zeros = np.zeros(len(rows))
    terms = score(MODEL, table, rows, load=fuse(table, rows, 0.0, 100.0), prompt_tokens=1000, cached_tokens=zeros)
    assert terms.shadow == pytest.approx((0.5 + counted / 500) * terms.own)


def test_leaving_a_warm_endpoint_is_dear() -> None:
    terms = terms_of(fleet(), 2000, [2000, 1000, 999, 0])
    assert terms.stick == pytest.approx([0, 0, P * 1001, P * 2000])
    assert not terms_of(fleet(), 2000, [511, 0, 0, 0]).stick.any()  # nothing is warm


def test_running_decodes_tax_each_prefill_step() -> None:
    table = fleet(requests=[10, 0, 0, 0], context_tokens=[100_000, 0, 0, 0])
    step = 0.02 * 10 + 3.2e-5 * 100_000
    assert terms_of(table, 2048, [0, 0, 0, 0]).decode_tax == pytest.approx([step, 0, 0, 0])
    assert terms_of(table, 2049, [0, 0, 0, 0]).decode_tax == pytest.approx([2 * step, 0, 0, 0])


def test_a_full_kv_pool_waits_and_an_unknown_one_does_not() -> None:
    table = fleet(capacity_tokens=[10_000, 10_000, np.nan, 100_000], fresh_kv_tokens=[9_000, 8_000, 9_000, 9_000])
    terms = terms_of(table, 1000, [0, 0, 0, 0])
    missing = 9_000 + 1_000 - 9_500
    assert terms.kv_wait == pytest.approx([missing * MODEL.residence_ms / 9_000, 0, 0, 0])


def test_degraded_endpoints_come_last_and_price_counts_when_asked_for() -> None:
    table = EndpointTable()
    sites = (Site(name="east", usd_per_gpu_hour=2.0), Site(name="west", usd_per_gpu_hour=3.5))
    plan = make_plan({"east": KEYS[:2], "west": KEYS[2:]}, health={KEYS[0]: Health.DEGRADED}, sites=sites)
    table.sync(plan, 0.0)
    terms = terms_of(table, 100, [0, 0, 0, 0])
    assert terms.total().argmax() == 0
    assert not terms.price.any()
    priced = terms_of(table, 100, [0, 0, 0, 0], model=CostModel(usd_weight_ms=10.0))
    assert priced.price == pytest.approx([0, 0, 15, 15])


def test_a_request_without_a_prompt_is_priced_by_load_and_network() -> None:
    terms = terms_of(fleet(rtt_ms=[1, 1, 3, 3], backlog_ms=[50, 0, 0, 0]), 0, [0, 0, 0, 0])
    assert terms.total() == pytest.approx([53, 3, 9, 9])


@given(
    st.integers(0, 200_000),
    st.lists(st.floats(0, 200_000), min_size=4, max_size=4),
    st.lists(st.floats(0, 60_000), min_size=4, max_size=4),
)
def test_terms_are_finite_never_negative_and_add_up(tokens: int, cached: list[float], pending: list[float]) -> None:
    terms = terms_of(fleet(backlog_ms=pending), tokens, [min(c, tokens) for c in cached])
    columns = np.array([getattr(terms, f.name) for f in dataclasses.fields(terms)])
    assert np.isfinite(columns).all()
    assert (columns >= 0).all()
    assert terms.total() == pytest.approx(columns.sum(axis=0))


@given(st.integers(1, 100_000), st.integers(0, 100_000))
def test_more_cached_tokens_never_cost_more(tokens: int, cached: int) -> None:
    less, more = sorted((min(cached, tokens), min(cached // 2, tokens)))
    scores = terms_of(fleet(), tokens, [less, more, 0, 0]).total()
    assert scores[1] <= scores[0] + 1e-9


# Signals


def test_scrapes_and_own_accounts_are_fused_by_the_larger() -> None:
    table = fleet(
        seen_at_s=[0, 0, 0, 0],
        seen_waiting=[3, 0, 1, 0],
        seen_running=[1, 9, 0, 0],
        seen_kv_usage=[0.5, 0, 0, 0],
        capacity_tokens=[1000, 1000, 1000, np.nan],
        backlog_ms=[100, 250, 0, 0],
        requests=[5, 2, 0, 0],
        context_tokens=[10, 20, 0, 0],
    )
    load = load_of(table, 0.0, mean_ms=100.0)
    assert load.backlog_ms == pytest.approx([300, 250, 100, 0])
    assert load.running == pytest.approx([5, 9, 0, 0])
    assert load.context_tokens == pytest.approx([500, 20, 0, 0])


def test_own_work_drains_and_what_is_late_counts_as_late_again() -> None:
    table = fleet(backlog_ms=[500, 500, 0, 0], due_at_s=[0.5, 9.0, np.inf, 0.5])
    assert load_of(table, 0.2).backlog_ms == pytest.approx([300, 300, 0, 0])
    assert load_of(table, 0.5 + GRACE_S).backlog_ms == pytest.approx([0, 0, 0, 0])
    assert load_of(table, 2.5 + GRACE_S).backlog_ms == pytest.approx([2000, 0, 0, 2000])


def test_what_is_late_is_avoided_and_is_not_what_was_expected() -> None:
    """Failover judges endpoints by what was expected of them: one that slows down must not raise the mark itself."""
    table = fleet(
        backlog_ms=[0, 500, 0, 0],
        due_at_s=[0.5, 9.0, 0.5, np.inf],
        seen_waiting=[0, 0, 3, 0],
        seen_at_s=[2.5 + GRACE_S] * 4,
        backlog_at_s=[2.5 + GRACE_S] * 4,
    )
    load = load_of(table, 2.5 + GRACE_S, mean_ms=100.0)
    assert load.backlog_ms == pytest.approx([2000, 500, 2000, 0])
    assert load.backlog_ms - load.late_ms == pytest.approx([0, 500, 300, 0])
    terms = score(MODEL, table, pool_of(table).rows, load=load, prompt_tokens=1000, cached_tokens=np.zeros(4))
    first = [terms.first_byte_ms(load, position) for position in range(4)]
    assert first[0] == pytest.approx(first[3])
    assert first[2] == pytest.approx(first[3] + 300)


def test_what_is_not_known_is_the_mean_of_the_others_and_never_idle() -> None:
    table = fleet(seen_at_s=[0, 0, 0, -np.inf], seen_waiting=[2, 4, np.nan, np.nan])
    assert load_of(table).backlog_ms == pytest.approx([200, 400, 300, 300])
    assert load_of(fleet()).backlog_ms == pytest.approx([0, 0, 0, 0])


def test_age_draws_a_value_to_the_mean() -> None:
    fresh = np.exp2(np.array([0.0, -1.0]))
    assert blend(np.array([0.0, 9.0]), fresh) == pytest.approx([0.0, 0.5 * 9 + 0.5 * 3])
    table = fleet(seen_at_s=[0, 0, -AGE_HALF_LIFE_S, -1e6], seen_waiting=[4, 4, 0, 0])
    backlog = load_of(table).backlog_ms
    assert backlog[3] == pytest.approx(backlog[:2].mean() * 0.8, rel=0.01)
    assert 0 < backlog[2] < backlog[3]


def test_the_round_trip_is_the_shortest_of_the_site() -> None:
    assert load_of(fleet(rtt_ms=[2, 9, 85, 80])).rtt_ms == pytest.approx([2, 2, 80, 80])
    assert load_of(fleet(rtt_ms=[2, np.nan, np.nan, np.nan])).rtt_ms == pytest.approx([2, 2, 2, 2])
    assert load_of(fleet(rtt_ms=[2, np.nan, 80, np.nan])).rtt_ms == pytest.approx([2, 2, 80, 80])
    assert load_of(fleet()).rtt_ms == pytest.approx([0, 0, 0, 0])


def test_penalties_fade() -> None:
    table = fleet(penalty_ms=[1000, 0, 0, 0], penalty_at_s=[0, 0, 0, 0])
    assert load_of(table, 0.0).penalty_ms[0] == pytest.approx(1000)
    assert load_of(table, PENALTY_HALF_LIFE_S).penalty_ms[0] == pytest.approx(500)


def test_a_newcomer_counts_as_loaded_as_the_others_for_a_while() -> None:
    table = fleet(added_at_s=[-np.inf, -np.inf, -np.inf, 100], backlog_ms=[300, 200, 100, 0])
    for after_s, ramp_ms in ((0.0, 200), (RAMP_S / 2, 100), (RAMP_S, 0)):
        table.backlog_at_s[:4] = 100.0 + after_s
        assert load_of(table, 100.0 + after_s).ramp_ms == pytest.approx([0, 0, 0, ramp_ms])
    assert not load_of(fleet(added_at_s=[5, 5, 5, 5]), 6.0).ramp_ms.any()


# Filters


def test_each_filter_and_its_reason() -> None:
    table = EndpointTable()
    sites = (Site(name="east", jurisdictions=frozenset({"EU"})), Site(name="west", draining=True))
    health = {KEYS[0]: Health.UNHEALTHY, KEYS[1]: Health.DRAINING}
    table.sync(make_plan({"east": KEYS[:3], "west": KEYS[3:]}, health=health, sites=sites), 0.0)
    pool = pool_of(table)
    codes = filter_rows(table, pool)
    assert list(codes) == [Filtered.UNHEALTHY, Filtered.DRAINING, Filtered.NO, Filtered.SITE_DRAINING]
    assert list(filter_rows(table, pool, residency=frozenset({"EU"})))[2:] == [Filtered.NO, Filtered.RESIDENCY]
    assert (filter_rows(table, pool, subset=frozenset()) == Filtered.NOT_IN_SUBSET).all()
    assert filter_rows(table, pool, subset=frozenset({KEYS[2]}))[2] == Filtered.NO


def test_a_model_that_is_known_to_be_missing_filters_unless_nobody_has_it() -> None:
    table = fleet()
    table.set_models(0, frozenset({"a"}))
    table.set_models(1, frozenset({"b"}))
    assert list(filter_rows(table, pool_of(table), model="a")) == [0, Filtered.MODEL_MISSING, 0, 0]
    for row in range(4):
        table.set_models(row, frozenset({"a"}))
    assert not filter_rows(table, pool_of(table), model="typo").any()
    assert not filter_rows(table, pool_of(table)).any()


RESIDENCY_TAGS = st.frozensets(st.sampled_from(["EU", "DE", "US"]))


@given(RESIDENCY_TAGS, RESIDENCY_TAGS, RESIDENCY_TAGS)
def test_residency_is_never_crossed(wanted: frozenset[str], east: frozenset[str], west: frozenset[str]) -> None:
    table = EndpointTable()
    sites = (Site(name="east", jurisdictions=east), Site(name="west", jurisdictions=west))
    table.sync(make_plan({"east": KEYS[:2], "west": KEYS[2:]}, sites=sites), 0.0)
    codes = filter_rows(table, pool_of(table), residency=wanted)
    assert list(codes == Filtered.NO) == [wanted <= east] * 2 + [wanted <= west] * 2


# Order


def test_ties_go_to_the_fewer_running_then_to_the_same_endpoint_everywhere() -> None:
    ties = rendezvous(np.array([11, 22, 33], dtype=np.uint64), 7)
    same = np.array([10.0, 10.5, 11.0])
    assert list(by_cost(same, np.array([2.0, 1.0, 3.0]), ties)) == [1, 0, 2]
    assert list(by_cost(same, np.zeros(3), ties)) == list(np.argsort(ties))
    assert by_cost(np.array([50.0, 10.0, 90.0]), np.zeros(3), ties)[0] == 1


def test_rendezvous_moves_only_the_requests_of_a_lost_endpoint() -> None:
    keys = np.random.default_rng(1).integers(0, 2**63, 10).astype(np.uint64)
    before = [int(rendezvous(keys, request).argmin()) for request in range(2_000)]
    after = [int(rendezvous(keys[:9], request).argmin()) for request in range(2_000)]
    assert all(b == a for b, a in zip(before, after, strict=True) if b != 9)
    assert min(np.bincount(before, minlength=10)) > 120  # and spreads them evenly


def test_the_list_is_capped_and_crosses_sites() -> None:
    order = np.arange(20)
    sites = np.array([0] * 15 + [1] * 5, dtype=np.int32)
    assert top(order, sites) == [0, 15, 1, 2, 3, 4, 5, 6]
    assert top(order, np.zeros(20, dtype=np.int32)) == list(range(8))
    assert top(order[::-1], sites) == [19, 14, 18, 17, 16, 15, 13, 12]
    gone = sites == 1
    assert top(order, sites, suspects=gone) == list(range(8)), "what is gone is not moved up"
    assert top(order[:3], sites) == [0, 1, 2]
    assert top(order, sites, limit=1) == [0]


def test_plain_policies() -> None:
    assert [int(by_turn(3, turn)[0]) for turn in range(4)] == [0, 1, 2, 0]
    requests = np.array([2, 1, 1])
    assert [int(by_outstanding(requests, turn)[0]) for turn in range(3)] == [1, 1, 2]
