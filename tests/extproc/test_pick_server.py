"""The shell of our own HTTP/2 server: what goes wrong ends a call or a connection, and is told."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import grpc
import pytest
import structlog
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from prometheus_client import CollectorRegistry

from extproc.fleet import POOL, make_plan
from pointsman.app.pick_shell import native_server
from pointsman.core import wire
from pointsman.core.clock import SystemClock
from pointsman.core.errors import PeerError
from pointsman.core.grpc_health import GrpcHealth
from pointsman.extproc import Decision, Picker, PickRequest
from pointsman.extproc.pick_server import PickServer
from pointsman.extproc.request import HEAVY_BYTES
from pointsman.extproc.server import EXT_PROC_SERVICE
from pointsman.xds.generate.options import BuildOptions
from support.waiting import eventually


class BrokenPicker(Picker):
    """A picker with a defect."""

    def pick(self, request: PickRequest) -> Decision:
        raise RuntimeError("a defect")


@pytest.mark.parametrize("prompt", [b'"small"', b"[" + b"7," * 100_000 + b"7]"], ids=["small", "read by a thread"])
async def test_a_defect_ends_its_call_also_behind_a_body_that_a_thread_reads(prompt: bytes) -> None:
    picker = BrokenPicker(SystemClock())
    picker.apply(make_plan({"near": ["10.0.0.1:80"]}))
    server = native_server(picker, CollectorRegistry(), GrpcHealth())
    port = server.listen("127.0.0.1", 0, shared=False)
    body = b'{"model":"m","prompt":' + prompt + b"}"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        process: Any = channel.stream_stream(f"/{EXT_PROC_SERVICE}/Process")
        call = process(timeout=10)
        await call.write(body_message(body))
        assert await call.code() is grpc.StatusCode.INTERNAL
    await server.stop(0)


async def test_a_gateway_is_asked_to_wait_for_a_large_body() -> None:
    """The gateway waits 200 ms for most picks; a large body may take longer where a machine is busy."""
    picker = Picker(SystemClock())
    picker.apply(make_plan({"near": ["10.0.0.1:80"]}))
    server = native_server(picker, CollectorRegistry(), GrpcHealth())
    port = server.listen("127.0.0.1", 0, shared=False)
    single = ((wire.PROFILE_HEADER, wire.PROFILE_SINGLE),)

    async def answers(length: int, metadata: tuple[tuple[str, str], ...]) -> list[ext_proc.ProcessingResponse]:
        call = process(timeout=20, metadata=metadata)
        await call.write(body_message(b'{"prompt":"' + b"a" * length + b'"}'))
        await call.done_writing()
        return [ext_proc.ProcessingResponse.FromString(answer) async for answer in call]

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        process: Any = channel.stream_stream(f"/{EXT_PROC_SERVICE}/Process")
        wait, pick = await answers(HEAVY_BYTES, single)
        wait_ms = wait.override_message_timeout.ToMilliseconds()
        assert BuildOptions().closed_message_timeout_ms <= wait_ms <= wire.MAX_PICK_WAIT_MS
        assert pick.HasField("request_body")
        assert [answer.HasField("request_body") for answer in await answers(HEAVY_BYTES // 2, single)] == [True]
        assert [answer.HasField("request_body") for answer in await answers(HEAVY_BYTES, ())] == [True]
    await server.stop(0)


@pytest.mark.parametrize("length", [10, HEAVY_BYTES + 1], ids=["small", "read by a thread"])
async def test_what_is_no_message_ends_its_call(length: int) -> None:
    server = native_server(Picker(SystemClock()), CollectorRegistry(), GrpcHealth())
    port = server.listen("127.0.0.1", 0, shared=False)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream(f"/{EXT_PROC_SERVICE}/Process")(timeout=20)
        await call.write(b"\xff" * length)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    await server.stop(0)


@pytest.mark.parametrize("error", [ssl.SSLError("no key"), ValueError("no text"), PeerError("no certificates")])
async def test_a_certificate_that_cannot_be_used_ends_one_connection_and_is_told(error: Exception) -> None:
    def contexts() -> ssl.SSLContext:
        raise error

    untold: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: untold.append(context))
    server = PickServer({}, tls=contexts)
    port = server.listen("127.0.0.1", 0, shared=False)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(20):
                assert await reader.read() == b""
            writer.close()
        await eventually(lambda: len(logs) == 2)
    await server.stop(0)
    assert {entry["event"] for entry in logs} == {"pick server: no connection"}
    assert untold == []


def body_message(text: bytes) -> bytes:
    message = ext_proc.ProcessingRequest()
    message.request_body.body = text
    message.request_body.end_of_stream = True
    message.attributes["envoy.filters.http.ext_proc"].fields[wire.ATTRIBUTE_CLUSTER].string_value = POOL
    data: bytes = message.SerializeToString()
    return data
