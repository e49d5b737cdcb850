"""The generated resources: shape, determinism, incremental builds, and what Envoy and a second decoder say to them."""

from __future__ import annotations

import asyncio
import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from envoy.extensions.filters.http.ext_proc.v3 import ext_proc_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm

from pointsman.app.envoy import find_envoy
from pointsman.core import wire
from pointsman.core.model import (
    AppProtocol,
    Endpoint,
    FailureMode,
    Gateway,
    HeaderEdit,
    Health,
    Listener,
    Locality,
    MatchType,
    PickProfile,
    Pool,
    RouteMatch,
    Rule,
    Site,
    SiteGroup,
    StringMatch,
    VirtualHost,
    WeightedPool,
)
from pointsman.xds import BuildCache, BuildOptions, bootstrap, build_resources, render, static_bootstrap
from pointsman.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource

SITES = (Site(name="us", locality=Locality(region="us-east1", zone="b")), Site(name="eu"))


def endpoints(site: str, count: int, health: Health = Health.UNKNOWN) -> tuple[Endpoint, ...]:
    net = {"us": "10.1.0", "eu": "10.2.0"}[site]
    return tuple(
        Endpoint(name=f"{site}-{i}", address=f"{net}.{i + 1}", port=8000, site=site, health=health)
        for i in range(count)
    )


def fleet() -> Gateway:
    """One of everything that the builder knows."""
    edits = HeaderEdit(set=(("x-set", "50%"),), add=(("x-add", "a"),), remove=("x-gone",))
    near = SiteGroup(site="us", priority=0, weight=2, endpoints=endpoints("us", 2, Health.DRAINING))
    far = SiteGroup(site="eu", priority=5, weight=1, endpoints=endpoints("eu", 1))
    pools = (
        Pool(name="ns/canary", failure_mode=FailureMode.FAIL_CLOSE, groups=(near,)),
        Pool(name="ns/grpc", app_protocol=AppProtocol.H2C, groups=(near,)),
        Pool(name="ns/stable", groups=(near, far)),
    )
    header = StringMatch(type=MatchType.EXACT, name="x-model-variant", value="canary")
    rules = (
        Rule(
            name="pin",
            route="HTTPRoute/ns/r",
            match=RouteMatch(headers=(header,), method="POST"),
            arms=(WeightedPool(pool="ns/canary", weight=10_000),),
        ),
        Rule(
            name="grpc",
            route="GRPCRoute/ns/g",
            match=RouteMatch(path=StringMatch(type=MatchType.PREFIX, value="/pkg.Service/")),
            arms=(WeightedPool(pool="ns/grpc", weight=10_000),),
            profile=PickProfile.HEADERS,
        ),
        Rule(
            name="upload",
            route="HTTPRoute/ns/u",
            match=RouteMatch(path=StringMatch(type=MatchType.REGEX, value="/files/.*")),
            arms=(WeightedPool(pool="ns/canary", weight=10_000),),
            profile=PickProfile.HEADERS,
        ),
        Rule(
            name="plain",
            route="HTTPRoute/ns/p",
            match=RouteMatch(
                path=StringMatch(type=MatchType.EXACT, value="/plain"),
                query=(StringMatch(type=MatchType.EXACT, name="q", value="1"),),
            ),
            arms=(WeightedPool(pool="ns/stable", weight=10_000),),
            profile=PickProfile.NONE,
            timeout_ms=1_500,
        ),
        Rule(name="no", route="HTTPRoute/ns/n", match=RouteMatch(), direct_status=404, direct_reason="no such thing"),
        Rule(
            name="zero",
            route="HTTPRoute/ns/z",
            match=RouteMatch(),
            arms=(WeightedPool(pool="ns/canary", weight=0), WeightedPool(pool="ns/stable", weight=0)),
        ),
        Rule(
            name="split",
            route="HTTPRoute/ns/s",
            match=RouteMatch(),
            arms=(
                WeightedPool(pool="ns/canary", weight=500, request_headers=edits, response_headers=edits),
                WeightedPool(pool="ns/stable", weight=9_500),
            ),
            request_headers=edits,
            hash_header="x-user-id",
        ),
    )
    hosts = (VirtualHost(name="any", domains=("*",), rules=rules),)
    listener = Listener(name="http", address="127.0.0.1", port=8080, hosts=hosts)
    return Gateway(name="ns/gw", site="us", listeners=(listener,), pools=pools)


