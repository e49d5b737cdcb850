"""The bootstrap of a gateway: how an Envoy finds its control planes and who it says it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from pointsman.core import wire
from pointsman.core.model import Locality
from pointsman.xds.generate.options import GatewayTls
from pointsman.xds.generate.pieces import is_ip
from pointsman.xds.limits import DEFAULT_LIMITS, GatewayLimits, overload_manager

Json = dict[str, Any]

_TLS: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."


def bootstrap(  # noqa: PLR0917
    node_id: str,
    node_cluster: str,
    locality: Locality,
    xds_addresses: Sequence[tuple[str, int]],
    admin_address: str,
    admin_port: int,
    delta: bool = False,
    lrs: bool = False,
    tls: GatewayTls | None = None,
    limits: GatewayLimits = DEFAULT_LIMITS,
) -> Json:
    """An Envoy bootstrap as a JSON-able dict.

    `node_cluster` is the name of the Gateway ("namespace/name") whose configuration the proxy is to get, `node_id` is
    unique per proxy. All control planes stand in one cluster, in order of preference: the first is priority 0, the
    second priority 1 and so on, each with a health check. Envoy's own list of failover servers does not help: it is
    left for good after the first answer. `delta` selects the incremental protocol, `lrs` reports load to the
    control plane. With `tls` control planes are reached by mutual TLS with the secrets in `tls.folder` (see
    `gateway_secrets`), and are told where these are, so that they can say the same for the picker. `limits` are those
    of the process.
    """
    if not xds_addresses:
        raise ValueError("a bootstrap needs the address of at least one control plane")
    result: Json = {
        "node": {
            "id": node_id,
            "cluster": node_cluster,
            "locality": {"region": locality.region, "zone": locality.zone, "sub_zone": locality.sub_zone},
        },
        # Whoever looks after a gateway gets in when its clients don't.
        "admin": {"address": _address(admin_address, admin_port), "ignore_global_conn_limit": True},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC" if delta else "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [_grpc_service()],
            },
            "cds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "15s"},
            "lds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "15s"},
        },
        "static_resources": {"clusters": [_xds_cluster(xds_addresses)]},
        "overload_manager": overload_manager(limits),
    }
    if tls is not None:
        result["node"]["metadata"] = {wire.TLS_FOLDER_KEY: tls.folder, wire.SERVER_NAME_KEY: tls.server_name}
        result["static_resources"]["clusters"][0]["transport_socket"] = _transport_socket(tls)
    if lrs:
        result["cluster_manager"] = {
            "load_stats_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [_grpc_service()],
            }
        }
    return result


def gateway_secrets(certificate: str, key: str, ca: str, server_name: str) -> dict[str, Json]:
    """The secrets of a gateway as files for Envoy: file name → content.

    The paths are those on the gateway. Envoy reads a file again when something is moved into its folder, which is how
    certificates are replaced by whoever does it well, mounted Kubernetes Secrets among them. Servers must be signed by
    `ca` and be called `server_name`: a DNS name, or a URI such as a SPIFFE id.
    """

    def file(path: str) -> Json:
        return {"filename": path}

    def watched(path: str) -> Json:
        return {"path": str(PurePosixPath(path).parent)}

    name = {"san_type": "URI" if "://" in server_name else "DNS", "matcher": {"exact": server_name}}
    secrets: dict[str, Json] = {
        wire.GATEWAY_CERTIFICATE: {
            "tls_certificate": {
                "certificate_chain": file(certificate),
                "private_key": file(key),
                "watched_directory": watched(certificate),
            }
        },
        wire.GATEWAY_TRUST: {
            "validation_context": {
                "trusted_ca": file(ca),
                "watched_directory": watched(ca),
                "match_typed_subject_alt_names": [name],
            }
        },
    }
    return {
        f"{secret}.json": {"resources": [{"@type": f"{_TLS}Secret", "name": secret, **content}]}
        for secret, content in secrets.items()
    }


def _transport_socket(tls: GatewayTls) -> Json:
    """Mutual TLS whose secrets are files of their own: those in the bootstrap itself are never read again."""

    def secret(name: str) -> Json:
        source = {"path_config_source": {"path": f"{tls.folder.rstrip('/')}/{name}.json"}, "resource_api_version": "V3"}
        return {"name": name, "sds_config": source}

    context: Json = {
        "@type": f"{_TLS}UpstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_certificate_sds_secret_configs": [secret(wire.GATEWAY_CERTIFICATE)],
            "validation_context_sds_secret_config": secret(wire.GATEWAY_TRUST),
        },
    }
    if tls.server_name:
        context["sni"] = tls.server_name
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _grpc_service() -> Json:
    """Back-off from 250 ms to 5 s with Envoy's jitter: its default goes up to 30 s, too long for a change to wait."""
    back_off = {"base_interval": "0.25s", "max_interval": "5s"}
    return {
        "envoy_grpc": {
            "cluster_name": wire.XDS_CLUSTER,
            "authority": wire.XDS_CLUSTER,
            "retry_policy": {"retry_back_off": back_off},
        }
    }


def _xds_cluster(addresses: Sequence[tuple[str, int]]) -> Json:
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    keepalive = {"interval": "10s", "timeout": "5s"}
    cluster: Json = {
        "name": wire.XDS_CLUSTER,
        "type": "STATIC" if all(is_ip(host) for host, _ in addresses) else "STRICT_DNS",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicit_http_config": {"http2_protocol_options": {"connection_keepalive": keepalive}},
            }
        },
        "upstream_connection_options": {
            "tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 10, "keepalive_interval": 5}
        },
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "load_assignment": {
            "cluster_name": wire.XDS_CLUSTER,
            "policy": {"overprovisioning_factor": 100},
            "endpoints": [
                {"priority": priority, "lb_endpoints": [{"endpoint": {"address": _address(host, port)}}]}
                for priority, (host, port) in enumerate(addresses)
            ],
        },
    }
    if len(addresses) > 1:
        # Found dead after at most 1 + 0.5 + 0.25 + 0.5 s; one without a Plan says so. One server alone needs no probe:
        # there is no other choice.
        cluster["health_checks"] = [
            {
                "timeout": "0.5s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "no_traffic_healthy_interval": "1s",
                "unhealthy_edge_interval": "0.25s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ]
    return cluster
