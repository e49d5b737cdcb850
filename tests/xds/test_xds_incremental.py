"""Builds from what the last build made: the same bytes as from nothing, and only what changed is made again."""

from __future__ import annotations

from dataclasses import replace

from envoy.config.route.v3 import route_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.core.model import (
    Endpoint,
    Gateway,
    Listener,
    MatchType,
    PickProfile,
    Pool,
    RouteMatch,
    Rule,
    SiteGroup,
    StringMatch,
    VirtualHost,
    WeightedPool,
)
from pointsman.xds import BuildCache, BuildOptions, build_resources
from pointsman.xds.check import check
from pointsman.xds.generate.endpoints import CHUNK, group_part
from pointsman.xds.generate.routes import route_parts
from pointsman.xds.resources import ROUTE, make_resource

OPTIONS = BuildOptions()
SIZES = st.one_of(st.integers(0, 3), st.integers(CHUNK - 1, CHUNK + 1), st.just(3 * CHUNK))


def group(site: str, count: int, first: int, priority: int, heavy: int) -> SiteGroup:
    members = tuple(
        Endpoint(name=f"{site}-{n}", address=f"10.0.{n >> 8}.{n & 255}", port=8000, site=site, weight=1 + (n == heavy))
        for n in range(first, first + count)
    )
    return SiteGroup(site=site, priority=priority, weight=1, endpoints=members)


def rule(name: str, weight: int, profile: PickProfile = PickProfile.BODY) -> Rule:
    arms = (WeightedPool(pool="default/a", weight=weight), WeightedPool(pool="default/b", weight=10_000 - weight))
    model = StringMatch(type=MatchType.EXACT, name="x-model", value=name)
    return Rule(name=name, route="HTTPRoute/default/r", match=RouteMatch(headers=(model,)), arms=arms, profile=profile)


def gateway(groups: tuple[SiteGroup, ...], rules: tuple[Rule, ...]) -> Gateway:
    host = VirtualHost(name="any", domains=("*",), rules=rules)
    listener = Listener(name="http", address="127.0.0.1", port=80, hosts=(host,))
    pools = (Pool(name="default/a", groups=groups), Pool(name="default/b"))
    return Gateway(name="default/gw", listeners=(listener,), pools=pools)


groups = st.builds(
    lambda near, far, first, swap, heavy: (
        group("east", near, first, int(swap), heavy),
        group("west", far, 0, int(not swap), heavy),
    ),
    SIZES,
    SIZES,
    st.integers(0, 2),
    st.booleans(),
    st.integers(0, 2 * CHUNK),
)
rules = st.lists(
    st.builds(rule, st.sampled_from("abcd"), st.sampled_from([0, 1, 10_000]), st.sampled_from(PickProfile)),
    unique_by=lambda made: made.name,
    max_size=4,
).map(tuple)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.builds(gateway, groups, rules), min_size=2, max_size=5))
def test_a_build_from_the_last_one_is_the_same_as_from_nothing(history: list[Gateway]) -> None:
    cache = BuildCache()
    for now in history:
        assert build_resources(now, OPTIONS, cache=cache) == build_resources(now, OPTIONS)


def test_one_weight_makes_one_route_anew() -> None:
    many = tuple(rule(f"r{n}", 5_000) for n in range(50))
    before = gateway((), many)
    after = gateway((), (*many[:20], rule("r20", 5_001), *many[21:]))
    first = route_parts(before.listeners[0], before, OPTIONS, {})
    second = route_parts(after.listeners[0], after, OPTIONS, first)
    assert [name for name in second if second[name] is not first[name]] == ["r20"]


def test_one_endpoint_makes_one_chunk_anew() -> None:
    before = group("east", 5 * CHUNK, 0, 0, heavy=0)
    members = list(before.endpoints)
    members[2 * CHUNK] = replace(members[2 * CHUNK], weight=7)
    first = group_part(before, 0, {})
    second = group_part(replace(before, endpoints=tuple(members)), 0, {}, first)
    same = [one is other for one, other in zip(first.chunks, second.chunks, strict=True)]
    assert same == [True, True, False, True, True]


def test_a_bad_route_among_accepted_ones_is_found() -> None:
    good = build_resources(gateway((), (rule("a", 1), rule("b", 1))), OPTIONS)
    config = route_pb2.RouteConfiguration.FromString(good[ROUTE]["default/gw/http"].body)
    config.virtual_hosts[0].routes[1].match.headers[0].name = "no header"
    bad = make_resource(ROUTE, "default/gw/http", config)
    assert check(dict(good), good) == []
    problems = check({**good, ROUTE: {bad.name: bad}}, good)
    assert problems == ["RDS default/gw/http: route b: 'no header' is no header name"]