def build(gateway: Gateway | None = None, **settings: Any) -> dict[str, dict[str, Resource]]:
    found = build_resources(gateway or fleet(), BuildOptions(**settings), sites=SITES)
    return {type_url: dict(resources) for type_url, resources in found.items()}


def routes() -> dict[str, Any]:
    config = route_pb2.RouteConfiguration.FromString(build()[ROUTE]["ns/gw/http"].body)
    return {route.name: route for route in config.virtual_hosts[0].routes}


def manager() -> hcm.HttpConnectionManager:
    listener = listener_pb2.Listener.FromString(build()[LISTENER]["ns/gw/http"].body)
    return hcm.HttpConnectionManager.FromString(listener.filter_chains[0].filters[0].typed_config.value)


def test_equal_gateways_give_equal_bytes_and_versions() -> None:
    assert build() == build()
    assert json.dumps(render(build())) == json.dumps(render(build()))


def test_names_and_references() -> None:
    found = build()
    assert list(found[CLUSTER]) == ["ns/canary", "ns/grpc", "ns/stable", wire.PICKER_CLUSTER]
    assert list(found[ENDPOINT]) == ["ns/canary", "ns/grpc", "ns/stable"]
    assert found[CLUSTER]["ns/stable"].references == ((ENDPOINT, "ns/stable"),)
    assert found[LISTENER]["ns/gw/http"].references == ((CLUSTER, wire.PICKER_CLUSTER), (ROUTE, "ns/gw/http"))
    assert found[ROUTE]["ns/gw/http"].references == tuple((CLUSTER, f"ns/{n}") for n in ("canary", "grpc", "stable"))


def test_localities_are_dense_priorities_with_the_sites_places() -> None:
    assignment = endpoint_pb2.ClusterLoadAssignment.FromString(build()[ENDPOINT]["ns/stable"].body)
    assert assignment.cluster_name == "ns/stable"
    assert assignment.policy.overprovisioning_factor.value == 100
    places = [
        (g.priority, g.locality.region, g.locality.zone, g.locality.sub_zone, g.load_balancing_weight.value)
        for g in assignment.endpoints
    ]
    assert places == [(0, "us-east1", "b", "us", 2), (1, "eu", "", "eu", 1)]
    first = assignment.endpoints[0].lb_endpoints[0]
    assert first.endpoint.address.socket_address.address == "10.1.0.1"
    assert first.health_status == 3  # DRAINING
    assert first.metadata.filter_metadata["pointsman"]["site"] == "us"


def test_clusters_fail_over_strictly_and_retry_within_a_budget() -> None:
    cluster = cluster_pb2.Cluster.FromString(build()[CLUSTER]["ns/stable"].body)
    assert cluster.common_lb_config.HasField("healthy_panic_threshold")
    assert cluster.common_lb_config.healthy_panic_threshold.value == 0
    assert cluster.outlier_detection.max_ejection_percent.value == 100
    assert not cluster.outlier_detection.successful_active_health_check_uneject_host.value
    assert cluster.outlier_detection.HasField("successful_active_health_check_uneject_host")
    assert cluster.circuit_breakers.thresholds[0].retry_budget.min_retry_concurrency.value == 10_000
    assert cluster.health_checks[0].http_health_check.host == "stable.ns"
    grpc = cluster_pb2.Cluster.FromString(build()[CLUSTER]["ns/grpc"].body)
    assert grpc.health_checks[0].HasField("grpc_health_check")


def test_the_picker_may_be_a_name() -> None:
    body = build(picker_address="picker.example.org")[CLUSTER][wire.PICKER_CLUSTER].body
    assert cluster_pb2.Cluster.FromString(body).type == cluster_pb2.Cluster.STRICT_DNS


def test_matches() -> None:
    found = routes()
    assert found["pin"].match.prefix == "/"
    assert [(h.name, h.string_match.exact) for h in found["pin"].match.headers] == [
        (":method", "POST"),
        ("x-model-variant", "canary"),
    ]
    assert found["grpc"].match.path_separated_prefix == "/pkg.Service"
    assert found["grpc"].match.HasField("grpc")
    assert found["upload"].match.safe_regex.regex == "/files/.*"
    assert found["plain"].match.path == "/plain"
    assert found["plain"].match.query_parameters[0].string_match.exact == "1"


