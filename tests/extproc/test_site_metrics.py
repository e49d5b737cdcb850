"""Load of a site behind its gateway: from the page of its control plane to the cost of a pick."""

from __future__ import annotations

import numpy as np
import pytest

from pointsman.core.engine_metrics import EngineMetrics
from pointsman.core.errors import UpstreamError
from pointsman.core.model import Endpoint, Gateway, Hop, Plan, Pool, Site, SiteGroup
from pointsman.extproc.signals import fuse
from pointsman.extproc.site_metrics import SitePage, site_load, wanted_pages
from pointsman.extproc.table import EndpointTable

PAGE = b"""# HELP pointsman_endpoints Endpoints.
pointsman_endpoints{health="UNKNOWN",pool="n/chat",site="west"} 4.0
pointsman_endpoints{health="UNHEALTHY",pool="n/chat",site="west"} 2.0
pointsman_endpoints{health="UNKNOWN",pool="n/chat",site="east"} 9.0
pointsman_inflight_requests{pool="n/chat",site="west"} 8.0
pointsman_engine_running_requests{pool="n/chat",site="west"} 12.0
pointsman_engine_waiting_requests{pool="n/chat",site="west"} 2.0
pointsman_engine_waiting_requests{pool="n/chat",site="east"} 200.0
pointsman_engine_kv_usage_ratio{pool="n/chat",site="west"} 0.25
pointsman_engine_kv_usage_ratio{pool="n/other",site="west"} 0.75
pointsman_engine_signal_age_seconds{pool="n/chat",site="west"} 0.1
"""
NEAR = Endpoint(name="a", address="10.0.0.1", port=8000, site="east")
FAR = Endpoint(name="gateway-west", address="192.0.2.9", port=443, site="west")


def plan(**west: str) -> Plan:
    near = SiteGroup(site="east", priority=0, weight=1, endpoints=(NEAR,))
    far = SiteGroup(site="west", priority=0, weight=1, endpoints=(FAR,), hop=Hop())
    pool = Pool(name="n/all", groups=(near, far))
    sites = (Site(name="east"), Site(name="west", remote=True, **west))
    return Plan(gateways=(Gateway(name="n/gw", pools=(pool,)),), sites=sites, pools=(pool,))


def test_a_page_becomes_means_over_the_endpoints_that_can_serve() -> None:
    assert site_load(PAGE, "west") == EngineMetrics(waiting=0.5, running=3.0, kv_usage=0.5, engines=4)


def test_what_the_page_does_not_say_is_not_known() -> None:
    found = site_load(b'pointsman_endpoints{health="UNKNOWN",pool="n/chat",site="west"} 4.0\n', "west")
    assert (found.waiting, found.kv_usage, found.engines) == (None, None, 4)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b'pointsman_endpoints{health="UNHEALTHY",pool="p",site="west"} 4.0\n',
        b'pointsman_endpoints{pool="p",site="west"} NaN\n',
        b'pointsman_endpoints{pool="p",site="west"} many\n',
        b'pointsman_endpoints{pool="p",site="elsewhere"} 4.0\n',
        b"\xff" * 100,
    ],
)
def test_a_page_without_endpoints_that_can_serve_tells_no_load(page: bytes) -> None:
    with pytest.raises(UpstreamError, match="no endpoint at site west"):
        site_load(page, "west")


def test_only_gateways_with_a_page_are_asked() -> None:
    assert wanted_pages(plan()) == {}
    found = wanted_pages(plan(metrics_url="http://198.51.100.1/metrics", metrics_token_file="/etc/token"))
    assert found == {FAR.key: SitePage(site="west", url="http://198.51.100.1/metrics", token_file="/etc/token")}


def test_work_behind_a_gateway_is_divided_between_its_endpoints() -> None:
    table = EndpointTable()
    table.sync(plan(), 0.0)
    near, far = table.row(NEAR.key), table.row(FAR.key)
    assert near is not None and far is not None
    rows = np.array([near, far])
    table.requests[rows] = 8
    table.pending_tokens[rows] = 400
    alike = fuse(table, rows, 1.0, 100.0)
    assert list(alike.running) == [8.0, 8.0]
    table.engines[far] = 4
    divided = fuse(table, rows, 1.0, 100.0)
    assert list(divided.running) == [8.0, 2.0]
    assert list(divided.pending_tokens) == [400.0, 100.0]
