"""The picker cluster as one gateway process needs it: with its certificates where *it* keeps them.

All processes of a gateway share their resources. Where the TLS files of a process are, its bootstrap says in the node
metadata; the one resource that depends on it is made here, once for each place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, TypeVar

from pointsman.core import wire
from pointsman.xds.generate.clusters import picker_cluster
from pointsman.xds.generate.options import BuildOptions, GatewayTls
from pointsman.xds.resources import CLUSTER, Resource, ResourceSet, make_resource
from pointsman.xds.session import Snapshot

K = TypeVar("K")
V = TypeVar("V")

PLACES_KEPT: Final = 256
"""Variants remembered per server. A fleet has one or two places; a client that invents many only slows itself down."""

PATH_LIMIT: Final = 4_096
"""Longest path on Linux."""


def tls_of(metadata: Mapping[str, str]) -> GatewayTls | None:
    """Where a proxy keeps its TLS files, None when it does not say."""
    folder = metadata.get(wire.TLS_FOLDER_KEY, "")
    name = metadata.get(wire.SERVER_NAME_KEY, "")
    if not folder.startswith("/") or len(folder) > PATH_LIMIT or len(name) > PATH_LIMIT:
        return None
    return GatewayTls(folder=folder, server_name=name)


class NodeTls:
    """Snapshots for single processes."""

    def __init__(self, options: BuildOptions) -> None:
        self._options = options
        self._pickers: OrderedDict[GatewayTls, Resource] = OrderedDict()
        self._sets: OrderedDict[tuple[str, GatewayTls], tuple[ResourceSet, ResourceSet]] = OrderedDict()

    def adapt(self, gateway: str, snapshot: Snapshot, tls: GatewayTls | None) -> Snapshot:
        """The snapshot of a gateway for a process with its files at `tls`.

        What does not differ is shared; the set of clusters stays the same object for as long as the gateway's does.
        """
        shared = snapshot.resources.get(CLUSTER)
        if tls is None or self._options.picker_tls is None or shared is None or wire.PICKER_CLUSTER not in shared:
            return snapshot
        known = self._sets.get((gateway, tls))
        if known is None or known[0] is not shared:
            known = (shared, {**shared, wire.PICKER_CLUSTER: self._picker(tls)})
        _keep(self._sets, (gateway, tls), known)
        return Snapshot(generation=snapshot.generation, resources={**snapshot.resources, CLUSTER: known[1]})

    def _picker(self, tls: GatewayTls) -> Resource:
        found = self._pickers.get(tls)
        if found is None:
            found = make_resource(CLUSTER, wire.PICKER_CLUSTER, picker_cluster(replace(self._options, picker_tls=tls)))
        _keep(self._pickers, tls, found)
        return found


def _keep(memory: OrderedDict[K, V], key: K, value: V) -> None:
    """Remember the last `PLACES_KEPT`."""
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > PLACES_KEPT:
        memory.popitem(last=False)
