"""Residency: what a bound request can reach is decided by the cluster that its rule names."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.config_fixtures import problems
from pointsman.core.compile.precedence import Origin, RankedRule
from pointsman.core.compile.residency import Places, base_pool, bind, narrow, required_by
from pointsman.core.config.route_annotations import RouteTerms
from pointsman.core.model import (
    TOTAL_WEIGHT,
    Endpoint,
    MatchType,
    Mirror,
    Pool,
    RouteMatch,
    Rule,
    SiteGroup,
    WeightedPool,
)

TAGS = {"eu": frozenset({"EU", "GDPR"}), "us": frozenset({"US"}), "uk": frozenset({"GDPR"}), "sea": frozenset[str]()}
PLACES = Places(sites={"n/a": ("eu", "us"), "n/b": ("us",), "n/c": ("uk", "sea")}, tags=TAGS)
HEADER = RouteTerms(residency_header="x-region")


def rule(*arms: tuple[str, int], **more: object) -> Rule:
    pools = tuple(WeightedPool(pool=pool, weight=weight) for pool, weight in arms)
    return replace(Rule(name="HTTPRoute/n/r/0/0", route="HTTPRoute/n/r", match=RouteMatch(), arms=pools), **more)


def bound(one: Rule, terms: RouteTerms) -> dict[str, Rule]:
    origin = Origin(created_us=0, route="n/r", kind="HTTPRoute", rule=0, match=0)
    return {r.rule.name: r.rule for r in bind([RankedRule(specificity=(0,), origin=origin, rule=one)], terms, PLACES)}


def test_without_annotations_nothing_changes() -> None:
    one = rule(("n/a", TOTAL_WEIGHT))
    assert bound(one, RouteTerms()) == {one.name: one}


def test_each_jurisdiction_has_a_rule_and_what_is_none_is_refused() -> None:
    found = bound(rule(("n/a", TOTAL_WEIGHT)), HEADER)
    assert list(found) == [f"HTTPRoute/n/r/0/0{tail}" for tail in ("@EU", "@GDPR", "@US", "@other", "")]
    assert [arm.pool for arm in found["HTTPRoute/n/r/0/0@EU"].arms] == ["n/a@EU"]
    assert found["HTTPRoute/n/r/0/0@EU"].match.headers[0].value == "EU"
    other = found["HTTPRoute/n/r/0/0@other"]
    assert (other.direct_status, other.direct_reason) == (451, "residency")
    assert other.match.headers[0].type is MatchType.PRESENT
    assert [arm.pool for arm in found["HTTPRoute/n/r/0/0"].arms] == ["n/a"]


def test_an_arm_that_no_allowed_site_has_hands_its_share_over() -> None:
    found = bound(rule(("n/b", 1_000), ("n/a", 9_000)), HEADER)["HTTPRoute/n/r/0/0@EU"]
    assert [(arm.pool, arm.weight) for arm in found.arms] == [("n/a@EU", TOTAL_WEIGHT)]


@pytest.mark.parametrize("arms", [[("n/b", TOTAL_WEIGHT)], [("n/b", TOTAL_WEIGHT), ("n/a", 0)]])
def test_where_nothing_is_allowed_the_answer_is_451(arms: list[tuple[str, int]]) -> None:
    assert bound(rule(*arms), HEADER)["HTTPRoute/n/r/0/0@EU"].direct_status == 451


def test_a_mirror_stays_inside_or_is_dropped() -> None:
    mirrored = rule(("n/a", TOTAL_WEIGHT), mirror=Mirror(pool="n/b", share=100))
    found = bound(mirrored, HEADER)
    assert found["HTTPRoute/n/r/0/0@EU"].mirror is None
    assert found["HTTPRoute/n/r/0/0@US"].mirror == Mirror(pool="n/b@US", share=100)


def test_a_route_can_be_bound_as_a_whole_and_demand_the_header() -> None:
    found = bound(rule(("n/a", TOTAL_WEIGHT)), replace(HEADER, residency=frozenset({"GDPR"}), residency_required=True))
    assert [arm.pool for arm in found["HTTPRoute/n/r/0/0@EU"].arms] == ["n/a@EU+GDPR"]
    assert found["HTTPRoute/n/r/0/0@US"].direct_status == 451
    assert found["HTTPRoute/n/r/0/0"].direct_status == 451


@given(
    weights=st.lists(st.integers(0, 5), min_size=3, max_size=3),
    static=st.frozensets(st.sampled_from(["EU", "GDPR", "US", "MARS"])),
    header=st.booleans(),
    mirror=st.sampled_from(["", "n/a", "n/b", "n/c"]),
)
def test_no_bound_request_can_reach_a_site_outside(
    weights: list[int], static: frozenset[str], header: bool, mirror: str
) -> None:
    """Whatever the tiers, shares and health: the cluster has no other endpoints."""
    arms = list(zip(("n/a", "n/b", "n/c"), weights, strict=True))
    one = rule(*arms, mirror=Mirror(pool=mirror, share=1) if mirror else None)
    terms = RouteTerms(residency=static, residency_header="x-region" if header else "")
    for made in bound(one, terms).values():
        named = {match.value for match in made.match.headers if match.type is MatchType.EXACT}
        for pool in made.pools():
            assert static | named <= (required_by(pool) if required_by(pool) else frozenset()) or not static | named
            groups = tuple(
                SiteGroup(
                    site=site,
                    priority=i * 2,
                    weight=1,
                    endpoints=(Endpoint(name=site, address="10.0.0.1", port=i + 1, site=site),),
                )
                for i, site in enumerate(PLACES.sites[base_pool(pool)])
            )
            left = narrow(Pool(name=base_pool(pool), groups=groups), required_by(pool), TAGS)
            assert left.name == pool
            assert left.groups
            assert [group.priority for group in left.groups] == list(range(len(left.groups))) or not required_by(pool)
            assert all(static | named <= TAGS[group.site] for group in left.groups)
        assert sum(arm.weight for arm in made.arms) in {0, TOTAL_WEIGHT, sum(weights)}


@pytest.mark.parametrize(
    ("annotations", "what"),
    [
        ('pointsman.dev/residency: ","', "is empty"),
        ('pointsman.dev/residency: "E U"', "is no jurisdiction"),
        ('pointsman.dev/residency-required: "true"', "there is no residency header"),
        ('pointsman.dev/residency-header: "x y"', "x y"),
        ('pointsman.dev/residency-header: x-region, pointsman.dev/residency-required: "yes"', "found"),
    ],
)
def test_bad_annotations_are_named(annotations: str, what: str) -> None:
    text = (
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n"
        f"metadata: {{name: r, annotations: {{{annotations}}}}}\n"
        "spec: {parentRefs: [{name: main}], rules: [{backendRefs: []}]}\n"
    )
    assert any(what in str(problem) for problem in problems(text))