def test_the_split_keeps_its_order_and_is_sticky() -> None:
    action = routes()["split"].route
    assert [(c.name, c.weight.value) for c in action.weighted_clusters.clusters] == [
        ("ns/canary", 500),
        ("ns/stable", 9_500),
    ]
    assert action.weighted_clusters.use_hash_policy.value
    assert action.hash_policy[0].header.header_name == "x-user-id"
    assert action.HasField("timeout") and action.timeout.ToMilliseconds() == 0
    assert action.idle_timeout.ToMilliseconds() == 300_000


def test_header_values_are_literal() -> None:
    arm = routes()["split"].route.weighted_clusters.clusters[0]
    added = [(o.header.key, o.header.value) for o in arm.request_headers_to_add]
    assert added == [("x-set", "50%%"), ("x-add", "a"), ("x-add", "a")]  # the rule adds one, and its arm another
    assert list(arm.response_headers_to_remove) == ["x-gone"]


@pytest.mark.parametrize(("name", "status", "reason"), [("no", 404, "no such thing"), ("zero", 503, "all weights")])
def test_rules_without_a_pool_answer_with_a_reason(name: str, status: int, reason: str) -> None:
    route = routes()[name]
    assert route.direct_response.status == status
    assert reason in {o.header.key: o.header.value for o in route.response_headers_to_add}[wire.REASON_HEADER]
    assert json.loads(route.direct_response.body.inline_string)["error"]["code"] == status


def per_route(config: Any, name: str = "envoy.filters.http.ext_proc") -> ext_proc_pb2.ExtProcPerRoute:
    return ext_proc_pb2.ExtProcPerRoute.FromString(config[name].value)


def test_profiles() -> None:
    found = routes()
    assert not found["split"].typed_per_filter_config
    assert found["split"].request_body_buffer_limit.value == wire.MAX_PROMPT_BYTES
    for name in ("grpc", "upload", "plain"):
        assert {"envoy.filters.http.buffer", "pointsman.whole_body"} <= set(found[name].typed_per_filter_config)
    assert per_route(found["plain"].typed_per_filter_config).disabled
    assert per_route(found["grpc"].typed_per_filter_config).overrides.processing_mode.request_header_mode == 1  # SEND


def test_arms_of_a_pool_that_fails_closed_switch_to_the_filter_that_insists() -> None:
    arms = routes()["split"].route.weighted_clusters.clusters
    assert per_route(arms[0].typed_per_filter_config).disabled
    insisting = per_route(arms[0].typed_per_filter_config, "pointsman.ext_proc_closed")
    assert insisting.HasField("overrides")
    assert not insisting.overrides.HasField("processing_mode")
    assert not arms[1].typed_per_filter_config
    upload = routes()["upload"].route.weighted_clusters.clusters[0].typed_per_filter_config
    assert per_route(upload).disabled
    assert per_route(upload, "pointsman.ext_proc_closed").overrides.processing_mode.request_header_mode == 1


def test_only_buffered_requests_are_retried_after_a_reset() -> None:
    conditions = {name: set(r.route.retry_policy.retry_on.split(",")) for name, r in routes().items()}
    assert "reset" in conditions["split"]
    assert "reset" not in conditions["upload"] | conditions["grpc"]
    assert "unavailable" in conditions["grpc"]


def test_filters_stand_in_the_order_of_the_one_message_profile() -> None:
    found = manager()
    names = [f.name.rpartition(".")[2] for f in found.http_filters]
    assert names == ["whole_body", "ext_proc", "ext_proc_closed", "buffer", "router"]
    assert [f.disabled for f in found.http_filters] == [False, False, True, False, False]
    both = [ext_proc_pb2.ExternalProcessor.FromString(f.typed_config.value) for f in found.http_filters[1:3]]
    for processor in both:
        assert list(processor.request_attributes) == list(wire.REQUEST_ATTRIBUTES)
        assert list(processor.metadata_options.receiving_namespaces.untyped) == [wire.LB_NAMESPACE, wire.PICK_NAMESPACE]
        assert processor.message_timeout.ToMilliseconds() < processor.max_message_timeout.ToMilliseconds()
    assert [processor.failure_mode_allow for processor in both] == [True, False]
    assert both[0].message_timeout.ToMilliseconds() < both[1].message_timeout.ToMilliseconds()


