"""Health and reflection of the control plane's server."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from pointsman.core.grpc_health import LIVENESS, GrpcHealth
from pointsman.core.snapshot import PlanHolder
from pointsman.xds.services import add_health

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
ADS = "envoy.service.discovery.v3.AggregatedDiscoveryService"


async def check(channel: grpc.aio.Channel, service: str) -> int:
    call: Any = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return int((await call(health_pb2.HealthCheckRequest(service=service))).status)


async def reflect(channel: grpc.aio.Channel, version: str, **fields: Any) -> reflection_pb2.ServerReflectionResponse:
    call: Any = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()
    await call.write(reflection_pb2.ServerReflectionRequest(**fields))
    response: reflection_pb2.ServerReflectionResponse = await call.read()
    call.cancel()
    return response


async def test_discovery_is_serving_from_the_first_plan_until_the_drain(plane: Any, kit: Any) -> None:
    for service in ("", ADS):
        assert await check(plane.channel, service) == NOT_SERVING
    assert await check(plane.channel, LIVENESS) == SERVING
    plane.holder.publish(kit.plan(kit.pool("default/llama"), serve="default/llama"))
    for service in ("", ADS):
        assert await check(plane.channel, service) == SERVING
    plane.health.drain()
    for service in ("", ADS):
        assert await check(plane.channel, service) == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await check(plane.channel, "grocery")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_parts_of_a_process_share_one_health_service(kit: Any) -> None:
    health, holder, server = GrpcHealth(), PlanHolder(), grpc.aio.server()
    health.add_to(server)
    assert add_health(server, holder, health) is health
    health.set(["picker"], serving=True)
    assert (health.status(""), health.status("picker"), health.status(ADS)) == (NOT_SERVING, SERVING, NOT_SERVING)
    holder.publish(kit.plan(kit.pool("default/llama"), serve="default/llama"))
    assert (health.status(""), health.status(ADS)) == (SERVING, SERVING)
    health.set(["picker"], serving=False)
    assert (health.status(""), health.status(ADS)) == (NOT_SERVING, SERVING)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_and_describes_every_service(plane: Any, version: str) -> None:
    response = await reflect(plane.channel, version, list_services="")
    names = {service.name for service in response.list_services_response.service}
    assert names >= {
        ADS,
        "envoy.service.cluster.v3.ClusterDiscoveryService",
        "envoy.service.load_stats.v3.LoadReportingService",
        "envoy.service.status.v3.ClientStatusDiscoveryService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    }
    for name in names - {"grpc.reflection.v1.ServerReflection"}:
        response = await reflect(plane.channel, version, file_containing_symbol=name)
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(data)
            for data in response.file_descriptor_response.file_descriptor_proto
        ]
        assert name in {f"{file.package}.{service.name}" for file in files for service in file.service}


async def test_what_stands_in_an_answer_is_described_too(plane: Any) -> None:
    """CSDS answers hold resources as Any: a client that prints them asks for their types."""
    for name in ("envoy.config.cluster.v3.Cluster", "envoy.config.route.v3.RouteConfiguration"):
        response = await reflect(plane.channel, "v1", file_containing_symbol=name)
        assert response.file_descriptor_response.file_descriptor_proto
