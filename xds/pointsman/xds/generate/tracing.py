"""Traces of requests: a gateway's spans, sent by Envoy's OpenTelemetry tracer to a collector (OTLP over gRPC).

Envoy names its span to the picker in the metadata of each ext_proc stream, and to the model server in `traceparent`.
The listener holds all of it, so it changes when tracing is switched on, and never with weights or endpoints.
"""

from __future__ import annotations

from typing import Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.trace.v3 import opentelemetry_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm
from envoy.extensions.request_id.uuid.v3 import uuid_pb2
from envoy.extensions.tracers.opentelemetry.resource_detectors.v3 import static_config_resource_detector_pb2
from envoy.extensions.tracers.opentelemetry.samplers.v3 import parent_based_sampler_pb2
from envoy.extensions.tracers.opentelemetry.samplers.v3 import trace_id_ratio_based_sampler_pb2 as ratio_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.v3 import percent_pb2

from pointsman.core import wire
from pointsman.xds.generate.options import BuildOptions, GatewayTracing
from pointsman.xds.generate.pieces import any_of, boolean, extension, is_ip, ms, socket, u32

HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

TAGS: Final = (
    ("url.path", "%PATH(NQ):256%"),
    ("pointsman.rule", "%ROUTE_NAME%"),
    ("pointsman.pool", "%UPSTREAM_CLUSTER_RAW%"),
    ("pointsman.site", f"%UPSTREAM_METADATA({wire.PICK_NAMESPACE}:site)%"),
    ("pointsman.endpoint", f"%UPSTREAM_METADATA({wire.PICK_NAMESPACE}:endpoint)%"),
    ("pointsman.pick", wire.PICK_FORMAT),
    ("pointsman.request_id", "%REQ(X-REQUEST-ID)%"),
)
"""Attributes of a gateway's spans beside Envoy's own; the pool is the arm that the split chose. Never a body, nor a
query, in which some clients send their key."""

EXPORT_TIMEOUT_MS: Final = 5_000
"""Envoy gives spans up after this time; a collector that takes longer is not there."""

_MILLION: Final = 1_000_000


def fill_tracing(manager: hcm.HttpConnectionManager, gateway: str, tracing: GatewayTracing) -> None:
    """Let a connection manager trace its requests: one span for each, one for each attempt, one for each pick."""
    config = opentelemetry_pb2.OpenTelemetryConfig(
        service_name=tracing.service_name,
        sampler=_sampler(tracing),
        resource_detectors=[_resource(gateway)],
    )
    config.grpc_service.envoy_grpc.cluster_name = wire.COLLECTOR_CLUSTER
    config.grpc_service.timeout.CopyFrom(ms(EXPORT_TIMEOUT_MS))
    manager.tracing.provider.name = "envoy.tracers.opentelemetry"
    manager.tracing.provider.typed_config.CopyFrom(any_of(config))
    manager.tracing.spawn_upstream_span.CopyFrom(boolean(True))
    manager.tracing.max_path_tag_length.CopyFrom(u32(0))  # Envoy's `http.url` would have the query, too
    for tag, value in TAGS:
        manager.tracing.custom_tags.add(tag=tag, value=value)
    # The sampler decides. Envoy would note its decision inside the request id, which then is not the client's any more.
    unchanged = uuid_pb2.UuidRequestIdConfig(
        pack_trace_reason=boolean(False), use_request_id_for_trace_sampling=boolean(False)
    )
    manager.request_id_extension.typed_config.CopyFrom(any_of(unchanged))


def collector_cluster(options: BuildOptions, tracing: GatewayTracing) -> cluster_pb2.Cluster:
    """The cluster of the collector: HTTP/2, nothing else; spans that it does not take are lost, requests are not."""
    cluster = cluster_pb2.Cluster(
        name=wire.COLLECTOR_CLUSTER,
        type=cluster_pb2.Cluster.STATIC if is_ip(tracing.collector_address) else cluster_pb2.Cluster.STRICT_DNS,
        connect_timeout=ms(options.connect_timeout_ms),
        load_assignment=endpoint_pb2.ClusterLoadAssignment(cluster_name=wire.COLLECTOR_CLUSTER),
    )
    cluster.load_assignment.endpoints.add().lb_endpoints.add(
        endpoint=endpoint_components_pb2.Endpoint(address=socket(tracing.collector_address, tracing.collector_port))
    )
    protocol = http_protocol_options_pb2.HttpProtocolOptions()
    protocol.explicit_http_config.http2_protocol_options.SetInParent()
    cluster.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(any_of(protocol))
    return cluster


def _sampler(tracing: GatewayTracing) -> extension_pb2.TypedExtensionConfig:
    share = percent_pb2.FractionalPercent(
        numerator=round(tracing.ratio * _MILLION), denominator=percent_pb2.FractionalPercent.MILLION
    )
    by_ratio = extension(
        "envoy.tracers.opentelemetry.samplers.trace_id_ratio_based",
        ratio_pb2.TraceIdRatioBasedSamplerConfig(sampling_percentage=share),
    )
    if not tracing.follow_parent:
        return by_ratio
    return extension(
        "envoy.tracers.opentelemetry.samplers.parent_based",
        parent_based_sampler_pb2.ParentBasedSamplerConfig(wrapped_sampler=by_ratio),
    )


def _resource(gateway: str) -> extension_pb2.TypedExtensionConfig:
    """Which gateway sent the spans; which of its proxies is in the attribute `node_id` that Envoy gives each request's
    span."""
    return extension(
        "envoy.tracers.opentelemetry.resource_detectors.static_config",
        static_config_resource_detector_pb2.StaticConfigResourceDetectorConfig(
            attributes={"pointsman.gateway": gateway}
        ),
    )
