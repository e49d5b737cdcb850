"""When an endpoint is ejected for what it answers, as a real Envoy does it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest

from pointsman.core.model import HealthPolicy
from pointsman.core.snapshot import PlanHolder
from support.envoy import running_envoy
from support.waiting import eventually

pytestmark = pytest.mark.e2e


@dataclass
class Gate:
    """A gateway over a pool of two, and what Envoy counts of the pool."""

    session: aiohttp.ClientSession
    url: str
    admin_url: str

    async def ask(self, **headers: str) -> tuple[int, str]:
        async with self.session.post(f"{self.url}/v1/completions", data=b"{}", headers=headers) as response:
            return response.status, (await response.json()).get("system_fingerprint", "")

    async def count(self, name: str) -> int:
        query = {"filter": f"cluster.default/p.{name}$", "format": "json"}
        async with self.session.get(f"{self.admin_url}/stats", params=query) as response:
            (found,) = (await response.json(content_type=None))["stats"]
            value: int = found["value"]
            return value

    async def judged(self) -> None:
        """Wait for so many probes that failure rates were judged meanwhile."""
        goal = await self.count("health_check.attempt") + 10  # two endpoints, each every 400 ms: 2 s

        async def probed() -> bool:
            return await self.count("health_check.attempt") >= goal

        await eventually(probed, what="probes")


@pytest.fixture
async def gate(kit, upstreams) -> AsyncIterator[Gate]:
    async with serving(kit, upstreams) as found:
        yield found


@asynccontextmanager
async def serving(kit, upstreams) -> AsyncIterator[Gate]:
    one, two = await upstreams.start("one"), await upstreams.start("two")
    holder = PlanHolder()
    plan = kit.plan_of([kit.pool("default/p", one, two)], kit.listener("http", kit.rule("r", ("default/p", 10_000))))
    holder.publish(plan)
    async with kit.ControlPlane(holder) as plane, running_envoy(plane.bootstrap(delta=True)) as envoy:

        async def listening() -> str:
            return dict(await envoy.listener_addresses()).get("default/gw/http", "")

        await eventually(listening, what="the listener")
        await plane.acked()
        async with aiohttp.ClientSession() as session:
            yield Gate(session, f"http://{await listening()}", envoy.admin_url)


async def test_one_clients_request_that_always_fails_ejects_nobody(gate: Gate, upstreams) -> None:
    """Nobody else asks, so all that each endpoint answers is 500."""
    for _ in range(20):
        assert (await gate.ask(**{"x-poison": "1"}))[0] == 500
    await gate.judged()
    assert await gate.count("outlier_detection.ejections_enforced_total") == 0
    assert {(await gate.ask())[0] for _ in range(10)} == {200}


async def test_an_endpoint_that_fails_at_everything_is_left(gate: Gate, upstreams) -> None:
    upstreams.failing.add("one")
    failed = 0

    async def left() -> bool:
        nonlocal failed
        failed += (await gate.ask())[0] == 500
        return await gate.count("outlier_detection.ejections_active") == 1

    await eventually(left, what="one is ejected")
    assert failed == HealthPolicy().consecutive_5xx
    assert {await gate.ask() for _ in range(10)} == {(200, "two")}


async def test_gateway_errors_are_the_endpoints_fault(gate: Gate, upstreams) -> None:
    """503 is tried again elsewhere: nobody sees it, and three of them are enough."""
    upstreams.broken.add("one")

    async def left() -> bool:
        assert (await gate.ask())[0] == 200
        return await gate.count("outlier_detection.ejections_active") == 1

    await eventually(left, what="one is ejected")
    assert upstreams.served["one"] == HealthPolicy().consecutive_gateway_errors
