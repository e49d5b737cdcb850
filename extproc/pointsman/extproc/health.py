"""The picker's names in the server's gRPC health (`pointsman.core.grpc_health`)."""

from __future__ import annotations

from typing import Final

import grpc

from pointsman.core.grpc_health import READINESS, GrpcHealth
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc.server import ALS_SERVICE, EXT_PROC_SERVICE

READY_SERVICES: Final = frozenset({READINESS, EXT_PROC_SERVICE, ALS_SERVICE})
"""What picks and hears of their outcome, and the name that the Endpoint Picker Protocol's gateways may check."""


def add_health(server: grpc.aio.Server, holder: PlanHolder, health: GrpcHealth | None = None) -> GrpcHealth:
    """Have the picker's services told as SERVING from the first Plan of `holder` until `drain()`.

    `health` is the server's health service, if it has one already; else one is made and registered on `server`, before
    it starts. The Plan must be applied to the picker before it is published.
    """
    if health is None:
        health = GrpcHealth()
        health.add_to(server)
    health.serve_from_first_plan(holder, READY_SERVICES)
    return health
