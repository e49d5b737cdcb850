"""Listeners: one HTTP connection manager per port with the one-message profile of ADR 0002.

A listener holds nothing that changes while the fleet runs: Envoy drains all connections of a listener that changes, so
weights, matches and pools live in its route configuration.
"""

from __future__ import annotations

from typing import Final

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import base_pb2, config_source_pb2, grpc_service_pb2, substitution_format_string_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.access_loggers.filters.cel.v3 import cel_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from envoy.extensions.filters.http.buffer.v3 import buffer_pb2
from envoy.extensions.filters.http.ext_proc.v3 import ext_proc_pb2, processing_mode_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import header_mutation_pb2
from envoy.type.matcher.v3 import string_pb2
from envoy.type.v3 import http_status_pb2
from google.protobuf import struct_pb2

from pointsman.core import wire
from pointsman.core.model import Gateway, Listener
from pointsman.xds.generate.options import BuildOptions
from pointsman.xds.generate.pieces import GATEWAY_ERROR, ads, any_of, boolean, extension, ms, socket, u32
from pointsman.xds.generate.routes import (
    BUFFER,
    EXT_PROC,
    EXT_PROC_CLOSED,
    VARIANT_NAMESPACE,
    WHOLE_BODY,
    route_config_name,
)
from pointsman.xds.generate.tracing import fill_tracing

HCM: Final = "envoy.filters.network.http_connection_manager"
ROUTER: Final = "envoy.filters.http.router"

OWN_FLAGS: Final = ("UH", "UF", "UO", "NR", "URX", "NC", "UT", "DC", "UC", "UR", "DPE", "SI", "DT", "OM")
"""Response flags of answers that Envoy itself gives because no upstream did: no healthy host, connection failure,
overflow, no route, retries spent, no cluster, timeouts, resets, protocol error, overload."""

NO_ENDPOINT_FLAGS: Final = ("UH", "UF")
"""Response flags of requests for which no endpoint was there: none healthy, none took the connection."""

UNREACHED_FLAGS: Final = ("UF", "UC")
"""Response flags of attempts at an endpoint that is not there: the connection failed, or it ended."""

RETRY_AFTER: Final = "retry-after"
"""The one response header in the access log: how long the picker shall spare a replica that refused with 429 or 503."""

IS_VARIANT: Final = f"'{VARIANT_NAMESPACE}' in xds.route_metadata.filter_metadata"
"""CEL: the rule's arms are variants (only those have metadata of ours)."""

NOTHING_PICKED: Final = f"response.headers['{wire.REASON_HEADER}'] == '{wire.NO_READY_ENDPOINT}'"
"""CEL: the picker answered that no endpoint may serve."""

PICKER_FAILED: Final = "response.code_details.startsWith('ext_proc')"
"""CEL: the answer is Envoy's because ext_proc failed, and not one that the picker gave."""

SHORT_OF_MEMORY: Final = "response.code_details == 'overload'"
"""CEL: the overload manager refuses requests; Envoy sets no flag for it."""


def listener_name(gateway: Gateway, listener: Listener) -> str:
    """Name of a listener resource."""
    return f"{gateway.name}/{listener.name}"


def listener_resource(gateway: Gateway, listener: Listener, options: BuildOptions) -> listener_pb2.Listener:
    """The listener of one port."""
    message = listener_pb2.Listener(
        name=listener_name(gateway, listener),
        address=socket(listener.address, listener.port),
        stat_prefix=listener.name,
    )
    manager = http_manager(gateway, listener, options)
    message.filter_chains.add().filters.add(name=HCM, typed_config=any_of(manager))
    return message


