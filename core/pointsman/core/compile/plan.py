"""Manifests to the Plan. Pure: equal manifests make equal plans."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pointsman.core.arm_names import target_of, whole_pool
from pointsman.core.compile.arms import layer_of, vanished_rules
from pointsman.core.compile.assignments import assignments_of
from pointsman.core.compile.fleets import Expanded, Shape, expand
from pointsman.core.compile.hosts import virtual_hosts
from pointsman.core.compile.loop_guard import guard
from pointsman.core.compile.options_failover import leading_policies, site_tiers
from pointsman.core.compile.options_health import retry_policies, with_retries
from pointsman.core.compile.pools import compile_pool, compile_site, site_order
from pointsman.core.compile.precedence import RankedRule
from pointsman.core.compile.residency import DIRECT, base_pool, bind, narrow, places_of, required_by
from pointsman.core.compile.rewrites import as_arm, rewrites_of
from pointsman.core.compile.rules import CompiledRoute, compile_route
from pointsman.core.config.attachment import listeners_of
from pointsman.core.config.check_pools import pool_key
from pointsman.core.config.gateway_annotations import receive_timeout_ms, trusted_hops
from pointsman.core.config.gateway_kinds import Gateway as GatewayManifest
from pointsman.core.config.manifests import Manifests
from pointsman.core.config.pool_kinds import EndpointSlice
from pointsman.core.config.route_annotations import route_terms
from pointsman.core.config.route_kinds import Route
from pointsman.core.model import Endpoint, Gateway, Listener, Plan, Pool, Split
from pointsman.core.overlay import EMPTY, Overlay

Compiled = dict[str, CompiledRoute]
"""Compiled routes by "HTTPRoute/namespace/name"."""


def compile_plan(manifests: Manifests, overlay: Overlay = EMPTY) -> Plan:
    """The whole fleet as the manifests describe it, with what was decided at run time laid over it.

    `Plan.pools` holds every pool with all sites at priority 0; each gateway has the pools its rules name, arms of
    weight 0 included, with the priorities seen from its own site.
    """
    expanded = expand(manifests)
    manifests = expanded.manifests
    routes = manifests.routes()
    pools = _pools({pool.key for pool in manifests.pools}, expanded, site_order("", manifests.sites), overlay)
    assignments = assignments_of(manifests.rollout_policies)
    retries = retry_policies(manifests)
    sites = tuple(compile_site(site, expanded.remote) for site in manifests.sites)
    places = places_of(pools, sites)
    terms = {f"{route.kind}/{route.key}": route_terms(route.metadata.annotations) for route in routes}

    def compiled_at(site: str) -> Compiled:
        layer = layer_of(pools, overlay.at(site), assignments)
        found = {f"{route.kind}/{route.key}": with_retries(compile_route(route, layer), retries) for route in routes}
        return {
            name: replace(one, ranked=guard(bind(one.ranked, terms[name], places), places))
            for name, one in found.items()
        }

    compiled = compiled_at("")
    special = sorted({gateway.site for gateway in manifests.gateways if overlay.at(gateway.site) is not overlay})
    by_site = {site: compiled_at(site) for site in special}
    splits = sorted((split for one in compiled.values() for split in one.splits), key=lambda split: split.rule)
    notes = [note for one in compiled.values() for note in one.notes]
    return Plan(
        gateways=tuple(
            _gateway(gateway, expanded, routes, _ranked(by_site.get(gateway.site, compiled)), overlay)
            for gateway in manifests.gateways
        ),
        sites=sites,
        pools=pools,
        splits=tuple(_with_sites(split, by_site) for split in splits),
        notes=(*notes, *vanished_rules(overlay, (split.rule for split in splits))),
    )


def _ranked(compiled: Compiled) -> dict[str, tuple[RankedRule, ...]]:
    return {name: one.ranked for name, one in compiled.items()}


def _with_sites(split: Split, by_site: dict[str, Compiled]) -> Split:
    """The split with the sites whose gateways get other weights."""
    route = split.rule.rpartition("/")[0]
    found = {
        site: next(one.arms for one in compiled[route].splits if one.rule == split.rule)
        for site, compiled in by_site.items()
    }
    return replace(split, sites=tuple((site, arms) for site, arms in found.items() if arms != split.arms))


def _gateway(
    gateway: GatewayManifest,
    expanded: Expanded,
    routes: Iterable[Route],
    ranked: dict[str, tuple[RankedRule, ...]],
    overlay: Overlay,
) -> Gateway:
    ours = [route for route in routes if listeners_of(gateway, route)]
    used = {pool for route in ours for one in ranked[f"{route.kind}/{route.key}"] for pool in one.rule.pools()}
    return Gateway(
        name=gateway.key,
        site=gateway.site,
        listeners=_listeners(gateway, ours, ranked),
        pools=_pools(used, expanded, site_order(gateway.site, expanded.manifests.sites), overlay),
        receive_timeout_ms=receive_timeout_ms(gateway.metadata.annotations),
        trusted_hops=trusted_hops(gateway.metadata.annotations),
    )


def _listeners(
    gateway: GatewayManifest, routes: list[Route], ranked: dict[str, tuple[RankedRule, ...]]
) -> tuple[Listener, ...]:
    """One listener for each address and port, named by them: the name outlives changes of hosts and routes."""
    found = []
    for port in sorted({listener.port for listener in gateway.spec.listeners}):
        hosts = virtual_hosts(gateway, port, routes, ranked)
        for address in sorted(gateway.addresses):
            place = Endpoint(name="", address=address, port=port, site="").key
            found.append(Listener(name=place, address=address, port=port, hosts=hosts))
    return tuple(sorted(found, key=lambda listener: listener.name))


def _pools(names: set[str], expanded: Expanded, order: dict[str, int], overlay: Overlay) -> tuple[Pool, ...]:
    manifests, shapes = expanded.manifests, expanded.shapes
    sites = {site.name: site for site in manifests.sites}
    slices: dict[str, list[EndpointSlice]] = {}
    for one in manifests.endpoint_slices:
        slices.setdefault(pool_key(one), []).append(one)
    policies = leading_policies(manifests)
    tiers = {name: site_tiers(policy, manifests.sites) for name, policy in policies.items()}
    rewrites = rewrites_of(manifests.rewrites)
    whole = {whole_pool(name) for name in names}
    compiled = {
        pool.key: compile_pool(
            pool,
            slices.get(pool.key, []),
            sites,
            order,
            overlay=overlay,
            tiers=tiers.get(pool.key),
            objectives=manifests.objectives,
            policy=policies.get(pool.key),
            shape=shapes.get(pool.key, Shape()),
            remote=expanded.remote,
            rewrites=rewrites.get(pool.key, ()),
        )
        for pool in manifests.pools
        if pool.key in whole
    }
    arms = {base_pool(name) for name in names} - compiled.keys()
    compiled |= {name: as_arm(compiled[whole_pool(name)], target_of(name)) for name in arms}
    tags = {
        site.name: frozenset(site.spec.jurisdictions) | (frozenset() if site.name in expanded.remote else {DIRECT})
        for site in manifests.sites
    }
    narrowed = {name: narrow(compiled[base_pool(name)], required_by(name), tags) for name in names - compiled.keys()}
    return tuple(sorted((*(compiled[n] for n in names & compiled.keys()), *narrowed.values()), key=lambda p: p.name))
