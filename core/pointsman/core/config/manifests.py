"""The validated content of a configuration folder."""

from __future__ import annotations

from dataclasses import dataclass

from pointsman.core.config.failover_kinds import FailoverPolicy
from pointsman.core.config.fleet_kinds import InferenceFleet
from pointsman.core.config.gateway_kinds import Gateway, GatewayClass, ReferenceGrant
from pointsman.core.config.import_kinds import InferencePoolImport
from pointsman.core.config.objective_kinds import InferenceObjective
from pointsman.core.config.operation_kinds import TrafficOperation
from pointsman.core.config.policy_kinds import RolloutPolicy
from pointsman.core.config.pool_kinds import EndpointSlice, InferencePool, Site
from pointsman.core.config.rewrite_kinds import InferenceModelRewrite
from pointsman.core.config.route_kinds import GRPCRoute, HTTPRoute


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Ignored:
    """A manifest that was left out, and why: it is somebody else's."""

    file: str
    line: int
    kind: str  # "apps/v1 Deployment"
    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """All objects of a folder, each kind sorted by namespace and name. Every reference between them holds.

    `gateways` are those of our own classes; routes may have parents among the others, which are in `ignored`.
    Equal folders make equal Manifests, whatever their files are called, but for `ignored`.
    """

    gateway_classes: tuple[GatewayClass, ...] = ()
    gateways: tuple[Gateway, ...] = ()
    http_routes: tuple[HTTPRoute, ...] = ()
    grpc_routes: tuple[GRPCRoute, ...] = ()
    reference_grants: tuple[ReferenceGrant, ...] = ()
    pools: tuple[InferencePool, ...] = ()
    endpoint_slices: tuple[EndpointSlice, ...] = ()
    sites: tuple[Site, ...] = ()
    rollout_policies: tuple[RolloutPolicy, ...] = ()
    failover_policies: tuple[FailoverPolicy, ...] = ()
    operations: tuple[TrafficOperation, ...] = ()
    objectives: tuple[InferenceObjective, ...] = ()
    rewrites: tuple[InferenceModelRewrite, ...] = ()
    fleets: tuple[InferenceFleet, ...] = ()
    imports: tuple[InferencePoolImport, ...] = ()
    ignored: tuple[Ignored, ...] = ()

    def routes(self) -> tuple[HTTPRoute | GRPCRoute, ...]:
        """The routes of both kinds."""
        return (*self.http_routes, *self.grpc_routes)
