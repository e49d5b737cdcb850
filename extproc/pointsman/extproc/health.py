"""gRPC health (`grpc.health.v1`) of the picker, told honestly.

    service                                       SERVING
    liveness                                      while this process answers at all
    readiness, "", the services that Envoy calls  from the first Plan until the picker drains

A proxy that checks `envoy.service.ext_proc.v3.ExternalProcessor` thus asks no picker that knows no pool yet, and leaves
one that is about to stop before it stops. Names follow the Endpoint Picker Protocol's reference implementations.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2

from pointsman.core.snapshot import PlanHolder
from pointsman.extproc.server import ALS_SERVICE, EXT_PROC_SERVICE

HEALTH_SERVICE: Final = "grpc.health.v1.Health"
LIVENESS: Final = "liveness"
READINESS: Final = "readiness"

_READY_SERVICES: Final = frozenset({"", READINESS, EXT_PROC_SERVICE, ALS_SERVICE})

Context = grpc.aio.ServicerContext[Any, Any]
_Response = health_pb2.HealthCheckResponse
_Request = health_pb2.HealthCheckRequest


class PickerHealth:
    """What the health service says; owned by one event loop."""

    def __init__(self) -> None:
        self._planned = False
        self._draining = False
        self._changed = asyncio.Event()

    @property
    def ready(self) -> bool:
        """True when picks can be answered and will be for a while."""
        return self._planned and not self._draining

    def planned(self) -> None:
        """The picker follows a Plan."""
        self._planned = True
        self._tell()

    def drain(self) -> None:
        """The picker is about to stop: gateways shall ask another one, or balance by themselves."""
        self._draining = True
        self._tell()

    def status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        """The status of one service; `SERVICE_UNKNOWN` for a name that is not ours."""
        if service == LIVENESS:
            return _Response.SERVING
        if service in _READY_SERVICES:
            return _Response.SERVING if self.ready else _Response.NOT_SERVING
        return _Response.SERVICE_UNKNOWN

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """One answer; status NOT_FOUND for a name that is not ours."""
        status = self.status(request.service)
        if status == _Response.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}")
        return _Response(status=status)

    async def watch(
        self, request: health_pb2.HealthCheckRequest, _context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and after each change, until the caller leaves."""
        told: health_pb2.HealthCheckResponse.ServingStatus | None = None
        while True:
            changed = self._changed
            status = self.status(request.service)
            if status != told:
                told = status
                yield _Response(status=status)
            await changed.wait()


def add_health(server: grpc.aio.Server, holder: PlanHolder) -> PickerHealth:
    """Register the health service on `server`, before it starts. It turns SERVING with the first Plan of `holder`.

    The Plan must be applied to the picker before it is published. Call `drain()` on what is returned before the server
    is stopped, and leave Envoy one interval of its check.
    """
    health = PickerHealth()
    holder.subscribe(lambda _plan: health.planned())
    handlers = {
        "Check": grpc.unary_unary_rpc_method_handler(
            health.check, request_deserializer=_Request.FromString, response_serializer=_Response.SerializeToString
        ),
        "Watch": grpc.unary_stream_rpc_method_handler(
            health.watch, request_deserializer=_Request.FromString, response_serializer=_Response.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(HEALTH_SERVICE, handlers),))
    return health
