"""Header edits of rules and arms: the arm has the last word, as Gateway API wants and Envoy alone does not do."""

from __future__ import annotations

import pytest
from envoy.config.route.v3 import route_pb2
from hypothesis import given
from hypothesis import strategies as st

from pointsman.core.model import (
    Gateway,
    HeaderEdit,
    Listener,
    Pool,
    RouteMatch,
    Rule,
    VirtualHost,
    WeightedPool,
)
from pointsman.xds import BuildOptions, build_resources
from pointsman.xds.generate.header_edits import then
from pointsman.xds.resources import ROUTE

Headers = dict[str, list[str]]


def apply(edit: HeaderEdit, headers: Headers) -> Headers:
    """What Envoy does with one edit: it removes, sets, adds."""
    found = {name: list(values) for name, values in headers.items() if name not in edit.remove}
    for name, value in edit.set:
        found[name] = [value]
    for name, value in edit.add:
        found.setdefault(name, []).append(value)
    return found


@st.composite
def edits(draw: st.DrawFn) -> HeaderEdit:
    values = st.sampled_from("123")
    names = draw(st.permutations("abcd"))
    kinds = [draw(st.sampled_from(["set", "add", "remove", "none"])) for _ in names]
    chosen = list(zip(names, kinds, strict=True))
    return HeaderEdit(
        set=tuple((name, draw(values)) for name, kind in chosen if kind == "set"),
        add=tuple((name, draw(values)) for name, kind in chosen if kind == "add"),
        remove=tuple(name for name, kind in chosen if kind == "remove"),
    )


@given(edits(), edits(), st.dictionaries(st.sampled_from("abcd"), st.lists(st.just("0"), min_size=1, max_size=2)))
def test_two_edits_as_one(first: HeaderEdit, second: HeaderEdit, headers: Headers) -> None:
    assert apply(then(first, second), headers) == apply(second, apply(first, headers))


@pytest.mark.parametrize("collides", [True, False])
def test_an_arm_overrules_its_rule(collides: bool) -> None:
    name = "x-variant" if collides else "x-other"
    rule = Rule(
        name="r",
        route="HTTPRoute/ns/r",
        match=RouteMatch(),
        request_headers=HeaderEdit(set=(("x-variant", "rule"),)),
        arms=(
            WeightedPool(pool="ns/a", weight=5_000, request_headers=HeaderEdit(set=((name, "arm"),))),
            WeightedPool(pool="ns/b", weight=5_000),
        ),
    )
    gateway = Gateway(
        name="ns/gw",
        listeners=(
            Listener(
                name="l",
                address="127.0.0.1",
                port=80,
                hosts=(VirtualHost(name="any", domains=("*",), rules=(rule,)),),
            ),
        ),
        pools=(Pool(name="ns/a"), Pool(name="ns/b")),
    )
    body = build_resources(gateway, BuildOptions(), sites=())[ROUTE]["ns/gw/l"].body
    (route,) = route_pb2.RouteConfiguration.FromString(body).virtual_hosts[0].routes

    def told(options: object) -> list[tuple[str, str]]:
        return [(option.header.key, option.header.value) for option in options]  # type: ignore[attr-defined]

    arms = [told(arm.request_headers_to_add) for arm in route.route.weighted_clusters.clusters]
    if collides:
        assert told(route.request_headers_to_add) == []
        assert arms == [[("x-variant", "arm")], [("x-variant", "rule")]]
    else:
        assert told(route.request_headers_to_add) == [("x-variant", "rule")]
        assert arms == [[("x-other", "arm")], []]
