"""The scraper against small metrics servers: signals taken over, faults survived, Plan changes followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from extproc.fleet import make_plan
from pointsman.core.clock import SystemClock
from pointsman.core.model import AppProtocol, Plan, Pool
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc import Picker, ScrapeOptions, Scraper
from pointsman.extproc.scrape import RttEstimate, back_off_s, model_names
from support.waiting import eventually

FAST = ScrapeOptions(interval_s=0.01, timeout_s=0.5, max_back_off_s=0.05, models_interval_s=0.02)


class Engine:
    """A server whose `/metrics` and `/v1/models` are what the test says."""

    def __init__(self) -> None:
        self.key = ""
        self.scrapes = 0
        self.status = 200
        self.page: bytes = b"vllm:num_requests_waiting 3\nprocess_start_time_seconds 100\n"
        self.models = b'{"object": "list", "data": [{"id": "m", "object": "model"}]}'
        self.hang = False
        self.elsewhere = ""

    async def metrics(self, _: web.Request) -> web.Response:
        self.scrapes += 1
        if self.hang:
            await asyncio.sleep(60)
        if self.elsewhere:
            raise web.HTTPFound(f"http://{self.elsewhere}/metrics")
        return web.Response(status=self.status, body=self.page)

    async def list_models(self, _: web.Request) -> web.Response:
        if self.elsewhere:
            raise web.HTTPFound(f"http://{self.elsewhere}/v1/models")
        return web.Response(body=self.models)


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[Engine]:
    app = web.Application()
    app.router.add_get("/metrics", engine.metrics)
    app.router.add_get("/v1/models", engine.list_models)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    engine.key = "{}:{}".format(*runner.addresses[0][:2])
    try:
        yield engine
    finally:
        await runner.cleanup()


@asynccontextmanager
async def scraping(plan: Plan) -> AsyncIterator[tuple[Picker, Callable[[Plan], None]]]:
    picker, holder = Picker(SystemClock()), PlanHolder()

    def publish(new: Plan) -> None:
        picker.apply(new)
        holder.publish(new)

    publish(plan)
    task = asyncio.create_task(Scraper(picker, holder, FAST).run())
    try:
        yield picker, publish
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def seen(picker: Picker, key: str) -> float:
    row = picker.table.row(key)
    assert row is not None
    return float(picker.table.seen_waiting[row])


async def test_a_first_look_waits_for_every_endpoint_and_not_for_one_that_hangs() -> None:
    async with serving(Engine()) as good, serving(Engine()) as silent:
        silent.hang = True
        picker, holder = Picker(SystemClock()), PlanHolder()
        slow = ScrapeOptions(interval_s=0.01, timeout_s=30, max_back_off_s=0.05)
        scraper = Scraper(picker, holder, slow)
        assert not await scraper.first_look(0.01)  # no Plan, no endpoints
        plan = make_plan({"a": [good.key, silent.key]})
        picker.apply(plan)
        holder.publish(plan)
        task = asyncio.create_task(scraper.run())
        try:
            assert not await scraper.first_look(0.2)
            await eventually(lambda: good.scrapes >= 1, what="the good one was looked at")
            alone = make_plan({"a": [good.key, "127.0.0.1:1"]})  # nobody is there: that is an answer
            picker.apply(alone)
            holder.publish(alone)
            assert await scraper.first_look(20)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_signals_models_and_round_trip_arrive() -> None:
    async with serving(Engine()) as engine, scraping(make_plan({"near": [engine.key]})) as (picker, _):
        await eventually(lambda: seen(picker, engine.key) == 3.0)
        row = picker.table.row(engine.key)
        await eventually(lambda: 0.0 < picker.table.rtt_ms[row] < 500.0)
        await eventually(lambda: picker.table.model_sets[picker.table.model_set[row]] == frozenset({"m"}))
        engine.page = b"vllm:num_requests_waiting 8\n"
        await eventually(lambda: seen(picker, engine.key) == 8.0)


async def test_a_defect_in_what_takes_the_signals_ends_no_endpoint() -> None:
    class Defective(Picker):
        """Fails with the first scrape, as an engine's page that nobody foresaw would let it."""

        failed = False

        def signals(self, *args: Any, **named: Any) -> bool:
            if not self.failed:
                self.failed = True
                raise IndexError("no such rank")
            return super().signals(*args, **named)

    async with serving(Engine()) as engine:
        picker, holder, registry = Defective(SystemClock()), PlanHolder(), CollectorRegistry()
        picker.apply(make_plan({"near": [engine.key]}))
        holder.publish(make_plan({"near": [engine.key]}))
        task = asyncio.create_task(Scraper(picker, holder, FAST, registry=registry).run())
        await eventually(lambda: seen(picker, engine.key) == 3.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert registry.get_sample_value("pointsman_scraper_restarts_total") == 1


async def test_a_server_without_a_page_is_there_until_it_refuses() -> None:
    class Told(Picker):
        """Notes how often nobody had been there when it hears of a refusal."""

        def refused(self, key: str) -> None:
            tries.append(scraper.absent[key])
            super().refused(key)

    tries: list[int] = []
    picker, holder = Told(SystemClock()), PlanHolder()
    scraper = Scraper(picker, holder, FAST)
    task = asyncio.create_task(scraper.run())
    try:
        async with serving(Engine()) as engine:
            engine.status = 500
            picker.apply(make_plan({"near": [engine.key]}))
            holder.publish(make_plan({"near": [engine.key]}))
            await eventually(lambda: engine.scrapes >= 10)
            assert not scraper.absent
        await eventually(lambda: bool(tries), what="the refusal is told, though it is not the first failure")
        assert tries[0] < 10
        row = picker.table.row(engine.key)
        assert picker.table.refused_s[row] > picker.table.proven_s[row]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_restart_forgets_the_prefixes() -> None:
    async with serving(Engine()) as engine, scraping(make_plan({"near": [engine.key]})) as (picker, _):
        await eventually(lambda: seen(picker, engine.key) == 3.0)
        picker.index.insert(0, [1, 2, 3])
        engine.page = b"vllm:num_requests_waiting 0\nprocess_start_time_seconds 200\n"
        await eventually(lambda: picker.index.total_blocks == 0)


async def test_a_model_list_past_the_limit_is_not_read() -> None:
    async with serving(Engine()) as engine, scraping(make_plan({"near": [engine.key]})) as (picker, _):
        await eventually(lambda: picker.table.model_sets[picker.table.model_set[0]] == frozenset({"m"}))
        engine.models = b'{"data": [{"id": "other"}]}' + b" " * FAST.max_models_bytes
        await eventually(lambda: picker.table.model_sets[picker.table.model_set[0]] is None)


async def test_redirects_are_not_followed() -> None:
    """A model server must not be able to send the control plane to addresses that only this one reaches."""
    async with (
        serving(Engine()) as bad,
        serving(Engine()) as hidden,
        scraping(make_plan({"near": [bad.key]})) as (picker, _),
    ):
        await eventually(lambda: seen(picker, bad.key) == 3.0)
        bad.elsewhere = hidden.key
        before = bad.scrapes
        await eventually(lambda: bad.scrapes >= before + 3)
        assert hidden.scrapes == 0


@pytest.mark.parametrize("fault", ["status", "garbage", "huge", "hang", "models"])
async def test_a_faulty_endpoint_keeps_its_last_signal_and_hurts_no_other(fault: str) -> None:
    async with (
        serving(Engine()) as bad,
        serving(Engine()) as good,
        scraping(make_plan({"near": [bad.key, good.key]})) as (picker, _),
    ):
        await eventually(lambda: seen(picker, bad.key) == 3.0)
        match fault:
            case "status":
                bad.status = 500
            case "garbage":
                bad.page = b"\xff" * 1000
            case "huge":
                bad.page = b"vllm:num_requests_waiting 9\n" * 200_000
            case "hang":
                bad.hang = True
            case _:
                bad.models = b"[" * 100_000
        before = bad.scrapes
        await eventually(lambda: bad.scrapes > before)
        good.page = b"vllm:num_requests_waiting 5\n"
        await eventually(lambda: seen(picker, good.key) == 5.0)
        assert seen(picker, bad.key) == 3.0
        bad.status, bad.hang, bad.page = 200, False, b"vllm:num_requests_waiting 1\n"
        await eventually(lambda: seen(picker, bad.key) == 1.0)


async def test_the_plan_is_followed_and_grpc_pools_are_left_alone() -> None:
    async with serving(Engine()) as first, serving(Engine()) as second, serving(Engine()) as grpc_only:
        groups = make_plan({"near": [grpc_only.key]}).pools[0].groups
        grpc_pool = Pool(name="default/grpc", app_protocol=AppProtocol.H2C, groups=groups)
        async with scraping(Plan(pools=(*make_plan({"near": [first.key]}).pools, grpc_pool))) as (picker, publish):
            await eventually(lambda: first.scrapes > 0)
            publish(Plan(pools=(*make_plan({"near": [second.key]}).pools, grpc_pool)))
            await eventually(lambda: seen(picker, second.key) == 3.0)
            stopped = first.scrapes
            more = second.scrapes + 10
            await eventually(lambda: second.scrapes >= more)
            assert first.scrapes <= stopped + 1  # at most the one that was under way
            assert grpc_only.scrapes == 0


def test_round_trips_follow_the_fast_ones() -> None:
    rtt = RttEstimate()
    assert rtt.update(100.0) == 100.0
    assert rtt.update(20.0) == 60.0
    assert rtt.update(1_000.0) == pytest.approx(107.0)
    for _ in range(50):
        rtt.update(20.0)
    assert rtt.rtt_ms == pytest.approx(20.0)


def test_back_off_grows_to_its_limit() -> None:
    options = ScrapeOptions(interval_s=0.2, max_back_off_s=5.0)
    assert [back_off_s(options, n) for n in (0, 1, 2, 4, 5, 10_000)] == [0.2, 0.4, 0.8, 3.2, 5.0, 5.0]


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'{"data": [{}]}', b'{"data": [{"id": "\xff"}]}', b"[" * 100_000])
def test_a_model_list_that_is_none_rules_nothing_out(body: bytes) -> None:
    assert model_names(body) == (None, frozenset())
