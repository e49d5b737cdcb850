"""Rules across routes: parents, backends, grants, and routes that would hide each other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

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
from pointsman.core.config.gateway_kinds import Gateway
from pointsman.core.config.index import Index, Item, suggest_key
from pointsman.core.config.kinds import INFERENCE_GROUP, OWN_GROUP
from pointsman.core.config.route_kinds import BackendRef, GRPCRoute, HTTPRoute, ParentReference
from pointsman.core.config.schema import suggest
from pointsman.core.errors import Problem

RouteItem = Item[HTTPRoute] | Item[GRPCRoute]
_LATER = {(INFERENCE_GROUP, "InferencePoolImport"), ("inference.networking.x-k8s.io", "InferencePoolImport")} | {
    (OWN_GROUP, "InferenceFleet"),
    ("", "Service"),
}
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
    if (ref.group, ref.kind) != (INFERENCE_GROUP, "InferencePool"):
        name = f"{ref.group}/{ref.kind}" if ref.group else ref.kind
        later = (ref.group, ref.kind) in _LATER
        what = f"a backend of kind {name} is not supported{' yet' if later else ''}"
        yield item.problem((*path, "kind"), what, _POOL_MEND)
        return
    namespace = ref.namespace or item.object.namespace
    key = f"{namespace}/{ref.name}"
    pool = index.pools.get(key)
    if pool is None:
        if not index.is_broken("InferencePool", key):
            mend = suggest_key(key, index.pools, "InferencePool")
            yield item.problem((*path, "name"), f"no InferencePool {shown(key)}", mend)
        return
    if namespace != item.object.namespace and not _granted(index, item, namespace, ref.name):
        what = f"InferencePool {key} is in another namespace"
        mend = f"needs a ReferenceGrant in namespace {namespace} from {item.object.kind} in {item.object.namespace}"
        yield item.problem((*path, "namespace"), what, mend)
    if item.object.kind == "GRPCRoute" and pool.object.spec.app_protocol != "kubernetes.io/h2c":
        what = f"InferencePool {key} speaks HTTP/1.1, gRPC needs HTTP/2"
        mend = f"set spec.appProtocol: kubernetes.io/h2c at {pool.place(('spec',))}"
        yield item.problem((*path, "name"), what, mend)


def _granted(index: Index, item: RouteItem, namespace: str, name: str) -> bool:
    if any(kind == "ReferenceGrant" and key.startswith(f"{namespace}/") for kind, key in index.broken):
        return True
    return any(
        grant.object.allows(
            kind=item.object.kind,
            namespace=item.object.namespace,
            to_group=INFERENCE_GROUP,
            to_kind="InferencePool",
            to_name=name,
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
