"""Tiers, shares and caps: where a request may go after failover decided."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.core.clock import ManualClock
from pointsman.core.model import Endpoint, Health, Plan, Pool, Site, SiteGroup
from pointsman.extproc import Picker
from pointsman.extproc.decision import Decision, PickRequest
from pointsman.extproc.filters import Filtered
from pointsman.extproc.gossip import EndpointLoad
from pointsman.extproc.tiering import tiering_of
from pointsman.extproc.tiers import draw, hold_back

POOL = "default/llm"


def group(site: str, number: int, **special: int) -> SiteGroup:
    endpoints = tuple(Endpoint(name=f"{site}-{i}", address=f"10.0.{number}.{i}", port=80, site=site) for i in range(4))
    return SiteGroup(site=site, priority=number, weight=4, endpoints=endpoints, **special)


def plan(*groups: SiteGroup) -> Plan:
    return Plan(sites=tuple(Site(name=g.site) for g in groups), pools=(Pool(name=POOL, groups=groups),))


def picker(*groups: SiteGroup) -> Picker:
    made = Picker(ManualClock())
    made.apply(plan(*groups))
    return made


def picks(made: Picker, count: int = 2_000) -> list[Decision]:
    return [made.pick(PickRequest(pool=POOL, affinity=f"user-{i}", request_id=str(i))) for i in range(count)]


def site_of(decision: Decision) -> str:
    return decision.endpoints[0].split(".")[2] if decision.endpoints else ""


def test_without_decisions_there_is_no_tiering() -> None:
    assert tiering_of(Pool(name=POOL, groups=(group("a", 0), group("b", 1)))) is None


def test_a_higher_tier_gets_nothing_but_stands_in_the_list_for_retries() -> None:
    made = picker(group("a", 0), group("b", 1, tier=1))
    for decision in picks(made, 50):
        sites = [key.split(".")[2] for key in decision.endpoints]
        assert sites[:3] == ["0", "1", "0"]
        assert len(set(decision.endpoints)) == len(decision.endpoints)


def test_retries_of_many_spread_over_the_next_tier() -> None:
    made = picker(group("a", 0), group("b", 1, tier=1), group("c", 2, tier=2))
    second = [decision.endpoints[1] for decision in picks(made, 400)]
    assert {key.split(".")[2] for key in second} == {"1"}, "not the tier behind it"
    assert min(second.count(key) for key in set(second)) > 60
    assert len(set(second)) == 4
    busy = second[0]
    made.remote_loads({busy: EndpointLoad(requests=9)})
    assert busy not in {decision.endpoints[1] for decision in picks(made, 100)}


def test_a_tier_without_a_ready_endpoint_is_passed_over() -> None:
    down = group("a", 0)
    down = replace(down, endpoints=tuple(replace(e, health=Health.UNHEALTHY) for e in down.endpoints))
    assert {site_of(d) for d in picks(picker(down, group("b", 1, tier=1)), 50)} == {"1"}


def test_a_failed_site_is_used_only_when_nothing_else_is_left() -> None:
    assert {site_of(d) for d in picks(picker(group("a", 0, share=0), group("b", 1)), 50)} == {"1"}
    assert {site_of(d) for d in picks(picker(group("a", 0, share=0), group("b", 1, share=0)), 200)} == {"0", "1"}


def test_a_ramping_site_takes_its_share_of_users_and_they_stay() -> None:
    def at_a(share: int) -> set[str]:
        made = picker(group("a", 0, share=share), group("b", 1, tier=1))
        return {d.request_id for d in picks(made) if site_of(d) == "0"}

    five, quarter = at_a(500), at_a(2_500)
    assert 60 <= len(five) <= 145  # 100 of 2,000 users, four standard deviations
    assert 420 <= len(quarter) <= 580
    assert five <= quarter


def test_spill_reaches_the_next_tier_with_its_share() -> None:
    found = [site_of(d) for d in picks(picker(group("a", 0), group("b", 1, tier=1, spill=2_500)))]
    may_spill = sum(draw(f"user-{i}") < 2_500 for i in range(2_000))
    assert 0 < found.count("1") <= may_spill


def test_what_a_standby_cannot_carry_gets_429_with_retry_after() -> None:
    made = picker(group("a", 0, share=0), group("b", 1, tier=1, max_concurrent=8))
    decisions = picks(made, 20)
    assert [d.status for d in decisions] == [200] * 8 + [429] * 12
    assert {(d.reason, d.retry_after_s) for d in decisions[8:]} == {("at-capacity", 1)}
    assert decisions[-1].explain()["filtered"] == {
        **{f"10.0.0.{i}:80": "held-back" for i in range(4)},
        **{f"10.0.1.{i}:80": "full" for i in range(4)},
    }


@given(
    tiers=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    shares=st.lists(st.sampled_from([0, 500, 10_000]), min_size=4, max_size=4),
    caps=st.lists(st.sampled_from([0, 1, 3]), min_size=4, max_size=4),
    at=st.integers(0, 9_999),
    unhealthy=st.sets(st.integers(0, 15)),
)
def test_something_is_left_unless_it_is_full_and_nothing_filtered_comes_back(
    tiers: list[int], shares: list[int], caps: list[int], at: int, unhealthy: set[int]
) -> None:
    groups = tuple(group(str(i), i, tier=tier, share=shares[i], max_concurrent=caps[i]) for i, tier in enumerate(tiers))
    tiering = tiering_of(Pool(name=POOL, groups=groups))
    if tiering is None:
        return
    codes = np.zeros(4 * len(tiers), dtype=np.int8)
    for row in unhealthy:
        if row < len(codes):
            codes[row] = Filtered.UNHEALTHY
    before = codes.copy()
    hold_back(codes, tiering, np.ones(len(codes), dtype=np.int64), at)
    assert (codes[before != 0] == Filtered.UNHEALTHY).all()
    if (before == 0).any() and not (codes == Filtered.FULL).any():
        assert (codes == 0).any()


@pytest.mark.parametrize("identity", ["", "user", "\ud800"])
def test_a_draw_is_one_of_ten_thousand(identity: str) -> None:
    assert 0 <= draw(identity) < 10_000