def http_manager(gateway: Gateway, listener: Listener, options: BuildOptions) -> hcm.HttpConnectionManager:
    """buffer → ext_proc → buffer → router, routes over ADS, access log to the picker.

    The second buffer lets the router choose its host after the pick. The first one gives ext_proc the body in one
    piece: where it comes in several and no pick comes in time, Envoy loses the last one (BUFFERED), and a body with
    trailers behind it counts twice in the content-length that the second buffer writes (BUFFERED_PARTIAL), so that the
    upstream would take the next request for a part of this one.

    There are two ext_proc, because how long one waits can't be said per route: arms of pools that fail closed switch
    from the first to the second.
    """
    receive_ms = gateway.receive_timeout_ms
    manager = hcm.HttpConnectionManager(
        stat_prefix=listener.name,
        codec_type=hcm.HttpConnectionManager.AUTO,
        rds=hcm.Rds(
            config_source=ads(options.initial_fetch_timeout_ms), route_config_name=route_config_name(gateway, listener)
        ),
        use_remote_address=boolean(True),
        always_set_request_id_in_response=True,  # the id that `explain` takes
        normalize_path=boolean(True),
        merge_slashes=True,
        stream_idle_timeout=ms(options.stream_idle_timeout_ms),
        # A client that sends its headers byte by byte holds a connection no longer than this.
        request_headers_timeout=ms(10_000),
        request_timeout=ms(options.receive_timeout_ms if receive_ms is None else receive_ms),
        xff_num_trusted_hops=gateway.trusted_hops,
    )
    manager.http_protocol_options.enable_trailers = True
    h2 = manager.http2_protocol_options
    h2.max_concurrent_streams.value = options.max_concurrent_streams
    h2.initial_stream_window_size.value = options.http2_window_bytes
    h2.initial_connection_window_size.value = options.http2_connection_window_bytes
    manager.early_header_mutation_extensions.append(
        extension("envoy.http.early_header_mutation.header_mutation", _strip_destination())
    )
    buffer = any_of(buffer_pb2.Buffer(max_request_bytes=u32(options.max_prompt_bytes)))
    manager.http_filters.add(name=WHOLE_BODY, typed_config=buffer)
    opened = any_of(_ext_proc(options, options.message_timeout_ms, allow=True))
    manager.http_filters.add(name=EXT_PROC, typed_config=opened)
    closed = any_of(_ext_proc(options, options.closed_message_timeout_ms, allow=False))
    manager.http_filters.add(name=EXT_PROC_CLOSED, typed_config=closed, disabled=True)
    manager.http_filters.add(name=BUFFER, typed_config=buffer)
    router = any_of(router_pb2.Router(upstream_log=[_failed_attempts()]))
    manager.http_filters.add(name=ROUTER, typed_config=router)
    # No rule takes CONNECT, and a tunnel's body has no end for which the filters could wait: it is answered at once.
    manager.upgrade_configs.add(upgrade_type="CONNECT").filters.add(name=ROUTER, typed_config=router)
    if options.tracing is not None:
        fill_tracing(manager, gateway.name, options.tracing)
    manager.access_log.append(_access_log(options))
    manager.access_log_options.access_log_flush_interval.CopyFrom(ms(options.access_log_flush_interval_ms))
    manager.local_reply_config.CopyFrom(_local_replies())
    return manager


def _one_message_service() -> grpc_service_pb2.GrpcService:
    """ext_proc, with the promise that a stream carries one message: the picker then serves it as a unary call."""
    service = _picker_service()
    service.initial_metadata.add(key=wire.PROFILE_HEADER, value=wire.PROFILE_SINGLE)
    return service


def _picker_service() -> grpc_service_pb2.GrpcService:
    service = grpc_service_pb2.GrpcService()
    service.envoy_grpc.cluster_name = wire.PICKER_CLUSTER
    service.envoy_grpc.authority = wire.PICKER_CLUSTER
    return service


def _strip_destination() -> header_mutation_pb2.HeaderMutation:
    """A client must not choose its endpoint: the headers of the picker protocol are removed before anything reads
    them."""
    mutation = header_mutation_pb2.HeaderMutation()
    for name in (wire.DESTINATION_KEY, wire.SERVED_KEY, wire.SUBSET_KEY):
        mutation.mutations.add(remove=name)
    return mutation


