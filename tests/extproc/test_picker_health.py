"""The health service tells the truth: before the first Plan, while serving, while draining; by Check and by Watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from extproc.fleet import make_plan
from pointsman.core.grpc_health import LIVENESS, READINESS, GrpcHealth
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc import add_health
from pointsman.extproc.server import EXT_PROC_SERVICE

SERVING, NOT_SERVING, UNKNOWN = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
)
PLAN = make_plan({"near": ["10.0.0.1:80"]})


class Served:
    def __init__(self, holder: PlanHolder, health: GrpcHealth, channel: grpc.aio.Channel) -> None:
        self.holder, self.health = holder, health
        self._check: Any = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self._watch: Any = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

    async def check(self, service: str) -> int:
        found = await self._check(health_pb2.HealthCheckRequest(service=service))
        return int(found.status)

    def watch(self, service: str) -> Any:
        return self._watch(health_pb2.HealthCheckRequest(service=service))


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    holder = PlanHolder()
    server = grpc.aio.server()
    health = add_health(server, holder)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Served(holder, health, channel)
    await server.stop(None)


READY_SERVICES = ("", READINESS, EXT_PROC_SERVICE)


async def test_serving_from_the_first_plan_until_the_drain(served: Served) -> None:
    for service in READY_SERVICES:
        assert await served.check(service) == NOT_SERVING
    served.holder.publish(PLAN)
    for service in READY_SERVICES:
        assert await served.check(service) == SERVING
    served.health.drain()
    for service in READY_SERVICES:
        assert await served.check(service) == NOT_SERVING
    served.holder.publish(make_plan({"near": []}))
    assert await served.check(READINESS) == NOT_SERVING, "a Plan does not end a drain"


async def test_a_living_process_is_alive_whatever_it_knows(served: Served) -> None:
    assert await served.check(LIVENESS) == SERVING
    served.health.drain()
    assert await served.check(LIVENESS) == SERVING


async def test_a_name_that_is_not_ours(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.check("grocery")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    call = served.watch("grocery")
    assert (await call.read()).status == UNKNOWN
    call.cancel()


async def test_watch_tells_each_change_once_to_each_watcher(served: Served) -> None:
    calls = [served.watch(EXT_PROC_SERVICE), served.watch(READINESS)]
    alive = served.watch(LIVENESS)
    assert (await alive.read()).status == SERVING
    for call in calls:
        assert (await call.read()).status == NOT_SERVING
    served.holder.publish(PLAN)
    for call in calls:
        assert (await call.read()).status == SERVING
    served.holder.publish(make_plan({"near": ["10.0.0.2:80"]}))  # no change of health
    served.health.drain()
    for call in calls:
        assert (await call.read()).status == NOT_SERVING
    pending = asyncio.ensure_future(alive.read())
    await served.check(LIVENESS)
    assert not pending.done(), "liveness has not changed"
    for call in (*calls, alive):
        call.cancel()
    await asyncio.gather(pending, return_exceptions=True)


async def test_a_plan_that_is_there_already_counts() -> None:
    holder = PlanHolder()
    holder.publish(PLAN)
    assert add_health(grpc.aio.server(), holder).ready
