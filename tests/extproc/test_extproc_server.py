"""Both gRPC shells without Envoy: streams are independent, protocol errors end only their own, metrics are counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from prometheus_client import CollectorRegistry, generate_latest

from extproc.fleet import POOL, make_plan
from pointsman.app.pick_shell import native_server
from pointsman.core import wire
from pointsman.core.clock import SystemClock
from pointsman.core.grpc_health import GrpcHealth
from pointsman.extproc import Picker, add_services
from pointsman.extproc.pick_server import PickServer
from pointsman.extproc.server import ALS_SERVICE, EXT_PROC_SERVICE
from support.waiting import eventually


class Served:
    """A picker behind a gRPC server, and the calls of a client."""

    def __init__(self, picker: Picker, registry: CollectorRegistry, channel: grpc.aio.Channel) -> None:
        self.picker = picker
        self.registry = registry
        self.process: Any = channel.stream_stream(
            f"/{EXT_PROC_SERVICE}/Process",
            request_serializer=ext_proc.ProcessingRequest.SerializeToString,
            response_deserializer=ext_proc.ProcessingResponse.FromString,
        )
        self.logs: Any = channel.stream_unary(
            f"/{ALS_SERVICE}/StreamAccessLogs",
            request_serializer=als_pb2.StreamAccessLogsMessage.SerializeToString,
            response_deserializer=als_pb2.StreamAccessLogsResponse.FromString,
        )

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture(params=["grpc", "native"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    picker, registry = Picker(SystemClock()), CollectorRegistry()
    picker.apply(make_plan({"near": ["10.0.0.1:80", "10.0.0.2:80"]}))
    server: grpc.aio.Server | PickServer
    if request.param == "grpc":
        server = grpc.aio.server()
        add_services(server, picker, registry)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
    else:
        server = native_server(picker, registry, GrpcHealth())
        port = server.listen("127.0.0.1", 0, shared=False)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Served(picker, registry, channel)
    await server.stop(0)


def body_message(text: bytes = b'{"model": "m", "prompt": "hello"}', pool: str = POOL) -> ext_proc.ProcessingRequest:
    message = ext_proc.ProcessingRequest()
    message.request_body.body = text
    message.request_body.end_of_stream = True
    message.attributes["envoy.filters.http.ext_proc"].fields[wire.ATTRIBUTE_CLUSTER].string_value = pool
    return message


async def ask(served: Served, message: ext_proc.ProcessingRequest) -> ext_proc.ProcessingResponse:
    call = served.process()
    await call.write(message)
    reply = await call.read()
    assert await call.read() is grpc.aio.EOF  # the picker ends the stream by itself
    assert await call.code() is grpc.StatusCode.OK
    return reply


def destination(reply: ext_proc.ProcessingResponse) -> str:
    fields = reply.dynamic_metadata.fields
    return fields[wire.LB_NAMESPACE].struct_value.fields[wire.DESTINATION_KEY].string_value


def log_message(pick_id: str, **fields: Any) -> als_pb2.StreamAccessLogsMessage:
    message = als_pb2.StreamAccessLogsMessage()
    entry = message.http_logs.log_entry.add()
    entry.common_properties.custom_tags[wire.TAG_PICK] = pick_id
    entry.common_properties.custom_tags[wire.TAG_TTFT] = "250000"
    entry.common_properties.upstream_cluster = POOL
    entry.common_properties.access_log_type = accesslog_pb2.DownstreamEnd
    entry.response.response_code.value = fields.get("status", 200)
    return message


async def test_one_message_in_one_out_and_the_stream_ends(served: Served) -> None:
    reply = await ask(served, body_message())
    assert set(destination(reply).split(",")) == {"10.0.0.1:80", "10.0.0.2:80"}
    assert served.value("pointsman_picks_total", pool=POOL, outcome="picked") == 1
    assert served.value("pointsman_pick_duration_seconds_count") == 1
    assert served.value("pointsman_picker_inflight_requests") == 1
    assert served.value("pointsman_picker_endpoints") == 2


SINGLE = ((wire.PROFILE_HEADER, wire.PROFILE_SINGLE),)


async def test_a_promised_single_message_is_answered_alike(served: Served) -> None:
    call = served.process(metadata=SINGLE)
    await call.write(body_message())
    reply = await call.read()
    assert set(destination(reply).split(",")) == {"10.0.0.1:80", "10.0.0.2:80"}
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK
    assert served.value("pointsman_picks_total", pool=POOL, outcome="picked") == 1
    assert served.value("pointsman_pick_duration_seconds_count") == 1
    other = served.process(metadata=((wire.PROFILE_HEADER, "something new"),))
    await other.write(body_message())
    assert destination(await other.read())


async def test_a_broken_promise_ends_only_its_own_call(served: Served) -> None:
    """Full duplex needs more than one message; an empty one is none at all."""
    headers = ext_proc.ProcessingRequest()
    headers.request_headers.SetInParent()
    headers.protocol_config.request_body_mode = processing_mode_pb2.ProcessingMode.FULL_DUPLEX_STREAMED
    for message in (headers, ext_proc.ProcessingRequest()):
        call = served.process(metadata=SINGLE)
        await call.write(message)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    silent = served.process(metadata=SINGLE)
    assert destination(await ask(served, body_message()))
    silent.cancel()
    assert served.value("pointsman_extproc_stream_errors_total") == 2
    assert len(served.picker.inflight) == 1


async def test_outcomes_are_counted_by_reason(served: Served) -> None:
    await ask(served, body_message(pool="default/none"))
    await ask(served, body_message(b"no json"))
    assert served.value("pointsman_picks_total", pool="default/none", outcome="unknown-pool") == 1
    assert served.value("pointsman_unreadable_bodies_total") == 1


async def test_a_peer_that_breaks_the_protocol_loses_only_its_own_stream(served: Served) -> None:
    calls = [served.process() for _ in range(5)]
    for call in calls:
        await call.write(ext_proc.ProcessingRequest())
    good = await asyncio.gather(*(ask(served, body_message()) for _ in range(20)))
    assert all(destination(reply) for reply in good)
    for call in calls:
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert served.value("pointsman_extproc_stream_errors_total") == 5


async def test_streams_that_open_and_say_nothing_do_no_harm(served: Served) -> None:
    silent = [served.process() for _ in range(20)]
    assert destination(await ask(served, body_message()))
    for call in silent[:10]:
        call.cancel()
    for call in silent[10:]:
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
    assert destination(await ask(served, body_message()))


async def test_a_stream_of_logs_ends_picks_and_observes_ttft(served: Served) -> None:
    reply = await ask(served, body_message())
    pick = reply.dynamic_metadata.fields[wire.PICK_NAMESPACE].struct_value.fields[wire.PICK_KEY].string_value
    call = served.logs()
    await call.write(log_message("somebody else's"))
    await call.write(log_message(pick))
    await eventually(lambda: len(served.picker.inflight) == 0)
    await call.done_writing()
    await call
    assert served.value("pointsman_feedback_total", kind="end") == 1
    assert served.value("pointsman_feedback_total", kind="unmatched") == 1
    assert served.value("pointsman_ttft_seconds_sum", pool=POOL) == 0.5
    await eventually(lambda: served.value("pointsman_picker_inflight_requests") == 0)


async def test_every_metric_has_the_prefix(served: Served) -> None:
    await ask(served, body_message())
    lines = generate_latest(served.registry).decode().splitlines()
    assert all(line.startswith(("#", "pointsman_")) for line in lines)