def test_the_access_log_tells_one_header_more() -> None:
    """What the picker reads of a refusal (`Feedback.retry_after_s`); other headers may hold what nobody should log."""
    log = als_pb2.HttpGrpcAccessLogConfig.FromString(manager().access_log[0].typed_config.value)
    assert list(log.additional_response_headers_to_log) == ["retry-after"]
    assert not log.additional_request_headers_to_log
    assert not log.additional_response_trailers_to_log


def test_a_change_of_weights_touches_only_the_routes() -> None:
    cache, options, gateway = BuildCache(), BuildOptions(), fleet()
    before = build_resources(gateway, options, sites=SITES, cache=cache)
    host = gateway.listeners[0].hosts[0]
    split = replace(host.rules[-1], arms=tuple(replace(a, weight=5_000) for a in host.rules[-1].arms))
    hosts = (replace(host, rules=(*host.rules[:-1], split)),)
    changed = replace(gateway, listeners=(replace(gateway.listeners[0], hosts=hosts),))
    cache.misses = 0
    after = build_resources(changed, options, sites=SITES, cache=cache)
    assert [t for t in after if after[t] is not before[t]] == [ROUTE]
    assert cache.misses == 2  # the route configuration, and the set it stands in
    assert after == build_resources(changed, options, sites=SITES)


def test_a_change_of_an_endpoint_builds_its_site_only() -> None:
    cache, options, gateway = BuildCache(), BuildOptions(), fleet()
    before = build_resources(gateway, options, sites=SITES, cache=cache)
    stable = gateway.pools[2]
    far = replace(stable.groups[1], endpoints=endpoints("eu", 1, Health.UNHEALTHY))
    changed = replace(gateway, pools=(*gateway.pools[:2], replace(stable, groups=(stable.groups[0], far))))
    cache.misses = 0
    after = build_resources(changed, options, sites=SITES, cache=cache)
    assert [t for t in after if after[t] is not before[t]] == [ENDPOINT]
    assert cache.misses == 2  # the assignment, and the set it stands in
    assert after == build_resources(changed, options, sites=SITES)


async def validate(config: dict[str, Any], folder: Path) -> None:
    """Let the real Envoy judge."""
    path = folder / "envoy.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        str(find_envoy()), "--mode", "validate", "-c", str(path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    assert "deprecated" not in text.lower(), text


@pytest.mark.e2e
async def test_envoy_accepts_everything(tmp_path: Path) -> None:
    await validate(static_bootstrap(build()), tmp_path)


@pytest.mark.e2e
@pytest.mark.parametrize("delta", [False, True])
async def test_envoy_accepts_the_bootstrap(tmp_path: Path, delta: bool) -> None:
    addresses = [("127.0.0.1", 18_000), ("127.0.0.1", 18_001)]
    found = bootstrap("id", "ns/gw", Locality(region="r"), addresses, "127.0.0.1", 0, delta=delta, lrs=True)
    await validate(found, tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap("id", "ns/gw", Locality(), [], "127.0.0.1", 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydantic, in the decoder
def test_a_second_decoder_reads_the_same() -> None:
    """`envoy-data-plane` shares no code with protobuf: names, nesting and counts must come out alike."""
    modules = {
        CLUSTER: ("envoy_data_plane.envoy.config.cluster.v3", "Cluster", lambda m: m.name),
        ENDPOINT: ("envoy_data_plane.envoy.config.endpoint.v3", "ClusterLoadAssignment", lambda m: m.cluster_name),
        LISTENER: ("envoy_data_plane.envoy.config.listener.v3", "Listener", lambda m: m.name),
        ROUTE: ("envoy_data_plane.envoy.config.route.v3", "RouteConfiguration", lambda m: m.name),
    }
    for type_url, (module, name, key) in modules.items():
        decoder = getattr(importlib.import_module(module), name)
        for resource in build()[type_url].values():
            message = decoder.parse(resource.body)
            assert key(message) == resource.name
            assert decoder.parse(bytes(message)) == message
    policies = importlib.import_module("envoy_data_plane.envoy.extensions.load_balancing_policies.override_host.v3")
    cluster = importlib.import_module(modules[CLUSTER][0]).Cluster.parse(build()[CLUSTER]["ns/stable"].body)
    override = policies.OverrideHost.parse(
        cluster.load_balancing_policy.policies[0].typed_extension_config.typed_config.value
    )
    assert override.selected_host_key.path[0].key == wire.SERVED_KEY
