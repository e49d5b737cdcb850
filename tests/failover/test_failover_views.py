"""What scrapes tell of endpoints."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pointsman.app.failover_views import endpoint_views
from pointsman.core.attention import Attention
from pointsman.core.model import Endpoint, Plan, Pool, SiteGroup
from pointsman.extproc.table import EndpointTable

KEY = "10.0.0.1:80"


@pytest.mark.parametrize(
    ("age_s", "absent", "asked_s", "failing"),
    [
        (0.2, 0, None, False),  # as usual
        (0.6, 1, None, False),  # one try in vain
        (1.1, 1, None, True),  # and nothing good for a second
        (1.1, 2, None, True),  # nor the second time, which counts also where we look late
        (5.0, 0, None, False),  # a server without such a page is there
        (0.4, 0, 0.4, False),  # it takes its time
        (0.6, 0, 0.6, True),  # it hangs
        (float("inf"), 0, None, False),  # not asked yet
    ],
)
def test_when_a_scrape_says_that_nobody_is_there(
    age_s: float, absent: int, asked_s: float | None, failing: bool
) -> None:
    table = EndpointTable()
    endpoint = Endpoint(name="a", address="10.0.0.1", port=80, site="s")
    group = SiteGroup(site="s", priority=0, weight=1, endpoints=(endpoint,))
    table.sync(Plan(pools=(Pool(name="n/p", groups=(group,)),)), 0.0)
    row = table.row(KEY)
    assert row is not None
    table.seen_at_s[row] = 100.0 - age_s
    asked = {} if asked_s is None else {KEY: 100.0 - asked_s}
    scrapes = SimpleNamespace(absent={KEY: absent} if absent else {}, asked_at_s=asked)
    view = endpoint_views(table, scrapes, 100.0)[KEY]
    assert view.scrape_failing is failing
    late = Attention()
    late.look(98.0)
    late.look(100.0)
    assert endpoint_views(table, scrapes, 100.0, late)[KEY].scrape_failing is (absent >= 2 and failing)
    assert view.metrics_age_s == (None if age_s == float("inf") else pytest.approx(age_s))
