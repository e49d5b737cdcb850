"""Endpoints that seem to be gone: who is believed, for how long, and that a wrong belief refuses nobody."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from extproc.fleet import POOL, make_plan
from pointsman.core.clock import ManualClock
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.core.model import Hop, Plan, Pool, Site, SiteGroup
from pointsman.extproc import Feedback, Picker, PickPolicy, PickRequest
from pointsman.extproc.decision import Decision
from pointsman.extproc.suspicion import DISTRUST_S, SUSPECT_S

NEAR = [f"10.0.0.{n}:8000" for n in range(1, 5)]
FAR = [f"10.1.0.{n}:8000" for n in range(1, 5)]
PAGE = EngineMetrics()


class Watched:
    """A picker, its clock, and what gateways and scrapes tell it."""

    def __init__(self, plan: Plan | None = None, policy: PickPolicy = PickPolicy.JOINT) -> None:
        self.clock = ManualClock()
        self.picker = Picker(self.clock, policy=policy)
        self.picker.apply(plan or make_plan({"near": NEAR, "far": FAR}))
        self._requests = 0
        self.pages(*NEAR, *FAR)
        self.clock.advance(1.0)

    def pages(self, *keys: str) -> None:
        for key in keys:
            self.picker.signals(key, PAGE, rtt_ms=80.0 if key in FAR else 1.0)

    def failed(self, *keys: str, request_id: str = "") -> None:
        for key in keys:
            self.picker.attempt_failed(
                Feedback(pick_id="", ended=False, upstream=key, attempt=True, request_id=request_id)
            )

    def refused(self, *keys: str) -> None:
        for key in keys:
            self.picker.refused(key)

    def pick(self) -> Decision:
        self._requests += 1
        return self.picker.pick(PickRequest(pool=POOL, request_id=f"r{self._requests}"))

    def first(self, count: int = 16) -> set[str]:
        """Where so many requests go first; each of them ends at once."""
        found = set()
        for _ in range(count):
            made = self.pick()
            found.add(made.endpoints[0])
            self.picker.feedback(Feedback(pick_id=made.pick_id, ended=True, upstream=made.endpoints[0], status=200))
        return found


def tiered(*, cap: int = 0) -> Plan:
    """`near` serves, `far` stands by and carries `cap` requests (0: any number)."""
    plan = make_plan({"near": NEAR, "far": FAR})
    (pool,) = plan.pools
    near, far = pool.groups
    groups: tuple[SiteGroup, ...] = (
        near,
        SiteGroup(site="far", priority=1, weight=1, endpoints=far.endpoints, tier=1, max_concurrent=cap),
    )
    return Plan(sites=(Site(name="near"), Site(name="far")), pools=(Pool(name=POOL, groups=groups),))


@pytest.mark.parametrize("policy", list(PickPolicy))
def test_one_failed_attempt_is_enough_and_one_page_takes_it_back(policy: PickPolicy) -> None:
    watched = Watched(policy=policy)
    watched.failed(NEAR[0])
    assert NEAR[0] not in watched.first(40)
    assert watched.pick().endpoints[-1] == NEAR[0], "behind all others, and still there"
    watched.clock.advance(0.2)
    watched.pages(*NEAR, *FAR)
    watched.clock.advance(60.0)  # the fading penalty of requests that moved
    watched.pages(*NEAR, *FAR)
    assert NEAR[0] in watched.first(40)


def test_a_refused_scrape_is_enough() -> None:
    watched = Watched()
    watched.refused(NEAR[0])
    assert NEAR[0] not in watched.first(40)


def test_a_page_that_was_asked_for_before_proves_nothing() -> None:
    watched = Watched()
    watched.failed(FAR[0])
    watched.clock.advance(0.05)
    watched.pages(FAR[0])  # 80 ms under way
    assert watched.pick().endpoints[-1] == FAR[0]


def test_without_a_page_it_is_believed_for_a_while() -> None:
    watched = Watched()
    watched.failed(*NEAR)
    watched.clock.advance(SUSPECT_S - 0.1)
    assert watched.first() <= set(FAR)
    watched.clock.advance(0.2)
    assert watched.first() & set(NEAR)


def test_several_endpoints_speak_for_their_site_until_each_has_answered() -> None:
    watched = Watched()
    watched.failed(*NEAR[:2])
    assert watched.first() <= set(FAR)
    watched.clock.advance(0.2)
    watched.pages(NEAR[3])
    assert watched.first() == {NEAR[3]}


def test_two_that_fail_one_after_the_other_do_not() -> None:
    watched = Watched()
    watched.failed(NEAR[0])
    watched.clock.advance(1.5)
    watched.failed(NEAR[1])
    assert watched.first() == {NEAR[2], NEAR[3]}


def test_a_rolling_restart_of_a_large_site_does_not() -> None:
    many = [f"10.0.1.{n}:8000" for n in range(1, 41)]
    watched = Watched(make_plan({"near": many, "far": FAR}))
    watched.pages(*many)
    watched.clock.advance(0.5)
    watched.failed(*many[:9])
    assert not watched.first(100) & {*many[:9], *FAR}
    watched.failed(many[9])
    assert watched.first(100) <= set(FAR)


def test_a_tier_that_is_gone_opens_the_next_one_at_once() -> None:
    watched = Watched(tiered())
    assert watched.first() <= set(NEAR)
    watched.failed(*NEAR)
    assert watched.first() <= set(FAR)
    assert watched.pick().endpoints[3] in FAR, "and a retry stays there"


def test_a_tier_of_which_a_part_lives_does_not() -> None:
    watched = Watched(tiered())
    watched.failed(NEAR[0])
    made = watched.pick()
    assert made.endpoints[0] in NEAR[1:]
    assert made.endpoints[1] in FAR
    assert made.endpoints[-1] == NEAR[0]


@pytest.mark.parametrize("policy", list(PickPolicy))
def test_where_everything_is_suspected_the_first_tier_serves_and_is_counted(policy: PickPolicy) -> None:
    watched = Watched(tiered(), policy)
    watched.failed(*NEAR, *FAR)
    made = watched.pick()
    table = watched.picker.table
    assert made.endpoints[0] in NEAR
    assert made.endpoints[1] in FAR
    assert table.requests[table.row(made.endpoints[0])] == 1
    watched.picker.feedback(Feedback(pick_id=made.pick_id, ended=True, upstream=made.endpoints[0], status=200))
    assert not table.penalty_ms.any()


def test_what_a_full_standby_cannot_carry_is_refused_when_two_witnesses_agree() -> None:
    watched = Watched(tiered(cap=4))
    watched.failed(*NEAR)
    assert [watched.pick().status for _ in range(4)] == [200] * 4
    assert watched.pick().endpoints[0] in NEAR, "one witness alone refuses nobody"
    watched.refused(*NEAR)
    made = watched.pick()
    assert (made.status, made.reason, made.retry_after_s) == (429, "at-capacity", 1)
    assert made.explain()["filtered"] == {**dict.fromkeys(NEAR, "gone"), **dict.fromkeys(FAR, "full")}
    watched.pages(NEAR[2])
    watched.clock.advance(0.2)
    watched.pages(NEAR[2])
    assert watched.pick().endpoints[0] == NEAR[2]


def test_a_gateway_with_a_broken_network_takes_an_endpoint_from_others_for_one_scrape_only() -> None:
    watched = Watched()
    away = 0
    for step in range(200):  # ten seconds: it fails all the time, and a page comes every 200 ms
        watched.clock.advance(0.05)
        watched.failed(*NEAR)
        if step % 4 == 3:
            watched.pages(*NEAR, *FAR)
        away += watched.first(1) <= set(FAR)
    assert 0 < away <= 8
    watched.refused(*NEAR)
    assert watched.first() <= set(FAR), "two witnesses are believed at once"


def test_an_endpoint_that_comes_and_goes_is_avoided_each_time() -> None:
    watched = Watched()
    for _ in range(5):
        watched.failed(NEAR[0])
        watched.refused(NEAR[0])
        assert NEAR[0] not in watched.first(30)
        watched.clock.advance(1.5)
        watched.pages(*NEAR, *FAR)
        watched.clock.advance(0.2)


def test_a_page_that_is_closed_to_us_alone_costs_an_endpoint_one_short_absence() -> None:
    watched = Watched()
    for _ in range(40):
        watched.refused(NEAR[0])
        watched.clock.advance(DISTRUST_S / 20)
    assert NEAR[0] in watched.first(40)


def test_who_is_sent_on_counts_where_he_goes() -> None:
    watched = Watched()
    made = watched.pick()
    first, second = (watched.picker.table.row(key) for key in made.endpoints[:2])
    assert first is not None
    assert second is not None
    watched.failed(made.endpoints[0], request_id=made.request_id)
    assert watched.picker.table.requests[[first, second]].tolist() == [0, 1]
    entry = Feedback(pick_id=made.pick_id, ended=True, upstream=made.endpoints[1], status=200, attempts=2)
    account = watched.picker.feedback(entry)
    assert watched.picker.inflight.told(entry, account).first_choice == made.endpoints[0]
    assert not watched.picker.table.requests.any()


def test_each_endpoint_that_a_request_did_not_find_is_blamed() -> None:
    watched = Watched()
    made = watched.pick()
    first, second, third = (watched.picker.table.row(key) or 0 for key in made.endpoints[:3])
    for key in made.endpoints[:2]:
        watched.failed(key, request_id=made.request_id)
    table = watched.picker.table
    assert table.requests[[first, second, third]].tolist() == [0, 0, 1]
    assert (table.penalty_ms[[first, second]] > 0.0).all()
    assert table.penalty_ms[third] == 0.0


def test_a_site_that_flaps_is_left_and_not_followed() -> None:
    """Each change of site costs its users their caches; a page alone says that it is there, not that it stays."""
    watched = Watched(tiered())
    for _ in range(3):
        watched.refused(*NEAR)
        watched.clock.advance(1.0)
        watched.pages(*NEAR, *FAR)
        assert watched.first() <= set(FAR)
        watched.clock.advance(1.5)
        watched.pages(*NEAR, *FAR)
        assert watched.first() <= set(FAR)
    watched.clock.advance(SUSPECT_S - 2.0)
    watched.pages(*NEAR, *FAR)
    assert watched.first() <= set(NEAR)


def test_who_gives_no_page_is_not_suspected() -> None:
    """Nothing would take it back: one gateway without a network would empty the site for all gateways. The page of a
    control plane proves nothing of the gateway before it."""
    plan = tiered()
    (pool,) = plan.pools
    near, far = pool.groups
    watched = Watched(replace(plan, pools=(replace(pool, groups=(replace(near, hop=Hop()), far)),)))
    watched.pages(*NEAR, *FAR)
    watched.failed(*NEAR)
    assert watched.first() <= set(NEAR)


def test_an_answer_that_breaks_off_goes_nowhere_else() -> None:
    watched = Watched()
    made = watched.pick()
    first, second = (watched.picker.table.row(key) or 0 for key in made.endpoints[:2])
    entry = Feedback(pick_id="", ended=False, upstream=made.endpoints[0], status=200, attempt=True)
    watched.picker.attempt_failed(replace(entry, request_id=made.request_id))
    assert watched.picker.table.requests[[first, second]].tolist() == [1, 0]
    assert watched.pick().endpoints[0] != made.endpoints[0]


def test_who_was_not_sent_on_blames_nobody_else() -> None:
    watched = Watched()
    made = watched.pick()
    _, second = (watched.picker.table.row(key) or 0 for key in made.endpoints[:2])
    watched.failed(made.endpoints[0], request_id=made.request_id)
    entry = Feedback(pick_id=made.pick_id, ended=True, upstream=made.endpoints[0], status=503, failed=True)
    account = watched.picker.feedback(entry)
    assert watched.picker.table.penalty_ms[second] == 0.0
    assert watched.picker.inflight.told(entry, account).first_choice == ""
    assert not watched.picker.table.requests.any()


@given(gone=st.sets(st.sampled_from([*NEAR, *FAR])), cap=st.integers(0, 2), sure=st.booleans())
def test_whatever_is_suspected_a_request_is_refused_only_where_a_site_is_full(
    gone: set[str], cap: int, *, sure: bool
) -> None:
    watched = Watched(tiered(cap=cap))
    watched.failed(*gone)
    if sure:
        watched.refused(*gone)
    for _ in range(6):
        made = watched.pick()
        if made.status != 200:
            assert (made.reason, cap > 0, sure, set(NEAR) <= gone) == ("at-capacity", True, True, True)
        elif len(gone & set(NEAR)) < 2:  # two speak for their site
            assert made.endpoints[0] in set(NEAR) - gone
        assert len(set(made.endpoints)) == len(made.endpoints)
        if made.status == 200:
            account = watched.picker.inflight.get(made.pick_id)
            assert account is not None
            assert watched.picker.table.key(account.row) == made.endpoints[0], "who is named first is counted"


class Lies(RuleBasedStateMachine):
    """Witnesses that say anything in any order: somebody is picked, and what is proven to live is picked before what
    nobody has proven."""

    keys = st.sampled_from([*NEAR, *FAR])

    @initialize()
    def begin(self) -> None:
        self.watched = Watched(tiered())

    @rule(key=keys)
    def attempt_fails(self, key: str) -> None:
        self.watched.failed(key)

    @rule(key=keys)
    def page_is_refused(self, key: str) -> None:
        self.watched.refused(key)

    @rule(key=keys)
    def page_comes(self, key: str) -> None:
        self.watched.pages(key)

    @rule(by_s=st.floats(0.0, 5.0))
    def time_passes(self, by_s: float) -> None:
        self.watched.clock.advance(by_s)

    @invariant()
    def somebody_is_picked(self) -> None:
        made = self.watched.pick()
        assert made.status == 200
        assert made.scores is not None
        assert np.isfinite(made.scores).all()
        self.watched.picker.feedback(Feedback(pick_id=made.pick_id, ended=True, upstream=made.endpoints[0], status=200))

    @invariant()
    def all_is_forgotten(self) -> None:
        watched = self.watched
        kept = watched.clock.monotonic_s()
        table = watched.picker.table
        since_s = np.array([table.suspect_s[table.row(key) or 0] for key in [*NEAR, *FAR]])
        if kept - since_s.max() > SUSPECT_S:
            assert watched.pick().endpoints[0] in NEAR


TestLies = Lies.TestCase
