"""What one client can take of a gateway, and what it answers when there is no more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pointsman.app.envoy import validate_bootstrap
from pointsman.core import wire
from pointsman.core.model import Endpoint, Locality
from pointsman.core.snapshot import PlanHolder
from pointsman.xds import GatewayLimits, bootstrap
from pointsman.xds.limits import MIB, overload_manager
from support.envoy import running_envoy
from support.waiting import eventually


class Slow:
    """A model server whose answer has begun and ends when it is told to."""

    def __init__(self) -> None:
        self.end = asyncio.Event()

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await self.end.wait()
        await response.write(b"data: [DONE]\n\n")
        return response


@contextlib.asynccontextmanager
async def slow_server() -> AsyncIterator[tuple[Slow, Endpoint]]:
    slow = Slow()
    app = web.Application()
    app.router.add_get("/health", slow.health)
    app.router.add_post("/{path:.*}", slow.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield slow, Endpoint(name="slow", address="127.0.0.1", port=runner.addresses[0][1], site="here")
    finally:
        slow.end.set()
        await runner.cleanup()


@contextlib.asynccontextmanager
async def gateway(plane: Any, config: dict[str, Any]) -> AsyncIterator[str]:
    """The URL of a running gateway."""
    async with running_envoy(config) as envoy:

        async def listening() -> str:
            return dict(await envoy.listener_addresses()).get("default/gw/http", "")

        await eventually(listening, what="the listener")
        await plane.acked()
        yield f"http://{await listening()}"


def trickle() -> AsyncIterator[bytes]:
    async def body() -> AsyncIterator[bytes]:
        yield b'{"model": '
        await asyncio.Event().wait()

    return body()


@pytest.mark.e2e
@pytest.mark.parametrize("said_by", ["options", "the Gateway"])
async def test_a_request_that_never_ends_is_answered_408_and_a_long_answer_goes_on(kit, said_by) -> None:
    plane_options = {"receive_timeout_ms": 700} if said_by == "options" else {}
    async with slow_server() as (slow, endpoint), aiohttp.ClientSession() as session:
        plan = kit.plan_of(
            [kit.pool("default/p", endpoint)], kit.listener("http", kit.rule("r", ("default/p", 10_000)))
        )
        if said_by == "the Gateway":
            plan = replace(plan, gateways=(replace(plan.gateways[0], receive_timeout_ms=700),))
        holder = PlanHolder()
        holder.publish(plan)
        async with (
            kit.ControlPlane(holder, **plane_options) as plane,
            gateway(plane, plane.bootstrap(delta=True)) as url,
            session.post(f"{url}/v1/x", json={}) as answer,
        ):
            assert await answer.content.readline() == b"data: 1\n"
            async with session.post(f"{url}/v1/x", data=trickle()) as refused:
                assert refused.status == 408
                assert refused.headers[wire.REASON_HEADER] == "request_overall_timeout"
                assert (await refused.json())["error"]["type"] == "gateway_error"
            # The answer was there before the request that had its time since.
            slow.end.set()
            assert (await answer.content.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.e2e
async def test_a_gateway_without_memory_refuses_requests_and_says_so(kit, upstreams) -> None:
    one = await upstreams.start("one")
    holder = PlanHolder()
    holder.publish(
        kit.plan_of([kit.pool("default/p", one)], kit.listener("http", kit.rule("r", ("default/p", 10_000))))
    )
    async with kit.ControlPlane(holder) as plane, aiohttp.ClientSession() as session:
        config = plane.bootstrap(delta=True) | {"overload_manager": overload_manager(GatewayLimits(max_heap_bytes=MIB))}
        async with gateway(plane, config) as url:

            async def refused() -> bool:
                async with session.get(f"{url}/v1/models") as response:
                    if response.status == 200:  # it has not looked at its memory yet
                        return False
                    assert (response.status, response.headers[wire.REASON_HEADER]) == (503, "overload")
                    assert (await response.json())["error"]["message"] == "the gateway is short of memory"
                    return True

            await eventually(refused, what="requests are refused")
        async with gateway(plane, plane.bootstrap(delta=True)) as url, session.get(f"{url}/v1/models") as response:
            assert response.status == 200


@pytest.mark.e2e
async def test_envoy_takes_the_limits(tmp_path: Path) -> None:
    limits = GatewayLimits(max_heap_bytes=512 * MIB, max_connections=1_000)
    config = bootstrap("id", "ns/gw", Locality(), [("127.0.0.1", 1)], "127.0.0.1", 0, limits=limits)
    await validate_bootstrap(config, tmp_path)
    heap, connections = (entry["typed_config"] for entry in config["overload_manager"]["resource_monitors"])
    assert heap["max_heap_size_bytes"] == str(512 * MIB)
    assert connections["max_active_downstream_connections"] == "1000"


def test_limits_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="some memory"):
        GatewayLimits(max_heap_bytes=0)


@pytest.mark.e2e
async def test_an_address_that_a_proxy_tells_counts_only_where_it_is_trusted(kit, upstreams) -> None:
    one = await upstreams.start("one")
    plan = kit.plan_of([kit.pool("default/p", one)], kit.listener("http", kit.rule("r", ("default/p", 10_000))))
    told = {"x-forwarded-for": "203.0.113.7"}

    async def seen(trusted_hops: int) -> str:
        holder = PlanHolder()
        holder.publish(replace(plan, gateways=(replace(plan.gateways[0], trusted_hops=trusted_hops),)))
        async with (
            kit.ControlPlane(holder) as plane,
            gateway(plane, plane.bootstrap(delta=True)) as url,
            aiohttp.ClientSession() as session,
            session.get(f"{url}/v1/models", headers=told) as response,
        ):
            headers = (await response.json())["headers"]
            return {name.lower(): value for name, value in headers.items()}["x-envoy-external-address"]

    assert await seen(0) != "203.0.113.7"
    assert await seen(1) == "203.0.113.7"
