"""What the publish check refuses, and what is served then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pointsman.core.model import (
    Endpoint,
    Gateway,
    HeaderEdit,
    Listener,
    Locality,
    Plan,
    Pool,
    RouteMatch,
    Rule,
    Site,
    SiteGroup,
    VirtualHost,
    WeightedPool,
)
from pointsman.xds import BuildOptions
from pointsman.xds.views import NOBODY, NodeIdentity, Views

ENDPOINT = Endpoint(name="e", address="10.0.0.1", port=80, site="s")
POOL = Pool(name="ns/p", groups=(SiteGroup(site="s", priority=0, weight=1, endpoints=(ENDPOINT,)),))
RULE = Rule(name="r", route="HTTPRoute/ns/r", match=RouteMatch(), arms=(WeightedPool(pool="ns/p", weight=10_000),))
HOST = VirtualHost(name="v", domains=("*",), rules=(RULE,))
LISTENER = Listener(name="l", address="127.0.0.1", port=80, hosts=(HOST,))
GATEWAY = Gateway(name="ns/gw", listeners=(LISTENER,), pools=(POOL,))


def with_rule(**changes: Any) -> Gateway:
    host = replace(HOST, rules=(replace(RULE, **changes),))
    return replace(GATEWAY, listeners=(replace(LISTENER, hosts=(host,)),))


def with_endpoints(*endpoints: Endpoint) -> Gateway:
    group = SiteGroup(site="s", priority=0, weight=1, endpoints=endpoints)
    return replace(GATEWAY, pools=(replace(POOL, groups=(group,)),))


def with_listeners(*listeners: Listener) -> Gateway:
    return replace(GATEWAY, listeners=listeners)


def with_hosts(*hosts: VirtualHost) -> Gateway:
    return with_listeners(replace(LISTENER, hosts=hosts))


BROKEN = [
    (
        with_rule(arms=(WeightedPool(pool="ns/none", weight=10_000),)),
        "RDS ns/gw/l: refers to CDS ns/none, which is not there",
    ),
    (
        with_rule(request_headers=HeaderEdit(remove=(":path",))),
        "RDS ns/gw/l: route r: the header :path can't be removed",
    ),
    (with_rule(request_headers=HeaderEdit(set=(("a b", "c"),))), "RDS ns/gw/l: route r: 'a b' is no header name"),
    (
        with_rule(response_headers=HeaderEdit(set=(("a", "b\nc"),))),
        "RDS ns/gw/l: route r: the value of header a holds a line break",
    ),
    (with_rule(arms=(), direct_status=99), "RDS ns/gw/l: route r: status 99 is not between 200 and 599"),
    (with_endpoints(ENDPOINT, ENDPOINT), "EDS ns/p: 10.0.0.1:80 stands twice"),
    (with_endpoints(replace(ENDPOINT, port=0)), "EDS ns/p: 10.0.0.1: port 0 is not between 1 and 65535"),
    (with_hosts(HOST, replace(HOST, name="w")), "RDS ns/gw/l: domain * stands in two places"),
    (
        with_hosts(HOST, replace(HOST, domains=("a.example",))),
        "RDS ns/gw/l: two virtual hosts are called v",
    ),
    (with_hosts(replace(HOST, domains=())), "RDS ns/gw/l: virtual host v has no domain"),
    (with_hosts(replace(HOST, rules=(RULE, RULE))), "listener l: two rules are called r"),
    (
        with_listeners(LISTENER, replace(LISTENER, name="m")),
        "LDS ns/gw/m: 127.0.0.1:80 is taken by ns/gw/l",
    ),
    (with_listeners(replace(LISTENER, port=70_000)), "LDS ns/gw/l: port 70000 is more than 65535"),
    (replace(GATEWAY, pools=(POOL, POOL)), "two pools are called ns/p"),
]


@pytest.mark.parametrize(("gateway", "problem"), BROKEN, ids=[problem for _, problem in BROKEN])
def test_an_inconsistent_gateway_is_refused_whole(gateway: Gateway, problem: str) -> None:
    views = Views(BuildOptions())
    assert views.snapshot("ns/gw") is None  # no Plan yet: nobody is answered
    views.update(Plan(gateways=(GATEWAY,)))
    good = views.snapshot("ns/gw")
    assert good is not None and not views.problems("ns/gw")
    assert problem in views.refused(Plan(gateways=(gateway,)))["ns/gw"]
    assert not views.problems("ns/gw")  # to ask changes nothing
    assert views.update(Plan(gateways=(gateway,))) == ["ns/gw"]
    assert views.refused(Plan(gateways=(gateway,))) and not views.refused(Plan(gateways=(GATEWAY,)))
    assert problem in views.problems("ns/gw")
    assert views.snapshot("ns/gw") is good
    views.update(Plan(gateways=(GATEWAY,)))
    assert not views.problems("ns/gw")
    assert views.snapshot("ns/gw") is good


def test_a_gateway_that_never_was_good_is_not_emptied() -> None:
    views = Views(BuildOptions())
    views.update(Plan(gateways=(BROKEN[0][0],)))
    assert views.snapshot("ns/gw") is None


def test_gateways_are_found_by_metadata_cluster_and_id() -> None:
    views = Views(BuildOptions())
    views.update(Plan(gateways=(GATEWAY,)))
    assert views.find(NodeIdentity(id="x", cluster="ns/gw")) == "ns/gw"
    assert views.find(NodeIdentity(id="ns/gw", cluster="other")) == "ns/gw"
    assert views.find(NodeIdentity(id="x", cluster="other", metadata={"gateway": "ns/gw"})) == "ns/gw"
    assert views.find(NodeIdentity(id="x")) is None
    assert views.snapshot(None) is NOBODY


def test_only_what_changed_is_reported() -> None:
    views = Views(BuildOptions())
    other = replace(GATEWAY, name="ns/other")
    assert views.update(Plan(gateways=(GATEWAY, other))) == ["ns/gw", "ns/other"]
    before = views.snapshot("ns/other")
    assert views.update(Plan(gateways=(with_rule(idle_timeout_ms=1), other))) == ["ns/gw"]
    assert views.snapshot("ns/other") is before
    assert views.update(Plan(gateways=(other,))) == ["ns/gw"]
    assert views.snapshot("ns/gw") is NOBODY


def test_a_proxy_that_names_no_gateway_gets_the_only_one_at_its_place() -> None:
    east, west = Locality(region="east"), Locality(region="west", zone="b")
    sites = (Site(name="east", locality=east), Site(name="west", locality=west))
    views = Views(BuildOptions())
    views.update(Plan(gateways=(Gateway(name="ns/e", site="east"), Gateway(name="ns/w", site="west")), sites=sites))
    assert views.find(NodeIdentity(id="proxy-7", cluster="edge", locality=west)) == "ns/w"
    assert views.find(NodeIdentity(id="proxy-7", cluster="ns/e", locality=west)) == "ns/e", "its word comes first"
    assert views.find(NodeIdentity(id="proxy-7", cluster="ns/typo", locality=west)) is None, "a wrong name is no name"
    assert views.find(NodeIdentity(id="proxy-7", cluster="edge", locality=Locality(region="north"))) is None
    assert views.find(NodeIdentity(id="proxy-7", cluster="edge")) is None
    assert views.find(NodeIdentity(id="p", cluster="edge", locality=west, allowed=frozenset({"ns/e"}))) is None
    both = (Gateway(name="ns/e", site="west"), Gateway(name="ns/w", site="west"))
    views.update(Plan(gateways=both, sites=sites))
    assert views.find(NodeIdentity(id="proxy-7", cluster="edge", locality=west)) is None, "which of them?"