def _ext_proc(options: BuildOptions, timeout_ms: int, *, allow: bool) -> ext_proc_pb2.ExternalProcessor:
    """One message with the buffered body out, one with the pick back; the stream ends then. `allow`: requests go on
    without a pick when none came in time."""
    mode = processing_mode_pb2.ProcessingMode
    processor = ext_proc_pb2.ExternalProcessor(
        grpc_service=_one_message_service(),
        failure_mode_allow=allow,
        status_on_error=http_status_pb2.HttpStatus(code=http_status_pb2.ServiceUnavailable),
        processing_mode=mode(
            request_header_mode=mode.SKIP,
            response_header_mode=mode.SKIP,
            request_body_mode=mode.BUFFERED,
            response_body_mode=mode.NONE,
            request_trailer_mode=mode.SKIP,
            response_trailer_mode=mode.SKIP,
        ),
        request_attributes=wire.REQUEST_ATTRIBUTES,
        message_timeout=ms(timeout_ms),
        max_message_timeout=ms(wire.MAX_PICK_WAIT_MS),
        # The arm of the split is chosen before the pick and must stay what it is.
        route_cache_action=ext_proc_pb2.ExternalProcessor.RETAIN,
        stat_prefix="picker",
    )
    processor.metadata_options.receiving_namespaces.untyped.extend((wire.LB_NAMESPACE, wire.PICK_NAMESPACE))
    return processor


def _access_log(options: BuildOptions) -> accesslog_pb2.AccessLog:
    """Outcome of every request, with the pick it belongs to and the time of the first byte (design D3)."""
    config = als_pb2.HttpGrpcAccessLogConfig()
    common = config.common_config
    common.log_name = wire.ALS_LOG_NAME
    common.transport_api_version = config_source_pb2.V3
    common.buffer_flush_interval.CopyFrom(ms(options.als_flush_ms))
    common.grpc_service.CopyFrom(_picker_service())
    common.custom_tags.add(tag=wire.TAG_TTFT, value=wire.TTFT_FORMAT)
    common.custom_tags.add(tag=wire.TAG_PICK, value=wire.PICK_FORMAT)
    common.custom_tags.add(tag=wire.TAG_GRPC, value=wire.GRPC_FORMAT)
    common.custom_tags.add(tag=wire.TAG_ADDED, value=wire.ADDED_FORMAT)
    common.custom_tags.add(tag=wire.TAG_ATTEMPTED, value=wire.ATTEMPTED_FORMAT)
    config.additional_response_headers_to_log.append(RETRY_AFTER)
    return accesslog_pb2.AccessLog(name="envoy.access_loggers.http_grpc", typed_config=any_of(config))


def _failed_attempts() -> accesslog_pb2.AccessLog:
    """Attempts for which an endpoint was not there, told at once and one by one.

    The log of requests tells of them when the request has ended, which may be many seconds later; until then each pick
    would go there, too. Attempts that went well cost the look at their response flags.
    """
    config = als_pb2.HttpGrpcAccessLogConfig()
    common = config.common_config
    common.log_name = wire.ALS_LOG_NAME
    common.transport_api_version = config_source_pb2.V3
    common.buffer_size_bytes.value = 0  # nothing is collected
    common.grpc_service.CopyFrom(_picker_service())
    log = accesslog_pb2.AccessLog(name="envoy.access_loggers.http_grpc", typed_config=any_of(config))
    log.filter.response_flag_filter.flags.extend(UNREACHED_FLAGS)
    return log


