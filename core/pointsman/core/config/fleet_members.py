"""Which sites a fleet has, which pools it means there, and which sites are behind a gateway."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pointsman.core.config.fleet_kinds import InferenceFleet, MemberPool
from pointsman.core.config.gateway_kinds import Gateway
from pointsman.core.config.meta import MODEL
from pointsman.core.config.pool_kinds import InferencePool, Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A site of a fleet. `index`: its place in `spec.members`, None for a site that the selector found."""

    site: str
    pool_ref: MemberPool | None
    tier: int = 0
    weight: int = 0
    index: int | None = None


def remote_sites(gateways: Iterable[Gateway], sites: Iterable[Site]) -> frozenset[str]:
    """Sites that are reached through their gateway: those that have one, and where no Gateway of this folder stands.

    So the same Sites may be in the folders of all control planes: each takes its own site for near.
    """
    here = {gateway.site for gateway in gateways}
    return frozenset(site.name for site in sites if site.spec.gateway is not None and site.name not in here)


def members_of(fleet: InferenceFleet, sites: Mapping[str, Site]) -> tuple[Member, ...]:
    """The sites of a fleet by name: those that are listed, and those that the selector finds beside them. Sites that
    residency forbids are left out, and so are those that do not exist."""
    spec = fleet.spec
    found = {
        one.site: Member(
            site=one.site, pool_ref=one.pool_ref or spec.pool_ref, tier=one.tier, weight=one.weight, index=index
        )
        for index, one in enumerate(spec.members)
        if one.site in sites
    }
    for name, site in sites.items():
        if spec.cluster_selector is not None and spec.cluster_selector.selects(site.metadata.labels):
            found.setdefault(name, Member(site=name, pool_ref=spec.pool_ref))
    required = frozenset(spec.residency.required) if spec.residency is not None else frozenset()
    return tuple(one for name, one in sorted(found.items()) if required <= set(sites[name].spec.jurisdictions))


def pools_meant(fleet: InferenceFleet, ref: MemberPool | None, pools: Mapping[str, InferencePool]) -> list[str]:
    """The InferencePools, "namespace/name", whose endpoints at a site belong to the fleet. An import means the pool of
    the same name; without a reference those of the fleet's namespace that serve its model are meant."""
    if ref is not None:
        key = f"{fleet.namespace}/{ref.name}"
        return [key] if key in pools else []
    if not fleet.spec.model:
        return []
    return sorted(
        key
        for key, pool in pools.items()
        if pool.namespace == fleet.namespace and pool.metadata.annotations.get(MODEL) == fleet.spec.model
    )


def fleet_pools(
    fleet: InferenceFleet, sites: Mapping[str, Site], pools: Mapping[str, InferencePool], remote: frozenset[str]
) -> list[str]:
    """All InferencePools that the fleet takes endpoints from."""
    near = [one for one in members_of(fleet, sites) if one.site not in remote]
    return sorted({key for one in near for key in pools_meant(fleet, one.pool_ref, pools)})


def protocol_of(fleet: InferenceFleet, taken: Iterable[InferencePool]) -> str:
    """What the fleet's endpoints speak: what it says, else what its pools say."""
    return fleet.spec.app_protocol or next((pool.spec.app_protocol for pool in taken), "http")
