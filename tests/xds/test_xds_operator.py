"""What an operator sees when a gateway refuses what we accepted: the whole way from manifests to `/api/v1/status`."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.fleet import Layout
from support.planes import Plane, rails
from support.waiting import eventually

pytestmark = pytest.mark.e2e

WITH_SECOND_PORT = Layout(grpc={"us-east": 1})


async def rejected(plane: Plane) -> list[dict[str, Any]]:
    """What the gateway refused, as the status tells it."""
    (gateway,) = (await plane.status())["xds"]["gateways"]
    found: list[dict[str, Any]] = gateway["rejected"]
    return found


def lines(plane: Plane, event: str) -> list[dict[str, Any]]:
    """Log lines of one event."""
    return [entry for line in plane.log.splitlines() if (entry := json.loads(line))["event"] == event]


async def test_a_taken_port_is_told_in_envoys_words_and_tried_again_until_it_is_free(tmp_path: Path) -> None:
    async with rails(tmp_path) as parts:
        plane = await parts.control_plane(parts.reserve())
        envoy = await parts.gateway(await parts.bootstrap("--xds", plane.target))
        place = (parts.manifests.gateway_address, parts.manifests.grpc_port)
        with socket.create_server(place):
            parts.manifests.write(WITH_SECOND_PORT)

            async def told() -> bool:
                return bool(await rejected(plane))

            await eventually(told, what="the refusal is told")
            (entry,) = await rejected(plane)
            name = f"default/main/{place[0]}:{place[1]}"
            assert (entry["type"], entry["name"], entry["retry"]) == ("LDS", name, True)
            assert "cannot bind" in entry["message"]
            assert f"{place[0]}:{place[1]}" in entry["message"]
            assert len(entry["nodes"]) == 1
            # The rest of the change has arrived, and the other listener serves.
            clusters = (await parts.stats(envoy))["cluster_manager.active_clusters"]
            assert clusters == 5  # stable, canary, grpc, the picker, the control plane
            async with parts.session.get(f"{parts.url}/v1/models") as response:
                assert response.status == 200

            async def tried_again() -> bool:
                return await plane.metric("pointsman_xds_requests_total", type="LDS", kind="nack") >= 2

            await eventually(tried_again, what="it is tried again")
            assert await plane.metric("pointsman_xds_rejected_resources", gateway="default/main", type="LDS") == 1
            (line,) = lines(plane, "xds: rejected")
            assert line["resources"] == [name]
            assert "cannot bind" in line["message"]
        # Nobody changes anything: the port is free, the listener comes.

        async def served() -> bool:
            return not await rejected(plane)

        await eventually(served, timeout_s=40, what="the listener is accepted after all")
        assert [line["resource"] for line in lines(plane, "xds: accepted after all")] == [name]
        assert len(lines(plane, "xds: rejected")) == 1
        _, writer = await asyncio.open_connection(*place)
        writer.close()
        await writer.wait_closed()


async def test_an_address_of_another_machine_is_told_and_the_way_back_is_free(tmp_path: Path) -> None:
    """192.0.2.1 is nobody's (RFC 5737)."""
    async with rails(tmp_path) as parts:
        plane = await parts.control_plane(parts.reserve())
        await parts.gateway(await parts.bootstrap("--xds", plane.target))
        home, parts.manifests.gateway_address = parts.manifests.gateway_address, "192.0.2.1"
        parts.manifests.write(Layout())

        async def told() -> bool:
            return bool(await rejected(plane))

        await eventually(told, what="the refusal is told")
        (entry,) = await rejected(plane)
        assert "Cannot assign requested address" in entry["message"]
        assert entry["retry"]
        parts.manifests.gateway_address = home
        parts.manifests.write(Layout())

        async def mended() -> bool:
            return not await rejected(plane)

        await eventually(mended, what="all is well again")

        async def serves() -> bool:
            try:
                async with parts.session.get(f"{parts.url}/v1/models") as response:
                    return response.status == 200
            except aiohttp.ClientError:
                return False

        await eventually(serves, what="the gateway serves again")
