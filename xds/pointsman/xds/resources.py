"""What the control plane serves: named, versioned, serialised resources, and the views that hold them.

A resource's version is the hash of its bytes. Two servers with the same input therefore serve equal versions, and a
gateway that moves between them, or comes back after a restart, is sent nothing (design section 2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import xxhash
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import Message

_PREFIX: Final = "type.googleapis.com/"
_WRAPPER: Final = _PREFIX + "envoy.service.discovery.v3.Resource"

CLUSTER: Final = _PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINT: Final = _PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER: Final = _PREFIX + "envoy.config.listener.v3.Listener"
ROUTE: Final = _PREFIX + "envoy.config.route.v3.RouteConfiguration"
SECRET: Final = _PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"
RUNTIME: Final = _PREFIX + "envoy.service.runtime.v3.Runtime"

PUSH_ORDER: Final = (SECRET, RUNTIME, CLUSTER, ENDPOINT, LISTENER, ROUTE)
"""The order in which a change is sent, so that nothing refers to what is not there yet (xDS protocol, "Eventual
consistency considerations")."""

SHORT_NAMES: Final = {
    CLUSTER: "CDS",
    ENDPOINT: "EDS",
    LISTENER: "LDS",
    ROUTE: "RDS",
    SECRET: "SDS",
    RUNTIME: "RTDS",
}
"""How operators call the types; used in logs, metrics and status."""

FULL_STATE: Final = frozenset({CLUSTER, LISTENER})
"""Types whose SotW responses list everything: what is missing in one is deleted by the client."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One serialised resource.

    `body` is the serialised message of type `type_url`. `version` is 32 hex digits. `references` names, per type,
    the resources this one needs (a route its clusters, a listener its route configuration, an EDS cluster its
    assignment). `ttl_ms` is how long a client keeps it after it was last confirmed, 0 for ever.
    """

    type_url: str
    name: str
    version: str
    body: bytes = field(repr=False)
    references: tuple[tuple[str, str], ...] = ()
    ttl_ms: int = 0
    _parts: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)

    def sotw_part(self) -> bytes:
        """This resource as a serialised `DiscoveryResponse` that holds nothing else.

        Concatenated protobuf messages merge, so a response is its head plus the parts of its resources: each
        resource is wrapped once, however many streams send it.
        """
        part = self._parts.get("sotw")
        if part is None:
            response = discovery_pb2.DiscoveryResponse()
            if self.ttl_ms:  # a lifetime needs the wrapper that delta has anyway
                wrapped = self._entry(discovery_pb2.DeltaDiscoveryResponse(), body=True)
                response.resources.add(type_url=_WRAPPER, value=wrapped.SerializeToString(deterministic=True))
            else:
                response.resources.add(type_url=self.type_url, value=self.body)
            part = self._parts["sotw"] = response.SerializeToString(deterministic=True)
        return part

    def delta_part(self) -> bytes:
        """This resource as a serialised `DeltaDiscoveryResponse` that holds nothing else."""
        part = self._parts.get("delta")
        if part is None:
            response = discovery_pb2.DeltaDiscoveryResponse()
            self._entry(response, body=True)
            part = self._parts["delta"] = response.SerializeToString(deterministic=True)
        return part

    def beat_part(self) -> bytes:
        """A confirmation of this resource as a serialised `DeltaDiscoveryResponse`: all but the body."""
        response = discovery_pb2.DeltaDiscoveryResponse()
        self._entry(response, body=False)
        return response.SerializeToString(deterministic=True)

    def _entry(self, response: discovery_pb2.DeltaDiscoveryResponse, *, body: bool) -> discovery_pb2.Resource:
        entry = response.resources.add(name=self.name, version=self.version)
        if body:
            entry.resource.type_url = self.type_url
            entry.resource.value = self.body
        if self.ttl_ms:
            entry.ttl.FromMilliseconds(self.ttl_ms)
        return entry


ResourceSet = Mapping[str, Resource]
"""Resources of one type by name."""

Resources = Mapping[str, ResourceSet]
"""Everything one gateway is to have: type URL → name → resource."""

EMPTY: Final[ResourceSet] = {}


def make_resource(
    type_url: str, name: str, body: bytes | Message, references: Iterable[tuple[str, str]] = ()
) -> Resource:
    """Serialise (deterministically) and hash. `references` are sorted and freed of doubles."""
    data = body if isinstance(body, bytes) else body.SerializeToString(deterministic=True)
    version = xxhash.xxh3_128_hexdigest(data)
    return Resource(type_url, name, version, data, tuple(sorted(set(references))))


def with_ttl(resource: Resource, ttl_ms: int) -> Resource:
    """The same with a lifetime. It has another version: who holds it without one must be sent it again."""
    version = xxhash.xxh3_128_hexdigest(f"{resource.version} {ttl_ms}".encode())
    return Resource(resource.type_url, resource.name, version, resource.body, resource.references, ttl_ms)


def set_version(resources: ResourceSet) -> str:
    """Version of a whole set: the hash of the names and versions, sorted by name ("0" when empty)."""
    if not resources:
        return "0"
    digest = xxhash.xxh3_128()
    for name in sorted(resources):
        digest.update(f"{name}\x00{resources[name].version}\x00".encode())
    return digest.hexdigest()


def by_name(resources: Iterable[Resource]) -> dict[str, Resource]:
    """Index by name, sorted, so that equal content gives equal order everywhere."""
    return {r.name: r for r in sorted(resources, key=lambda r: r.name)}
