"""Users that a RolloutPolicy assigns: its word on what a split is sticky by goes before the route's annotations.

Requests that say nothing of the user are split at random, or (`fallback: Stable`) all go to the stable pool while it
serves: then each rule has twins before it for those without the header or cookie.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from pointsman.core.compile.precedence import RankedRule
from pointsman.core.config.policy_kinds import RolloutPolicy
from pointsman.core.config.route_annotations import RouteTerms
from pointsman.core.model import MatchType, StringMatch, WeightedPool

UNASSIGNED: Final = "-unassigned"
"""In the name of a twin, behind that of its rule. Its requests are no evidence: other users than those compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """The rules of a route ("HTTPRoute/namespace/name"; `rule` empty: all) that have both pools, and their terms.

    `to_stable`: requests without the header or cookie are the stable pool's.
    """

    route: str
    rule: str
    stable: str
    canary: str
    header: str
    cookie: str
    salt: str
    to_stable: bool

    def binds(self, route: str, rule: str, pools: Collection[str]) -> bool:
        """Whether it is about a rule of a route, whose arms are `pools`."""
        return self.route == route and self.rule in {"", rule} and {self.stable, self.canary} <= set(pools)


def assignments_of(policies: Iterable[RolloutPolicy]) -> tuple[Assigned, ...]:
    """What the policies assign."""
    return tuple(
        Assigned(
            route=policy.route_name(ref),
            rule=ref.section_name,
            stable=policy.pool_key(policy.spec.stable),
            canary=policy.pool_key(policy.spec.canary),
            header=policy.spec.assignment.by.header.lower(),
            cookie=policy.spec.assignment.by.cookie,
            salt=policy.spec.assignment.salt,
            to_stable=policy.spec.assignment.fallback == "Stable",
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
        if one.binds(route, rule, pools):
            return replace(terms, sticky_header=one.header, sticky_cookie=one.cookie, sticky_salt=one.salt)
    return terms


def known_users_only(
    ranked: Iterable[RankedRule], assignments: Collection[Assigned], route: str, rule: str
) -> Iterator[RankedRule]:
    """The compiled matches of a rule, each behind twins that keep requests of unknown users off the canary.

    There are none where the stable pool has no share any more: then the canary is what there is.
    """
    for one in ranked:
        pools = [arm.pool for arm in one.rule.arms]
        found = next((a for a in assignments if a.to_stable and a.binds(route, rule, pools)), None)
        arms = _without_canary(one.rule.arms, found) if found else None
        if found and arms:
            for number, unknown in enumerate(_unknown(found)):
                match = replace(one.rule.match, headers=(*one.rule.match.headers, *unknown))
                name = f"{one.rule.name}{UNASSIGNED}" + (f"-{number}" if number else "")
                twin = replace(
                    one.rule, name=name, match=match, arms=arms, hash_header="", hash_cookie="", hash_salt=""
                )
                yield replace(one, origin=replace(one.origin, twin=True), rule=twin)
        yield one


def _without_canary(arms: tuple[WeightedPool, ...], assigned: Assigned) -> tuple[WeightedPool, ...] | None:
    """The arms with the canary's share given to stable; None where one of the two has no share."""
    canary = sum(arm.weight for arm in arms if arm.pool == assigned.canary)
    heir = next((index for index, arm in enumerate(arms) if arm.pool == assigned.stable and arm.weight), None)
    if not canary or heir is None:
        return None
    return tuple(
        replace(arm, weight=0 if arm.pool == assigned.canary else arm.weight + canary * (index == heir))
        for index, arm in enumerate(arms)
    )


def _unknown(assigned: Assigned) -> Iterator[tuple[StringMatch, ...]]:
    """Conditions, one of which holds for each request that does not say who the user is."""
    absent = StringMatch(type=MatchType.PRESENT, name=assigned.header or "cookie", value="", invert=True)
    yield (absent,)
    if assigned.cookie:
        named = rf"(?:.*;\s*)?{re.escape(assigned.cookie)}=.*"
        yield (StringMatch(type=MatchType.REGEX, name="cookie", value=named, invert=True),)
