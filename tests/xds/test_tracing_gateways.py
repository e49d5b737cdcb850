"""What gateways are told about traces, and that it touches nothing else."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.trace.v3 import opentelemetry_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm
from envoy.extensions.tracers.opentelemetry.samplers.v3 import parent_based_sampler_pb2
from envoy.extensions.tracers.opentelemetry.samplers.v3 import trace_id_ratio_based_sampler_pb2 as ratio_pb2

from pointsman.app.envoy import find_envoy
from pointsman.core import wire
from pointsman.core.model import (
    Endpoint,
    Gateway,
    Listener,
    Pool,
    RouteMatch,
    Rule,
    SiteGroup,
    VirtualHost,
    WeightedPool,
)
from pointsman.xds import BuildOptions, GatewayTracing, build_resources, static_bootstrap
from pointsman.xds.check import check
from pointsman.xds.resources import CLUSTER, LISTENER, ROUTE, Resources

COLLECTOR = GatewayTracing(collector_address="10.0.0.9", collector_port=4317, ratio=0.0125, service_name="s")


def gateway(weight: int = 1) -> Gateway:
    endpoint = Endpoint(name="e", address="10.0.0.1", port=80, site="here")
    pools = tuple(
        Pool(name=name, groups=(SiteGroup(site="here", priority=0, weight=1, endpoints=(endpoint,)),))
        for name in ("ns/a", "ns/b")
    )
    arms = (WeightedPool(pool="ns/a", weight=weight), WeightedPool(pool="ns/b", weight=10_000 - weight))
    rule = Rule(name="r", route="HTTPRoute/ns/r", match=RouteMatch(), arms=arms)
    hosts = (VirtualHost(name="any", domains=("*",), rules=(rule,)),)
    listener = Listener(name="http", address="127.0.0.1", port=0, hosts=hosts)
    return Gateway(name="ns/gw", site="here", listeners=(listener,), pools=pools)


def build(tracing: GatewayTracing | None, weight: int = 1) -> Resources:
    return build_resources(gateway(weight), BuildOptions(tracing=tracing))


def manager(resources: Resources) -> hcm.HttpConnectionManager:
    listener = listener_pb2.Listener.FromString(resources[LISTENER]["ns/gw/http"].body)
    return hcm.HttpConnectionManager.FromString(listener.filter_chains[0].filters[0].typed_config.value)


def tracer(resources: Resources) -> opentelemetry_pb2.OpenTelemetryConfig:
    return opentelemetry_pb2.OpenTelemetryConfig.FromString(manager(resources).tracing.provider.typed_config.value)


def test_without_a_collector_nothing_is_traced() -> None:
    resources = build(None)
    assert not manager(resources).HasField("tracing")
    assert not manager(resources).HasField("request_id_extension")
    assert wire.COLLECTOR_CLUSTER not in resources[CLUSTER]


def test_a_collector_adds_its_cluster_and_changes_the_listener_once() -> None:
    plain, traced, heavier = build(None), build(COLLECTOR), build(COLLECTOR, weight=500)
    assert check(traced) == []
    assert {*traced[CLUSTER]} - {*plain[CLUSTER]} == {wire.COLLECTOR_CLUSTER}
    assert (CLUSTER, wire.COLLECTOR_CLUSTER) in traced[LISTENER]["ns/gw/http"].references
    assert plain[ROUTE] == traced[ROUTE]
    assert traced[LISTENER] == heavier[LISTENER]  # weights never touch a listener
    assert traced[ROUTE] != heavier[ROUTE]


@pytest.mark.parametrize(("address", "kind"), [("10.0.0.9", "STATIC"), ("::1", "STATIC"), ("otel.local", "STRICT_DNS")])
def test_the_collector_may_have_a_name(address: str, kind: str) -> None:
    found = build(replace(COLLECTOR, collector_address=address))[CLUSTER][wire.COLLECTOR_CLUSTER]
    cluster = cluster_pb2.Cluster.FromString(found.body)
    assert cluster_pb2.Cluster.DiscoveryType.Name(cluster.type) == kind
    endpoint = cluster.load_assignment.endpoints[0].lb_endpoints[0].endpoint
    assert endpoint.address.socket_address.address == address


def test_parents_decide_unless_they_shall_not() -> None:
    following, own = tracer(build(COLLECTOR)), tracer(build(replace(COLLECTOR, follow_parent=False)))
    parent = parent_based_sampler_pb2.ParentBasedSamplerConfig.FromString(following.sampler.typed_config.value)
    assert parent.wrapped_sampler == own.sampler
    ratio = ratio_pb2.TraceIdRatioBasedSamplerConfig.FromString(own.sampler.typed_config.value).sampling_percentage
    assert (ratio.numerator, ratio.DenominatorType.Name(ratio.denominator)) == (12_500, "MILLION")
    assert following.service_name == "s"


def test_tags_hold_nothing_of_a_body() -> None:
    values = {tag.tag: tag.value for tag in manager(build(COLLECTOR)).tracing.custom_tags}
    own = {f"pointsman.{name}" for name in ("rule", "pool", "site", "endpoint", "pick", "request_id")}
    assert set(values) == own | {"url.path"}
    assert not any("BODY" in value for value in values.values())


@pytest.mark.e2e
async def test_envoy_accepts_it(tmp_path: Path) -> None:
    config: dict[str, Any] = static_bootstrap(build(replace(COLLECTOR, collector_address="localhost")))
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        str(find_envoy()), "--mode", "validate", "-c", str(path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    text = (await process.communicate())[0].decode()
    assert process.returncode == 0, text
    assert "deprecated" not in text.lower(), text
