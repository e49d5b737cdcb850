"""The Endpoint Picker Protocol in full duplex, spoken by a real Envoy that says nothing else to us."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import aiohttp
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc

from extproc.fleet import make_plan
from pointsman.core.model import ModelRewrite
from support.waiting import eventually

if TYPE_CHECKING:
    from conftest import Gateway

pytestmark = pytest.mark.e2e

CHAT = {"model": "llama", "messages": [{"role": "user", "content": "tell me about railways " * 40}], "stream": True}


async def test_picks_are_honoured_and_streams_pass(duplex_gateway: Gateway) -> None:
    gateway = duplex_gateway
    for upstream in (*gateway.near, *gateway.far):
        gateway.only(upstream.key)
        status, served, text = await gateway.post(json=CHAT)
        assert (status, served, text) == (200, upstream.key, "data: one\n\ndata: two\n\n")
        assert json.loads(upstream.bodies[-1]) == CHAT
    await eventually(lambda: len(gateway.picker.inflight) == 0)
    assert gateway.picker.recent()[0].prompt_tokens > 200


async def test_a_stream_is_not_held_up_and_its_first_byte_counts(duplex_gateway: Gateway) -> None:
    gateway, upstream = duplex_gateway, duplex_gateway.near[0]
    upstream.gate.clear()
    gateway.only(upstream.key)
    async with gateway.client.post(f"{gateway.url}/v1/chat/completions", json=CHAT) as response:
        assert await response.content.readline() == b"data: one\n"
        row = gateway.picker.table.row(upstream.key)
        assert gateway.picker.table.pending_tokens[row] == 0
        assert gateway.picker.table.requests[row] == 1
        upstream.gate.set()
        assert b"data: two" in await response.read()
    await eventually(lambda: len(gateway.picker.inflight) == 0)


async def test_a_large_body_comes_back_byte_for_byte(duplex_gateway: Gateway) -> None:
    gateway, upstream = duplex_gateway, duplex_gateway.far[1]
    gateway.only(upstream.key)
    body = json.dumps({"model": "llama", "prompt": "all work and no play " * 40_000}).encode()
    assert (await gateway.post("/v1/completions", data=body))[:2] == (200, upstream.key)
    assert upstream.bodies == [body]


async def test_requests_without_a_body_are_picked_too(duplex_gateway: Gateway) -> None:
    gateway = duplex_gateway
    gateway.only(gateway.far[0].key)
    async with gateway.client.get(f"{gateway.url}/v1/models") as response:
        assert (response.status, response.headers["x-served-by"]) == (200, gateway.far[0].key)
    await eventually(lambda: len(gateway.picker.inflight) == 0)


async def test_no_ready_endpoint_is_503(duplex_gateway: Gateway) -> None:
    duplex_gateway.only()
    async with duplex_gateway.client.post(f"{duplex_gateway.url}/v1/completions", json=CHAT) as response:
        assert response.status == 503
        assert response.headers["x-pointsman-reason"] == "no-ready-endpoint"


async def test_envoy_tells_the_served_endpoint(duplex_gateway: Gateway) -> None:
    gateway = duplex_gateway
    gateway.only(gateway.near[0].key)
    assert (await gateway.post(json=CHAT))[0] == 200
    messages = [ext_proc.ProcessingRequest.FromString(data) for data in gateway.recorder.messages["Process"]]
    (headers,) = [m for m in messages if m.WhichOneof("request") == "response_headers"]
    lb = headers.metadata_context.filter_metadata["envoy.lb"].fields
    assert lb["x-gateway-destination-endpoint-served"].string_value == gateway.near[0].key


async def test_the_model_is_renamed_and_the_length_fits(duplex_gateway: Gateway) -> None:
    gateway = duplex_gateway
    rewrite = ModelRewrite(model="llama", targets=(("a model with a longer name", 10_000),))
    gateway.picker.apply(make_plan(gateway.endpoints, rewrites=(rewrite,)))
    wanted = [json.dumps({"model": name, "prompt": "x"}).encode() for name in ("a model with a longer name", "other")]
    sent = [wanted[0].replace(b"a model with a longer name", b"llama"), wanted[1]]
    for body in sent:
        assert (await gateway.post("/v1/completions", data=body))[0] == 200
        chunks = aiohttp.AsyncIterablePayload(_pieces(body))  # chunked: no length to change
        assert (await gateway.post("/v1/completions", data=chunks))[0] == 200
    received = [body for upstream in (*gateway.near, *gateway.far) for body in upstream.bodies]
    assert sorted(received) == sorted([*wanted, *wanted])


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 10):
        yield body[start : start + 10]
