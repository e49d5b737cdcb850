"""Two control planes over one folder: either may go at any time, and a gateway that moves is sent nothing again."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import discovery_pb2

from pointsman.core import wire
from pointsman.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, SHORT_NAMES
from support.fleet import POINTSMAN, Layout
from support.load import Load
from support.planes import Plane, Rails, rails
from support.waiting import eventually

pytestmark = pytest.mark.e2e

CONFIGURATION = (
    "cluster_manager.cds.update_success",
    "listener_manager.lds.update_success",
    "listener_manager.listener_added",
    "listener_manager.listener_modified",
    "cluster_manager.cluster_modified",
    "cluster.default/stable.update_success",
)


async def configured(parts: Rails, envoy: Any) -> dict[str, int]:
    """Envoy's counts of what it was sent."""
    stats = await parts.stats(envoy)
    routes = {name: value for name, value in stats.items() if name.endswith(".update_success") and ".rds." in name}
    return {**{name: stats[name] for name in CONFIGURATION}, **routes}


async def serves(plane: Plane) -> bool:
    """Whether the gateway's stream is at this control plane."""
    return any(node["settled"] for node in (await plane.status())["xds"]["nodes"])


@pytest.mark.parametrize("protocol", ["delta", "sotw"])
async def test_the_second_takes_over_and_the_first_comes_back(tmp_path: Path, protocol: str) -> None:
    async with rails(tmp_path) as parts:
        targets = [parts.reserve(), parts.reserve()]
        words = ["--picker", targets[0], "--picker", targets[1], "--stream-age", "2"]
        first = await parts.control_plane(targets[0], *words)
        second = await parts.control_plane(targets[1], *words)
        envoy = await parts.gateway(
            await parts.bootstrap("--xds", targets[0], "--xds", targets[1], "--xds-protocol", protocol)
        )
        async with Load(parts.url, workers=8, timeout_s=30) as load:
            await load.progressed(60)

            async def picks_at(plane: Plane) -> bool:
                before = await plane.metric("pointsman_picks_total")
                await load.progressed(20)
                return await plane.metric("pointsman_picks_total") >= before + 10

            await eventually(lambda: serves(first), what="the first has the gateway, whose streams age")
            await eventually(lambda: picks_at(first), what="the first picks")
            told = await configured(parts, envoy)

            await first.kill()
            await load.progressed(60)
            await eventually(lambda: serves(second), what="the second has the gateway")
            assert await configured(parts, envoy) == told, "nothing is sent again"
            if protocol == "delta":
                assert await second.metric("pointsman_xds_responses_total") == 0
            await eventually(lambda: picks_at(second), what="the second picks")

            parts.manifests.write(Layout(canary_weight=100, stable_weight=0))

            async def all_canary() -> bool:
                load.outcomes.replicas.clear()
                await load.progressed(30)
                return set(load.outcomes.replicas) == {"canary-us-east-0"}

            await eventually(all_canary, what="the change arrives through the second")
            told = await configured(parts, envoy)
            sent = await second.metric("pointsman_xds_responses_total")

            first = await parts.control_plane(targets[0], *words)
            await eventually(lambda: serves(first), what="the gateway comes back to the first")
            await eventually(lambda: picks_at(first), what="the first picks again")

            async def heard() -> bool:
                return await first.metric("pointsman_feedback_total", kind="end") > 0

            await eventually(heard, what="and hears what became of its picks")
            assert await configured(parts, envoy) == told, "nothing is sent again"
            if protocol == "delta":
                assert await first.metric("pointsman_xds_responses_total") == 0
                assert await second.metric("pointsman_xds_responses_total") == sent
        assert load.outcomes.failed == 0, load.outcomes.failures


