"""The gRPC face: messages, streams, trailers, health, faults."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from pointsman.sim.v1.generate_pb2 import ChatRequest, GenerateRequest, GenerateResponse
from support.waiting import eventually

GRPC = {"name": "one", "protocol": "grpc"}
LONG = 5000


class Stub:
    """Calls of both services on one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        service, encode = "/pointsman.sim.v1.Generator/", GenerateRequest.SerializeToString
        decode = GenerateResponse.FromString
        self.generate = channel.unary_unary(f"{service}Generate", encode, decode)
        self.stream = channel.unary_stream(f"{service}GenerateStream", encode, decode)
        self.chat = channel.stream_stream(f"{service}Chat", ChatRequest.SerializeToString, decode)
        health = ("/grpc.health.v1.Health/", health_pb2.HealthCheckRequest.SerializeToString)
        answer = health_pb2.HealthCheckResponse.FromString
        self.check = channel.unary_unary(f"{health[0]}Check", health[1], answer)
        self.watch = channel.unary_stream(f"{health[0]}Watch", health[1], answer)


@asynccontextmanager
async def connected(sim: Any, name: str = "one") -> AsyncIterator[Stub]:
    # Without back-off a client would wait a second before it sees that a port is open again.
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 50)]
    async with grpc.aio.insecure_channel(
        sim.address(name), options=[*options, ("grpc.use_local_subchannel_pool", 1)]
    ) as c:
        yield Stub(c)


async def trailers(call: Any) -> dict[str, str]:
    return {key: value for key, value in await call.trailing_metadata() if key.startswith("x-")}


async def error_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_unary_ends_with_trailers(start: Any) -> None:
    sim = await start(GRPC)
    async with connected(sim) as stub:
        call = stub.generate(GenerateRequest(prompt="x" * 400, max_tokens=6))
        response = await call
        assert response.text == "one says that all is wel"
        assert (response.tokens, response.finish_reason, response.replica) == (6, "length", "one")
        assert (response.prompt_tokens, response.cached_tokens) == (100, 0)
        assert await trailers(call) == {"x-sim-replica": "one", "x-tokens": "6"}
        again = await stub.generate(GenerateRequest(prompt="x" * 400, max_tokens=1))
        assert again.cached_tokens == 96


async def test_server_stream_sends_tokens_as_they_are_made(start: Any) -> None:
    sim = await start(GRPC, speed=1.0)
    replica = sim.replica("one")
    async with connected(sim) as stub:
        call = stub.stream(GenerateRequest(prompt="hi", max_tokens=LONG))
        first = await call.read()
        assert first.text.startswith("one ")
        assert replica.engine.running == 1  # the last token is more than a minute away
        call.cancel()
        await eventually(lambda: replica.engine.kv.used == 0, what="cancel frees the blocks")
        assert replica.counts.requests_aborted == 1


async def test_server_stream_to_its_end(start: Any) -> None:
    sim = await start(GRPC)
    async with connected(sim) as stub:
        call = stub.stream(GenerateRequest(prompt="hi", max_tokens=12))
        parts = [part async for part in call]
        assert "".join(p.text for p in parts) == "one says that all is well on the line.  one says"
        assert sum(p.tokens for p in parts) == 12
        assert [p.finish_reason for p in parts][-1] == "length"
        assert all(not p.finish_reason for p in parts[:-1])
        assert await trailers(call) == {"x-sim-replica": "one", "x-tokens": "12"}
    status = await sim.status("one")
    assert (status["protocol"], status["requests_completed"], status["tokens_sent"]) == ("grpc", 1, 12)


async def test_bidirectional_chat_keeps_the_conversation(start: Any) -> None:
    sim = await start(GRPC)
    async with connected(sim) as stub:
        call = stub.chat()

        async def turn(text: str) -> list[GenerateResponse]:
            await call.write(ChatRequest(text=text, max_tokens=5))
            parts = [await call.read()]
            while not parts[-1].finish_reason:
                parts.append(await call.read())
            return parts

        first = await turn("x" * 2000)
        second = await turn("and then?")
        assert first[-1].cached_tokens == 0
        assert second[-1].cached_tokens > 480
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await trailers(call) == {"x-sim-replica": "one", "x-tokens": "10"}
        assert await call.code() is grpc.StatusCode.OK


async def test_errors(start: Any) -> None:
    sim = await start({**GRPC, "engine": {"max_model_len": 100}})
    async with connected(sim) as stub:
        for request, code in (
            (GenerateRequest(prompt=""), grpc.StatusCode.INVALID_ARGUMENT),
            (GenerateRequest(prompt="x" * 800), grpc.StatusCode.INVALID_ARGUMENT),
            (GenerateRequest(prompt="x", model="gpt"), grpc.StatusCode.NOT_FOUND),
        ):
            error = await error_of(stub.generate(request))
            assert error.code() is code
            assert ("x-sim-replica", "one") in tuple(error.trailing_metadata())
            assert error.details()


