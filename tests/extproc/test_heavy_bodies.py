"""Bodies that are long or crowded: what is read of them is bounded, and nobody waits for them.

The server's test counts the order of answers, not time: the large body is held in its reader until others are through.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from extproc.fleet import POOL, make_plan
from pointsman.core import wire
from pointsman.core.clock import SystemClock
from pointsman.core.model import ModelRewrite
from pointsman.extproc import Picker, add_services, model_rules
from pointsman.extproc.exchange import Exchange
from pointsman.extproc.rename import find_model
from pointsman.extproc.request import (
    HEAVY_BYTES,
    MANY_ITEMS,
    MAX_ITEMS,
    MAX_NAME_CHARS,
    MAX_OBJECTS,
    MAX_SCAN_BYTES,
    crowd_of,
    is_heavy,
    read_body,
)
from pointsman.extproc.server import EXT_PROC_SERVICE
from pointsman.extproc.token_ids import MAX_IDS, render_id_text, render_ids

# What is read


@given(st.lists(st.integers(0, 99_999_999)), st.sampled_from([None, 1, "\t"]))
def test_the_text_of_ids_gives_the_bytes_of_their_numbers(ids: list[int], indent: int | str | None) -> None:
    text = json.dumps(ids, indent=indent).encode()
    assert render_id_text(text) == ((render_ids(ids), len(ids)) if ids else None)


@given(st.lists(st.lists(st.integers(0, 200_000), max_size=4), min_size=1, max_size=6))
def test_lists_of_lists_of_ids(batch: list[list[int]]) -> None:
    flat = [i for ids in batch for i in ids]
    assert (render_id_text(json.dumps(batch).encode()) or (b"", 0)) == (render_ids(flat), len(flat))


@given(
    st.recursive(st.none() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_what_is_no_list_of_ids_is_left_alone(value: Any) -> None:
    rendered = render_id_text(json.dumps(value).encode())
    assert rendered is None or set(json.dumps(value)) <= set("[], 0123456789-")


def test_no_more_ids_than_any_window_holds_are_rendered_and_all_are_counted() -> None:
    rendered = render_id_text(b"[" + b"7," * (MAX_IDS + 9) + b"7]")
    assert rendered is not None
    assert rendered[1] == MAX_IDS + 10
    assert rendered[0] == render_ids([7]) * MAX_IDS


def test_a_prompt_of_ids_grows_over_the_bound_between_the_two_ways_to_read_it() -> None:
    ids = [n * 7919 % 150_000 for n in range(3 * MANY_ITEMS)]
    few = read_body(json.dumps({"model": "m", "prompt": ids[:MANY_ITEMS]}).encode())
    many = read_body(json.dumps({"model": "m", "prompt": ids, "max_tokens": 5, "cache_salt": "s"}).encode())
    assert len(few.prompt) == 4 * MANY_ITEMS
    assert many.prompt.startswith(few.prompt)
    assert (many.model, many.max_tokens, many.cache_salt) == ("m", 5, "s")
    assert many.prompt_bytes == len(many.prompt) == 4 * len(ids)
    assert read_body(json.dumps({"input": [ids]}).encode()).prompt == many.prompt


CROWDS = {
    "messages": (b'{"messages":[', b"{},", b"{}]}"),
    "parts": (b'{"messages":[{"content":[', b"{},", b"{}]}]}"),
    "texts": (b'{"prompt":[', b'"",', b'""]}'),
    "numbers that are no ids": (b'{"prompt":[', b"1e3,", b"1]}"),
    "members": (b"{", b'"a":1,', b'"b":1}'),
    "unknown": (b'{"x":[', b"[],", b'1],"prompt":"a"}'),
}


@pytest.mark.parametrize("kind", CROWDS)
def test_of_a_crowd_of_small_things_only_the_beginning_is_read(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pointsman.extproc import request

    head, item, tail = CROWDS[kind]
    read: list[bytes] = []
    decode = request._DECODER.decode

    class Spy:
        def decode(self, text: bytes) -> Any:
            read.append(text)
            return decode(text)

    monkeypatch.setattr(request, "_DECODER", Spy())
    body = head + item * (MAX_SCAN_BYTES // len(item) // 2) + tail
    found = read_body(body)
    assert found.prompt_bytes == len(body)
    assert is_heavy(body, crowd_of(body))
    for text in read:
        assert text.count(b"{") <= MAX_OBJECTS + 16 * 1024
        assert text.count(b",") <= MAX_ITEMS + 16 * 1024


def test_the_beginning_of_a_crowded_chat_still_finds_its_prefix() -> None:
    turns = [{"role": "user", "content": f"turn {n} of many"} for n in range(MAX_OBJECTS * 2)]
    found = read_body(json.dumps({"model": "m", "messages": turns}).encode())
    assert found.problem == ""
    assert found.prompt.startswith(read_body(json.dumps({"messages": turns[:1000]}).encode()).prompt)
    assert found.prompt.count(b"turn") > 9_000
    assert found.prompt_bytes > 4_000_000


def test_long_prose_and_code_are_read_whole() -> None:
    prose = "It was a bright cold day in April, and the clocks were striking thirteen. " * 40_000
    code = 'def point(self, track: dict[str, int]) -> None:\n    return {"track": track}\n' * 10_000
    for text in (prose, code):
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
        assert read_body(body).prompt == b"\x1euser\x1f" + text.encode()


# Who waits


class HeldReaders(Executor):
    """Readers that read nothing until they are let."""

    def __init__(self) -> None:
        self.waiting = 0
        self._gate = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        def held() -> Any:
            self._gate.wait(60)
            return work(*args, **kwargs)

        self.waiting += 1
        return self._pool.submit(held)

    def let(self) -> None:
        self._gate.set()


@pytest.fixture
def readers() -> Iterator[HeldReaders]:
    held = HeldReaders()
    yield held
    held.let()


@pytest.fixture
async def process(readers: HeldReaders) -> AsyncIterator[Any]:
    picker = Picker(SystemClock())
    rewrite = ModelRewrite(model="renamed", targets=(("m", 10_000),))
    picker.apply(make_plan({"near": ["10.0.0.1:80", "10.0.0.2:80"]}, rewrites=(rewrite,)))
    large = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    server = grpc.aio.server(options=large)
    add_services(server, picker, CollectorRegistry(), readers=readers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=large) as channel:
        yield channel.stream_stream(
            f"/{EXT_PROC_SERVICE}/Process",
            request_serializer=ext_proc.ProcessingRequest.SerializeToString,
            response_deserializer=ext_proc.ProcessingResponse.FromString,
        )
    readers.let()
    await server.stop(None)


def body_message(text: bytes) -> ext_proc.ProcessingRequest:
    message = ext_proc.ProcessingRequest()
    message.request_body.body = text
    message.request_body.end_of_stream = True
    message.attributes["envoy.filters.http.ext_proc"].fields[wire.ATTRIBUTE_CLUSTER].string_value = POOL
    return message


@pytest.mark.parametrize("rewrites", [(), (ModelRewrite(model="", targets=(("m", 10_000),)),)])
def test_what_is_remembered_of_a_model_is_bounded(rewrites: tuple[ModelRewrite, ...]) -> None:
    picker = Picker(SystemClock())
    picker.apply(make_plan({"near": ["10.0.0.1:80"]}, rewrites=rewrites))
    [reply] = Exchange(picker).receive(body_message(b'{"model":"' + b"m" * 1_000_000 + b'","prompt":"p"}'))
    assert reply.HasField("request_body")
    [made] = picker.recent()
    asked = made.asked_model or made.model
    assert len(made.model) + len(made.asked_model) < 2 * MAX_NAME_CHARS
    assert asked.startswith("m" * MAX_NAME_CHARS) and asked != "m" * len(asked)  # it is no other model's


async def answer(process: Any, body: bytes) -> ext_proc.ProcessingResponse:
    call = process()
    await call.write(body_message(body))
    return await call.read()


HEAVY = {
    "four million token ids": b'{"model":"m","prompt":[' + b"7," * 4_000_000 + b"7]}",
    "sixty megabytes of text": b'{"model":"m","prompt":"' + b"a" * 60_000_000 + b'"}',
    "a crowd of messages": b'{"model":"m","messages":[' + b"{}," * 30_000 + b"{}]}",
}


@pytest.mark.parametrize("kind", HEAVY)
async def test_requests_that_come_later_are_answered_before_a_heavy_one(
    process: Any, readers: HeldReaders, kind: str
) -> None:
    order: list[str] = []

    async def ask(name: str, body: bytes) -> None:
        reply = await answer(process, body)
        assert reply.dynamic_metadata.fields[wire.LB_NAMESPACE].struct_value.fields[wire.DESTINATION_KEY].string_value
        order.append(name)

    heavy = asyncio.create_task(ask("heavy", HEAVY[kind]))
    async with asyncio.timeout(30):
        while not readers.waiting:
            await ask("early", b'{"model": "m", "prompt": "small"}')
    for number in range(20):
        await ask(f"later {number}", b'{"model": "m", "prompt": "small"}')
    readers.let()
    await heavy
    assert order.index("heavy") == len(order) - 1
    assert readers.waiting == 1, "small bodies need no reader"


async def test_the_model_of_a_heavy_body_is_looked_for_in_a_thread_too(
    process: Any, readers: HeldReaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def find(body: bytes, *, partial: bool) -> Any:
        threads.append(threading.current_thread())
        return find_model(body, partial=partial)

    monkeypatch.setattr(model_rules, "find_model", find)
    readers.let()
    body = b'{"prompt":"' + b"a" * HEAVY_BYTES + b'","model":"renamed"}'
    changed = (await answer(process, body)).request_body.response.body_mutation.body
    assert changed == body.replace(b"renamed", b"m")
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_a_heavy_body_in_full_duplex_is_read_apart_too(process: Any, readers: HeldReaders) -> None:
    call = process()
    first = ext_proc.ProcessingRequest()
    duplex = processing_mode_pb2.ProcessingMode.FULL_DUPLEX_STREAMED
    first.protocol_config.request_body_mode = first.protocol_config.response_body_mode = duplex
    first.request_headers.SetInParent()
    first.attributes["envoy.filters.http.ext_proc"].fields[wire.ATTRIBUTE_CLUSTER].string_value = POOL
    await call.write(first)
    body = b'{"model":"m","prompt":"' + b"word " * (HEAVY_BYTES // 4) + b'"}'
    for start in range(0, len(body), 60_000):
        chunk = ext_proc.ProcessingRequest()
        chunk.request_body.body = body[start : start + 60_000]
        chunk.request_body.end_of_stream = start + 60_000 >= len(body)
        await call.write(chunk)
    async with asyncio.timeout(30):
        while not readers.waiting:
            assert (await answer(process, b'{"model": "m", "prompt": "small"}')).HasField("request_body")
    readers.let()
    assert (await call.read()).HasField("request_headers")
    sent_back = b""
    while len(sent_back) < len(body):
        sent_back += (await call.read()).request_body.response.body_mutation.streamed_response.body
    assert sent_back == body
    call.cancel()
