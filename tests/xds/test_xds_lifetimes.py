"""Resources with a lifetime against a real Envoy: dropped when the control plane falls silent, kept while it speaks."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from pointsman.core.snapshot import PlanHolder
from pointsman.xds.heartbeat import Lifetime
from pointsman.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE
from support.envoy import running_envoy
from support.waiting import eventually

BOTH = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
TTL_MS = 1_500


async def listeners(envoy: Any) -> set[str]:
    async with aiohttp.ClientSession() as session, session.get(f"{envoy.admin_url}/listeners") as response:
        return {line.partition("::")[0] for line in (await response.text()).splitlines()}


async def clusters(envoy: Any) -> set[str]:
    async with aiohttp.ClientSession() as session, session.get(f"{envoy.admin_url}/clusters") as response:
        return {line.partition("::")[0] for line in (await response.text()).splitlines()}


async def stat(envoy: Any, name: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{envoy.admin_url}/stats?filter=^{name}$") as response:
        return int((await response.text()).rpartition(":")[2])


@BOTH
@pytest.mark.e2e
async def test_a_listener_with_a_lifetime_goes_with_its_control_plane_and_comes_back(kit, upstreams, delta) -> None:
    endpoint = await upstreams.start("one")
    holder = PlanHolder()
    pools = [kit.pool("default/one", endpoint)]
    route = kit.rule("all", ("default/one", 10_000))
    holder.publish(kit.plan_of(pools, kit.listener("mortal", route), kit.listener("lasting", route)))
    mortal, lasting = "default/gw/mortal", "default/gw/lasting"
    lifetimes = [Lifetime(type_url=LISTENER, names="*/mortal", ttl_ms=TTL_MS)]
    async with (
        kit.ControlPlane(holder, lifetimes=lifetimes) as first,
        running_envoy(first.bootstrap(delta=delta)) as envoy,
    ):
        await first.acked()

        # Confirmed for twice its lifetime: it stays, and nothing else is said.
        def beats() -> float:
            return first.total("pointsman_xds_requests_total", type="LDS", kind="ack") - 1

        await eventually(lambda: beats() >= 6, what="six confirmations")
        assert {mortal, lasting} <= await listeners(envoy)
        assert await stat(envoy, "listener_manager.listener_removed") == 0
        assert await stat(envoy, "listener_manager.listener_modified") == 0
        assert first.total("pointsman_xds_requests_total", kind="nack") == 0
        (node,) = first.xds.status()["nodes"]
        assert node["settled"]

        await first.server.stop(None)

        async def gone() -> bool:
            return mortal not in await listeners(envoy)

        await eventually(gone, what="the listener is dropped")
        assert lasting in await listeners(envoy)  # the data plane goes on without us

        async with kit.ControlPlane(holder, first.port, lifetimes=lifetimes) as second:
            await second.acked()

            async def back() -> bool:
                return mortal in await listeners(envoy)

            await eventually(back, what="the listener is back")
            if delta:  # one with a body, whatever else are confirmations
                assert second.total("pointsman_xds_responses_total", type="CDS") == 0
            assert second.total("pointsman_xds_requests_total", kind="nack") == 0


@BOTH
@pytest.mark.e2e
async def test_confirming_a_cluster_leaves_all_clusters_alone(kit, upstreams, delta) -> None:
    """Envoy takes a SotW response of bodiless heartbeats for an empty one, and would delete every cluster."""
    endpoint = await upstreams.start("one")
    holder = PlanHolder()
    pools = [kit.pool("default/one", endpoint), kit.pool("default/two", endpoint)]
    holder.publish(kit.plan_of(pools, kit.listener("http", kit.rule("all", ("default/one", 10_000)))))
    lifetimes = [Lifetime(type_url=CLUSTER, names="default/two", ttl_ms=TTL_MS)]
    async with (
        kit.ControlPlane(holder, lifetimes=lifetimes) as plane,
        running_envoy(plane.bootstrap(delta=delta)) as envoy,
    ):
        await plane.acked()
        before = plane.total("pointsman_xds_requests_total", type="CDS", kind="ack")
        await eventually(
            lambda: plane.total("pointsman_xds_requests_total", type="CDS", kind="ack") >= before + 6,
            what="six confirmations",
        )
        assert {"default/one", "default/two"} <= await clusters(envoy)
        assert await stat(envoy, "cluster_manager.cluster_removed") == 0
        assert await stat(envoy, "cluster_manager.cluster_modified") == 0
        await plane.server.stop(None)

        async def gone() -> bool:
            return "default/two" not in await clusters(envoy)

        await eventually(gone, what="the cluster is dropped")
        assert "default/one" in await clusters(envoy)


@pytest.mark.parametrize("type_url", [ENDPOINT, ROUTE])
def test_what_envoy_dies_of_is_refused(type_url: str) -> None:
    with pytest.raises(ValueError, match="only clusters and listeners"):
        Lifetime(type_url=type_url, ttl_ms=1_000)
