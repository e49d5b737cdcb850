"""One EDS cluster per pool, and the cluster that reaches the picker (design D4-D7)."""

from __future__ import annotations

from typing import Final

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2, outlier_detection_pb2
from envoy.config.core.v3 import base_pb2, config_source_pb2, health_check_pb2, protocol_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.extensions.load_balancing_policies.common.v3 import common_pb2
from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2
from envoy.extensions.load_balancing_policies.override_host.v3 import override_host_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2 as tls_common_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.v3 import percent_pb2, range_pb2
from google.protobuf import any_pb2, wrappers_pb2

from pointsman.core import wire
from pointsman.core.arm_names import whole_pool
from pointsman.core.model import AppProtocol, HealthPolicy, Pool, UpstreamTls
from pointsman.xds.generate.options import BuildOptions, GatewayTls
from pointsman.xds.generate.pieces import ads, any_of, extension, is_ip, metadata_key, ms, set_header, socket, u32

HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

FAILURE_VOLUME: Final = 30
"""Requests to a host in one interval, at least, for the share that failed to count: more than one client's repetitions
of a request that fails. Below it the rules for failures in a row are as fast."""

_SELECTED_HOST_KEY_TAG: Final = b"\x12"
"""Wire tag of `OverrideHost.selected_host_key` (field 2, length-delimited). Envoy 1.40 knows the field, xds-protos 1.85
does not yet; a field that a message type does not know is kept and sent as it came."""


def pool_cluster(pool: Pool, options: BuildOptions) -> cluster_pb2.Cluster:
    """The cluster of a pool: endpoints by EDS, the picker's choice first, least request as the fallback."""
    cluster = cluster_pb2.Cluster(
        name=pool.cluster_name,
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(eds_config=ads(options.initial_fetch_timeout_ms)),
        connect_timeout=ms(options.connect_timeout_ms),
        # The control plane's word is final: an endpoint that left EDS gets no new requests even if its probe is fine.
        ignore_health_on_host_removal=True,
        common_lb_config=cluster_pb2.Cluster.CommonLbConfig(
            healthy_panic_threshold=percent_pb2.Percent(value=0.0),
            update_merge_window=ms(0),
        ),
    )
    policy = cluster.load_balancing_policy.policies.add()
    policy.typed_extension_config.CopyFrom(extension("envoy.load_balancing_policies.override_host", _override_host()))
    health = pool.health or options.health()
    cluster.health_checks.append(_health_check(pool, health))
    cluster.outlier_detection.CopyFrom(_outlier_detection(health))
    cluster.circuit_breakers.CopyFrom(_breakers(options.max_connections, health))
    cluster.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(_upstream_protocol(pool.app_protocol, options))
    for site, tls in gateways_with_tls(pool):
        match = cluster.transport_socket_matches.add(name=site)
        match.match.fields[wire.HOP_MATCH_KEY].string_value = site
        match.transport_socket.CopyFrom(_site_tls(tls, pool.app_protocol))
    return cluster


def gateways_with_tls(pool: Pool) -> list[tuple[str, UpstreamTls]]:
    """The sites of a pool that are reached through their gateways by TLS, by name."""
    found = [
        (group.site, group.hop.tls) for group in pool.groups if group.hop is not None and group.hop.tls is not None
    ]
    return sorted(found, key=lambda entry: entry[0])


def _site_tls(tls: UpstreamTls, protocol: AppProtocol) -> base_pb2.TransportSocket:
    """TLS to a site's gateway: without the name in its certificate any that the same authority issued would do."""
    context = tls_pb2.UpstreamTlsContext(sni=tls.server_name)
    common = context.common_tls_context
    common.alpn_protocols.append("h2" if protocol is AppProtocol.H2C else "http/1.1")
    common.validation_context.trusted_ca.filename = tls.ca_file
    name = common.validation_context.match_typed_subject_alt_names.add()
    name.san_type = tls_common_pb2.SubjectAltNameMatcher.DNS
    name.matcher.exact = tls.server_name
    if tls.cert_file:
        certificate = common.tls_certificates.add()
        certificate.certificate_chain.filename = tls.cert_file
        certificate.private_key.filename = tls.key_file
    return base_pb2.TransportSocket(name="envoy.transport_sockets.tls", typed_config=any_of(context))


