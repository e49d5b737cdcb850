"""gRPC reflection, so that `grpcurl` needs no .proto files: both names of the service, `v1` and `v1alpha`.

A name is described only when its descriptors are loaded; the imports here load those of the control plane's services.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc
from envoy.service.cluster.v3 import cds_pb2
from envoy.service.discovery.v3 import ads_pb2
from envoy.service.endpoint.v3 import eds_pb2
from envoy.service.listener.v3 import lds_pb2
from envoy.service.load_stats.v3 import lrs_pb2
from envoy.service.route.v3 import rds_pb2
from envoy.service.runtime.v3 import rtds_pb2
from envoy.service.secret.v3 import sds_pb2
from envoy.service.status.v3 import csds_pb2
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection, reflection_pb2  # type: ignore[import-untyped]

REFLECTION_SERVICES: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""The messages of both are the same on the wire."""

SERVICE_NAMES: Final = tuple(
    sorted(
        service.full_name
        for module in (ads_pb2, cds_pb2, eds_pb2, lds_pb2, rds_pb2, sds_pb2, rtds_pb2, lrs_pb2, csds_pb2, health_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    )
)
"""What the control plane serves."""


def add_reflection(server: grpc.aio.Server, names: Iterable[str] = ()) -> None:
    """Describe `SERVICE_NAMES` and the services in `names` (full names) on `server`, before it starts."""
    servicer = reflection.aio.ReflectionServicer({*SERVICE_NAMES, *names, *REFLECTION_SERVICES})
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
            for name in REFLECTION_SERVICES
        )
    )
