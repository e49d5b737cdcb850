"""One static Envoy with a listener for each way to pick: none, one message (promised and not), full duplex."""

from __future__ import annotations

from typing import Any, Final

from pointsman.core import wire

POOL: Final = "bench/pool"
TYPE: Final = "type.googleapis.com/envoy.extensions"
LISTENERS: Final = ("alone", "single", "one-message", "duplex")
BUFFER_BYTES: Final = 4 * 1024 * 1024
"""Envoy's buffers for each connection, so that a body of 1 MB is one message."""


def bootstrap(endpoints: list[str], picker_port: int) -> dict[str, Any]:
    """`endpoints` are `ip:port` of one pool; the picker listens on loopback."""
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {
            "listeners": [_listener(name) for name in LISTENERS],
            "clusters": [_pool(endpoints), _picker(picker_port)],
        },
    }


def _picker_service(*, single: bool = False) -> dict[str, Any]:
    promise = [{"key": wire.PROFILE_HEADER, "value": wire.PROFILE_SINGLE}] if single else []
    return {"envoy_grpc": {"cluster_name": wire.PICKER_CLUSTER}, "initial_metadata": promise}


def _ext_proc(name: str) -> dict[str, Any]:
    """As our control plane configures it, or as the Endpoint Picker Protocol asks for."""
    if name == "duplex":
        sent = {f"{side}_{part}_mode": "SEND" for side in ("request", "response") for part in ("header", "trailer")}
        mode = {**sent, **{f"{side}_body_mode": "FULL_DUPLEX_STREAMED" for side in ("request", "response")}}
    else:
        skip = {f"{part}_mode": "SKIP" for part in ("request_header", "response_header", "request_trailer")}
        mode = {**skip, "response_trailer_mode": "SKIP", "request_body_mode": "BUFFERED"}
    return {
        "@type": f"{TYPE}.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": _picker_service(single=name == "single"),
        "message_timeout": "10s",
        "processing_mode": mode,
        "request_attributes": list(wire.REQUEST_ATTRIBUTES),
        "metadata_options": {
            "forwarding_namespaces": {"untyped": [wire.SUBSET_NAMESPACE, wire.LB_NAMESPACE]},
            "receiving_namespaces": {"untyped": [wire.LB_NAMESPACE, wire.PICK_NAMESPACE]},
        },
    }


def _buffer() -> dict[str, Any]:
    return {"@type": f"{TYPE}.filters.http.buffer.v3.Buffer", "max_request_bytes": wire.MAX_PROMPT_BYTES}


def _listener(name: str) -> dict[str, Any]:
    filters: list[dict[str, Any]] = [
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": f"{TYPE}.filters.http.router.v3.Router"},
        }
    ]
    manager: dict[str, Any] = {
        "@type": f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": {
            "name": "llm",
            "virtual_hosts": [
                {
                    "name": "llm",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": POOL, "timeout": "0s"}}],
                }
            ],
        },
        "http_filters": filters,
    }
    if name in ("single", "one-message"):
        filters.insert(0, {"name": "envoy.filters.http.buffer", "typed_config": _buffer()})
        manager["access_log_options"] = {"access_log_flush_interval": "1s"}
        manager["access_log"] = [
            {
                "name": "envoy.access_loggers.http_grpc",
                "typed_config": {
                    "@type": f"{TYPE}.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
                    "common_config": {
                        "log_name": wire.ALS_LOG_NAME,
                        "transport_api_version": "V3",
                        "grpc_service": _picker_service(),
                        "buffer_flush_interval": "0.05s",
                        "custom_tags": [
                            {"tag": wire.TAG_PICK, "value": wire.PICK_FORMAT},
                            {"tag": wire.TAG_TTFT, "value": wire.TTFT_FORMAT},
                        ],
                    },
                },
            }
        ]
    if name != "alone":
        filters.insert(0, {"name": "envoy.filters.http.ext_proc", "typed_config": _ext_proc(name)})
    if name in ("single", "one-message"):  # ext_proc gets the body in one piece
        filters.insert(0, {"name": "pointsman.whole_body", "typed_config": _buffer()})
    return {
        "name": name,
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _address(key: str) -> dict[str, Any]:
    host, port = key.rsplit(":", 1)
    return {"address": {"socket_address": {"address": host, "port_value": int(port)}}}


def _pool(endpoints: list[str]) -> dict[str, Any]:
    override = {
        "@type": f"{TYPE}.load_balancing_policies.override_host.v3.OverrideHost",
        "override_host_sources": [{"metadata": {"key": wire.LB_NAMESPACE, "path": [{"key": wire.DESTINATION_KEY}]}}],
        "selected_host_key": {"key": wire.LB_NAMESPACE, "path": [{"key": wire.SERVED_KEY}]},
        "fallback_policy": _policy("round_robin", "RoundRobin"),
    }
    return {
        "name": POOL,
        "type": "STATIC",
        "connect_timeout": "5s",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "load_balancing_policy": {
            "policies": [
                {
                    "typed_extension_config": {
                        "name": "envoy.load_balancing_policies.override_host",
                        "typed_config": override,
                    }
                }
            ]
        },
        "load_assignment": {
            "cluster_name": POOL,
            "endpoints": [{"lb_endpoints": [{"endpoint": _address(key)} for key in endpoints]}],
        },
    }


def _policy(name: str, message: str) -> dict[str, Any]:
    return {
        "policies": [
            {
                "typed_extension_config": {
                    "name": f"envoy.load_balancing_policies.{name}",
                    "typed_config": {"@type": f"{TYPE}.load_balancing_policies.{name}.v3.{message}"},
                }
            }
        ]
    }


def _picker(port: int) -> dict[str, Any]:
    return {
        "name": wire.PICKER_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPE}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": wire.PICKER_CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": _address(f"127.0.0.1:{port}")}]}],
        },
    }
