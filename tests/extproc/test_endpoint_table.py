"""Rows of the endpoint table across Plan changes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from extproc.fleet import POOL, make_plan
from pointsman.core.model import Gateway, Health, Plan, Site
from pointsman.extproc.table import HEALTH_CODES, EndpointTable

A, B, C = "10.0.0.1:8000", "10.0.0.2:8000", "[fd00::1]:8000"


def test_columns_follow_the_plan() -> None:
    table = EndpointTable()
    sites = (Site(name="west", usd_per_gpu_hour=2.5, draining=True, jurisdictions=frozenset({"EU"})),)
    changes = table.sync(make_plan({"east": [A], "west": [B, C]}, health={B: Health.DEGRADED}, sites=sites), 5.0)
    assert len(changes.added) == len(table) == 3
    pool = table.pool(POOL)
    assert pool is not None
    assert pool.keys == (A, B, C)
    assert [table.key(int(row)) for row in pool.rows] == [A, B, C]
    assert [table.site_names[table.site[row]] for row in pool.rows] == ["east", "west", "west"]
    row = table.row(B)
    assert row is not None
    assert table.health[row] == HEALTH_CODES[Health.DEGRADED]
    assert table.site_draining[table.site[row]]
    assert table.site_usd[table.site[row]] == 2.5
    assert table.site_jurisdictions[table.site[row]] == frozenset({"EU"})
    assert np.isneginf(table.added_at_s[row])  # the first Plan holds no newcomers
    assert table.pool("other") is None


def test_a_row_keeps_what_is_in_flight_and_measured() -> None:
    table = EndpointTable()
    table.sync(make_plan({"east": [A, B]}), 0.0)
    row = table.row(B)
    assert row is not None
    table.requests[row], table.rtt_ms[row] = 3, 7.5
    assert table.sync(make_plan({"east": [C, B]}, health={B: Health.DRAINING}), 9.0).freed
    assert table.row(B) == row
    assert (table.requests[row], table.rtt_ms[row]) == (3, 7.5)
    newcomer = table.row(C)
    assert newcomer is not None
    assert table.added_at_s[newcomer] == 9.0


def test_an_endpoint_that_left_keeps_its_row_until_its_requests_ended() -> None:
    table = EndpointTable()
    table.sync(make_plan({"east": [A, B]}), 0.0)
    row = table.row(A)
    assert row is not None
    table.requests[row] = 1
    assert table.sync(make_plan({"east": [B]}), 1.0).freed == ()
    assert table.keys() == (B,)
    assert table.row(A) == row
    table.requests[row] = 0
    assert table.sync(make_plan({"east": [B]}), 2.0).freed == (row,)
    assert table.row(A) is None
    table.sync(make_plan({"east": [B, C]}), 3.0)
    assert table.row(C) == row  # used again, without what was there
    assert np.isnan(table.rtt_ms[row])


def test_pools_that_only_a_gateway_lists_are_known() -> None:
    table = EndpointTable()
    pools = make_plan({"east": [A]}).pools
    table.sync(Plan(gateways=(Gateway(name="default/gw", pools=pools),)), 0.0)
    assert table.pool(POOL) is not None


def test_equal_model_sets_are_kept_once_and_old_ones_dropped() -> None:
    table = EndpointTable()
    table.sync(make_plan({"east": [A, B]}), 0.0)
    for number in range(100):
        table.set_models(0, frozenset({f"adapter-{number}"}))
        table.set_models(1, frozenset({"base"}))
    assert len(table.model_sets) < 10
    assert table.model_sets[table.model_set[0]] == frozenset({"adapter-99"})
    assert table.model_sets[table.model_set[1]] == frozenset({"base"})
    table.set_models(0, None)
    assert table.model_sets[table.model_set[0]] is None


@given(st.lists(st.sets(st.integers(1, 200), max_size=90), max_size=12), st.data())
def test_rows_are_stable_and_never_shared(plans: list[set[int]], data: st.DataObject) -> None:
    table = EndpointTable(capacity=4)
    where: dict[str, int] = {}
    for time_s, numbers in enumerate(plans):
        keys = [f"10.0.0.{n}:80" for n in sorted(numbers)]
        busy = data.draw(st.sets(st.sampled_from(sorted(where)))) if where else set()
        for key, row in where.items():
            table.requests[row] = int(key in busy)
        table.sync(make_plan({"east": keys}), float(time_s))
        where = {key: row for key, row in where.items() if key in keys or key in busy}
        for key in keys:
            row = table.row(key)
            assert row is not None
            assert where.setdefault(key, row) == row
        assert len(set(where.values())) == len(where)
