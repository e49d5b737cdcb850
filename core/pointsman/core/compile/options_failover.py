"""Which FailoverPolicy leads a pool or a rule, and the tiers of its sites.

A policy on a pool comes before one on a rule, that before one on its route, and that before one on a Gateway; of equals
the oldest, then the first by name, as Gateway API has it. Each pool is led by one policy, so that two never pull at it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from pointsman.core.config.attachment import listeners_of
from pointsman.core.config.failover_kinds import FailoverPolicy, FailoverTargetRef, FailoverTier
from pointsman.core.config.manifests import Manifests
from pointsman.core.config.pool_kinds import Site
from pointsman.core.config.route_kinds import Route, RouteRule

_RANKS: Final = {"InferencePool": 0, "InferenceFleet": 0, "HTTPRoute": 2, "GRPCRoute": 2, "Gateway": 3}
_RULE_RANK: Final = 1


def leading_policies(manifests: Manifests) -> Mapping[str, FailoverPolicy]:
    """The policy of each pool ("namespace/name") that has one."""
    found: dict[str, FailoverPolicy] = {}
    for policy, ref in _attachments(manifests):
        for pool in sorted(_pools_of(manifests, policy, ref)):
            found.setdefault(pool, policy)
    known = {pool.key for pool in manifests.pools}
    return {pool: policy for pool, policy in sorted(found.items()) if pool in known}


def rule_policies(manifests: Manifests) -> Mapping[tuple[str, int], FailoverPolicy]:
    """The policy of each rule, by ("HTTPRoute/namespace/name", number of the rule), that has one by itself, by its
    route or by a Gateway."""
    found: dict[tuple[str, int], FailoverPolicy] = {}
    for policy, ref in _attachments(manifests):
        for route, number, _ in _rules_of(manifests, policy, ref):
            found.setdefault((f"{route.kind}/{route.key}", number), policy)
    return found


def tier_sites(policy: FailoverPolicy, sites: Iterable[Site]) -> tuple[tuple[FailoverTier, tuple[str, ...]], ...]:
    """The tiers with the names of their sites. A site that residency forbids is in none. Without tiers in the manifest
    all sites are one."""
    allowed = {site.name: site for site in sites if not forbidden(policy, site)}
    found: list[tuple[FailoverTier, tuple[str, ...]]] = []
    taken: set[str] = set()
    for tier in policy.spec.tiers:
        if tier.site_selector is not None:
            selects = tier.site_selector.selects
            names = [name for name, site in sorted(allowed.items()) if selects(site.metadata.labels)]
        else:
            names = [name for name in tier.sites if name in allowed]
        found.append((tier, tuple(name for name in names if name not in taken)))
        taken |= set(names)
    return tuple(found) or ((FailoverTier(sites=("all",)), tuple(sorted(allowed))),)


def forbidden(policy: FailoverPolicy, site: Site) -> bool:
    """Whether residency keeps the policy's pools from the site."""
    residency = policy.spec.residency
    return residency is not None and not set(residency.required) <= set(site.spec.jurisdictions)


def site_tiers(policy: FailoverPolicy, sites: Iterable[Site]) -> dict[str, int]:
    """Number of each site's tier; a site of none comes after all tiers."""
    known = tuple(sites)
    tiers = tier_sites(policy, known)
    numbers = {site.name: len(tiers) for site in known}
    return numbers | {name: number for number, (_, names) in enumerate(tiers) for name in names}


def _attachments(manifests: Manifests) -> list[tuple[FailoverPolicy, FailoverTargetRef]]:
    """Every (policy, target), those that count first in front."""
    pairs = [(policy, ref) for policy in manifests.failover_policies for ref in policy.spec.target_refs]
    return sorted(pairs, key=lambda pair: (_rank(pair[1]), pair[0].created_us, pair[0].key))


def _rank(ref: FailoverTargetRef) -> int:
    return _RULE_RANK if ref.section_name else _RANKS[ref.kind]


def _pools_of(manifests: Manifests, policy: FailoverPolicy, ref: FailoverTargetRef) -> set[str]:
    if ref.kind in {"InferencePool", "InferenceFleet"}:
        return {f"{policy.namespace}/{ref.name}"}
    return {
        backend.pool_of(route.namespace)
        for route, _, rule in _rules_of(manifests, policy, ref)
        for backend in rule.backend_refs
    }


def _rules_of(
    manifests: Manifests, policy: FailoverPolicy, ref: FailoverTargetRef
) -> Iterator[tuple[Route, int, RouteRule]]:
    """The rules that a reference to a route or a Gateway means."""
    key = f"{policy.namespace}/{ref.name}"
    gateway = next((one for one in manifests.gateways if one.key == key), None) if ref.kind == "Gateway" else None
    for route in manifests.routes():
        named = (route.kind, route.key) == (ref.kind, key)
        if not named and (gateway is None or not listeners_of(gateway, route)):
            continue
        for number, rule in enumerate(route.spec.rules):
            if ref.section_name in ("", rule.name):
                yield route, number, rule
