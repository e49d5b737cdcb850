"""InferencePool (inference.networking.k8s.io), EndpointSlice (discovery.k8s.io) and Site (pointsman.dev)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from pointsman.core.config import meta, pool_annotations, syntax
from pointsman.core.config.document import Path, shown
from pointsman.core.config.import_kinds import SiteGateway, SiteMetrics
from pointsman.core.config.meta import Label, LabelValue, Name, Port, Resource
from pointsman.core.config.schema import Fields, not_yet, rule

Found = Iterator[tuple[Path, str, str]]


class PoolSelector(Fields, frozen=True, kw_only=True):
    match_labels: dict[str, LabelValue]


class PortNumber(Fields, frozen=True, kw_only=True):
    number: Port


class EndpointPickerRef(Fields, frozen=True, kw_only=True):
    """Names a picker. Pointsman's own picker answers in any case; `failureMode` says what happens while it is away."""

    group: str = ""
    kind: str = "Service"
    name: Name
    port: PortNumber | None = None
    failure_mode: Literal["FailOpen", "FailClose"] = "FailClose"


class InferencePoolSpec(Fields, frozen=True, kw_only=True):
    selector: PoolSelector
    target_ports: Annotated[tuple[PortNumber, ...], Meta(min_length=1, max_length=8)]
    app_protocol: Literal["http", "kubernetes.io/h2c"] = "http"
    endpoint_picker_ref: EndpointPickerRef | None = None

    def complaints(self) -> Found:
        numbers = [port.number for port in self.target_ports]
        for index, number in enumerate(numbers):
            if number in numbers[:index]:
                yield ("targetPorts", index, "number"), f"{number} occurs twice", "remove one"


class InferencePool(Resource, frozen=True, kw_only=True):
    """Interchangeable model servers. In a folder the EndpointSlices that name it are its endpoints."""

    own_annotations: ClassVar[frozenset[str]] = frozenset(
        {meta.MODEL, meta.HEALTH_PATH, meta.FAILOVER, pool_annotations.SHED_AFTER, *pool_annotations.KV_ANNOTATIONS}
    )
    spec: InferencePoolSpec

    def complaints(self) -> Found:
        yield from pool_annotations.complaints(self.metadata.annotations)
        path = self.metadata.annotations.get(meta.HEALTH_PATH)
        if path is not None and (complaint := syntax.path(path)):
            yield ("metadata", "annotations", meta.HEALTH_PATH), *complaint
        if (choice := self.metadata.annotations.get(meta.FAILOVER, "Auto")) not in {"Auto", "Off"}:
            yield ("metadata", "annotations", meta.FAILOVER), f"found {shown(choice)}", "expected Auto or Off"
        if complaint := syntax.label_value(self.metadata.name):
            yield ("metadata", "name"), complaint[0], "EndpointSlices name the pool in a label: at most 63 characters"


