"""Users stay where they were, as long as that is worth less than the price of leaving."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pointsman.core.clock import ManualClock
from pointsman.core.model import Endpoint, Health, Plan, Pool, Site, SiteGroup
from pointsman.extproc.affinity import Homes
from pointsman.extproc.cost import CostModel
from pointsman.extproc.decision import PickRequest
from pointsman.extproc.picker import Picker
from pointsman.extproc.request import Body
from pointsman.extproc.table import EndpointTable

POOL = "d/pool"
ENDPOINTS = tuple(
    Endpoint(name=f"pod-{n}", address=f"10.0.0.{n + 1}", port=8000, site="here", health=Health.HEALTHY)
    for n in range(6)
)


def plan(endpoints: tuple[Endpoint, ...] = ENDPOINTS) -> Plan:
    groups = (SiteGroup(site="here", priority=0, weight=1, endpoints=endpoints),)
    return Plan(sites=(Site(name="here"),), pools=(Pool(name=POOL, groups=groups),))


def ask(user: str, number: int, *, tokens: int = 400) -> PickRequest:
    prompt = f"{number} ".encode().ljust(4 * tokens, b"%d" % (number % 10))
    return PickRequest(
        pool=POOL, body=Body(model="m", prompt=prompt, prompt_bytes=len(prompt)), request_id=f"{number}", affinity=user
    )


@pytest.fixture
def picker() -> Picker:
    found = Picker(ManualClock())
    found.apply(plan())
    return found


def test_users_stay_although_others_are_less_busy(picker: Picker) -> None:
    """Prompts share nothing, and every pick is in flight: by cost alone the next one would go elsewhere."""
    for number in range(3):
        went = {picker.pick(ask(f"user-{number}", 10 * number + turn)).endpoints[0] for turn in range(3)}
        assert len(went) == 1


def test_without_a_user_the_least_busy_is_taken(picker: Picker) -> None:
    assert len({picker.pick(ask("", n)).endpoints[0] for n in range(6)}) == 6


def test_a_queue_that_is_worth_more_than_the_price_is_left(picker: Picker) -> None:
    home = picker.pick(ask("hot", 0)).endpoints[0]
    went = [picker.pick(ask("hot", n, tokens=4_000)).endpoints[0] for n in range(1, 12)]
    assert went[0] == home
    assert len(set(went)) == 6, "a user who is too much for one endpoint has several"


def test_a_cached_prefix_wins(picker: Picker) -> None:
    """What the user says now is cached elsewhere: somebody else has said it, at length."""
    home = picker.pick(ask("one", 1)).endpoints[0]
    long = ask("two", 2, tokens=20_000)
    other = picker.pick(long).endpoints[0]
    assert other != home
    picker._clock.advance(5.0)  # type: ignore[attr-defined]  # what was queued there is over
    assert picker.pick(replace(long, affinity="one", request_id="3")).endpoints[0] == other


def test_an_endpoint_that_is_gone_is_nobodys_home(picker: Picker) -> None:
    home = picker.pick(ask("one", 1)).endpoints[0]
    picker.apply(plan(tuple(e for e in ENDPOINTS if e.key != home)))
    elsewhere = picker.pick(ask("one", 2)).endpoints[0]
    assert elsewhere != home
    picker.apply(plan())
    assert picker.pick(ask("one", 3)).endpoints[0] == elsewhere, "who moved stays where he is"


def test_a_preview_moves_nobody(picker: Picker) -> None:
    picker.preview(ask("one", 1))
    assert not len(picker._homes)


def test_the_price_is_told_with_the_other_terms(picker: Picker) -> None:
    picker.pick(ask("one", 1))
    terms = picker.pick(ask("one", 2)).terms
    assert terms is not None
    assert sorted(terms.user.tolist()) == [0.0] + 5 * [CostModel().home_ms]


def test_who_came_last_longest_ago_is_forgotten() -> None:
    table = EndpointTable()
    table.sync(plan(), 0.0)
    rows = np.arange(len(ENDPOINTS), dtype=np.int64)
    homes = Homes(limit=2)
    for user in (1, 2, 1, 3):
        homes.went((POOL, user), ENDPOINTS[0].key)
    known = [user for user in (1, 2, 3) if homes.leaving_ms(1.0, (POOL, user), table, rows) is not None]
    assert (known, len(homes)) == ([1, 3], 2)
