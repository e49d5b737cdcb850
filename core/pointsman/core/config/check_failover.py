"""Rules between FailoverPolicies, TrafficOperations, and the pools, routes and sites that they name."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pointsman.core.config.document import Path, shown
from pointsman.core.config.failover_kinds import FailoverPolicy, FailoverTargetRef
from pointsman.core.config.index import Index, Item, suggest_key
from pointsman.core.config.operation_kinds import TrafficOperation
from pointsman.core.config.schema import suggest
from pointsman.core.errors import Problem


def check_failover(index: Index) -> Iterator[Problem]:
    """Everything that is wrong with what these kinds refer to."""
    taken: dict[tuple[str, str, str], str] = {}
    for item in index.failover_policies.values():
        for position, ref in enumerate(item.object.spec.target_refs):
            path: Path = ("spec", "targetRefs", position)
            yield from _target(index, item, path, ref)
            key = (ref.kind, f"{item.object.namespace}/{ref.name}", ref.section_name)
            place = item.place(path)
            if (other := taken.setdefault(key, place)) != place:
                yield item.problem(path, f"{ref.kind} {key[1]} has two policies", f"the other is at {other}")
        yield from _tiers(index, item)
    for operation in index.operations.values():
        yield from _operation(index, operation)


def _target(index: Index, item: Item[FailoverPolicy], path: Path, ref: FailoverTargetRef) -> Iterator[Problem]:
    key = f"{item.object.namespace}/{ref.name}"
    tables: dict[str, Collection[str]] = {
        "InferencePool": index.pools,
        "InferenceFleet": index.fleets,
        "HTTPRoute": index.http_routes,
        "GRPCRoute": index.grpc_routes,
        "Gateway": index.gateways,
    }
    table = tables[ref.kind]
    if key not in table:
        foreign = ref.kind == "Gateway" and key in index.foreign_gateways
        if not foreign and not index.is_broken(ref.kind, key):
            yield item.problem((*path, "name"), f"no {ref.kind} {shown(key)}", suggest_key(key, table, ref.kind))
        return
    if ref.section_name:
        route = index.http_routes[key].object if ref.kind == "HTTPRoute" else index.grpc_routes[key].object
        names = {one.name for one in route.spec.rules if one.name}
        if ref.section_name not in names:
            what = f"{ref.kind} {key} has no rule {shown(ref.section_name)}"
            yield item.problem((*path, "sectionName"), what, suggest(ref.section_name, names) or "name the rule there")


def _tiers(index: Index, item: Item[FailoverPolicy]) -> Iterator[Problem]:
    residency = item.object.spec.residency
    required = set(residency.required) if residency else set()
    for number, tier in enumerate(item.object.spec.tiers):
        path: Path = ("spec", "tiers", number)
        for position, name in enumerate(tier.sites):
            if name not in index.sites:
                if not index.is_broken("Site", name):
                    mend = suggest_key(name, index.sites, "Site")
                    yield item.problem((*path, "sites", position), f"no Site {shown(name)}", mend)
            elif lacking := required - set(index.sites[name].object.spec.jurisdictions):
                what = f"Site {shown(name)} is outside {', '.join(sorted(lacking))}, which residency requires"
                mend = f"see {index.sites[name].place(('spec',))}, or take it out of the tier"
                yield item.problem((*path, "sites", position), what, mend)


def _operation(index: Index, item: Item[TrafficOperation]) -> Iterator[Problem]:
    spec = item.object.spec
    if spec.policy:
        key = f"{item.object.namespace}/{spec.policy}"
        if key not in index.failover_policies and not index.is_broken("FailoverPolicy", key):
            mend = suggest_key(key, index.failover_policies, "FailoverPolicy")
            yield item.problem(("spec", "policy"), f"no FailoverPolicy {shown(key)}", mend)
    target = spec.target
    if target is None:
        return
    if target.kind == "Site" and target.name not in index.sites and not index.is_broken("Site", target.name):
        mend = suggest_key(target.name, index.sites, "Site")
        yield item.problem(("spec", "target", "name"), f"no Site {shown(target.name)}", mend)
    if target.pool:
        key = target.pool if "/" in target.pool else f"{item.object.namespace}/{target.pool}"
        pools = {*index.pools, *index.fleets}
        if key not in pools and not any(index.is_broken(kind, key) for kind in ("InferencePool", "InferenceFleet")):
            mend = suggest_key(key, pools, "InferencePool")
            yield item.problem(("spec", "target", "pool"), f"no InferencePool {shown(key)}", mend)
