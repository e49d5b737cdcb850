"""The load generator against a real socket: outcomes, times, and that it never waits for answers to send."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

import aiohttp
import pytest
from aiohttp import web

from pointsman.core.clock import ManualClock, SystemClock
from pointsman.replay.load import Failure, LoadOptions, RequestRecord, Tally, run_load
from pointsman.replay.prompts import block_text
from replay.fake_gateway import DONE, Behaviour, FakeGateway, answer, event, requests_at, token
from support.waiting import eventually


async def load(
    url: str, session: aiohttp.ClientSession, *arrivals_ms: float, **options: float | int
) -> list[RequestRecord]:
    """Records by index."""
    requests = requests_at(*arrivals_ms)
    tally = Tally(planned=len(requests))
    await run_load(
        requests,
        LoadOptions(gateway=url, model="m", **options),  # type: ignore[arg-type]
        session=session,
        clock=SystemClock(),
        tally=tally,
        stop=asyncio.Event(),
    )
    assert tally.sent == tally.done == len(requests)
    assert tally.running == 0
    assert tally.failed == sum(r.failure is not None for r in tally.records)
    return sorted(tally.records, key=lambda r: r.index)


async def one(
    gateway: FakeGateway, session: aiohttp.ClientSession, behave: Behaviour, **options: float
) -> RequestRecord:
    gateway.behave = behave
    (record,) = await load(gateway.url, session, 0, **options)
    return record


async def test_a_request_asks_for_what_the_trace_says(gateway: FakeGateway, session: aiohttp.ClientSession) -> None:
    (record,) = await load(gateway.url, session, 0)
    assert gateway.bodies == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": (block_text(0) + block_text(1))[:2400]}],
            "max_tokens": 3,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
    assert (record.status, record.failure, record.detail) == (200, None, "")
    assert (record.prompt_tokens, record.cached_tokens, record.output_tokens) == (600, 512, 3)
    assert record.replica == "us-east-0"
    assert record.ttft_ms is not None
    assert 0 <= record.late_ms <= record.ttft_ms <= record.e2e_ms


async def test_refusals_keep_status_and_reason(gateway: FakeGateway, session: aiohttp.ClientSession) -> None:
    async def refuse(_gateway: FakeGateway, _request: web.Request, _response: web.StreamResponse) -> None:
        raise web.HTTPServiceUnavailable(
            text="no \x1b[2Jready\n endpoint", headers={"x-pointsman-reason": "no-endpoint"}
        )

    record = await one(gateway, session, refuse)
    assert (record.status, record.failure, record.ttft_ms) == (503, Failure.STATUS, None)
    assert record.detail == "no-endpoint no [2Jready endpoint"


async def test_redirects_are_not_followed(gateway: FakeGateway, session: aiohttp.ClientSession) -> None:
    async def redirect(_gateway: FakeGateway, _request: web.Request, _response: web.StreamResponse) -> None:
        raise web.HTTPFound("http://127.0.0.1:1/")

    record = await one(gateway, session, redirect)
    assert (record.status, record.failure) == (302, Failure.STATUS)


async def test_a_stream_without_done_is_truncated(gateway: FakeGateway, session: aiohttp.ClientSession) -> None:
    async def cut(_gateway: FakeGateway, request: web.Request, response: web.StreamResponse) -> None:
        await response.prepare(request)
        await response.write(token("a", "eu-west-1"))

    record = await one(gateway, session, cut)
    assert (record.status, record.failure) == (200, Failure.TRUNCATED)
    assert record.ttft_ms is not None
    assert record.replica == "eu-west-1"


async def test_a_connection_lost_in_the_stream_is_truncated(
    gateway: FakeGateway, session: aiohttp.ClientSession
) -> None:
    async def reset(_gateway: FakeGateway, request: web.Request, response: web.StreamResponse) -> None:
        await response.prepare(request)
        await response.write(token("a"))
        assert request.transport is not None
        request.transport.abort()

    record = await one(gateway, session, reset)
    assert (record.status, record.failure) == (200, Failure.TRUNCATED)


async def test_a_connection_lost_after_done_is_no_failure(gateway: FakeGateway, session: aiohttp.ClientSession) -> None:
    async def late_close(_gateway: FakeGateway, request: web.Request, response: web.StreamResponse) -> None:
        await response.prepare(request)
        await response.write(token("a") + DONE)
        assert request.transport is not None
        request.transport.close()  # the chunked body has no end

    record = await one(gateway, session, late_close)
    assert (record.failure, record.output_tokens) == (None, 1)


async def test_a_connection_lost_before_headers_is_a_reset(
    gateway: FakeGateway, session: aiohttp.ClientSession
) -> None:
    async def drop(_gateway: FakeGateway, request: web.Request, _response: web.StreamResponse) -> None:
        assert request.transport is not None
        request.transport.abort()

    record = await one(gateway, session, drop)
    assert (record.status, record.failure) == (0, Failure.RESET)


async def test_a_closed_port_is_a_failed_connect(session: aiohttp.ClientSession) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        (record,) = await load(f"http://127.0.0.1:{taken.getsockname()[1]}", session, 0)
    assert (record.status, record.failure) == (0, Failure.CONNECT)


@pytest.mark.parametrize(("started", "status"), [(False, 0), (True, 200)])
async def test_no_answer_in_time_is_a_timeout(
    gateway: FakeGateway, session: aiohttp.ClientSession, started: bool, status: int
) -> None:
    async def hang(fake: FakeGateway, request: web.Request, response: web.StreamResponse) -> None:
        if started:
            await response.prepare(request)
        await fake.release.wait()

    record = await one(gateway, session, hang, timeout_s=0.3)
    assert (record.failure, record.status, record.ttft_ms) == (Failure.TIMEOUT, status, None)


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        (b"data: {oops\n\n" + DONE, Failure.MALFORMED),
        (event(error={"message": "engine dead"}) + DONE, Failure.SERVER_ERROR),
        (b'{"choices": []}', Failure.TRUNCATED),
    ],
)
async def test_what_is_no_chat_stream_is_told_apart(
    gateway: FakeGateway, session: aiohttp.ClientSession, text: bytes, failure: Failure
) -> None:
    async def write(_gateway: FakeGateway, request: web.Request, response: web.StreamResponse) -> None:
        await response.prepare(request)
        await response.write(text)

    assert (await one(gateway, session, write)).failure == failure


async def test_a_server_that_speaks_no_http_is_malformed(session: aiohttp.ClientSession) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail ready\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        (record,) = await load(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", session, 0)
    assert (record.status, record.failure) == (0, Failure.MALFORMED)


async def test_an_endless_answer_is_cut_at_the_limit(gateway: FakeGateway, session: aiohttp.ClientSession) -> None:
    async def flood(_gateway: FakeGateway, request: web.Request, response: web.StreamResponse) -> None:
        await response.prepare(request)
        while True:
            await response.write(token("x" * 1000))

    record = await one(gateway, session, flood, max_response_bytes=50_000)
    assert record.failure == Failure.TOO_LARGE


async def test_requests_leave_while_others_wait_and_in_any_number(
    gateway: FakeGateway, session: aiohttp.ClientSession
) -> None:
    """An open loop: 250 unanswered requests (aiohttp's own limit is 100 connections) hold nothing up."""

    async def when_all_are_there(fake: FakeGateway, request: web.Request, response: web.StreamResponse) -> None:
        await fake.wait_for(250)
        await answer(fake, request, response)

    gateway.behave = when_all_are_there
    records = await load(gateway.url, session, *range(250))
    assert [r.failure for r in records] == [None] * 250
    assert [r.due_ms for r in records] == pytest.approx(list(range(250)))


async def test_speed_divides_arrival_times(gateway: FakeGateway, session: aiohttp.ClientSession) -> None:
    records = await load(gateway.url, session, 0, 1000, 3000, speed=100.0)
    assert [r.due_ms for r in records] == pytest.approx([0, 10, 30])
    assert all(r.late_ms >= 0 for r in records)


class StepClock(ManualClock):
    """Stands still, counts how often it was read, and lets a test wait for a read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.on_read: Callable[[int], None] = lambda _reads: None

    def monotonic_s(self) -> float:
        self.reads += 1
        self.on_read(self.reads)
        return super().monotonic_s()


async def timed(
    gateway: FakeGateway, session: aiohttp.ClientSession, clock: StepClock, behave: Behaviour | None = None
) -> RequestRecord:
    if behave is not None:
        gateway.behave = behave
    tally = Tally(planned=1)
    options = LoadOptions(gateway=gateway.url, model="m")
    await run_load(requests_at(0), options, session=session, clock=clock, tally=tally, stop=asyncio.Event())
    return tally.records[0]


async def test_first_token_and_end_are_timed_when_they_come(
    gateway: FakeGateway, session: aiohttp.ClientSession
) -> None:
    clock = StepClock()
    seen = asyncio.Event()

    async def slow(_gateway: FakeGateway, request: web.Request, response: web.StreamResponse) -> None:
        await response.prepare(request)
        await response.write(event(choices=[{"delta": {"role": "assistant", "content": ""}}]))
        clock.advance(0.5)
        clock.on_read = lambda _reads: seen.set()
        await response.write(token("a"))
        await asyncio.wait_for(seen.wait(), 30)  # the client has looked at the clock for the first token
        clock.advance(1.5)
        seen.clear()
        await response.write(token("b") + DONE)
        with suppress(TimeoutError):  # a client that waits for the end of the response would not look before it
            await asyncio.wait_for(seen.wait(), 5)
        clock.advance(5.0)

    record = await timed(gateway, session, clock, slow)
    assert (record.late_ms, record.ttft_ms, record.e2e_ms) == (0, 500, 2000)


async def test_a_late_generator_counts_against_the_latency(
    gateway: FakeGateway, session: aiohttp.ClientSession
) -> None:
    """No coordinated omission: the time between due and sent is part of TTFT and end to end."""
    clock = StepClock()

    def busy(reads: int) -> None:
        if reads == 3:  # start, schedule, then the sending: 300 ms were lost in between
            clock.advance(0.3)

    clock.on_read = busy
    record = await timed(gateway, session, clock)
    assert record.late_ms == pytest.approx(300)
    assert record.ttft_ms == pytest.approx(300)
    assert record.e2e_ms == pytest.approx(300)


async def test_stop_ends_the_load_and_running_requests_have_no_record(
    gateway: FakeGateway, session: aiohttp.ClientSession
) -> None:
    async def first_only(fake: FakeGateway, request: web.Request, response: web.StreamResponse) -> None:
        if len(fake.bodies) == 1:
            await answer(fake, request, response)
        else:
            await fake.release.wait()

    gateway.behave = first_only
    stop = asyncio.Event()
    tally = Tally(planned=4)
    work = asyncio.create_task(
        run_load(
            requests_at(0, 0, 0, 3_600_000),
            LoadOptions(gateway=gateway.url, model="m"),
            session=session,
            clock=SystemClock(),
            tally=tally,
            stop=stop,
        )
    )
    await gateway.wait_for(3)
    await eventually(lambda: tally.done == 1)
    stop.set()
    await asyncio.wait_for(work, 30)
    assert (tally.sent, tally.done, tally.running, tally.failed) == (3, 1, 2, 0)


async def test_cancelling_the_load_leaves_no_task(gateway: FakeGateway, session: aiohttp.ClientSession) -> None:
    async def hang(fake: FakeGateway, _request: web.Request, _response: web.StreamResponse) -> None:
        await fake.release.wait()

    gateway.behave = hang
    before = asyncio.all_tasks()
    work = asyncio.create_task(load(gateway.url, session, 0, 0, 3_600_000))
    await gateway.wait_for(2)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    client_tasks = {t for t in asyncio.all_tasks() - before if "run_load" in repr(t)}
    assert not client_tasks
