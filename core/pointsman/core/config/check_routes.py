"""Rules across routes: parents, backends, grants, and routes that would hide each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from pointsman.core.config.attachment import (
    ANY_HOST,
    common_hosts,
    covers,
    listeners_of,
    named_listeners,
    parent_key,
    refusal,
)
from pointsman.core.config.document import Path, shown
from pointsman.core.config.fleet_kinds import InferenceFleet
from pointsman.core.config.fleet_members import fleet_pools, protocol_of, remote_sites
from pointsman.core.config.gateway_kinds import Gateway
from pointsman.core.config.import_kinds import InferencePoolImport
from pointsman.core.config.index import Index, Item, suggest_key
from pointsman.core.config.kinds import INFERENCE_GROUP, OWN_GROUP
from pointsman.core.config.pool_kinds import InferencePool
from pointsman.core.config.route_kinds import BackendRef, GRPCRoute, HTTPRoute, ParentReference
from pointsman.core.config.schema import suggest
from pointsman.core.errors import Problem

RouteItem = Item[HTTPRoute] | Item[GRPCRoute]
IMPORT_GROUP = "inference.networking.x-k8s.io"
_GROUPS = {"InferencePool": INFERENCE_GROUP, "InferenceFleet": OWN_GROUP, "InferencePoolImport": IMPORT_GROUP}
"""Kinds that routes may send requests to."""
_POOL_MEND = f"expected group: {INFERENCE_GROUP}, kind: InferencePool"


def check_routes(index: Index) -> Iterator[Problem]:
    """Everything that is wrong with what routes refer to."""
    for item in index.routes():
        for position, ref in enumerate(item.object.spec.parent_refs):
            yield from _parent(index, item, ("spec", "parentRefs", position), ref)
        for position, rule in enumerate(item.object.spec.rules):
            for arm, backend in enumerate(rule.backend_refs):
                yield from _backend(index, item, ("spec", "rules", position, "backendRefs", arm), backend)
    for gateway in index.gateways.values():
        yield from _mixed_kinds(index, gateway)


def _parent(index: Index, item: RouteItem, path: Path, ref: ParentReference) -> Iterator[Problem]:
    key = parent_key(item.object, ref)
    found = index.gateways.get(key)
    if found is None:
        if key not in index.foreign_gateways and not index.is_broken("Gateway", key):
            mend = suggest_key(key, index.gateways, "Gateway")
            yield item.problem((*path, "name"), f"no Gateway {shown(key)}", mend)
        return
    gateway = found.object
    listeners = named_listeners(gateway, ref)
    if not listeners:
        names = {listener.name for listener in gateway.spec.listeners}
        if ref.section_name and ref.section_name not in names:
            what = f"Gateway {key} has no listener {shown(ref.section_name)}"
            yield item.problem((*path, "sectionName"), what, suggest(ref.section_name, names))
            return
        ports = ", ".join(sorted({str(listener.port) for listener in gateway.spec.listeners}))
        what = f"no such listener of Gateway {key} has port {ref.port}"
        yield item.problem((*path, "port"), what, f"its ports are {ports}")
        return
    reasons = {listener.name: refusal(gateway, listener, item.object) for listener in listeners}
    if all(reasons.values()):
        why = "; ".join(f"listener {name}: {reason}" for name, reason in reasons.items())
        yield item.problem(path, f"no listener of Gateway {key} takes this route", why)


def _backend(index: Index, item: RouteItem, path: Path, ref: BackendRef) -> Iterator[Problem]:
    if _GROUPS.get(ref.kind) != ref.group:
        name = f"{ref.group}/{ref.kind}" if ref.group else ref.kind
        what = f"a backend of kind {name} is not supported{' yet' if name == 'Service' else ''}"
        mend = f"expected group: {_GROUPS[ref.kind]}" if ref.kind in _GROUPS else _POOL_MEND
        yield item.problem((*path, "kind"), what, mend)
        return
    namespace = ref.namespace or item.object.namespace
    key = f"{namespace}/{ref.name}"
    tables: dict[str, Mapping[str, Item[Any]]] = {
        "InferencePool": index.pools,
        "InferenceFleet": index.fleets,
        "InferencePoolImport": index.imports,
    }
    table = tables[ref.kind]
    found = table.get(key)
    if found is None:
        if not index.is_broken(ref.kind, key):
            mend = suggest_key(key, table, ref.kind)
            yield item.problem((*path, "name"), f"no {ref.kind} {shown(key)}", mend)
        return
    if namespace != item.object.namespace and not _granted(index, item, namespace, ref):
        what = f"{ref.kind} {key} is in another namespace"
        mend = f"needs a ReferenceGrant in namespace {namespace} from {item.object.kind} in {item.object.namespace}"
        yield item.problem((*path, "namespace"), what, mend)
    if item.object.kind == "GRPCRoute" and _protocol(index, found.object) != "kubernetes.io/h2c":
        what = f"{ref.kind} {key} speaks HTTP/1.1, gRPC needs HTTP/2"
        mend = f"set spec.appProtocol: kubernetes.io/h2c at {found.place(('spec',))}"
        yield item.problem((*path, "name"), what, mend)


def _protocol(index: Index, backend: InferencePool | InferenceFleet | InferencePoolImport) -> str:
    pools = {key: one.object for key, one in index.pools.items()}
    if isinstance(backend, InferencePool):
        return backend.spec.app_protocol
    if isinstance(backend, InferenceFleet):
        sites = {name: one.object for name, one in index.sites.items()}
        remote = remote_sites((one.object for one in index.gateways.values()), sites.values())
        return protocol_of(backend, [pools[key] for key in fleet_pools(backend, sites, pools, remote)])
    return pools[backend.key].spec.app_protocol if backend.key in pools else "http"


def _granted(index: Index, item: RouteItem, namespace: str, ref: BackendRef) -> bool:
    if any(kind == "ReferenceGrant" and key.startswith(f"{namespace}/") for kind, key in index.broken):
        return True
    return any(
        grant.object.allows(
            kind=item.object.kind,
            namespace=item.object.namespace,
            to_group=ref.group,
            to_kind=ref.kind,
            to_name=ref.name,
        )
        for grant in index.grants.values()
        if grant.object.namespace == namespace
    )


def _mixed_kinds(index: Index, gateway: Item[Gateway]) -> Iterator[Problem]:
    """A listener takes either HTTPRoutes or GRPCRoutes for a host (Gateway API, `GRPCRoute.spec.hostnames`)."""
    told: set[tuple[str, str]] = set()
    attached = [(item, listeners_of(gateway.object, item.object)) for item in index.routes()]
    for listener in gateway.object.spec.listeners:
        hosts: dict[str, list[tuple[RouteItem, tuple[str, ...]]]] = {"GRPCRoute": [], "HTTPRoute": []}
        for item, listeners in attached:
            if listener in listeners:
                common = common_hosts(listener.hostname, item.object.spec.hostnames)
                hosts[item.object.kind].append((item, common))
        for (grpc, ours), (http, theirs) in product(hosts["GRPCRoute"], hosts["HTTPRoute"]):
            shared = next((a for a, b in product(ours, theirs) if covers(a, b) or covers(b, a)), None)
            pair = (grpc.object.key, http.object.key)
            if shared is not None and pair not in told:
                told.add(pair)
                whom = "every host" if shared == ANY_HOST else f"host {shared}"
                what = f"HTTPRoute {http.object.key} also wants {whom} on listener {listener.name}"
                mend = f"see {http.place()}; give one another hostname or a listener of its own"
                yield grpc.problem(("spec",), what, f"{mend} by parentRefs[].sectionName")