async def test_a_pool_that_fails_closed_loses_only_what_was_being_picked(tmp_path: Path) -> None:
    """The first failed connection sends the next request to the stand-by; the probe alone would take half a second, in
    which a pool that fails closed refuses hundreds."""
    workers = 8
    async with rails(tmp_path, Layout(failure_mode="FailClose")) as parts:
        targets = [parts.reserve(), parts.reserve()]
        words = ["--picker", targets[0], "--picker", targets[1]]
        first, second = [await parts.control_plane(target, *words) for target in targets]
        await parts.gateway(await parts.bootstrap("--xds", targets[0], "--xds", targets[1]))
        async with Load(parts.url, workers=workers, timeout_s=30) as load:
            await load.progressed(60)
            before = load.outcomes.failed  # picks that a busy machine made too late
            assert before < 30, load.outcomes.failures
            await first.kill()

            async def picks() -> bool:
                return await second.metric("pointsman_picks_total") > 100

            await eventually(picks, what="the second picks")
        assert load.outcomes.failed - before <= 5 * workers, load.outcomes.failures


@pytest.mark.story
async def test_a_frozen_first_is_left(tmp_path: Path) -> None:
    """It accepts connections and answers nothing: probes find it for the picks, pings for the xDS stream."""
    async with rails(tmp_path) as parts:
        targets = [parts.reserve(), parts.reserve()]
        words = ["--picker", targets[0], "--picker", targets[1]]
        first, second = [await parts.control_plane(target, *words) for target in targets]
        await parts.gateway(await parts.bootstrap("--xds", targets[0], "--xds", targets[1]))
        async with Load(parts.url, workers=4, timeout_s=30) as load:
            await load.progressed(20)
            first.freeze()

            async def picks() -> bool:
                before = await second.metric("pointsman_picks_total")
                await load.progressed(20)
                return await second.metric("pointsman_picks_total") >= before + 20

            await eventually(picks, what="every request is picked by the second")
            await eventually(lambda: serves(second), timeout_s=60, what="the second has the gateway")
            first.thaw()
        assert load.outcomes.failed == 0, load.outcomes.failures


async def test_both_serve_identical_bytes(tmp_path: Path) -> None:
    async with rails(tmp_path, Layout(grpc={"us-east": 2}, canary_weight=5, stable_weight=95)) as parts:
        targets = [parts.reserve(), parts.reserve()]
        words = ["--picker", targets[0], "--picker", targets[1]]
        planes = [await parts.control_plane(target, *words) for target in targets]
        one, two = [await everything(plane.target) for plane in planes]
        assert one == two
        assert {SHORT_NAMES[type_url] for type_url, _ in one} == {"CDS", "EDS", "LDS", "RDS"}
        rendered = [await render(parts.manifests.folder, seed) for seed in ("1", "2")]
        assert rendered[0] == rendered[1]
        offline = {
            (kind, resource["name"]): resource["version"]
            for kind, resources in json.loads(rendered[0]).items()
            for resource in resources
        }
        served = {(SHORT_NAMES[type_url], name): version for (type_url, name), (version, _) in one.items()}
        assert served.keys() == offline.keys()
        # Offline nobody knows where the pickers are.
        assert {key for key in served if served[key] != offline[key]} == {("CDS", wire.PICKER_CLUSTER)}


async def render(folder: Path, seed: str) -> str:
    """`pointsman render --as xds` in a process with its own order of hashes."""
    process = await asyncio.create_subprocess_exec(
        POINTSMAN, "render", folder, "--as", "xds",
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def everything(target: str) -> dict[tuple[str, str], tuple[str, bytes]]:
    """All resources of the gateway as a control plane serves them: version and bytes by type and name."""
    found: dict[tuple[str, str], tuple[str, bytes]] = {}
    async with grpc.aio.insecure_channel(target) as channel:
        stream = channel.stream_stream(
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )()
        for type_url in (CLUSTER, ENDPOINT, LISTENER, ROUTE):
            request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=["*"])
            request.node.id, request.node.cluster = "reader", "default/main"
            await stream.write(request)
        while len({type_url for type_url, _ in found}) < 4:
            response = await asyncio.wait_for(stream.read(), 20)
            for resource in response.resources:
                found[response.type_url, resource.name] = (resource.version, resource.resource.value)
            await stream.write(
                discovery_pb2.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
            )
        stream.cancel()
    return found
