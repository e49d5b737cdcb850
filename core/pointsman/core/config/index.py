"""All objects of a folder with the places they came from, for rules that reach across manifests."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pointsman.core.config.document import Document, Path, shown
from pointsman.core.config.failover_kinds import FailoverPolicy
from pointsman.core.config.fleet_kinds import InferenceFleet
from pointsman.core.config.gateway_kinds import Gateway, GatewayClass, ReferenceGrant
from pointsman.core.config.import_kinds import InferencePoolImport
from pointsman.core.config.meta import Resource
from pointsman.core.config.objective_kinds import InferenceObjective
from pointsman.core.config.operation_kinds import TrafficOperation
from pointsman.core.config.policy_kinds import RolloutPolicy
from pointsman.core.config.pool_kinds import EndpointSlice, InferencePool, Site
from pointsman.core.config.rewrite_kinds import InferenceModelRewrite
from pointsman.core.config.route_kinds import GRPCRoute, HTTPRoute
from pointsman.core.errors import Problem

R = TypeVar("R", bound=Resource)


@dataclass(frozen=True, slots=True)
class Item(Generic[R]):
    """An object and the manifest it was read from."""

    object: R
    document: Document

    def problem(self, path: Path, what: str, mend: str = "") -> Problem:
        """A problem with a field of the object."""
        return self.document.problem(path, what, mend)

    def place(self, path: Path = ()) -> str:
        """`file:line` of a field."""
        return self.document.place(path)


@dataclass(slots=True)
class Index:
    """Objects by key, in the order of their keys.

    `broken` holds (kind, key) of manifests that were refused: references to them are not reported a second time.
    """

    classes: dict[str, Item[GatewayClass]] = field(default_factory=dict)
    gateways: dict[str, Item[Gateway]] = field(default_factory=dict)
    http_routes: dict[str, Item[HTTPRoute]] = field(default_factory=dict)
    grpc_routes: dict[str, Item[GRPCRoute]] = field(default_factory=dict)
    grants: dict[str, Item[ReferenceGrant]] = field(default_factory=dict)
    pools: dict[str, Item[InferencePool]] = field(default_factory=dict)
    slices: dict[str, Item[EndpointSlice]] = field(default_factory=dict)
    sites: dict[str, Item[Site]] = field(default_factory=dict)
    rollout_policies: dict[str, Item[RolloutPolicy]] = field(default_factory=dict)
    objectives: dict[str, Item[InferenceObjective]] = field(default_factory=dict)
    rewrites: dict[str, Item[InferenceModelRewrite]] = field(default_factory=dict)
    failover_policies: dict[str, Item[FailoverPolicy]] = field(default_factory=dict)
    operations: dict[str, Item[TrafficOperation]] = field(default_factory=dict)
    fleets: dict[str, Item[InferenceFleet]] = field(default_factory=dict)
    imports: dict[str, Item[InferencePoolImport]] = field(default_factory=dict)
    broken: set[tuple[str, str]] = field(default_factory=set)
    foreign_gateways: set[str] = field(default_factory=set)

    def routes(self) -> list[Item[HTTPRoute] | Item[GRPCRoute]]:
        """The routes of both kinds."""
        return [*self.http_routes.values(), *self.grpc_routes.values()]

    def is_broken(self, kind: str, key: str) -> bool:
        """Was a manifest of that kind and key refused?"""
        return (kind, key) in self.broken


def build_index(items: Iterable[Item[Any]], broken: set[tuple[str, str]], problems: list[Problem]) -> Index:
    """Sort the objects into an index; the second of two with the same kind and key is a problem."""
    index = Index(broken=broken)
    tables: dict[type[Resource], dict[str, Any]] = {
        GatewayClass: index.classes,
        Gateway: index.gateways,
        HTTPRoute: index.http_routes,
        GRPCRoute: index.grpc_routes,
        ReferenceGrant: index.grants,
        InferencePool: index.pools,
        EndpointSlice: index.slices,
        Site: index.sites,
        RolloutPolicy: index.rollout_policies,
        InferenceObjective: index.objectives,
        InferenceModelRewrite: index.rewrites,
        FailoverPolicy: index.failover_policies,
        TrafficOperation: index.operations,
        InferenceFleet: index.fleets,
        InferencePoolImport: index.imports,
    }
    for item in sorted(items, key=lambda item: item.object.key):
        _put(tables[type(item.object)], item, problems)
    return index


def _put(table: dict[str, Item[R]], item: Item[R], problems: list[Problem]) -> None:
    key = item.object.key
    if key in table:
        what = f"{item.object.kind} {key} exists twice"
        problems.append(item.problem(("metadata", "name"), what, f"the other is at {table[key].place()}"))
    else:
        table[key] = item


def suggest_key(key: str, known: Iterable[str], kind: str) -> str:
    """Which existing object of that kind may have been meant."""
    names = sorted(known)
    if close := difflib.get_close_matches(key, names, n=1, cutoff=0.6):
        return f"did you mean {shown(close[0])}?"
    if not names:
        return f"there is no valid {kind} in the folder"
    few = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"there is {few}"
