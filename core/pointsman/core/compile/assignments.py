"""Users that a RolloutPolicy assigns: its word on what a split is sticky by goes before the route's annotations."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from pointsman.core.config.policy_kinds import RolloutPolicy
from pointsman.core.config.route_annotations import RouteTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """The rules of a route ("HTTPRoute/namespace/name"; `rule` empty: all) that have both pools, and their terms."""

    route: str
    rule: str
    pools: frozenset[str]
    header: str
    cookie: str
    salt: str


def assignments_of(policies: Iterable[RolloutPolicy]) -> tuple[Assigned, ...]:
    """What the policies assign."""
    return tuple(
        Assigned(
            route=policy.route_name(ref),
            rule=ref.section_name,
            pools=frozenset({policy.pool_key(policy.spec.stable), policy.pool_key(policy.spec.canary)}),
            header=policy.spec.assignment.by.header.lower(),
            cookie=policy.spec.assignment.by.cookie,
            salt=policy.spec.assignment.salt,
        )
        for policy in policies
        if policy.spec.assignment is not None
        for ref in policy.spec.target_refs
    )


def terms_for(
    assignments: Iterable[Assigned], route: str, rule: str, pools: Collection[str], terms: RouteTerms
) -> RouteTerms:
    """The terms of one rule of a route, whose arms are `pools`."""
    for one in assignments:
        if one.route == route and one.rule in {"", rule} and one.pools <= set(pools):
            return replace(terms, sticky_header=one.header, sticky_cookie=one.cookie, sticky_salt=one.salt)
    return terms
