"""The picker behind a real Envoy: picks honoured, retries, feedback, fallback, and nothing but requests sent to it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc

from extproc.fleet import make_plan
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.core.model import ModelRewrite, Plan
from pointsman.extproc.feedback import Feedback, entries
from support.waiting import eventually

if TYPE_CHECKING:
    from conftest import Gateway

pytestmark = pytest.mark.e2e

FIXTURES = Path(__file__).parent / "fixtures"
CHAT = {"model": "llama", "messages": [{"role": "user", "content": "tell me about railways " * 40}], "stream": True}


def logged(gateway: Gateway) -> list[Feedback]:
    return [
        entry
        for data in gateway.recorder.messages["StreamAccessLogs"]
        for entry in entries(als_pb2.StreamAccessLogsMessage.FromString(data))
    ]


def keep(gateway: Gateway, name: str) -> None:
    """Write the messages of this test to the fixtures, when asked to: POINTSMAN_RECORD_WIRE=1.

    They are the bytes that Envoy sent, but for the 60 KB list of Envoy's extensions in an access log's first message.
    """
    if os.environ.get("POINTSMAN_RECORD_WIRE"):
        for number, data in enumerate(gateway.recorder.messages["Process"]):
            (FIXTURES / f"envoy-1.40-{name}-process-{number}.binpb").write_bytes(data)
        for number, data in enumerate(gateway.recorder.messages["StreamAccessLogs"]):
            message = als_pb2.StreamAccessLogsMessage.FromString(data)
            message.identifier.node.ClearField("extensions")
            (FIXTURES / f"envoy-1.40-{name}-als-{number}.binpb").write_bytes(message.SerializeToString())


async def test_picks_are_honoured_and_only_requests_reach_the_picker(gateway: Gateway) -> None:
    for upstream in (*gateway.near, *gateway.far):  # of both priorities
        gateway.only(upstream.key)
        for _ in range(5):
            assert (await gateway.post(json=CHAT))[:2] == (200, upstream.key)
    messages = [ext_proc.ProcessingRequest.FromString(data) for data in gateway.recorder.messages["Process"]]
    assert [m.WhichOneof("request") for m in messages] == ["request_body"] * 20
    assert json.loads(messages[0].request_body.body) == CHAT


async def test_the_model_is_renamed_with_the_pick(gateway: Gateway) -> None:
    rewrite = ModelRewrite(model="llama", targets=(("m", 10_000),))
    gateway.picker.apply(make_plan(gateway.endpoints, rewrites=(rewrite,)))
    wanted = []
    for size in (10, 200_000, 3_000_000):
        body = json.dumps({"prompt": "x" * size, "model": "llama"}).encode()
        wanted.append(body.replace(b'"llama"', b'"m"'))
        assert (await gateway.post("/v1/completions", data=body))[0] == 200
    received = [body for upstream in (*gateway.near, *gateway.far) for body in upstream.bodies]
    assert sorted(received, key=len) == wanted
    decision = gateway.picker.recent()[-1]
    assert (decision.asked_model, decision.model) == ("llama", "m")


async def test_a_gateway_that_promises_nothing_is_served_alike(plain_gateway: Gateway) -> None:
    plain_gateway.only(plain_gateway.far[1].key)
    assert (await plain_gateway.post(json={"model": "m", "prompt": "hi"}))[:2] == (200, plain_gateway.far[1].key)
    assert (await plain_gateway.post("/headers", data=b"x"))[:2] == (200, plain_gateway.far[1].key)
    await eventually(lambda: len(plain_gateway.picker.inflight) == 0)


async def test_feedback_brings_pick_and_ttft_and_empties_the_accounts(gateway: Gateway) -> None:
    gateway.only(gateway.near[0].key)
    assert (await gateway.post(json=CHAT, headers={"x-user-id": "u-1", "x-request-id": "mine"}))[0] == 200
    await eventually(lambda: any(e.ended for e in logged(gateway)))
    await eventually(lambda: len(gateway.picker.inflight) == 0)
    (decision,) = gateway.picker.recent()
    (entry,) = [e for e in logged(gateway) if e.ended]
    assert (entry.pick_id, entry.status, entry.upstream) == (decision.pick_id, 200, gateway.near[0].key)
    assert entry.ttft_ms is not None
    assert 0.0 < entry.ttft_ms <= entry.duration_ms
    assert entry.response_bytes == len("data: one\n\ndata: two\n\n")
    assert gateway.picker.table.requests.sum() == gateway.picker.table.pending_tokens.sum() == 0
    assert (
        gateway.registry.get_sample_value("pointsman_picks_total", {"pool": "default/llama", "outcome": "picked"}) == 1
    )
    keep(gateway, "body")


async def test_a_long_stream_is_heard_of_while_it_runs(gateway: Gateway) -> None:
    upstream = gateway.near[0]
    upstream.gate.clear()
    gateway.only(upstream.key)
    async with gateway.client.post(f"{gateway.url}/v1/chat/completions", json=CHAT) as response:
        assert await response.content.readline() == b"data: one\n"
        # The first byte is logged before the end: the prefill is no longer pending, the context still is.
        row = gateway.picker.table.row(upstream.key)
        await eventually(lambda: gateway.picker.table.pending_tokens[row] == 0)
        assert gateway.picker.table.requests[row] == 1
        progress = [e for e in logged(gateway) if e.ttft_ms is not None]
        assert progress
        assert not any(e.ended for e in progress)
        upstream.gate.set()
        assert b"data: two" in await response.read()
    await eventually(lambda: len(gateway.picker.inflight) == 0)
    keep(gateway, "long")


async def test_a_client_that_goes_away_frees_its_account(gateway: Gateway) -> None:
    upstream = gateway.near[0]
    upstream.gate.clear()
    gateway.only(upstream.key)
    async with gateway.client.post(f"{gateway.url}/v1/chat/completions", json=CHAT) as response:
        await response.content.readline()
        assert len(gateway.picker.inflight) == 1
        response.close()
    await eventually(lambda: len(gateway.picker.inflight) == 0)
    row = gateway.picker.table.row(upstream.key)
    assert gateway.picker.table.penalty_ms[row] == 0.0  # no fault of the endpoint


async def test_a_retry_walks_the_list_into_another_site(gateway: Gateway) -> None:
    dead, second = gateway.near[0], gateway.far[1]
    for waiting, key in enumerate([dead.key, second.key, gateway.near[1].key, gateway.far[0].key]):
        gateway.picker.signals(key, EngineMetrics(waiting=float(waiting)))
    await dead.stop()
    assert (await gateway.post(json=CHAT))[:2] == (200, second.key)
    (decision,) = gateway.picker.recent()
    assert decision.endpoints[:2] == (dead.key, second.key)
    await eventually(lambda: len(gateway.picker.inflight) == 0)
    table = gateway.picker.table
    assert table.penalty_ms[table.row(dead.key)] > 0.0
    assert table.penalty_ms[table.row(second.key)] == 0.0
    assert (await gateway.post(json=CHAT))[:2] == (200, second.key)
    assert gateway.picker.recent()[-1].endpoints[0] == second.key  # learnt from the first one
    keep(gateway, "retry")


async def test_without_a_picker_envoy_balances_by_itself(gateway: Gateway) -> None:
    await gateway.server.stop(None)
    served = [await gateway.post(json=CHAT) for _ in range(10)]
    assert [status for status, _, _ in served] == [200] * 10
    assert {key for _, key, _ in served} == {u.key for u in gateway.near}


async def test_an_unknown_pool_is_passed_through(gateway: Gateway) -> None:
    gateway.picker.apply(Plan())
    assert (await gateway.post(json=CHAT))[0] == 200
    assert gateway.picker.recent()[-1].reason == "unknown-pool"


async def test_no_ready_endpoint_is_refused_with_a_reason(gateway: Gateway) -> None:
    gateway.only()
    for path in ("/v1/chat/completions", "/headers/upload"):
        async with gateway.client.post(gateway.url + path, json=CHAT) as response:
            assert response.status == 503
            assert response.headers["x-pointsman-reason"] == "no-ready-endpoint"
            assert response.headers["content-type"] == "application/json"
            assert (await response.json())["error"]["code"] == "no-ready-endpoint"
    assert sum(u.received for u in (*gateway.near, *gateway.far)) == 0


async def test_headers_profile_picks_before_the_body(gateway: Gateway) -> None:
    gateway.only(gateway.far[0].key)
    arrived = asyncio.Event()

    async def body() -> object:
        yield b"first "
        await arrived.wait()  # the picker has answered although the body has not ended
        yield b"second"

    request = asyncio.create_task(gateway.post("/headers/upload", data=body(), headers={"x-user-id": "u-2"}))
    await eventually(gateway.picker.recent)
    arrived.set()
    assert (await request)[:2] == (200, gateway.far[0].key)
    messages = [ext_proc.ProcessingRequest.FromString(data) for data in gateway.recorder.messages["Process"]]
    assert [m.WhichOneof("request") for m in messages] == ["request_headers"]
    await eventually(lambda: len(gateway.picker.inflight) == 0)
    keep(gateway, "headers")


async def test_requests_without_a_body_skip_the_picker(gateway: Gateway) -> None:
    async with gateway.client.get(f"{gateway.url}/v1/models") as response:
        assert response.status == 200
    assert gateway.recorder.messages["Process"] == []


async def test_a_large_body_is_picked_by_its_prompt_and_left_alone(gateway: Gateway) -> None:
    gateway.only(gateway.near[1].key)
    words = "all work and no play makes jack a dull boy. " * 70_000  # 3 MB
    body = json.dumps({"model": "llama", "messages": [{"role": "user", "content": words}]}).encode()
    assert (await gateway.post(data=body))[:2] == (200, gateway.near[1].key)
    assert gateway.near[1].bodies == [body]
    (decision,) = gateway.picker.recent()
    assert decision.problem == ""
    assert decision.prompt_tokens * 4 > len(words)


async def test_a_body_over_the_limit_arrives_cut_and_is_answered_413(gateway: Gateway) -> None:
    gateway.only(gateway.near[1].key)
    body = json.dumps({"model": "llama", "messages": [{"role": "user", "content": "all work " * 300_000}]}).encode()
    assert (await gateway.post("/small", data=body))[0] == 413
    for message in (ext_proc.ProcessingRequest.FromString(d) for d in gateway.recorder.messages["Process"]):
        assert not message.request_body.end_of_stream
    for decision in gateway.picker.recent():
        assert decision.problem == ""
        assert decision.model == "llama"
    await eventually(lambda: len(gateway.picker.inflight) == 0)


@pytest.mark.parametrize(
    "body",
    [b"not json", b"[" * 100_000, b'{"model": "\xff\xfe"}', b'{"messages": 3}', b"\0" * 1000],
    ids=["text", "nested", "utf8", "types", "zeros"],
)
async def test_unreadable_bodies_are_picked_without_affinity(gateway: Gateway, body: bytes) -> None:
    gateway.only(gateway.near[0].key)
    assert (await gateway.post(data=body))[:2] == (200, gateway.near[0].key)
    assert gateway.near[0].bodies == [body]
    assert gateway.picker.recent()[-1].problem


async def test_a_client_cannot_choose_the_endpoint(gateway: Gateway) -> None:
    gateway.only(gateway.near[0].key)
    chosen = {"x-gateway-destination-endpoint": gateway.far[0].key}
    assert (await gateway.post(json=CHAT, headers=chosen))[1] == gateway.near[0].key
