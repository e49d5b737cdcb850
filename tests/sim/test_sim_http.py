"""The HTTP face over loopback: what a client of vLLM sees."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import Any

import pytest

from pointsman.core.clock import SystemClock
from pointsman.sim.faults import HEALTHY, Faults, StallFault
from pointsman.sim.http_api import MAX_BODY_BYTES, HttpShell
from pointsman.sim.listener import ReservedPort
from pointsman.sim.replica import Replica
from pointsman.sim.spec import ReplicaSpec
from support.waiting import eventually

MIB = 1024 * 1024


async def test_a_chat_answer(start: Any) -> None:
    sim = await start({"name": "us-0"})
    status, body = await sim.chat("us-0", "x" * 2048, max_tokens=9)
    assert status == 200
    choice = body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "us-0 says that all is well on the li"}
    assert choice["finish_reason"] == "length"
    assert body["object"] == "chat.completion"
    assert body["system_fingerprint"] == "us-0"
    # ChatML adds 17 + 11 bytes around the text and 22 for the assistant: 2,098 bytes are 525 tokens.
    assert body["usage"] == {
        "prompt_tokens": 525,
        "completion_tokens": 9,
        "total_tokens": 534,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_a_streamed_chat(start: Any) -> None:
    sim = await start()
    events = await sim.events("one", max_tokens=6, stream_options={"include_usage": True})
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert {c["system_fingerprint"] for c in chunks} == {"one"}
    assert len({c["id"] for c in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert all(c["choices"][0]["finish_reason"] is None for c in chunks[:-2])
    text = "".join(c["choices"][0]["delta"]["content"] for c in chunks[:-1])
    assert text == "one says that all is wel"
    assert len(text) == 6 * 4


async def test_without_usage_the_stream_has_none(start: Any) -> None:
    sim = await start()
    events = await sim.events("one")
    assert all("usage" not in json.loads(event) for event in events[:-1])


async def test_a_completion_whole_and_streamed(start: Any) -> None:
    sim = await start()
    status, whole = await sim.post("one", "/v1/completions", {"prompt": "abcdefgh", "max_tokens": 5})
    assert status == 200
    assert whole["object"] == "text_completion"
    assert whole["usage"]["prompt_tokens"] == 2
    request = {"prompt": [1, 2, 3], "max_tokens": 5, "stream": True}
    async with sim.session.post(sim.url("one", "/v1/completions"), json=request) as response:
        lines = (await response.read()).decode().split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert lines[-2:] == ["data: [DONE]", ""]
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]


async def test_without_max_tokens_the_answer_stops_by_itself(start: Any) -> None:
    sim = await start({"answer_tokens": 7})
    _, body = await sim.chat("one", max_tokens=None)
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == 7
    _, body = await sim.chat("one", max_completion_tokens=3, max_tokens=8)
    assert body["usage"]["completion_tokens"] == 3


async def test_headers_come_at_once_and_tokens_as_they_are_made(start: Any) -> None:
    sim = await start({"name": "one"}, speed=1.0)
    await sim.faults("one", {"stall": {"where": "before"}})
    body = {"model": "llama", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5000, "stream": True}
    async with sim.session.post(sim.url("one", "/v1/chat/completions"), json=body) as response:
        assert response.status == 200  # headers are here, no token is
        assert (await sim.status("one"))["tokens_sent"] == 0
        await sim.faults("one", None)
        first = await response.content.readuntil(b"\n\n")
        assert b'"role":"assistant"' in first
        assert b'"content":"one "' in await response.content.readuntil(b"\n\n")
        # 5,000 tokens take more than a minute: the first is here long before the last is made.
        status = await sim.status("one")
        assert status["requests_running"] == 1
        assert status["generation_tokens"] < 5000


async def test_a_client_that_goes_away_frees_its_blocks(start: Any) -> None:
    sim = await start({"name": "one"}, speed=1.0)
    replica = sim.replica("one")
    for stream in (True, False):
        before = replica.counts.requests_aborted
        body = {"messages": [{"role": "user", "content": "x" * 4000}], "max_tokens": 5000, "stream": stream}
        request = asyncio.ensure_future(sim.session.post(sim.url("one", "/v1/chat/completions"), json=body))
        await eventually(lambda: replica.engine.kv.used > 0, what="the request runs")
        if stream:
            (await request).close()
        request.cancel()
        await eventually(lambda: replica.engine.kv.used == 0, what="its blocks are free")
        await eventually(lambda n=before: replica.counts.requests_aborted == n + 1, what="it is counted")
        assert replica.engine.running == 0
    replica.engine.kv.check()
    assert replica.engine.counters.finished["abort"] == 2


async def test_prefix_hits_of_repeats_and_of_the_next_turn(start: Any) -> None:
    sim = await start()
    question = {"role": "user", "content": "why? " * 400}
    _, first = await sim.post("one", "/v1/chat/completions", {"messages": [question], "max_tokens": 40})
    _, again = await sim.post("one", "/v1/chat/completions", {"messages": [question], "max_tokens": 40})
    prompt = first["usage"]["prompt_tokens"]
    assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert prompt - 32 < again["usage"]["prompt_tokens_details"]["cached_tokens"] < prompt
    answer = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    messages = [question, answer, {"role": "user", "content": "and then?"}]
    _, turn = await sim.post("one", "/v1/chat/completions", {"messages": messages, "max_tokens": 4})
    assert turn["usage"]["prompt_tokens_details"]["cached_tokens"] > prompt  # most of the answer, too
    status = await sim.status("one")
    assert status["prefix_query_tokens"] == 2 * prompt + turn["usage"]["prompt_tokens"]
    assert status["prefix_hit_tokens"] == sum(
        r["usage"]["prompt_tokens_details"]["cached_tokens"] for r in (again, turn)
    )


@pytest.mark.parametrize("apart", [{"cache_salt": "tenant"}, {"model": "adapter"}])
async def test_salt_and_adapters_do_not_share_prefixes(start: Any, apart: dict[str, str]) -> None:
    sim = await start({"loras": ["adapter"]})
    await sim.chat("one", "x" * 1000)
    _, other = await sim.chat("one", "x" * 1000, **apart)
    _, same = await sim.chat("one", "x" * 1000, **apart)
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert same["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


async def test_embeddings(start: Any) -> None:
    sim = await start({"name": "one"}, {"name": "two"})
    request = {"model": "llama", "input": ["alpha", "beta"]}
    status, one = await sim.post("one", "/v1/embeddings", request)
    _, two = await sim.post("two", "/v1/embeddings", request)
    assert status == 200
    assert [d["index"] for d in one["data"]] == [0, 1]
    assert one["data"] == two["data"]  # every replica says the same
    assert sum(x * x for x in one["data"][0]["embedding"]) == pytest.approx(1.0)
    assert one["usage"]["prompt_tokens"] == 3
    _, packed = await sim.post("one", "/v1/embeddings", {**request, "encoding_format": "base64"})
    raw = base64.b64decode(packed["data"][1]["embedding"])
    assert struct.unpack("<16f", raw) == pytest.approx(one["data"][1]["embedding"])


async def test_models_version_health_tokenize(start: Any) -> None:
    sim = await start({"loras": ["adapter"], "engine": {"max_model_len": 4096}})
    status, body = await sim.get("one", "/v1/models")
    cards = json.loads(body)["data"]
    assert status == 200
    assert [(c["id"], c["parent"]) for c in cards] == [("llama", None), ("adapter", "llama")]
    assert cards[0]["max_model_len"] == 4096
    assert await sim.get("one", "/health") == (200, b"")
    assert json.loads((await sim.get("one", "/version"))[1]) == {"version": "0.32.0"}
    status, tokens = await sim.post("one", "/tokenize", {"model": "llama", "prompt": "abcdefghi"})
    assert (status, tokens["count"], len(tokens["tokens"])) == (200, 3, 3)
    _, of_chat = await sim.post("one", "/tokenize", {"messages": [{"role": "user", "content": "hi"}]})
    _, answer = await sim.chat("one", "hi")
    assert of_chat["count"] == answer["usage"]["prompt_tokens"]


CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (CHAT, b"{", 400, None),
        (CHAT, b'{"messages":[{"role":"user","content":"\xff"}]}', 400, None),
        (CHAT, b"[" * 100_000, 400, None),
        (CHAT, b"[]", 400, None),
        (CHAT, {"model": "llama"}, 400, "messages"),
        (CHAT, {"messages": []}, 400, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content[0]"),
        (CHAT, {"messages": MESSAGES, "max_tokens": 0}, 400, "max_tokens"),
        (CHAT, {"messages": MESSAGES, "max_tokens": "7"}, 400, "max_tokens"),
        (CHAT, {"messages": MESSAGES, "max_tokens": 10**9}, 400, "input_tokens"),
        (CHAT, {"messages": MESSAGES, "n": 2}, 400, "n"),
        (CHAT, {"messages": MESSAGES, "stream_options": {"include_usage": True}}, 400, "stream_options"),
        (CHAT, {"messages": MESSAGES, "model": "gpt"}, 404, "model"),
        ("/v1/completions", {"prompt": ""}, 400, "prompt"),
        ("/v1/completions", {"prompt": ["a", "b"]}, 400, "prompt"),
        ("/v1/completions", {"prompt": [1, "b"]}, 400, "prompt"),
        ("/v1/completions", {}, 400, "prompt"),
        ("/v1/embeddings", {"input": []}, 400, "input"),
        ("/tokenize", {}, 400, "prompt"),
    ],
)
async def test_bad_requests(start: Any, path: str, body: Any, status: int, param: str | None) -> None:
    sim = await start()
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with sim.session.post(sim.url("one", path), data=data) as response:
        answer = json.loads(await response.read())
        assert response.status == status
        assert response.content_type == "application/json"
    assert answer["error"]["code"] == status
    assert answer["error"]["param"] == param
    assert answer["error"]["type"] == {400: "BadRequestError", 404: "NotFoundError"}[status]
    assert answer["error"]["message"]
    assert (await sim.chat("one"))[0] == 200  # and the replica lives


async def test_a_body_that_is_not_encoded_as_it_says_is_a_bad_request(start: Any) -> None:
    sim = await start()
    headers = {"content-encoding": "gzip"}
    async with sim.session.post(sim.url("one", CHAT), data=b'{"messages": []}', headers=headers) as response:
        assert response.status == 400
        assert "content-encoding" in (await response.json())["error"]["message"]


async def test_unknown_paths_and_methods(start: Any) -> None:
    sim = await start()
    assert (await sim.get("one", "/nothing"))[0] == 404
    assert (await sim.get("one", CHAT))[0] == 405


async def test_content_in_parts_is_the_same_prompt(start: Any) -> None:
    sim = await start()
    parts = [{"role": "user", "content": [{"type": "text", "text": "x" * 1000}]}]
    await sim.chat("one", "x" * 1000)
    _, body = await sim.post("one", CHAT, {"messages": parts, "max_tokens": 1})
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] > 200


async def test_large_bodies(start: Any) -> None:
    sim = await start({"engine": {"max_model_len": 2 * MIB, "num_gpu_blocks": MIB // 8}}, speed=1e6)
    url = sim.url("one", "/v1/completions")
    head, tail = b'{"max_tokens":1,"user":"', b'","prompt":"hi"}'
    full = head + b"u" * (MAX_BODY_BYTES - len(head) - len(tail)) + tail
    async with sim.session.post(url, data=full) as response:
        assert response.status == 200
    async with sim.session.post(url, data=full + b" ") as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == 413
    async with sim.session.post(url, json={"prompt": "x" * (4 * MIB), "max_tokens": 1}) as response:
        assert (await response.json())["usage"]["prompt_tokens"] == MIB


async def test_request_ids_of_clients_are_kept_when_they_are_harmless(start: Any) -> None:
    sim = await start()
    for given, kept in (("abc-123", True), ('a"b', False)):
        headers = {"X-Request-Id": given}
        body = {"messages": MESSAGES, "max_tokens": 1, "stream": True}
        async with sim.session.post(sim.url("one", CHAT), json=body, headers=headers) as response:
            first = json.loads((await response.content.readuntil(b"\n\n")).removeprefix(b"data: "))
            await response.read()
        assert (first["id"] == f"chatcmpl-{given}") is kept


async def test_many_streams_at_once(start: Any) -> None:
    sim = await start({"name": "one"}, {"name": "two"}, speed=50.0)
    names = [("one", "two")[i % 2] for i in range(120)]
    answers = await asyncio.gather(*(sim.events(n, f"{i}", max_tokens=12) for i, n in enumerate(names)))
    for name, events in zip(names, answers, strict=True):
        assert events[-1] == "[DONE]"
        assert json.loads(events[0])["system_fingerprint"] == name
    for name in ("one", "two"):
        status = await sim.status(name)
        assert status["requests_received"] == status["requests_completed"] == 60
        assert status["generation_tokens"] == status["tokens_sent"] == 720
        assert status["requests_running"] == status["requests_waiting"] == 0


async def test_a_request_cut_in_the_body_is_no_harm(start: Any) -> None:
    sim = await start()
    host, port = sim.address("one").rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    await eventually(lambda: sim.replica("one").counts.requests_received == 1)
    writer.close()
    await writer.wait_closed()
    await eventually(lambda: sim.replica("one").counts.requests_aborted == 1)
    assert (await sim.chat("one"))[0] == 200


async def test_a_connection_lost_while_it_is_written_to_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    replica = Replica(ReplicaSpec(name="one"), speed=1.0, seed=1, clock=SystemClock())
    shell = HttpShell(replica, ReservedPort("127.0.0.1", 0, what="one"))
    await shell.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", shell.port)
    body = json.dumps({"prompt": "x", "max_tokens": 5000, "stream": True}).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await reader.readuntil(b"\n\n")
    (generation,) = replica._running
    await replica.set_faults(Faults(stall=StallFault(where="mid")), shell)
    seen = replica.engine.generated(generation.sequence)
    await eventually(lambda: replica.engine.generated(generation.sequence) > seen)
    # In one turn of the loop: tokens to write, then a connection that is closing but not yet known to be lost.
    replica.faults = HEALTHY
    generation.wake()
    await shell.kill()
    await eventually(lambda: replica.counts.requests_aborted == 1)
    assert replica.engine.kv.used == 0
    writer.close()
    replica.close()
    await shell.close()
    assert not caplog.records
