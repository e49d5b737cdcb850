"""Which listeners a route is served on, and for which host names (Gateway API attachment).

A host is a DNS name, a wildcard `*.example.com` (any number of labels in place of the star) or `*` for every host.
"""

from __future__ import annotations

from pointsman.core.config.gateway_kinds import Gateway, GatewayListener
from pointsman.core.config.meta import DEFAULT_NAMESPACE
from pointsman.core.config.route_kinds import ParentReference, Route

ANY_HOST = "*"


def covers(pattern: str, host: str) -> bool:
    """Is every host that `host` stands for also meant by `pattern`?"""
    if pattern in {ANY_HOST, host}:
        return True
    return pattern.startswith("*.") and host != ANY_HOST and host.endswith(pattern[1:])


def specificity(host: str) -> tuple[int, int]:
    """The larger, the more specific: names before wildcards, then the longer ones."""
    if host == ANY_HOST:
        return 0, 0
    return (0, len(host)) if host.startswith("*.") else (len(host), len(host))


def common_hosts(listener_host: str, route_hosts: tuple[str, ...]) -> tuple[str, ...]:
    """Hosts of a route on a listener, "" for a listener without host name; empty if they have none in common."""
    ours = listener_host or ANY_HOST
    found = [host if covers(ours, host) else ours for host in route_hosts or (ANY_HOST,) if _meet(ours, host)]
    return tuple(sorted(set(found)))


def _meet(one: str, other: str) -> bool:
    return covers(one, other) or covers(other, one)


def parent_key(route: Route, ref: ParentReference) -> str:
    """`namespace/name` of the Gateway that a route's parentRef names."""
    return f"{ref.namespace or route.namespace}/{ref.name}"


def refusal(gateway: Gateway, listener: GatewayListener, route: Route) -> str:
    """Why the listener does not take the route; empty if it does."""
    kinds = {k.kind for k in listener.allowed_routes.kinds} or {"HTTPRoute", "GRPCRoute"}
    if route.kind not in kinds:
        return f"it allows routes of kind {', '.join(sorted(kinds))} only"
    come_from = listener.allowed_routes.namespaces.from_
    if come_from == "None":
        return "it allows no routes"
    if come_from == "Same" and route.namespace != gateway.namespace:
        return f"it allows routes of namespace {gateway.namespace or DEFAULT_NAMESPACE} only"
    if not common_hosts(listener.hostname, route.spec.hostnames):
        return f"its host name {listener.hostname} has none in common with the route's"
    return ""


def named_listeners(gateway: Gateway, ref: ParentReference) -> tuple[GatewayListener, ...]:
    """The listeners that a parentRef to this gateway names by `sectionName` and `port`."""
    return tuple(
        listener
        for listener in gateway.spec.listeners
        if ref.section_name in {"", listener.name} and ref.port in {None, listener.port}
    )


def listeners_of(gateway: Gateway, route: Route) -> tuple[GatewayListener, ...]:
    """The listeners of the gateway that serve the route, in the gateway's order."""
    named = {
        listener.name
        for ref in route.spec.parent_refs
        if parent_key(route, ref) == gateway.key
        for listener in named_listeners(gateway, ref)
        if not refusal(gateway, listener, route)
    }
    return tuple(listener for listener in gateway.spec.listeners if listener.name in named)
