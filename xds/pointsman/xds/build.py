"""Gateway → resources, with a cache that makes a build cost only what changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from pointsman.core import wire
from pointsman.core.model import Gateway, Listener, Pool, Site, SiteGroup
from pointsman.xds.generate.clusters import gateways_with_tls, picker_cluster, pool_cluster
from pointsman.xds.generate.endpoints import GroupPart, group_part, load_assignment
from pointsman.xds.generate.listeners import listener_name, listener_resource
from pointsman.xds.generate.options import BuildOptions
from pointsman.xds.generate.routes import RouteParts, clusters_of, route_config, route_config_name, route_parts
from pointsman.xds.generate.tracing import collector_cluster
from pointsman.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, Resources, by_name, make_resource

__all__ = ["BuildCache", "BuildOptions", "build_resources"]

T = TypeVar("T")


class BuildCache:
    """What the previous build made, by what it was made from.

    Parts of the Plan are compared by value, with identity as the short cut, so that a Plan that shares what did not
    change costs next to nothing. Entries that a build did not use are forgotten at its end: the cache is as large as
    one gateway's resources.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, tuple[object, object]] = {}
        self._used: dict[Hashable, tuple[object, object]] = {}
        self.misses = 0

    def get(self, key: Hashable, inputs: object, make: Callable[[], T]) -> T:
        """The value made from equal `inputs` before, else a new one. `key` fixes the type of the value."""
        entry = self._entries.get(key)
        if entry is None or (entry[0] is not inputs and entry[0] != inputs):
            self.misses += 1
            entry = (inputs, make())
        self._used[key] = entry
        value: T = entry[1]  # type: ignore[assignment]  # an earlier `make` for this key put it there
        return value

    def previous(self, key: Hashable) -> object:
        """What the previous build made for this key, whatever from; None if it made nothing."""
        entry = self._entries.get(key)
        return None if entry is None else entry[1]

    def finish(self) -> None:
        """End a build: forget what it did not use."""
        self._entries, self._used = self._used, {}


def build_resources(
    gateway: Gateway, options: BuildOptions, *, sites: Iterable[Site] = (), cache: BuildCache | None = None
) -> Resources:
    """All resources of one gateway: type URL → name → resource, sorted by name.

    `sites` give the localities their region and zone (a site that is not listed is its own region). With a `cache`
    (one per gateway) the result is the same and costs only what changed since the last call.
    """
    memory = cache if cache is not None else BuildCache()
    known = {site.name: site for site in sites}
    own = memory.get((CLUSTER, None), options, partial(_own_clusters, options))
    pools = gateway.pools
    listeners = gateway.listeners
    made = {
        CLUSTER: (*own, *(_cluster(pool, options, memory) for pool in pools)),
        ENDPOINT: tuple(_assignment(pool, known, memory) for pool in pools),
        LISTENER: tuple(_listener(gateway, listener, options, memory) for listener in listeners),
        ROUTE: tuple(_routes(gateway, listener, options, memory) for listener in listeners),
    }
    # A type without a change keeps its dict, too: streams see by identity that there is nothing to do.
    resources = {
        type_url: memory.get(("all", type_url), members, partial(by_name, members))
        for type_url, members in made.items()
    }
    memory.finish()
    return resources


def _own_clusters(options: BuildOptions) -> tuple[Resource, ...]:
    """What a gateway reaches beside its pools."""
    picker = make_resource(CLUSTER, wire.PICKER_CLUSTER, picker_cluster(options))
    if options.tracing is None:
        return (picker,)
    collector = collector_cluster(options, options.tracing)
    return (picker, make_resource(CLUSTER, wire.COLLECTOR_CLUSTER, collector))


def _cluster(pool: Pool, options: BuildOptions, memory: BuildCache) -> Resource:
    name = pool.cluster_name
    inputs = (
        pool.app_protocol,
        pool.health_path,
        pool.health,
        any(group.hop for group in pool.groups),
        gateways_with_tls(pool),
        options,
    )  # no endpoints: their changes leave the cluster alone
    return memory.get(
        (CLUSTER, name),
        inputs,
        lambda: make_resource(CLUSTER, name, pool_cluster(pool, options), [(ENDPOINT, name)]),
    )


@dataclass(frozen=True, slots=True)
class _Assembled(Generic[T]):
    """A resource and the parts it was put together from, for the next time."""

    resource: Resource
    parts: T


def _assignment(pool: Pool, sites: dict[str, Site], memory: BuildCache) -> Resource:
    name = pool.cluster_name
    key = (ENDPOINT, name)
    inputs = (pool.groups, [sites.get(group.site) for group in pool.groups])

    def make() -> _Assembled[dict[str, GroupPart]]:
        last = memory.previous(key)
        before: dict[str, GroupPart] = last.parts if isinstance(last, _Assembled) else {}
        parts: dict[str, GroupPart] = {}

        def encode(group: SiteGroup, priority: int) -> GroupPart:
            parts[group.site] = group_part(group, priority, sites, before.get(group.site))
            return parts[group.site]

        return _Assembled(make_resource(ENDPOINT, name, load_assignment(pool, encode)), parts)

    return memory.get(key, inputs, make).resource


def _listener(gateway: Gateway, listener: Listener, options: BuildOptions, memory: BuildCache) -> Resource:
    name = listener_name(gateway, listener)
    own = [wire.PICKER_CLUSTER] if options.tracing is None else [wire.PICKER_CLUSTER, wire.COLLECTOR_CLUSTER]
    terms = (gateway.receive_timeout_ms, gateway.trusted_hops)
    inputs = (listener.address, listener.port, terms, options)  # no rules: a weight change must never touch a listener
    return memory.get(
        (LISTENER, name),
        inputs,
        lambda: make_resource(
            LISTENER,
            name,
            listener_resource(gateway, listener, options),
            [(ROUTE, route_config_name(gateway, listener)), *((CLUSTER, name) for name in own)],
        ),
    )


def _routes(gateway: Gateway, listener: Listener, options: BuildOptions, memory: BuildCache) -> Resource:
    name = route_config_name(gateway, listener)
    key = (ROUTE, name)
    inputs = (listener.hosts, tuple((pool.name, pool.failure_mode) for pool in gateway.pools), options)

    def make() -> _Assembled[RouteParts]:
        last = memory.previous(key)
        parts = route_parts(listener, gateway, options, last.parts if isinstance(last, _Assembled) else {})
        references = [(CLUSTER, cluster) for cluster in clusters_of(listener)]
        return _Assembled(make_resource(ROUTE, name, route_config(gateway, listener, parts), references), parts)

    return memory.get(key, inputs, make).resource
