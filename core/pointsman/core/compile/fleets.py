"""InferenceFleets and InferencePoolImports as pools.

Both are written as an InferencePool and the EndpointSlices it has: those of the pools that a fleet takes its endpoints
from, and one endpoint for each site behind a gateway. From here on nothing knows that they are not ordinary pools:
weights, failover, residency and picks hold for them as for others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from msgspec import structs

from pointsman.core.config import meta
from pointsman.core.config.check_pools import pool_key, slice_ports
from pointsman.core.config.fleet_kinds import InferenceFleet
from pointsman.core.config.fleet_members import Member, fleet_pools, members_of, pools_meant, protocol_of, remote_sites
from pointsman.core.config.import_kinds import IMPORT_MARK, InferencePoolImport
from pointsman.core.config.manifests import Manifests
from pointsman.core.config.objective_kinds import InferenceObjective
from pointsman.core.config.pool_annotations import KV_ANNOTATIONS
from pointsman.core.config.pool_kinds import (
    EndpointPickerRef,
    EndpointSlice,
    InferencePool,
    InferencePoolSpec,
    PoolSelector,
    PortNumber,
    Site,
    SliceEndpoint,
    SlicePort,
    TargetRef,
)
from pointsman.core.config.syntax import canonical_ip

_NO_PORT: Final = (PortNumber(number=1),)
"""`targetPorts` of a pool whose slices all say their ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a fleet says of its sites: tiers and weights by site, where it says any."""

    tiers: Mapping[str, int] | None = None
    weights: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expanded:
    """Manifests without fleets and imports, the shapes of those pools that were fleets, and the sites that are reached
    through their gateways."""

    manifests: Manifests
    shapes: Mapping[str, Shape]
    remote: frozenset[str]


def expand(manifests: Manifests) -> Expanded:
    """The same with fleets and imports written as pools."""
    remote = remote_sites(manifests.gateways, manifests.sites)
    if not manifests.fleets and not manifests.imports:
        return Expanded(manifests=manifests, shapes={}, remote=remote)
    scene = _Scene(
        sites={site.name: site for site in manifests.sites},
        pools={pool.key: pool for pool in manifests.pools},
        slices=manifests.endpoint_slices,
        remote=remote,
    )
    fleets = [(fleet, scene.fleet(fleet)) for fleet in manifests.fleets]
    written = [*(pool for _, pool in fleets), *(scene.imported(one) for one in manifests.imports)]
    return Expanded(
        manifests=replace(
            manifests,
            pools=tuple(sorted((*manifests.pools, *(one.pool for one in written)), key=lambda pool: pool.key)),
            endpoint_slices=(*manifests.endpoint_slices, *(found for one in written for found in one.slices)),
            objectives=(*manifests.objectives, *(o for f, one in fleets for o in _objectives(f, one, manifests))),
            fleets=(),
            imports=(),
        ),
        shapes={fleet.key: _shape(fleet) for fleet in manifests.fleets},
        remote=remote,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """A pool that stands for a fleet or an import; `taken` are the pools whose endpoints it has."""

    pool: InferencePool
    slices: tuple[EndpointSlice, ...]
    taken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    """What fleets are made of."""

    sites: Mapping[str, Site]
    pools: Mapping[str, InferencePool]
    slices: tuple[EndpointSlice, ...]
    remote: frozenset[str]

    def fleet(self, fleet: InferenceFleet) -> _Written:
        """A fleet as a pool."""
        taken = fleet_pools(fleet, self.sites, self.pools, self.remote)
        sources = [self.pools[key] for key in taken]
        inherited = _shared(sources)
        pool = _pool(
            fleet,
            name=fleet.name,
            protocol=protocol_of(fleet, sources),
            failure_mode=fleet.spec.picker.failure_mode,
            annotations=inherited
            | ({meta.MODEL: fleet.spec.model} if fleet.spec.model else {})
            | fleet.metadata.annotations,
        )
        slices = [
            found
            for one in members_of(fleet, self.sites)
            for found in self._at(pool, one.site, _meant(self, fleet, one))
        ]
        return _Written(pool=pool, slices=tuple(slices), taken=tuple(taken))

    def imported(self, one: InferencePoolImport) -> _Written:
        """An import as a pool: the gateways of the sites that export it, and where a site has none, its endpoints."""
        source = self.pools.get(one.key)
        pool = _pool(
            one,
            name=f"{one.name}{IMPORT_MARK}",
            protocol=source.spec.app_protocol if source else "http",
            failure_mode="FailOpen",
            annotations=_shared([source] if source else []),
        )
        # The pool of the same name stands for the clusters whose Gateways are in this folder.
        sites = [name for name in one.clusters if name in self.sites]
        found = [part for name in sites for part in self._at(pool, name, [one.key] if source else [])]
        return _Written(pool=pool, slices=tuple(found))

    def _at(self, pool: InferencePool, site: str, keys: list[str]) -> Iterator[EndpointSlice]:
        """The endpoints of a site, as slices of `pool`."""
        if site in self.remote:
            yield _gateway_slice(pool, self.sites[site])
            return
        for one in self.slices:
            if one.site == site and pool_key(one) in keys:
                yield _moved(one, self.pools[pool_key(one)], pool)


def _meant(scene: _Scene, fleet: InferenceFleet, one: Member) -> list[str]:
    return pools_meant(fleet, one.pool_ref, scene.pools)


def _shared(sources: list[InferencePool]) -> dict[str, str]:
    """Annotations on which all pools agree, of those that mean the same for a fleet."""
    found = [
        {
            key: pool.metadata.annotations[key]
            for key in (meta.MODEL, meta.HEALTH_PATH)
            if key in pool.metadata.annotations
        }
        for pool in sources
    ]
    return (
        {key: value for key, value in found[0].items() if all(one.get(key) == value for one in found)} if found else {}
    )


def _pool(
    one: InferenceFleet | InferencePoolImport,
    *,
    name: str,
    protocol: str,
    failure_mode: str,
    annotations: dict[str, str],
) -> InferencePool:
    return InferencePool(
        api_version=one.api_version,
        kind=one.kind,
        metadata=meta.ObjectMeta(name=name, namespace=one.namespace, annotations=annotations),
        spec=InferencePoolSpec(
            selector=PoolSelector(match_labels={}),
            target_ports=_NO_PORT,
            app_protocol="kubernetes.io/h2c" if protocol == "kubernetes.io/h2c" else "http",
            endpoint_picker_ref=EndpointPickerRef(
                name="pointsman", failure_mode="FailClose" if failure_mode == "FailClose" else "FailOpen"
            ),
        ),
    )


def _moved(one: EndpointSlice, source: InferencePool, pool: InferencePool) -> EndpointSlice:
    """A slice of `source` as one of `pool`; what it left to its pool to say it says itself."""
    annotations = {key: value for key, value in source.metadata.annotations.items() if key in KV_ANNOTATIONS}
    metadata = structs.replace(
        one.metadata,
        namespace=pool.namespace,
        labels={**one.metadata.labels, meta.POOL: pool.name},
        annotations=annotations | one.metadata.annotations,
    )
    ports = one.ports or tuple(SlicePort(port=number) for number in slice_ports(one, source))
    return structs.replace(one, metadata=metadata, ports=ports)


def _gateway_slice(pool: InferencePool, site: Site) -> EndpointSlice:
    """A site behind a gateway: one endpoint, whose name says what it is."""
    gateway = site.spec.gateway
    assert gateway is not None
    address = canonical_ip(gateway.address) or gateway.address
    name = f"gateway-{site.name}"
    return EndpointSlice(
        api_version="discovery.k8s.io/v1",
        kind="EndpointSlice",
        metadata=meta.ObjectMeta(
            name=name, namespace=pool.namespace, labels={meta.POOL: pool.name, meta.SITE: site.name}
        ),
        address_type="IPv6" if ":" in address else "IPv4",
        ports=(SlicePort(port=gateway.port),),
        endpoints=(SliceEndpoint(addresses=(address,), target_ref=TargetRef(name=name)),),
    )


def _objectives(fleet: InferenceFleet, one: _Written, manifests: Manifests) -> Iterator[InferenceObjective]:
    """The objectives of the pools that a fleet takes its endpoints from hold in the fleet; the first of a name."""
    named: set[str] = set()
    for objective in manifests.objectives:
        if objective.pool in one.taken and objective.name not in named:
            named.add(objective.name)
            ref = structs.replace(objective.spec.pool_ref, name=fleet.name)
            yield structs.replace(objective, spec=structs.replace(objective.spec, pool_ref=ref))


def _shape(fleet: InferenceFleet) -> Shape:
    members = fleet.spec.members
    return Shape(
        tiers={one.site: one.tier for one in members} if fleet.tiered else None,
        weights={one.site: one.weight for one in members if one.weight},
    )
