"""Rules between InferenceFleets, InferencePoolImports, and the pools and sites that they name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pointsman.core.config.document import Path, shown
from pointsman.core.config.fleet_kinds import InferenceFleet, MemberPool
from pointsman.core.config.fleet_members import Member, fleet_pools, members_of, pools_meant, remote_sites
from pointsman.core.config.import_kinds import InferencePoolImport
from pointsman.core.config.index import Index, Item, suggest_key
from pointsman.core.config.pool_kinds import InferencePool, Site
from pointsman.core.config.syntax import canonical_ip
from pointsman.core.errors import Problem


def check_fleets(index: Index) -> Iterator[Problem]:
    """Everything that is wrong with what these kinds refer to, and with sites behind gateways."""
    sites = {name: item.object for name, item in index.sites.items()}
    pools = {key: item.object for key, item in index.pools.items()}
    remote = remote_sites((item.object for item in index.gateways.values()), sites.values())
    yield from _gateways_once(index)
    for one in index.slices.values():
        if one.object.site in remote:
            what = f"Site {one.object.site} is reached through its gateway, not by the addresses of its endpoints"
            mend = f"remove the slice, or spec.gateway at {index.sites[one.object.site].place(('spec', 'gateway'))}"
            yield one.problem(("metadata", "labels"), what, mend)
    for key, item in index.fleets.items():
        if key in index.pools:
            mend = f"the pool is at {index.pools[key].place()}; give one another name"
            yield item.problem(("metadata", "name"), f"an InferencePool has the name {shown(key)}, too", mend)
        yield from _members(index, item)
        yield from _needs_pools(index, item, members_of(item.object, sites), pools, remote)
        yield from _one_protocol(index, item, fleet_pools(item.object, sites, pools, remote))
    for imported in index.imports.values():
        yield from _clusters(index, imported, sites)
    for policy in index.failover_policies.values():
        for position, ref in enumerate(policy.object.spec.target_refs):
            fleet = index.fleets.get(f"{policy.object.namespace}/{ref.name}") if ref.kind == "InferenceFleet" else None
            if fleet is not None and fleet.object.tiered and not policy.object.spec.tiers:
                what = f"members of InferenceFleet {fleet.object.key} have tiers, and this policy has none"
                mend = f"write tiers here; they come before those at {fleet.place(('spec', 'members'))}"
                yield policy.problem(("spec", "targetRefs", position), what, mend)


def _gateways_once(index: Index) -> Iterator[Problem]:
    """Two sites behind one address could not be told apart: it is the identity of an endpoint."""
    taken: dict[tuple[str | None, int], Item[Site]] = {}
    for item in index.sites.values():
        gateway = item.object.spec.gateway
        if gateway is None:
            continue
        place = canonical_ip(gateway.address), gateway.port
        other = taken.setdefault(place, item)
        if other is not item:
            what = f"Site {other.object.name} has the same gateway, {gateway.address} port {gateway.port}"
            yield item.problem(("spec", "gateway"), what, f"the other is at {other.place(('spec', 'gateway'))}")


def _members(index: Index, item: Item[InferenceFleet]) -> Iterator[Problem]:
    spec = item.object.spec
    if spec.pool_ref is not None:
        yield from _pool(index, item, ("spec", "poolRef"), spec.pool_ref)
    required = set(spec.residency.required) if spec.residency is not None else set()
    for number, member in enumerate(spec.members):
        path: Path = ("spec", "members", number)
        if member.pool_ref is not None:
            yield from _pool(index, item, (*path, "poolRef"), member.pool_ref)
        site = index.sites.get(member.site)
        if site is None:
            if not index.is_broken("Site", member.site):
                mend = suggest_key(member.site, index.sites, "Site")
                yield item.problem((*path, "site"), f"no Site {shown(member.site)}", mend)
        elif lacking := required - set(site.object.spec.jurisdictions):
            what = f"Site {shown(member.site)} is outside {', '.join(sorted(lacking))}, which residency requires"
            yield item.problem((*path, "site"), what, f"see {site.place(('spec',))}, or take it out of the fleet")


def _pool(index: Index, item: Item[InferenceFleet], path: Path, ref: MemberPool) -> Iterator[Problem]:
    key = f"{item.object.namespace}/{ref.name}"
    known = index.pools.keys() if ref.kind == "InferencePool" else index.imports.keys()
    if key not in known and not index.is_broken(ref.kind, key):
        yield item.problem((*path, "name"), f"no {ref.kind} {shown(key)}", suggest_key(key, known, ref.kind))


def _needs_pools(
    index: Index,
    item: Item[InferenceFleet],
    members: tuple[Member, ...],
    pools: Mapping[str, InferencePool],
    remote: frozenset[str],
) -> Iterator[Problem]:
    """A site behind a gateway needs no pool here, but one that is imported must be exported there."""
    for one in members:
        path: Path = ("spec", "clusterSelector") if one.index is None else ("spec", "members", one.index)
        if one.site in remote:
            ref = one.pool_ref
            imported = index.imports.get(f"{item.object.namespace}/{ref.name}") if ref else None
            if ref is None or ref.kind != "InferencePoolImport" or imported is None:
                continue
            if one.site not in imported.object.clusters:
                what = f"Site {one.site} does not export {imported.object.key}"
                yield item.problem(path, what, f"its exporting clusters are at {imported.place(('status',))}")
        elif not pools_meant(item.object, one.pool_ref, pools):
            broken = any(kind == "InferencePool" for kind, _ in index.broken)
            dangling = one.pool_ref is not None and one.pool_ref.kind == "InferencePool"
            if not broken and not dangling:  # a reference to nothing has been told
                yield item.problem(path, f"no InferencePool gives endpoints at Site {one.site}", _pool_mend(item, one))


def _pool_mend(item: Item[InferenceFleet], one: Member) -> str:
    if one.pool_ref is not None:
        return f"expected an InferencePool {one.pool_ref.name}, or spec.gateway at the Site"
    model = item.object.spec.model
    if model:
        return f"expected one with the annotation pointsman.dev/model: {model}, a poolRef, or spec.gateway at the Site"
    return "expected model, poolRef, or spec.gateway at the Site"


def _one_protocol(index: Index, item: Item[InferenceFleet], taken: list[str]) -> Iterator[Problem]:
    wanted = item.object.spec.app_protocol
    for key in taken:
        pool = index.pools[key]
        wanted = wanted or pool.object.spec.app_protocol
        if pool.object.spec.app_protocol != wanted:
            what = f"InferencePool {key} speaks {pool.object.spec.app_protocol}, other endpoints of the fleet {wanted}"
            yield item.problem(("spec",), what, f"see {pool.place(('spec',))}; make a fleet for each protocol")


def _clusters(index: Index, item: Item[InferencePoolImport], sites: Mapping[str, Site]) -> Iterator[Problem]:
    for number, controller in enumerate(item.object.status.controllers):
        for position, cluster in enumerate(controller.exporting_clusters):
            path: Path = ("status", "controllers", number, "exportingClusters", position, "name")
            site = sites.get(cluster.name)
            if site is None:
                if not index.is_broken("Site", cluster.name):
                    mend = suggest_key(cluster.name, sites, "Site")
                    yield item.problem(path, f"no Site {shown(cluster.name)}", mend)
            elif site.spec.gateway is None and item.object.key not in index.pools:
                what = f"Site {cluster.name} has no gateway, and there is no InferencePool {item.object.key} here"
                yield item.problem(path, what, f"write spec.gateway at {index.sites[cluster.name].place(('spec',))}")
