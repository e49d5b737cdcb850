"""What must hold before a snapshot is published: an inconsistent one is refused whole (design D10).

Envoy accepts a route to a cluster that does not exist, and rejects a whole response for one resource that breaks a
constraint. Both are found here, before any gateway sees them. Problems are texts for operators, prefixed with the
resource they are about.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2

from pointsman.core.model import Gateway
from pointsman.xds.resources import CLUSTER, EMPTY, ENDPOINT, LISTENER, ROUTE, SHORT_NAMES, Resource, Resources

HEADER_NAME: Final = re.compile(r":?[!#$%&'*+.^_`|~0-9A-Za-z-]+")
SEPARATED_PREFIX: Final = re.compile(r"[^?#]+[^?#/]")
FIXED_HEADERS: Final = frozenset({"host", ":authority", ":method", ":path", ":scheme", ":status"})


def check(resources: Resources, accepted: Resources | None = None) -> list[str]:
    """Problems of a snapshot, sorted; empty when it may be published.

    Resources that are the same in `accepted`, a snapshot that passed before, are only checked for their references.
    """
    before = accepted or {}
    problems = list(_references(resources))
    problems += _shared_ports(resources.get(LISTENER, EMPTY).values())
    for type_url, verify in CHECKS.items():
        passed = before.get(type_url, EMPTY)
        for name, resource in resources.get(type_url, EMPTY).items():
            last = passed.get(name)
            if last is not None and last.version == resource.version:
                continue
            problems += (f"{SHORT_NAMES[type_url]} {name}: {problem}" for problem in verify(resource, last))
    return sorted(problems)


def check_gateway(gateway: Gateway) -> list[str]:
    """Names that the builder would silently merge."""
    problems = [f"two pools are called {name}" for name in _doubles(pool.cluster_name for pool in gateway.pools)]
    problems += [f"two listeners are called {name}" for name in _doubles(entry.name for entry in gateway.listeners)]
    for listener in gateway.listeners:
        names = (rule.name for host in listener.hosts for rule in host.rules)
        problems += [f"listener {listener.name}: two rules are called {name}" for name in _doubles(names)]
    return problems


def _doubles(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _references(resources: Resources) -> Iterator[str]:
    for type_url, entries in resources.items():
        for resource in entries.values():
            for kind, name in resource.references:
                if name not in resources.get(kind, EMPTY):
                    here = SHORT_NAMES.get(type_url, type_url)
                    yield f"{here} {resource.name}: refers to {SHORT_NAMES.get(kind, kind)} {name}, which is not there"


def _shared_ports(listeners: Iterable[Resource]) -> Iterator[str]:
    taken: dict[tuple[str, int], str] = {}
    for resource in listeners:
        address = listener_pb2.Listener.FromString(resource.body).address.socket_address
        place = (address.address, address.port_value)
        if address.port_value and place in taken:
            yield f"LDS {resource.name}: {place[0]}:{place[1]} is taken by {taken[place]}"
        taken[place] = resource.name


def _cluster(resource: Resource, _last: Resource | None) -> Iterator[str]:
    cluster = cluster_pb2.Cluster.FromString(resource.body)
    if not cluster.name:
        yield "has no name"
    yield from _endpoints(cluster.load_assignment)
    if cluster.connect_timeout.ToMilliseconds() <= 0:
        yield "connect_timeout must be more than 0"


def _assignment(resource: Resource, _last: Resource | None) -> Iterator[str]:
    assignment = endpoint_pb2.ClusterLoadAssignment.FromString(resource.body)
    if not assignment.cluster_name:
        yield "has no cluster name"
    priorities = {group.priority for group in assignment.endpoints}
    if priorities != set(range(len(priorities))):
        yield f"priorities have gaps: {sorted(priorities)}"
    yield from _endpoints(assignment)
    places = [
        (group.priority, group.locality.region, group.locality.zone, group.locality.sub_zone)
        for group in assignment.endpoints
    ]
    if len(set(places)) != len(places):
        yield "a locality stands twice in one priority"


def _endpoints(assignment: endpoint_pb2.ClusterLoadAssignment) -> Iterator[str]:
    seen: set[tuple[str, int]] = set()
    for group in assignment.endpoints:
        for host in group.lb_endpoints:
            address = host.endpoint.address.socket_address
            place = name, port = address.address, address.port_value
            if not name:
                yield "an endpoint has no address"
            if not 1 <= port <= 65_535:
                yield f"{name}: port {port} is not between 1 and 65535"
            if place in seen:
                yield f"{name}:{port} stands twice"
            if host.HasField("load_balancing_weight") and host.load_balancing_weight.value < 1:
                yield f"{name}:{port}: the weight of an endpoint must be 1 or more"
            seen.add(place)


def _listener(resource: Resource, _last: Resource | None) -> Iterator[str]:
    listener = listener_pb2.Listener.FromString(resource.body)
    if not listener.name:
        yield "has no name"
    address = listener.address.socket_address
    if not address.address:
        yield "has no address"
    if address.port_value > 65_535:
        yield f"port {address.port_value} is more than 65535"
    if not listener.filter_chains:
        yield "has no filter chain"


def _route_config(resource: Resource, last: Resource | None) -> Iterator[str]:
    config = route_pb2.RouteConfiguration.FromString(resource.body)
    # Comparing a route costs far less than judging it, and a weight change leaves all but one as they were.
    before = route_pb2.RouteConfiguration.FromString(last.body if last is not None else b"")
    passed = {route.name: route for host in before.virtual_hosts for route in host.routes}
    for name in _doubles(host.name for host in config.virtual_hosts):
        yield f"two virtual hosts are called {name}"
    for domain in _doubles(domain.lower() for host in config.virtual_hosts for domain in host.domains):
        yield f"domain {domain} stands in two places"
    for host in config.virtual_hosts:
        if not host.domains:
            yield f"virtual host {host.name} has no domain"
        for route in host.routes:
            if passed.get(route.name) == route:
                continue
            for problem in _route(route):
                yield f"route {route.name}: {problem}"


def _route(route: route_components_pb2.Route) -> Iterator[str]:
    match = route.match
    if match.WhichOneof("path_specifier") is None:
        yield "has no path match"
    if match.HasField("path_separated_prefix") and not SEPARATED_PREFIX.fullmatch(match.path_separated_prefix):
        yield f"{match.path_separated_prefix!r} is no path prefix"
    if match.HasField("safe_regex") and not match.safe_regex.regex:
        yield "the path expression is empty"
    for header in match.headers:
        if not HEADER_NAME.fullmatch(header.name):
            yield f"{header.name!r} is no header name"
    yield from _edits(
        [*route.request_headers_to_add, *route.response_headers_to_add],
        [*route.request_headers_to_remove, *route.response_headers_to_remove],
    )
    if route.HasField("direct_response"):
        if not 200 <= route.direct_response.status <= 599:
            yield f"status {route.direct_response.status} is not between 200 and 599"
    elif route.HasField("route"):
        arms = route.route.weighted_clusters.clusters
        if route.route.HasField("weighted_clusters") and not 0 < sum(a.weight.value for a in arms) < 2**32:
            yield "the sum of the weights must be more than 0"
        for arm in arms:
            yield from _edits(
                [*arm.request_headers_to_add, *arm.response_headers_to_add],
                [*arm.request_headers_to_remove, *arm.response_headers_to_remove],
            )
    else:
        yield "does nothing"


def _edits(added: Iterable[base_pb2.HeaderValueOption], removed: Iterable[str]) -> Iterator[str]:
    for name in [*(option.header.key for option in added), *removed]:
        if not HEADER_NAME.fullmatch(name):
            yield f"{name!r} is no header name"
    for name in removed:
        if name.lower() in FIXED_HEADERS or name.startswith(":"):
            yield f"the header {name} can't be removed"
    for option in added:
        if re.search(r"[\0\r\n]", option.header.value):
            yield f"the value of header {option.header.key} holds a line break"


CHECKS: Final[dict[str, Callable[[Resource, Resource | None], Iterator[str]]]] = {
    CLUSTER: _cluster,
    ENDPOINT: _assignment,
    LISTENER: _listener,
    ROUTE: _route_config,
}
