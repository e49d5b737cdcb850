"""gRPC health (`grpc.health.v1`), told honestly: one service for all that one gRPC server offers.

    name                  SERVING
    liveness              while this process answers at all
    a registered service  from the moment its part of the process can serve until the server drains
    ""                    while all registered services do

A proxy that checks a service thus asks no control plane and no picker that knows no Plan yet, and leaves one that is
about to stop before it stops. `liveness` and `readiness` are the names that the Endpoint Picker Protocol's reference
implementations use.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from pointsman.core.snapshot import PlanHolder

HEALTH_SERVICE: Final = "grpc.health.v1.Health"
LIVENESS: Final = "liveness"
READINESS: Final = "readiness"
WHOLE_SERVER: Final = ""

Context = grpc.aio.ServicerContext[Any, Any]
_Response = health_pb2.HealthCheckResponse
_Request = health_pb2.HealthCheckRequest


class GrpcHealth:
    """What the health service of one server says; owned by one event loop."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._draining = False
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the health service, before the server starts."""
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(
                self._check, request_deserializer=_Request.FromString, response_serializer=_Response.SerializeToString
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self._watch, request_deserializer=_Request.FromString, response_serializer=_Response.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(HEALTH_SERVICE, handlers),))

    @property
    def ready(self) -> bool:
        """True when all registered services can serve, and will for a while."""
        return not self._draining and all(self._serving.values())

    def set(self, services: Iterable[str], *, serving: bool) -> None:
        """Say how some services are; names that are new are registered by it."""
        self._serving.update(dict.fromkeys(services, serving))
        self._tell()

    def serve_from_first_plan(self, holder: PlanHolder, services: Iterable[str]) -> None:
        """Register services that can serve once there is a Plan.

        What they serve from must hear of a Plan before this does: subscribe it first.
        """
        names = frozenset(services)
        self.set(names, serving=False)
        holder.subscribe(lambda _plan: self.set(names, serving=True))

    def drain(self) -> None:
        """The server is about to stop: nothing is SERVING any more, whatever is set later.

        Leave the proxies one interval of their checks before the server stops.
        """
        self._draining = True
        self._tell()

    def status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        """The status of one service; `SERVICE_UNKNOWN` for a name that is not registered."""
        if service == LIVENESS:
            return _Response.SERVING
        if service == WHOLE_SERVER:
            return _Response.SERVING if self.ready else _Response.NOT_SERVING
        if service not in self._serving:
            return _Response.SERVICE_UNKNOWN
        return _Response.SERVING if self._serving[service] and not self._draining else _Response.NOT_SERVING

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after every change from now on; returns the function that ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in list(self._listeners):
            listener()

    async def _check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """One answer; status NOT_FOUND for a name that is not registered."""
        status = self.status(request.service)
        if status == _Response.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}")
        return _Response(status=status)

    async def _watch(
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
