"""Rules across InferencePools, EndpointSlices and Sites, and for the labels and annotations that are ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pointsman.core.config import meta
from pointsman.core.config.document import Path, shown
from pointsman.core.config.index import Index, Item, suggest_key
from pointsman.core.config.meta import Resource
from pointsman.core.config.pool_kinds import EndpointSlice, InferencePool
from pointsman.core.config.schema import suggest
from pointsman.core.config.syntax import canonical_ip
from pointsman.core.errors import Problem

SERVICE_LABEL = "kubernetes.io/service-name"
"""Slices of a Service carry it; without our labels they are not meant for us."""


def drop_service_slices(index: Index) -> list[Item[EndpointSlice]]:
    """Take the slices of ordinary Services out of the index and return them."""
    services = [
        item
        for item in index.slices.values()
        if SERVICE_LABEL in item.object.metadata.labels and not item.object.pool and not item.object.site
    ]
    for item in services:
        del index.slices[item.object.key]
    return services


def pool_key(item: EndpointSlice) -> str:
    """`namespace/name` of the pool that the slice belongs to."""
    return f"{item.namespace}/{item.pool}"


def slice_ports(item: EndpointSlice, pool: InferencePool) -> tuple[int, ...]:
    """The ports of each address of the slice."""
    return tuple(p.port for p in item.ports) or tuple(p.number for p in pool.spec.target_ports)


def check_pools(index: Index) -> Iterator[Problem]:
    """Everything that is wrong between pools, slices and sites."""
    taken: dict[tuple[str, str, int], str] = {}
    for item in index.slices.values():
        yield from _slice_labels(index, item)
        yield from _endpoints_once(index, item, taken)
    for objective in index.objectives.values():
        key = objective.object.pool
        if key not in index.pools and not index.is_broken("InferencePool", key):
            mend = suggest_key(key, index.pools, "InferencePool")
            yield objective.problem(("spec", "poolRef", "name"), f"no InferencePool {shown(key)}", mend)
    for site in index.sites.values():
        for other in site.object.spec.rtt_ms:
            if other not in index.sites and not index.is_broken("Site", other):
                mend = suggest_key(other, index.sites.keys() - {site.object.name}, "other Site")
                yield site.problem(("spec", "rttMs", other), f"no Site {shown(other)}", mend)


def check_own_names(items: Iterable[Item[Resource]]) -> Iterator[Problem]:
    """Misspelt labels and annotations under our own prefix would be ignored without a word."""
    for item in items:
        metadata = item.object.metadata
        for field, given, known in (
            ("annotations", metadata.annotations, item.object.own_annotations),
            ("labels", metadata.labels, item.object.own_labels),
        ):
            for name in given:
                if name.startswith(meta.OWN_PREFIX) and name not in known:
                    what = f"{item.object.kind} has no {field.removesuffix('s')} of that name"
                    yield item.problem(("metadata", field, name), what, suggest(name, known) or "remove it")
        if metadata.namespace and item.object.cluster_scoped:
            yield item.problem(("metadata", "namespace"), f"{item.object.kind} has no namespace", "remove it")


def _slice_labels(index: Index, item: Item[EndpointSlice]) -> Iterator[Problem]:
    labels: Path = ("metadata", "labels")
    for label, purpose in ((meta.POOL, "InferencePool"), (meta.SITE, "Site")):
        if not item.object.metadata.labels.get(label):
            yield item.problem((*labels, label), "is missing", f"expected the name of the endpoints' {purpose}")
    key, site = pool_key(item.object), item.object.site
    if item.object.pool and key not in index.pools and not index.is_broken("InferencePool", key):
        mend = suggest_key(key, index.pools, "InferencePool")
        yield item.problem((*labels, meta.POOL), f"no InferencePool {shown(key)}", mend)
    if site and site not in index.sites and not index.is_broken("Site", site):
        yield item.problem((*labels, meta.SITE), f"no Site {shown(site)}", suggest_key(site, index.sites, "Site"))


def _endpoints_once(
    index: Index, item: Item[EndpointSlice], taken: dict[tuple[str, str, int], str]
) -> Iterator[Problem]:
    key = pool_key(item.object)
    pool = index.pools.get(key)
    if pool is None:
        return
    for position, endpoint in enumerate(item.object.endpoints):
        address = canonical_ip(endpoint.addresses[0]) or ""
        path: Path = ("endpoints", position, "addresses", 0)
        for port in slice_ports(item.object, pool.object):
            other = taken.get((key, address, port))
            if other is not None:
                what = f"{address} port {port} is in pool {key} twice"
                yield item.problem(path, what, f"the other is at {other}")
            taken.setdefault((key, address, port), item.place(path))
