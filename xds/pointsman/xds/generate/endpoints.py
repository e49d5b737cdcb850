"""The load assignment of a pool: its sites as localities, in the order of their priorities (design D5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from envoy.config.core.v3 import base_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2

from pointsman.core import wire
from pointsman.core.model import Endpoint, Health, Hop, Pool, Site, SiteGroup
from pointsman.xds.generate.pieces import embedded

HEALTH: Final = {
    Health.UNKNOWN: health_check_pb2.UNKNOWN,
    Health.HEALTHY: health_check_pb2.HEALTHY,
    Health.DEGRADED: health_check_pb2.DEGRADED,
    Health.DRAINING: health_check_pb2.DRAINING,
    Health.UNHEALTHY: health_check_pb2.UNHEALTHY,
}

TRANSPORT_MATCH: Final = "envoy.transport_socket_match"
"""Metadata by which Envoy finds the transport socket of an endpoint."""

CHUNK: Final = 64
"""Endpoints that are encoded together: one that changes costs this many and not all of its pool."""

_ASSIGNMENT_ENDPOINTS: Final = endpoint_pb2.ClusterLoadAssignment.ENDPOINTS_FIELD_NUMBER


@dataclass(frozen=True, slots=True)
class GroupPart:
    """One site's endpoints in serialised form: the locality, and chunks of endpoints with what they were made from."""

    head: bytes
    hop: Hop | None
    chunks: tuple[tuple[tuple[Endpoint, ...], bytes], ...]

    def field(self) -> bytes:
        """The part of a serialised `ClusterLoadAssignment`."""
        return embedded(_ASSIGNMENT_ENDPOINTS, b"".join([self.head, *(data for _, data in self.chunks)]))


Encode = Callable[[SiteGroup, int], GroupPart]
"""Group and dense priority → its part of the assignment; the hook that lets a cache stand in between."""


def load_assignment(pool: Pool, encode: Encode) -> bytes:
    """The serialised `ClusterLoadAssignment` of a pool.

    It is put together from one part per site, so that a change at one site costs nothing at the others. Priorities are
    made dense: Envoy wants no gaps.
    """
    order = {priority: i for i, priority in enumerate(sorted({group.priority for group in pool.groups}))}
    head = endpoint_pb2.ClusterLoadAssignment(cluster_name=pool.cluster_name)
    # Spill to the next priority exactly in proportion to what is lost, not first at 71 % (D5).
    head.policy.overprovisioning_factor.value = 100
    parts = [encode(group, order[group.priority]).field() for group in pool.groups]
    return b"".join([head.SerializeToString(deterministic=True), *parts])


def group_part(
    group: SiteGroup, priority: int, sites: Mapping[str, Site], before: GroupPart | None = None
) -> GroupPart:
    """One site's endpoints. Chunks that are the same in `before`, an earlier part of this site, are taken from it.

    The sub-zone is always the site's name, so that statistics and load reports tell the sites apart.
    """
    locality = endpoint_components_pb2.LocalityLbEndpoints(priority=priority)
    locality.load_balancing_weight.value = max(1, group.weight)
    site = sites.get(group.site)
    locality.locality.region = site.locality.region if site and site.locality.region else group.site
    locality.locality.zone = site.locality.zone if site else ""
    locality.locality.sub_zone = group.site
    known = before.chunks if before is not None and before.hop == group.hop else ()
    chunks = []
    for number, start in enumerate(range(0, len(group.endpoints), CHUNK)):
        members = group.endpoints[start : start + CHUNK]
        same = number < len(known) and known[number][0] == members
        chunks.append(known[number] if same else (members, _encode(members, group.hop)))
    return GroupPart(head=locality.SerializeToString(deterministic=True), hop=group.hop, chunks=tuple(chunks))


def _encode(members: Iterable[Endpoint], hop: Hop | None) -> bytes:
    """Endpoints as a serialised `LocalityLbEndpoints` that holds nothing else: concatenated messages merge."""
    message = endpoint_components_pb2.LocalityLbEndpoints()
    for endpoint in members:
        host = message.lb_endpoints.add()
        _fill(host, endpoint)
        if hop is not None:
            _fill_hop(host, endpoint, hop)
    return message.SerializeToString(deterministic=True)


def _fill(host: endpoint_components_pb2.LbEndpoint, endpoint: Endpoint) -> None:
    address = host.endpoint.address.socket_address
    address.address = endpoint.address
    address.port_value = endpoint.port
    host.endpoint.hostname = endpoint.name
    host.health_status = HEALTH[endpoint.health]
    host.load_balancing_weight.value = max(1, endpoint.weight)
    fields = host.metadata.filter_metadata[wire.PICK_NAMESPACE].fields
    fields["endpoint"].string_value = endpoint.name
    fields["site"].string_value = endpoint.site


def _fill_hop(host: endpoint_components_pb2.LbEndpoint, endpoint: Endpoint, hop: Hop) -> None:
    """What is different at a gateway: its TLS, and the host name that it is probed with, which its routes must take."""
    if hop.tls is not None:
        match = host.metadata.filter_metadata[TRANSPORT_MATCH].fields
        match[wire.HOP_MATCH_KEY].string_value = endpoint.site
        host.endpoint.health_check_config.hostname = hop.tls.server_name
    host.endpoint.health_check_config.disable_active_health_check = not hop.probed


def node_locality(site: Site | None) -> base_pb2.Locality:
    """The locality of a gateway that stands at `site`, in the same terms as `group_part`."""
    if site is None:
        return base_pb2.Locality()
    return base_pb2.Locality(region=site.locality.region or site.name, zone=site.locality.zone, sub_zone=site.name)
