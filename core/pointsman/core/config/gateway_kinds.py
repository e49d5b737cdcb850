"""GatewayClass, Gateway and ReferenceGrant (gateway.networking.k8s.io)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from pointsman.core.config import gateway_annotations, meta, syntax
from pointsman.core.config.document import Path
from pointsman.core.config.meta import Hostname, Label, Name, Port, Resource
from pointsman.core.config.schema import Fields, not_yet


class GatewayClassSpec(Fields, frozen=True, kw_only=True):
    not_yet: ClassVar[frozenset[str]] = frozenset({"parametersRef"})
    controller_name: Annotated[str, Meta(min_length=1, max_length=253)]
    description: str = ""


class GatewayClass(Resource, frozen=True, kw_only=True):
    """Says whose the Gateways of that class are."""

    cluster_scoped: ClassVar[bool] = True
    spec: GatewayClassSpec


class RouteNamespaces(Fields, frozen=True, kw_only=True):
    not_yet: ClassVar[frozenset[str]] = frozenset({"selector"})
    from_: Annotated[Literal["Same", "All", "None"], not_yet("Selector")] = msgspec.field(default="Same", name="from")


class RouteGroupKind(Fields, frozen=True, kw_only=True):
    group: Literal["gateway.networking.k8s.io"] = "gateway.networking.k8s.io"
    kind: Annotated[Literal["HTTPRoute", "GRPCRoute"], not_yet("TLSRoute", "TCPRoute", "UDPRoute")]


class AllowedRoutes(Fields, frozen=True, kw_only=True):
    namespaces: RouteNamespaces = RouteNamespaces()
    kinds: Annotated[tuple[RouteGroupKind, ...], Meta(max_length=8)] = ()


class GatewayListener(Fields, frozen=True, kw_only=True):
    """A port and the host names served on it; no `hostname` means all."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"tls"})
    name: Name
    port: Port
    protocol: Annotated[Literal["HTTP"], not_yet("HTTPS", "TLS", "TCP", "UDP")]
    hostname: Hostname = ""
    allowed_routes: AllowedRoutes = AllowedRoutes()


class GatewayAddress(Fields, frozen=True, kw_only=True):
    type: Annotated[Literal["IPAddress"], not_yet("Hostname", "NamedAddress")] = "IPAddress"
    value: meta.IpAddress


class GatewaySpec(Fields, frozen=True, kw_only=True):
    not_yet: ClassVar[frozenset[str]] = frozenset(
        {"infrastructure", "allowedListeners", "backendTLS", "tls", "defaultScope"}
    )
    gateway_class_name: Name
    listeners: Annotated[tuple[GatewayListener, ...], Meta(min_length=1, max_length=64)]
    addresses: Annotated[tuple[GatewayAddress, ...], Meta(max_length=16)] = ()


class Gateway(Resource, frozen=True, kw_only=True):
    """A group of Envoy proxies with the same listeners."""

    own_annotations: ClassVar[frozenset[str]] = gateway_annotations.GATEWAY_ANNOTATIONS | {meta.SITE, meta.BIND_ADDRESS}
    spec: GatewaySpec

    def complaints(self) -> Iterable[tuple[Path, str, str]]:
        bind = self.metadata.annotations.get(meta.BIND_ADDRESS)
        if bind is not None and (complaint := syntax.ip_address(bind)):
            yield ("metadata", "annotations", meta.BIND_ADDRESS), *complaint
        yield from gateway_annotations.complaints(self.metadata.annotations)

    @property
    def site(self) -> str:
        """The Site its proxies stand at, empty where it is not said."""
        return self.metadata.annotations.get(meta.SITE, "")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The IP addresses its listeners bind: annotation, else `spec.addresses`, else loopback.

        Nothing becomes reachable from outside unless somebody wrote it down.
        """
        if bind := self.metadata.annotations.get(meta.BIND_ADDRESS):
            written: tuple[str, ...] = (bind,)
        else:
            written = tuple(address.value for address in self.spec.addresses)
        canonical = (syntax.canonical_ip(address) for address in written)
        return tuple(dict.fromkeys(address for address in canonical if address)) or ("127.0.0.1",)


class GrantFrom(Fields, frozen=True, kw_only=True):
    group: str
    kind: Annotated[str, Meta(min_length=1)]
    namespace: Label


class GrantTo(Fields, frozen=True, kw_only=True):
    group: str
    kind: Annotated[str, Meta(min_length=1)]
    name: str = ""


class ReferenceGrantSpec(Fields, frozen=True, kw_only=True):
    from_: Annotated[tuple[GrantFrom, ...], Meta(min_length=1, max_length=16)] = msgspec.field(name="from")
    to: Annotated[tuple[GrantTo, ...], Meta(min_length=1, max_length=16)]


class ReferenceGrant(Resource, frozen=True, kw_only=True):
    """Lets objects of other namespaces refer to objects in this one."""

    spec: ReferenceGrantSpec

    def allows(self, *, kind: str, namespace: str, to_group: str, to_kind: str, to_name: str) -> bool:
        """May a Gateway API object of that kind and namespace refer to that object here?"""
        group = "gateway.networking.k8s.io"
        comes = any(f.group == group and f.kind == kind and f.namespace == namespace for f in self.spec.from_)
        return comes and any(
            t.group == to_group and t.kind == to_kind and t.name in {"", to_name} for t in self.spec.to
        )
