"""Sites, pools and their endpoints, with priorities as seen from a site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from pointsman.core.compile.fleets import Shape
from pointsman.core.compile.options_health import health_policy, probe_path
from pointsman.core.config import meta, pool_annotations
from pointsman.core.config.check_pools import SERVICE_LABEL, slice_ports
from pointsman.core.config.failover_kinds import FailoverPolicy
from pointsman.core.config.objective_kinds import InferenceObjective
from pointsman.core.config.pool_kinds import EndpointConditions, EndpointSlice, InferencePool, SliceEndpoint
from pointsman.core.config.pool_kinds import Site as SiteManifest
from pointsman.core.config.syntax import canonical_ip
from pointsman.core.model import (
    TOTAL_WEIGHT,
    AppProtocol,
    Endpoint,
    FailureMode,
    Health,
    Hop,
    Locality,
    ModelRewrite,
    Objective,
    Pool,
    Site,
    SiteGroup,
    UpstreamTls,
)
from pointsman.core.overlay import EMPTY, Overlay, SiteOverlay

ZONE_LABEL = "topology.kubernetes.io/zone"
MAX_PORT = 65535
_PLUMBING = frozenset({meta.POOL, meta.SITE, SERVICE_LABEL, "endpointslice.kubernetes.io/managed-by"})
"""Labels of a slice that say nothing about its endpoints."""
_NOTHING = SiteOverlay()
_NO_SHAPE = Shape()


def compile_site(manifest: SiteManifest, remote: frozenset[str] = frozenset()) -> Site:
    """A Site as the plan has it; `remote` are those that are reached through their gateways."""
    spec = manifest.spec
    return Site(
        name=manifest.name,
        locality=Locality(region=spec.locality.region, zone=spec.locality.zone, sub_zone=spec.locality.sub_zone),
        labels=tuple(sorted(manifest.metadata.labels.items())),
        jurisdictions=frozenset(spec.jurisdictions),
        usd_per_gpu_hour=spec.cost.usd_per_gpu_hour,
        max_concurrent=spec.capacity.max_concurrent,
        draining=_draining(manifest),
        rtt_ms=tuple(sorted(spec.rtt_ms.items())),
        remote=manifest.name in remote,
        metrics_url=spec.metrics.url if spec.metrics is not None and manifest.name in remote else "",
        metrics_token_file=spec.metrics.token_file if spec.metrics is not None and manifest.name in remote else "",
    )


def site_order(site: str, sites: Iterable[SiteManifest]) -> dict[str, int]:
    """Rank of every site as seen from `site`: itself 0, then by round-trip time, then those without one, by name.

    A time that only the other end declares holds in both directions. Without a site all ranks are 0: nobody is near.
    """
    known = {one.name: one for one in sites}
    if site not in known:
        return dict.fromkeys(known, 0)

    def distance(other: str) -> tuple[bool, float, str]:
        rtt_ms = known[site].spec.rtt_ms.get(other, known[other].spec.rtt_ms.get(site))
        return rtt_ms is None, rtt_ms or 0.0, other

    others = sorted((name for name in known if name != site), key=distance)
    return {name: rank for rank, name in enumerate([site, *others])}


def compile_pool(
    manifest: InferencePool,
    slices: Iterable[EndpointSlice],
    sites: Mapping[str, SiteManifest],
    order: Mapping[str, int],
    *,
    overlay: Overlay = EMPTY,
    tiers: Mapping[str, int] | None = None,
    objectives: Iterable[InferenceObjective] = (),
    policy: FailoverPolicy | None = None,
    shape: Shape = _NO_SHAPE,
    remote: frozenset[str] = frozenset(),
    rewrites: tuple[ModelRewrite, ...] = (),
) -> Pool:
    """A pool with the endpoints of its `slices` grouped by site; `order` gives the sites' ranks, `tiers` their tiers,
    `policy` leads the pool, `shape` is that of a fleet, `remote` are the sites that are reached through their gateways,
    `rewrites` what its requests are renamed to.

    Sites that were found unfit to serve come last, then counts the tier, then whether a site still ramps, then its
    rank. Priorities have no gaps (Envoy wants it): a site without endpoints of this pool is passed over.
    """
    by_site: dict[str, list[Endpoint]] = {}
    tiers = tiers or shape.tiers or {}
    over = {site: overlay.site(manifest.key, site) or _NOTHING for site in sites} if overlay.sites else {}
    for one in slices:
        drains = _draining(sites[one.site]) or over.get(one.site, _NOTHING).draining
        found = _endpoints(one, manifest, site_drains=drains, drained=overlay.drained)
        by_site.setdefault(one.site, []).extend(found)

    def place(site: str) -> tuple[bool, int, bool, int]:
        entry = over.get(site, _NOTHING)
        return entry.last, tiers.get(site, 0), entry.share < TOTAL_WEIGHT, order[site]

    filled = sorted((place(site), site) for site, endpoints in by_site.items() if endpoints)
    ranks = {rank: priority for priority, rank in enumerate(sorted({rank for rank, _ in filled}))}
    ref = manifest.spec.endpoint_picker_ref
    return Pool(
        name=manifest.key,
        app_protocol=AppProtocol(manifest.spec.app_protocol),
        failure_mode=FailureMode(ref.failure_mode) if ref else FailureMode.FAIL_OPEN,
        groups=tuple(
            _group(
                ranks[rank],
                sites[site],
                by_site[site],
                tier=rank[1],
                weight=shape.weights.get(site, 0),
                over=over.get(site, _NOTHING),
                hop=_hop(sites[site]) if site in remote else None,
            )
            for rank, site in filled
        ),
        health_path=probe_path(policy) or manifest.metadata.annotations.get(meta.HEALTH_PATH, "/health"),
        health=health_policy(policy),
        model=manifest.metadata.annotations.get(meta.MODEL, ""),
        objectives=tuple(_objective(one) for one in objectives if one.pool == manifest.key),
        shed_after_ms=pool_annotations.milliseconds(pool_annotations.SHED_AFTER, manifest.metadata.annotations),
        rewrites=rewrites,
    )


def _group(
    priority: int,
    site: SiteManifest,
    endpoints: list[Endpoint],
    *,
    tier: int,
    weight: int,
    over: SiteOverlay,
    hop: Hop | None,
) -> SiteGroup:
    """Between sites of one priority every endpoint counts the same, unless a fleet says a `weight` or the sites say
    their capacity."""
    return SiteGroup(
        site=site.name,
        priority=priority,
        weight=weight or site.spec.capacity.weight or len(endpoints),
        endpoints=tuple(sorted(endpoints, key=lambda endpoint: (endpoint.name, endpoint.key))),
        tier=tier,
        share=over.share,
        spill=over.spill,
        max_concurrent=over.max_concurrent,
        hop=hop,
    )


def _hop(site: SiteManifest) -> Hop | None:
    gateway = site.spec.gateway
    if gateway is None:
        return None
    if gateway.tls is None:
        return Hop(probed=gateway.probe)
    tls = UpstreamTls(
        server_name=gateway.tls.sni,
        ca_file=gateway.tls.ca_file,
        cert_file=gateway.tls.cert_file,
        key_file=gateway.tls.key_file,
    )
    return Hop(tls=tls, probed=gateway.probe)


def _endpoints(
    manifest: EndpointSlice, pool: InferencePool, *, site_drains: bool, drained: frozenset[str]
) -> Iterable[Endpoint]:
    ports = slice_ports(manifest, pool)
    for index, one in enumerate(manifest.endpoints):
        name = one.target_ref.name or one.hostname or f"{manifest.name}-{index}"
        for rank, port in enumerate(ports):
            endpoint = Endpoint(
                name=name if len(ports) == 1 else f"{name}-{port}",
                address=canonical_ip(one.addresses[0]) or one.addresses[0],
                port=port,
                site=manifest.site,
                health=_health(one.conditions, drains=site_drains),
                labels=_labels(manifest, one),
                kv_events_port=_kv_port(pool_annotations.KV_EVENTS_PORT, manifest, pool, rank),
                kv_replay_port=_kv_port(pool_annotations.KV_REPLAY_PORT, manifest, pool, rank),
            )
            if endpoint.health is Health.UNKNOWN and endpoint.key in drained:
                endpoint = replace(endpoint, health=Health.DRAINING)
            yield endpoint


def _kv_port(name: str, manifest: EndpointSlice, pool: InferencePool, rank: int) -> int:
    first = pool_annotations.port(name, manifest.metadata.annotations, pool.metadata.annotations)
    return first + rank if 0 < first <= MAX_PORT - rank else 0


def _objective(manifest: InferenceObjective) -> Objective:
    return Objective(
        name=manifest.name,
        priority=manifest.spec.priority,
        ttft_ms=pool_annotations.milliseconds(pool_annotations.TTFT, manifest.metadata.annotations),
    )


def _health(conditions: EndpointConditions, *, drains: bool) -> Health:
    """Terminating pods are not ready by definition, but serve what they have; `serving: false` says they don't."""
    if conditions.terminating:
        return Health.UNHEALTHY if conditions.serving is False else Health.DRAINING
    if conditions.ready is False:
        return Health.UNHEALTHY
    return Health.DRAINING if drains else Health.UNKNOWN


def _labels(manifest: EndpointSlice, endpoint: SliceEndpoint) -> tuple[tuple[str, str], ...]:
    labels = {key: value for key, value in manifest.metadata.labels.items() if key not in _PLUMBING}
    if endpoint.zone:
        labels[ZONE_LABEL] = endpoint.zone
    return tuple(sorted(labels.items()))


def _draining(site: SiteManifest) -> bool:
    return site.spec.state in {"Draining", "Evacuated"}