def _local_replies() -> hcm.LocalReplyConfig:
    """Answers that Envoy gives by itself say why, and look like an OpenAI error to clients that are not gRPC.

    Answers of the picker and of direct responses bring their own reason and body, which are kept. The first mapper
    that fits is used.
    """
    config = hcm.LocalReplyConfig()
    own = accesslog_pb2.AccessLogFilter()
    own.or_filter.filters.add().response_flag_filter.flags.extend(OWN_FLAGS)
    own.or_filter.filters.add().status_code_filter.CopyFrom(_status_is(408))
    own.or_filter.filters.add().status_code_filter.CopyFrom(_status_is(413))
    variant = accesslog_pb2.AccessLogFilter()
    variant.and_filter.filters.add().response_flag_filter.flags.extend(NO_ENDPOINT_FLAGS)
    variant.and_filter.filters.append(_cel(IS_VARIANT))
    # The picker's body is kept, its reason is not: whoever chose a variant is to learn the same from either of them.
    unpicked = config.mappers.add(filter=_cel(f"{NOTHING_PICKED} && {IS_VARIANT}"))
    unpicked.headers_to_add.add(
        header=base_pb2.HeaderValue(key=wire.REASON_HEADER, value=wire.VARIANT_UNAVAILABLE),
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )
    errors = accesslog_pb2.AccessLogFilter(status_code_filter=_status_at_least(400))
    lost = accesslog_pb2.AccessLogFilter()
    lost.response_flag_filter.flags.append("NR")
    for condition, message, reason in (
        (lost, "no rule of this gateway takes this request", _DETAILS),
        (_cel(SHORT_OF_MEMORY), "the gateway is short of memory", _DETAILS),
        (variant, "no endpoint of this variant is available", wire.VARIANT_UNAVAILABLE),
        (own, "%LOCAL_REPLY_BODY%", _DETAILS),
        (_cel(PICKER_FAILED), "the endpoint picker gave no answer", _DETAILS),
        (variant, "", wire.VARIANT_UNAVAILABLE),
        (errors, "", _DETAILS),
    ):
        mapper = config.mappers.add()
        if message:
            mapper.filter.and_filter.filters.extend((_not_grpc(), condition))
            mapper.body_format_override.CopyFrom(_openai_error(message))
        else:
            mapper.filter.CopyFrom(condition)
        mapper.headers_to_add.add(
            header=base_pb2.HeaderValue(key=wire.REASON_HEADER, value=reason),
            append_action=base_pb2.HeaderValueOption.ADD_IF_ABSENT,
        )
    return config


_DETAILS: Final = "%RESPONSE_CODE_DETAILS%"


def _cel(expression: str) -> accesslog_pb2.AccessLogFilter:
    condition = accesslog_pb2.AccessLogFilter()
    condition.extension_filter.name = "envoy.access_loggers.extension_filters.cel"
    condition.extension_filter.typed_config.CopyFrom(any_of(cel_pb2.ExpressionFilter(expression=expression)))
    return condition


def _not_grpc() -> accesslog_pb2.AccessLogFilter:
    grpc = string_pb2.StringMatcher(prefix="application/grpc")
    header = route_components_pb2.HeaderMatcher(name="content-type", string_match=grpc, invert_match=True)
    # Without this a request that has no content type would count as gRPC.
    header.treat_missing_header_as_empty = True
    return accesslog_pb2.AccessLogFilter(header_filter=accesslog_pb2.HeaderFilter(header=header))


def _status_at_least(status: int) -> accesslog_pb2.StatusCodeFilter:
    comparison = accesslog_pb2.ComparisonFilter(op=accesslog_pb2.ComparisonFilter.GE)
    comparison.value.default_value = status
    comparison.value.runtime_key = "pointsman.local_reply_min_status"
    return accesslog_pb2.StatusCodeFilter(comparison=comparison)


def _status_is(status: int) -> accesslog_pb2.StatusCodeFilter:
    comparison = accesslog_pb2.ComparisonFilter(op=accesslog_pb2.ComparisonFilter.EQ)
    comparison.value.default_value = status
    comparison.value.runtime_key = f"pointsman.local_reply_status_{status}"
    return accesslog_pb2.StatusCodeFilter(comparison=comparison)


def _openai_error(message: str) -> substitution_format_string_pb2.SubstitutionFormatString:
    text = struct_pb2.Value(string_value=message)
    kind = struct_pb2.Value(string_value=GATEWAY_ERROR)
    null = struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    code = struct_pb2.Value(string_value="%RESPONSE_CODE%")
    error = struct_pb2.Struct(fields={"message": text, "type": kind, "param": null, "code": code})
    body = struct_pb2.Struct(fields={"error": struct_pb2.Value(struct_value=error)})
    return substitution_format_string_pb2.SubstitutionFormatString(json_format=body)
