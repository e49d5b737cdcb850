"""The trace context, and the span of a pick: what it says, when there is one, and when it costs nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from extproc.fleet import POOL, make_plan
from pointsman.core import wire
from pointsman.core.clock import ManualClock
from pointsman.core.model import Health
from pointsman.core.tracing import Span, SpanKind, TraceParent, new_span_id, new_trace_id, parse_traceparent
from pointsman.extproc import Picker, PickRequest, PickTracer, add_services
from pointsman.extproc.request import read_body
from pointsman.extproc.server import EXT_PROC_SERVICE
from pointsman.extproc.tracing import pick_attributes

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
KEYS = ["10.0.0.1:80", "10.0.0.2:80"]


class Kept(list[Span]):
    """A sink that keeps what it gets."""

    add = list.append


def picker() -> Picker:
    made = Picker(ManualClock(), instance="p")
    made.apply(make_plan({"near": KEYS}, health={KEYS[1]: Health.DRAINING}))
    return made


@pytest.mark.parametrize(
    ("text", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"00-{TRACE}-{SPAN}-02", False),
        (f"cc-{TRACE}-{SPAN}-01", True),  # a version to come must be read as far as it is known
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-holds", True),
    ],
)
def test_traceparents_that_count(text: str, sampled: bool) -> None:
    assert parse_traceparent(text) == TraceParent(bytes.fromhex(TRACE), bytes.fromhex(SPAN), sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
    ],
)
def test_traceparents_that_are_ignored(text: str) -> None:
    assert parse_traceparent(text) is None


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    found = parse_traceparent(text)
    assert found is None or (len(found.trace_id), len(found.span_id)) == (16, 8)


def test_new_ids_can_be_parents() -> None:
    text = f"00-{new_trace_id().hex()}-{new_span_id().hex()}-01"
    assert parse_traceparent(text) is not None


def test_a_span_of_a_pick_tells_the_decision_and_not_the_prompt() -> None:
    body = read_body(b'{"model": "m", "prompt": "never seen", "max_tokens": 4}', partial=False)
    request = PickRequest(pool=POOL, body=body, request_id="r" * 500, affinity="mallory", route="HTTPRoute/a/b/0")
    found = pick_attributes(picker().pick(request))
    assert found.pop("pointsman.cost_ms") > 0
    assert found == {
        "pointsman.pool": POOL,
        "pointsman.outcome": "picked",
        "pointsman.policy": "joint",
        "pointsman.pick": "p-1",
        "pointsman.rule": "HTTPRoute/a/b/0",
        "pointsman.request_id": "r" * 128,
        "pointsman.prompt_tokens": 3,
        "gen_ai.request.model": "m",
        "pointsman.candidates": 1,
        "pointsman.filtered": 1,
        "pointsman.endpoint": KEYS[0],
        "pointsman.fallbacks": 0,
        "pointsman.cached_tokens": 0,
    }
    renamed = replace(request, body=replace(body, model="m-v2", asked_model="m"))
    found = pick_attributes(picker().pick(renamed))
    assert (found["gen_ai.request.model"], found["pointsman.model"]) == ("m", "m-v2")


def test_the_span_lies_where_the_pick_lay_and_below_its_parent() -> None:
    kept, made = Kept(), picker()
    made.apply(make_plan({"near": KEYS}, health=dict.fromkeys(KEYS, Health.DRAINING)))
    tracer = PickTracer(kept)
    parent = tracer.parent([("x", "y"), ("traceparent", f"00-{TRACE}-{SPAN}-01")])
    assert parent is not None
    tracer.picked(parent, made.pick(PickRequest(pool=POOL)), 0.25)
    (span,) = kept
    assert (span.trace_id.hex(), span.parent_id.hex(), span.kind) == (TRACE, SPAN, SpanKind.SERVER)
    assert span.end_ns - span.start_ns == 250_000_000
    assert span.error == span.attributes["pointsman.outcome"] == "no-ready-endpoint"


@pytest.mark.parametrize(
    "metadata",
    [None, [], [("traceparent", f"00-{TRACE}-{SPAN}-00")], [("traceparent", "nonsense")], [("tracestate", "a=b")]],
)
def test_nobody_samples(metadata: Any) -> None:
    assert PickTracer(Kept()).parent(metadata) is None


@pytest.mark.parametrize("promise", [True, False])
async def test_the_metadata_of_the_stream_brings_the_parent(promise: bool) -> None:
    kept = Kept()
    server = grpc.aio.server()
    add_services(server, picker(), CollectorRegistry(), tracer=PickTracer(kept))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    single = ((wire.PROFILE_HEADER, wire.PROFILE_SINGLE),) if promise else ()
    message = ext_proc.ProcessingRequest()
    message.request_body.body = b'{"prompt": "hello"}'
    message.request_body.end_of_stream = True
    message.attributes["envoy.filters.http.ext_proc"].fields[wire.ATTRIBUTE_CLUSTER].string_value = POOL
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        process: Any = channel.stream_stream(
            f"/{EXT_PROC_SERVICE}/Process",
            request_serializer=ext_proc.ProcessingRequest.SerializeToString,
            response_deserializer=ext_proc.ProcessingResponse.FromString,
        )
        for flags in ("01", "00", "01", ""):
            parent = (("traceparent", f"00-{TRACE}-{SPAN}-{flags}"),) if flags else ()
            call = process(metadata=(*single, *parent))
            await call.write(message)
            assert (await call.read()).HasField("request_body")
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.OK
    await server.stop(None)
    assert [span.parent_id.hex() for span in kept] == [SPAN] * 2
    assert [span.attributes["pointsman.pick"] for span in kept] == ["p-1", "p-3"]