def picker_cluster(options: BuildOptions) -> cluster_pb2.Cluster:
    """The cluster of ext_proc and ALS: HTTP/2, its own breakers, pings that find a dead peer, stand-bys by priority."""
    name = wire.PICKER_CLUSTER
    pickers = ((options.picker_address, options.picker_port), *options.picker_standbys)
    cluster = cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.STATIC if all(is_ip(host) for host, _ in pickers) else cluster_pb2.Cluster.STRICT_DNS,
        connect_timeout=ms(options.connect_timeout_ms),
        circuit_breakers=_breakers(options.picker_max_requests, options.health()),
        common_lb_config=cluster_pb2.Cluster.CommonLbConfig(healthy_panic_threshold=percent_pb2.Percent(value=0.0)),
        load_assignment=endpoint_pb2.ClusterLoadAssignment(cluster_name=name),
    )
    cluster.load_assignment.policy.overprovisioning_factor.value = 100
    for priority, (host, port) in enumerate(pickers):
        cluster.load_assignment.endpoints.add(priority=priority).lb_endpoints.add(
            endpoint=endpoint_components_pb2.Endpoint(address=socket(host, port))
        )
    if options.picker_standbys:
        cluster.outlier_detection.CopyFrom(_leave_at_once())
    if options.picker_tls is not None:
        cluster.transport_socket.CopyFrom(_gateway_tls(options.picker_tls))
    if options.picker_health_check:
        check = cluster.health_checks.add(grpc_health_check=health_check_pb2.HealthCheck.GrpcHealthCheck())
        _probe_times(check, options.health())
    cluster.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(
        any_of(
            http_protocol_options_pb2.HttpProtocolOptions(
                explicit_http_config=http_protocol_options_pb2.HttpProtocolOptions.ExplicitHttpConfig(
                    http2_protocol_options=protocol_pb2.Http2ProtocolOptions(
                        connection_keepalive=_keepalive(),
                        initial_stream_window_size=u32(options.http2_window_bytes),
                        initial_connection_window_size=u32(options.http2_connection_window_bytes),
                    )
                )
            )
        )
    )
    return cluster


def _leave_at_once() -> outlier_detection_pb2.OutlierDetection:
    """One connection that fails takes a picker out until its next good probe: the next request asks the stand-by.

    The health check alone needs half a second, in which each pool that fails closed refuses everything. What a picker
    answers takes it out in no case, and the last one stays in.
    """
    return outlier_detection_pb2.OutlierDetection(
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure=u32(1),
        enforcing_consecutive_local_origin_failure=u32(100),
        enforcing_consecutive_5xx=u32(0),
        enforcing_consecutive_gateway_failure=u32(0),
        enforcing_success_rate=u32(0),
        enforcing_local_origin_success_rate=u32(0),
        max_ejection_percent=u32(50),
    )


def _gateway_tls(tls: GatewayTls) -> base_pb2.TransportSocket:
    """TLS with secrets from files of the gateway: of all forms only this one follows files that change."""

    def secret(name: str) -> secret_pb2.SdsSecretConfig:
        source = config_source_pb2.ConfigSource(resource_api_version=config_source_pb2.V3)
        source.path_config_source.path = f"{tls.folder.rstrip('/')}/{name}.json"
        return secret_pb2.SdsSecretConfig(name=name, sds_config=source)

    context = tls_pb2.UpstreamTlsContext(sni=tls.server_name)
    context.common_tls_context.alpn_protocols.append("h2")  # gRPC servers end connections that do not ask for it
    context.common_tls_context.tls_certificate_sds_secret_configs.append(secret(wire.GATEWAY_CERTIFICATE))
    context.common_tls_context.validation_context_sds_secret_config.CopyFrom(secret(wire.GATEWAY_TRUST))
    return base_pb2.TransportSocket(name="envoy.transport_sockets.tls", typed_config=any_of(context))


def _override_host() -> override_host_pb2.OverrideHost:
    """Endpoints from the pick's metadata, in order; the one that served is noted for the access log."""
    fallback = least_request_pb2.LeastRequest(
        choice_count=u32(2),
        locality_lb_config=common_pb2.LocalityLbConfig(
            locality_weighted_lb_config=common_pb2.LocalityLbConfig.LocalityWeightedLbConfig()
        ),
    )
    policy = override_host_pb2.OverrideHost()
    policy.override_host_sources.add(metadata=metadata_key(wire.LB_NAMESPACE, wire.DESTINATION_KEY))
    policy.fallback_policy.policies.add(
        typed_extension_config=extension("envoy.load_balancing_policies.least_request", fallback)
    )
    served = metadata_key(wire.LB_NAMESPACE, wire.SERVED_KEY).SerializeToString(deterministic=True)
    policy.MergeFromString(_SELECTED_HOST_KEY_TAG + bytes([len(served)]) + served)
    return policy


