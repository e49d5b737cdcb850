"""The control plane's names in the server's gRPC health (`pointsman.core.grpc_health`)."""

from __future__ import annotations

from typing import Final

import grpc

from pointsman.core.grpc_health import GrpcHealth
from pointsman.core.snapshot import PlanHolder
from pointsman.xds.server import AGGREGATED, SERVICES

DISCOVERY_SERVICES: Final = (AGGREGATED[0], *(service for service, _ in SERVICES.values()))


def add_health(server: grpc.aio.Server, holder: PlanHolder, health: GrpcHealth | None = None) -> GrpcHealth:
    """Have the discovery services told as SERVING from the first Plan of `holder` until `drain()`.

    A control plane without a Plan answers nobody, so gateways with two of them had better ask the other. `health` is
    the server's health service, if it has one already; else one is made and registered on `server`, before it starts.
    """
    if health is None:
        health = GrpcHealth()
        health.add_to(server)
    health.serve_from_first_plan(holder, DISCOVERY_SERVICES)
    return health
