"""The clients of a drill and the relay, against small servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from pointsman.app.drill.clients import clients
from pointsman.app.drill.relay import Relay
from pointsman.failover.outcome import Outcome, Seen, outcome
from support.waiting import eventually

CHUNK = b'data: {"choices":[{"delta":{"content":"x"}}],"system_fingerprint":"a-0"}\n\n'


@pytest.fixture
async def gateway() -> AsyncIterator[tuple[str, dict[str, str]]]:
    """URL of a server that answers as `mode["is"]` says."""
    mode = {"is": "well"}

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if mode["is"] == "503":
            return web.Response(status=503, headers={"x-pointsman-reason": "no-endpoint"})
        if not body["stream"]:
            return web.json_response({"system_fingerprint": "a-0"})
        assert request.headers["accept"] == "text/event-stream"
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(CHUNK)
        if mode["is"] == "reset":
            assert request.transport is not None
            request.transport.abort()
        elif mode["is"] == "well":
            await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", mode
    await runner.cleanup()


async def test_clients_tell_what_became_of_each_request(gateway: tuple[str, dict[str, str]]) -> None:
    url, mode = gateway
    async with clients({"a": url}, {"a": 40}) as watch:

        def saw(what: Outcome, stream: bool, error: str) -> bool:
            def fits(seen: Seen) -> bool:
                return outcome(seen) is what and seen.stream is stream and seen.error == error

            return any(fits(seen) for seen in watch.seen)

        await eventually(lambda: saw(Outcome.OK, True, "") and saw(Outcome.OK, False, ""), what="all is well")
        await eventually(lambda: {seen.source for seen in watch.seen} == {"probe", "load"}, what="both ask")
        answered = [seen for seen in watch.seen if outcome(seen) is Outcome.OK]
        assert all(seen.replica == "a-0" and seen.end_s >= seen.start_s for seen in answered)
        assert all(seen.start_s <= seen.first_s <= seen.end_s for seen in answered if seen.stream)
        mode["is"] = "503"
        await eventually(lambda: saw(Outcome.FAILED, False, "status 503 no-endpoint"), what="503 with its reason")
        mode["is"] = "reset"
        await eventually(lambda: saw(Outcome.TRUNCATED, True, "ClientPayloadError"), what="a broken answer")
        mode["is"] = "silent"
        await eventually(lambda: saw(Outcome.TRUNCATED, True, ""), what="a clean end without [DONE]")
        before_s = watch.oldest_s
        await eventually(lambda: watch.oldest_s > before_s, what="what is open grows younger")
        watch.forget_before(watch.oldest_s)
        assert all(seen.start_s >= before_s for seen in watch.seen)


async def test_a_cut_relay_tells_nobody_and_a_mended_one_starts_afresh() -> None:
    heard: list[bytes] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            heard.append(data)
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    relay = Relay("127.0.0.1", server.sockets[0].getsockname()[:2])
    await relay.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"one")
        assert await asyncio.wait_for(reader.read(100), 5) == b"one"
        relay.cut()
        writer.write(b"two")
        late_reader, late_writer = await asyncio.open_connection("127.0.0.1", relay.port)
        late_writer.write(b"three")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(100), 0.2)
        assert heard == [b"one"]
        relay.mend()
        assert await asyncio.wait_for(reader.read(100), 5) == b"", "the connection of before has ended"
        new_reader, new_writer = await asyncio.open_connection("127.0.0.1", relay.port)
        new_writer.write(b"four")
        assert await asyncio.wait_for(new_reader.read(100), 5) == b"four"
        for one in (writer, late_writer, new_writer):
            one.close()
        del late_reader
    finally:
        await relay.stop()
        server.close()
