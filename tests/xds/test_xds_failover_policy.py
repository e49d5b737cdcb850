"""What a FailoverPolicy says of probes and retries, as a real Envoy does it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pointsman.core.model import Endpoint, HealthPolicy, Plan, Pool, RetryPolicy
from pointsman.core.snapshot import PlanHolder
from pointsman.xds.generate.clusters import pool_cluster
from pointsman.xds.generate.options import BuildOptions
from support.envoy import running_envoy
from support.waiting import eventually

e2e = pytest.mark.e2e


class Replica:
    """A server that is well when probed; what it does with requests can be set."""

    def __init__(self) -> None:
        self.silent = False
        self.stops_after_headers = False
        self.pause_s = 0.0
        self.tries = 0
        self.free = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.tries += 1
        if self.silent:
            await self.free.wait()
        response = web.StreamResponse()
        await response.prepare(request)
        if self.stops_after_headers:
            await response.write(b"one ")
            await self.free.wait()
        await asyncio.sleep(self.pause_s)  # the pause is what is tested, not what is waited for
        await response.write(b"done")
        return response

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()


@asynccontextmanager
async def serving(replica: Replica, name: str) -> AsyncIterator[Endpoint]:
    app = web.Application()
    app.router.add_get("/health", replica.health)
    app.router.add_route("*", "/{rest:.*}", replica.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield Endpoint(name=name, address="127.0.0.1", port=runner.addresses[0][1], site="here")
    finally:
        replica.free.set()
        await runner.cleanup()


@asynccontextmanager
async def gateway(kit: Any, plan: Plan) -> AsyncIterator[str]:
    holder = PlanHolder()
    holder.publish(plan)
    async with kit.ControlPlane(holder) as plane, running_envoy(plane.bootstrap(delta=True)) as envoy:

        async def listening() -> str:
            return dict(await envoy.listener_addresses()).get("default/gw/http", "")

        await eventually(listening, what="the listener")
        await plane.acked()
        yield f"http://{await listening()}/v1/chat/completions"


def plan_with(kit: Any, retry: RetryPolicy, *endpoints: Endpoint) -> Plan:
    rule = replace(kit.rule("r", ("default/p", 10_000)), retry=retry)
    plan: Plan = kit.plan_of([kit.pool("default/p", *endpoints)], kit.listener("http", rule))
    return plan


@e2e
async def test_a_silent_replica_is_given_up_and_a_slow_stream_is_not_cut(kit: Any) -> None:
    well, sick = Replica(), Replica()
    sick.silent = True
    well.pause_s = 2.0
    async with serving(well, "well") as one, serving(sick, "sick") as two, aiohttp.ClientSession() as session:
        plan = plan_with(kit, RetryPolicy(first_byte_timeout_ms=1_000), one, two)
        async with gateway(kit, plan) as url:

            async def ask() -> tuple[int, bytes]:
                async with session.post(url, data=b"{}") as response:
                    return response.status, await response.read()

            answers = await asyncio.gather(*(ask() for _ in range(8)))
    assert answers == [(200, b"done")] * 8
    assert sick.tries > 0, "nobody was sent to the silent replica, so nothing was tested"


@e2e
async def test_an_answer_that_stops_is_ended_with_an_error(kit: Any) -> None:
    stuck = Replica()
    stuck.stops_after_headers = True
    async with (
        serving(stuck, "stuck") as one,
        aiohttp.ClientSession() as session,
        gateway(kit, plan_with(kit, RetryPolicy(stall_timeout_ms=300), one)) as url,
        session.post(url, data=b"{}") as response,
    ):
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert stuck.tries == 1, "what has begun is not tried again"


def test_the_cluster_has_what_the_policy_says() -> None:
    health = HealthPolicy(
        interval_ms=1_000,
        timeout_ms=250,
        edge_interval_ms=50,
        unhealthy_threshold=3,
        healthy_threshold=4,
        consecutive_5xx=9,
        consecutive_gateway_errors=8,
        consecutive_connect_errors=7,
        failure_percent=30,
        ejection_interval_ms=2_000,
        base_ejection_ms=6_000,
        max_ejection_ms=66_000,
        retry_budget_percent=20.0,
        retry_min_concurrency=5,
    )
    cluster = pool_cluster(Pool(name="d/p", health=health, health_path="/ready"), BuildOptions())
    check, outlier, limits = cluster.health_checks[0], cluster.outlier_detection, cluster.circuit_breakers.thresholds[0]
    assert check.http_health_check.path == "/ready"
    assert (check.interval.ToMilliseconds(), check.timeout.ToMilliseconds()) == (1_000, 250)
    assert check.unhealthy_edge_interval.ToMilliseconds() == 50
    assert (check.unhealthy_threshold.value, check.healthy_threshold.value) == (3, 4)
    assert (outlier.consecutive_5xx.value, outlier.consecutive_gateway_failure.value) == (9, 8)
    assert (outlier.consecutive_local_origin_failure.value, outlier.failure_percentage_threshold.value) == (7, 30)
    assert outlier.interval.ToMilliseconds() == 2_000
    assert (outlier.base_ejection_time.ToMilliseconds(), outlier.max_ejection_time.ToMilliseconds()) == (6_000, 66_000)
    assert (limits.retry_budget.budget_percent.value, limits.retry_budget.min_retry_concurrency.value) == (20.0, 5)
    assert pool_cluster(Pool(name="d/p"), BuildOptions()) == pool_cluster(
        Pool(name="d/p", health=HealthPolicy()), BuildOptions()
    )