class EndpointConditions(Fields, frozen=True, kw_only=True):
    """Absent means what Kubernetes says: ready and serving unless told otherwise."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class TargetRef(Fields, frozen=True, kw_only=True):
    api_version: Any = None
    kind: Any = None
    namespace: Any = None
    name: str = ""
    uid: Any = None
    resource_version: Any = None
    field_path: Any = None


class SliceEndpoint(Fields, frozen=True, kw_only=True):
    addresses: Annotated[tuple[meta.IpAddress, ...], Meta(min_length=1)]
    conditions: EndpointConditions = EndpointConditions()
    hostname: Label = ""
    node_name: str = ""
    zone: str = ""
    target_ref: TargetRef = TargetRef()
    hints: Any = None
    deprecated_topology: Any = None

    def complaints(self) -> Found:
        address = ipaddress.ip_address(self.addresses[0])
        if address.is_unspecified or address.is_multicast:
            yield ("addresses", 0), f"nobody can connect to {address}", "expected the address of one machine"
        if len(self.addresses) > 1:
            yield ("addresses", 1), "a second address", "expected one; write another endpoint for it"


class SlicePort(Fields, frozen=True, kw_only=True):
    name: str = ""
    port: Port
    protocol: Annotated[Literal["TCP"], not_yet("UDP", "SCTP")] = "TCP"
    app_protocol: str = ""


class EndpointSlice(Resource, frozen=True, kw_only=True):
    """Endpoints of one pool at one site. Without `ports` the pool's `targetPorts` hold."""

    own_annotations: ClassVar[frozenset[str]] = pool_annotations.KV_ANNOTATIONS
    own_labels: ClassVar[frozenset[str]] = frozenset({meta.POOL, meta.SITE})
    address_type: Annotated[Literal["IPv4", "IPv6"], not_yet("FQDN")]
    endpoints: Annotated[tuple[SliceEndpoint, ...], Meta(max_length=1000)] = ()
    ports: Annotated[tuple[SlicePort, ...], Meta(max_length=100)] = ()

    def complaints(self) -> Found:
        yield from pool_annotations.complaints(self.metadata.annotations)
        wants_v6 = self.address_type == "IPv6"
        for index, endpoint in enumerate(self.endpoints):
            address = endpoint.addresses[0]
            if (":" in address) != wants_v6:
                what = f"{shown(address)} does not fit addressType {self.address_type}"
                yield ("endpoints", index, "addresses", 0), what, "expected addresses of one kind in a slice"
        numbers = [port.port for port in self.ports]
        for index, number in enumerate(numbers):
            if number in numbers[:index]:
                yield ("ports", index, "port"), f"{number} occurs twice", "remove one"

    @property
    def pool(self) -> str:
        """Name of the pool, empty where the label is absent."""
        return self.metadata.labels.get(meta.POOL, "")

    @property
    def site(self) -> str:
        """Name of the site, empty where the label is absent."""
        return self.metadata.labels.get(meta.SITE, "")


class Geo(Fields, frozen=True, kw_only=True):
    lat: Annotated[float, Meta(ge=-90, le=90)]
    lon: Annotated[float, Meta(ge=-180, le=180)]


class SiteLocality(Fields, frozen=True, kw_only=True):
    region: str = ""
    zone: str = ""
    sub_zone: str = ""
    geo: Geo | None = None


class SiteCapacity(Fields, frozen=True, kw_only=True):
    """`maxConcurrent` requests; `weight` divides traffic between sites of one priority (0: by number of endpoints)."""

    max_concurrent: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0
    gpus: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    weight: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class SiteCost(Fields, frozen=True, kw_only=True):
    not_yet: ClassVar[frozenset[str]] = frozenset({"spot"})
    usd_per_gpu_hour: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.0


class SiteSpec(Fields, frozen=True, kw_only=True):
    not_yet: ClassVar[frozenset[str]] = frozenset({"endpointPicker", "providerConfigName"})
    locality: SiteLocality = SiteLocality()
    jurisdictions: tuple[Annotated[str, Meta(min_length=1), rule(syntax.label_value)], ...] = ()
    capacity: SiteCapacity = SiteCapacity()
    cost: SiteCost = SiteCost()
    state: Annotated[Literal["Active", "Draining", "Evacuated"], not_yet("Standby", "Maintenance")] = "Active"
    rtt_ms: dict[str, Annotated[float, Meta(ge=0, le=60_000)]] = msgspec.field(default_factory=dict)
    gateway: SiteGateway | None = None
    metrics: SiteMetrics | None = None

    def complaints(self) -> Found:
        if self.metrics is not None and self.gateway is None:
            yield ("metrics",), "is only read of sites behind a gateway", "write gateway, or remove it"


class Site(Resource, frozen=True, kw_only=True):
    """A cluster or region that holds endpoints. `rttMs` holds round-trip times to other sites in milliseconds."""

    cluster_scoped: ClassVar[bool] = True
    spec: SiteSpec = SiteSpec()

    def complaints(self) -> Found:
        if complaint := syntax.dns_label(self.metadata.name):
            yield ("metadata", "name"), *complaint
