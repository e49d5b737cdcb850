"""Requests that must stay in their jurisdictions: rules and pools that are narrowed to the sites that may have them.

A bound request goes to a cluster of its own, "POOL@TAG+TAG", which has only the endpoints of sites with all these
jurisdictions. So whatever chooses an endpoint (the picker, a retry, Envoy's own balancing while the picker is dead, a
mirror, a spill or a failover) has no other to choose. Where nothing is allowed the answer is 451.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from pointsman.core.arm_names import NARROWED_MARK, whole_pool
from pointsman.core.compile.precedence import RankedRule
from pointsman.core.compile.weights import normalise
from pointsman.core.config.route_annotations import RouteTerms
from pointsman.core.model import MatchType, PickProfile, Pool, Rule, Site, StringMatch, WeightedPool

MARK: Final = NARROWED_MARK
"""Between a pool and what it is narrowed to: in neither a namespace nor a name."""
JOIN: Final = "+"
DIRECT: Final = "~local"
"""Stands among the tags of every site whose endpoints are reached without a further gateway. No jurisdiction can be
called so: they are label values."""

REASON: Final = "residency"
STATUS: Final = 451

Tags = frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where pools are: `sites` of each pool that have endpoints, `tags` the jurisdictions of each site."""

    sites: Mapping[str, tuple[str, ...]]
    tags: Mapping[str, Tags]

    def known(self) -> Tags:
        """All jurisdictions of the fleet."""
        return frozenset(tag for tags in self.tags.values() for tag in tags if tag != DIRECT)

    def serves(self, pool: str, required: Tags) -> bool:
        """Whether a site with all these jurisdictions has endpoints of the pool."""
        return any(required <= self.tags.get(site, frozenset()) for site in self.sites.get(pool, ()))

    def has_gateway(self, pool: str, required: Tags) -> bool:
        """Whether a site with all these jurisdictions has endpoints of the pool that are behind its gateway."""
        allowed = [tags for site in self.sites.get(pool, ()) if required <= (tags := self.tags.get(site, frozenset()))]
        return any(DIRECT not in tags for tags in allowed)


def places_of(pools: Iterable[Pool], sites: Iterable[Site]) -> Places:
    """The places of compiled pools."""
    return Places(
        sites={pool.name: tuple(group.site for group in pool.groups) for pool in pools},
        tags={site.name: site.jurisdictions | (frozenset() if site.remote else {DIRECT}) for site in sites},
    )


def base_pool(name: str) -> str:
    """The pool, or the arm of one of its models, that a narrowed one comes from; other names as they are."""
    return name.partition(MARK)[0]


def required_by(name: str) -> Tags:
    """The jurisdictions that a narrowed pool's name says."""
    return frozenset(tag for tag in name.partition(MARK)[2].split(JOIN) if tag)


def narrowed_name(pool: str, required: Tags) -> str:
    """The name of `pool` narrowed to these jurisdictions."""
    return f"{pool}{MARK}{JOIN.join(sorted(required))}" if required else pool


def narrow(pool: Pool, required: Tags, tags: Mapping[str, Tags]) -> Pool:
    """The pool with only the sites that have all these jurisdictions; priorities have no gaps."""
    groups = [group for group in pool.groups if required <= tags.get(group.site, frozenset())]
    dense = {priority: i for i, priority in enumerate(sorted({group.priority for group in groups}))}
    return replace(
        pool,
        name=narrowed_name(pool.name, required),
        groups=tuple(replace(group, priority=dense[group.priority]) for group in groups),
    )


def bind(ranked: Iterable[RankedRule], terms: RouteTerms, places: Places) -> tuple[RankedRule, ...]:
    """The rules of a route with what its residency annotations demand; those of a route without any as they are."""
    if not terms.residency and not terms.residency_header:
        return tuple(ranked)
    return tuple(replace(one, rule=rule) for one in ranked for rule in _bound(one.rule, terms, places))


def _bound(rule: Rule, terms: RouteTerms, places: Places) -> Iterator[Rule]:
    """A rule for each jurisdiction that a request may name, one that refuses all others, and what is left of `rule`."""
    header = terms.residency_header
    if header and rule.arms:
        for tag in sorted(places.known()):
            named = StringMatch(type=MatchType.EXACT, name=header, value=tag)
            yield _narrowed(_also(rule, named, tag), terms.residency | {tag}, places)
        other = _also(rule, StringMatch(type=MatchType.PRESENT, name=header, value=""), "other")
        yield _refused(other)
    if header and rule.arms and terms.residency_required:
        yield _refused(rule)
    else:
        yield _narrowed(rule, terms.residency, places)


def _also(rule: Rule, condition: StringMatch, suffix: str) -> Rule:
    """The rule for the requests that meet a further condition."""
    match = replace(rule.match, headers=(*rule.match.headers, condition))
    return replace(rule, name=f"{rule.name}{MARK}{suffix}", match=match)


def _refused(rule: Rule) -> Rule:
    return Rule(
        name=rule.name,
        route=rule.route,
        match=rule.match,
        profile=PickProfile.NONE,
        direct_status=STATUS,
        direct_reason=REASON,
    )


def _narrowed(rule: Rule, required: Tags, places: Places) -> Rule:
    if not required or not rule.arms:
        return rule
    return narrowed(rule, required, places) or _refused(rule)


def narrowed(rule: Rule, required: Tags, places: Places) -> Rule | None:
    """The rule with narrowed arms, None when nothing is left of them. An arm that no allowed site has hands its share
    to the others; the order stays. What an arm is bound to already holds on."""
    whole = {}
    for pool in rule.pools():
        bound = (required | required_by(pool)) - {DIRECT}
        # A pool without a gateway is the same with and without the guard: one cluster does for both.
        guarded = DIRECT in required and places.has_gateway(whole_pool(pool), bound)
        whole[pool] = bound | {DIRECT} if guarded else bound
    serves = {pool: tags == required_by(pool) or places.serves(whole_pool(pool), tags) for pool, tags in whole.items()}
    names = {pool: narrowed_name(base_pool(pool), tags) for pool, tags in whole.items()}
    weights = [arm.weight if serves[arm.pool] else 0 for arm in rule.arms]
    if not any(weights):
        return None
    arms = tuple(
        WeightedPool(
            pool=names[arm.pool],
            weight=share,
            request_headers=arm.request_headers,
            response_headers=arm.response_headers,
        )
        for arm, share in zip(rule.arms, normalise(weights), strict=True)
        if serves[arm.pool]
    )
    mirror = rule.mirror
    if mirror is not None:
        mirror = replace(mirror, pool=names[mirror.pool]) if serves[mirror.pool] else None
    return replace(rule, arms=arms, mirror=mirror)