async def test_faults(start: Any) -> None:
    sim = await start(GRPC)
    request = GenerateRequest(prompt="hi", max_tokens=9)
    async with connected(sim) as stub:
        await sim.faults("one", {"error": {"status": 429, "retry_after_s": 3}})
        error = await error_of(stub.generate(request))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ("retry-after", "3") in tuple(error.trailing_metadata())
        await sim.faults("one", {"error": {"status": 503}})
        assert (await error_of(stub.generate(request))).code() is grpc.StatusCode.UNAVAILABLE
        await sim.faults("one", {"model_unloaded": True})
        assert (await error_of(stub.generate(request))).code() is grpc.StatusCode.NOT_FOUND
        await sim.faults("one", {"reset": {"after_tokens": 2}})
        call = stub.stream(request)
        with pytest.raises(grpc.aio.AioRpcError):
            async for _part in call:
                pass
        assert (await sim.status("one"))["tokens_sent"] == 2
        await sim.faults("one", None)
        assert (await stub.generate(request)).tokens == 9


async def test_blackhole_and_stall_hold_until_they_end(start: Any) -> None:
    sim = await start(GRPC, {"name": "two", "protocol": "grpc"})
    for fault in ({"blackhole": True}, {"stall": {"where": "mid", "after_tokens": 2}}):
        await sim.faults("one", fault)
        async with connected(sim) as stub, connected(sim, "two") as other:
            pending = asyncio.ensure_future(collect(stub.stream(GenerateRequest(prompt="hi", max_tokens=9))))
            for _ in range(20):
                await other.generate(GenerateRequest(prompt="hi", max_tokens=9))
            assert not pending.done()
            await sim.faults("one", None)
            assert sum(part.tokens for part in await pending) == 9


async def collect(call: Any) -> list[Any]:
    """What is left of a stream; raises when it ends with an error."""
    parts = []
    while (part := await call.read()) is not grpc.aio.EOF:
        parts.append(part)
    return parts


async def test_health(start: Any) -> None:
    sim = await start(GRPC)
    serving, failing = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    async with connected(sim) as stub:
        for service in ("", "pointsman.sim.v1.Generator"):
            assert (await stub.check(health_pb2.HealthCheckRequest(service=service))).status == serving
        error = await error_of(stub.check(health_pb2.HealthCheckRequest(service="other")))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == serving
        await sim.faults("one", {"health": "failing"})
        assert (await watch.read()).status == failing
        assert (await stub.check(health_pb2.HealthCheckRequest())).status == failing
        watch.cancel()


async def test_exit_and_return_on_the_same_port(start: Any) -> None:
    sim = await start(GRPC, speed=1.0)
    address = sim.address("one")
    async with connected(sim) as stub:
        call = stub.stream(GenerateRequest(prompt="hi", max_tokens=LONG))
        await call.read()
        await sim.faults("one", {"exit": True})
        with pytest.raises(grpc.aio.AioRpcError):
            await collect(call)
        host, port = address.rsplit(":", 1)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))
        await sim.faults("one", None)
        assert sim.address("one") == address
        response = await stub.generate(GenerateRequest(prompt="hi", max_tokens=1), wait_for_ready=True)
        assert response.tokens == 1
    assert (await sim.status("one"))["restarts"] == 1


async def test_refuse_lets_running_calls_finish(start: Any) -> None:
    sim = await start(GRPC, speed=1.0)
    async with connected(sim) as stub:
        call = stub.stream(GenerateRequest(prompt="hi", max_tokens=30))
        first = await call.read()
        await sim.faults("one", {"refuse": True})
        host, port = sim.address("one").rsplit(":", 1)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))
        rest = await collect(call)
        assert first.tokens + sum(part.tokens for part in rest) == 30
        assert await call.code() is grpc.StatusCode.OK
        await sim.faults("one", None)
        assert (await stub.generate(GenerateRequest(prompt="hi", max_tokens=1), wait_for_ready=True)).tokens == 1


async def test_exit_ends_calls_that_outlived_a_refuse(start: Any) -> None:
    sim = await start(GRPC, speed=1.0)
    async with connected(sim) as stub:
        call = stub.stream(GenerateRequest(prompt="hi", max_tokens=LONG))
        await call.read()
        await sim.faults("one", {"refuse": True})
        await sim.faults("one", {"exit": True})
        with pytest.raises(grpc.aio.AioRpcError):
            await collect(call)
        await sim.faults("one", None)
        assert (await stub.generate(GenerateRequest(prompt="hi", max_tokens=1), wait_for_ready=True)).tokens == 1


def test_generated_modules_are_up_to_date(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    proto = "pointsman/sim/v1/generate.proto"
    out = (f"--python_out={tmp_path}", f"--pyi_out={tmp_path}")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root / 'protos'}", *out, proto]
    subprocess.run(command, check=True, timeout=60)
    for suffix in ("py", "pyi"):
        name = f"pointsman/sim/v1/generate_pb2.{suffix}"
        made, kept = (base / name for base in (tmp_path, root / "core"))
        assert made.read_text(encoding="utf-8") == kept.read_text(encoding="utf-8"), "run protos/generate.sh"