def _health_check(pool: Pool, health: HealthPolicy) -> health_check_pb2.HealthCheck:
    check = health_check_pb2.HealthCheck()
    _probe_times(check, health)
    # Cluster names hold a slash and more, which is no host name; Envoy would send it as one.
    host = ".".join(reversed(whole_pool(pool.name).replace(":", "-").split("/")))
    # A gateway that is probed asks its own endpoints, and not the gateway that probes it.
    travelled = [set_header(wire.HOPS_HEADER, "1")] if any(group.hop for group in pool.groups) else []
    if pool.app_protocol is AppProtocol.H2C:
        check.grpc_health_check.authority = host
        check.grpc_health_check.initial_metadata.extend(travelled)
    else:
        check.http_health_check.host = host
        check.http_health_check.path = pool.health_path
        check.http_health_check.request_headers_to_add.extend(travelled)
        # Other bad answers count towards the threshold; without this list a single 503 would take a host out at once.
        check.http_health_check.retriable_statuses.add(start=429, end=430)
        check.http_health_check.retriable_statuses.add(start=500, end=600)
        check.http_health_check.expected_statuses.append(range_pb2.Int64Range(start=200, end=300))
    return check


def _probe_times(check: health_check_pb2.HealthCheck, health: HealthPolicy) -> None:
    interval = ms(health.interval_ms)
    check.timeout.CopyFrom(ms(health.timeout_ms))
    check.interval.CopyFrom(interval)
    check.interval_jitter_percent = 10
    check.unhealthy_edge_interval.CopyFrom(ms(health.edge_interval_ms))
    check.healthy_edge_interval.CopyFrom(interval)
    check.unhealthy_interval.CopyFrom(interval)
    # Envoy probes clusters without traffic once a minute by default: too late for the first request.
    check.no_traffic_interval.CopyFrom(interval)
    check.no_traffic_healthy_interval.CopyFrom(interval)
    check.unhealthy_threshold.value = health.unhealthy_threshold
    check.healthy_threshold.value = health.healthy_threshold
    check.reuse_connection.value = True


def _outlier_detection(health: HealthPolicy) -> outlier_detection_pb2.OutlierDetection:
    """Consecutive failures and a failure share eject; success-rate statistics do not.

    502, 503, 504, resets and refused connections are the host's fault: two or three of them eject. A 500 may be the
    request's: whoever repeats one that no host can answer, while nobody else asks, would eject one host after the
    other, so it takes more of these in a row than a client tries.
    The success-rate rule would eject a host with 2 % errors among perfect ones, which must not trip.
    """
    return outlier_detection_pb2.OutlierDetection(
        interval=ms(health.ejection_interval_ms),
        base_ejection_time=ms(health.base_ejection_ms),
        max_ejection_time=ms(health.max_ejection_ms),
        # Hosts ejected together shall not come back together.
        max_ejection_time_jitter=ms(health.ejection_interval_ms),
        max_ejection_percent=u32(100),
        consecutive_5xx=u32(health.consecutive_5xx),
        enforcing_consecutive_5xx=u32(100),
        consecutive_gateway_failure=u32(health.consecutive_gateway_errors),
        enforcing_consecutive_gateway_failure=u32(100),
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure=u32(health.consecutive_connect_errors),
        enforcing_consecutive_local_origin_failure=u32(100),
        enforcing_success_rate=u32(0),
        enforcing_local_origin_success_rate=u32(0),
        failure_percentage_threshold=u32(health.failure_percent),
        failure_percentage_minimum_hosts=u32(1),
        failure_percentage_request_volume=u32(FAILURE_VOLUME),
        enforcing_failure_percentage=u32(100),
        # With the default a host whose probe is fine and whose requests fail is taken back at once, for ever (D6).
        successful_active_health_check_uneject_host=wrappers_pb2.BoolValue(value=False),
    )


def _breakers(limit: int, health: HealthPolicy) -> circuit_breaker_pb2.CircuitBreakers:
    breakers = circuit_breaker_pb2.CircuitBreakers()
    breakers.thresholds.add(
        max_connections=u32(limit),
        max_pending_requests=u32(limit),
        max_requests=u32(limit),
        retry_budget=circuit_breaker_pb2.CircuitBreakers.Thresholds.RetryBudget(
            budget_percent=percent_pb2.Percent(value=health.retry_budget_percent),
            min_retry_concurrency=u32(health.retry_min_concurrency),
        ),
    )
    return breakers


def _keepalive() -> protocol_pb2.KeepaliveSettings:
    """Pings that find a dead peer behind a silent network within 13 s; a busy process has 3 s to answer."""
    return protocol_pb2.KeepaliveSettings(interval=ms(10_000), timeout=ms(3_000))


def _upstream_protocol(protocol: AppProtocol, options: BuildOptions) -> any_pb2.Any:
    message = http_protocol_options_pb2.HttpProtocolOptions()
    if protocol is AppProtocol.H2C:
        h2 = message.explicit_http_config.http2_protocol_options
        h2.connection_keepalive.CopyFrom(_keepalive())
        h2.initial_stream_window_size.value = options.http2_window_bytes
        h2.initial_connection_window_size.value = options.http2_connection_window_bytes
    else:
        message.explicit_http_config.http_protocol_options.enable_trailers = True
        message.common_http_protocol_options.idle_timeout.CopyFrom(ms(options.http_idle_timeout_ms))
    return any_of(message)
