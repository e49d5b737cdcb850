"""The reader of KV events against a real ZeroMQ publisher, as vLLM has one: a PUB socket, and a ROUTER that repeats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import zmq
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from zmq.asyncio import Context

from extproc.fleet import make_plan
from pointsman.core.clock import SystemClock
from pointsman.core.model import Plan
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc import Picker
from pointsman.extproc.kv_events import reader
from pointsman.extproc.kv_events.reader import KvEventReader
from support.waiting import eventually

KEY = "127.0.0.1:80"
END = (-1).to_bytes(8, "big", signed=True)


def payload(first: int, count: int = 1) -> bytes:
    """A batch that stores `count` blocks of 64 tokens from block `first` on, which follows the one before."""
    event = {
        "type": "BlockStored",
        "block_hashes": list(range(first, first + count)),
        "parent_block_hash": first - 1 if first > 1 else None,
        "token_ids": [name for name in range(first, first + count) for _ in range(64)],
        "block_size": 64,
        "medium": "GPU",
    }
    return msgspec.msgpack.encode([1.0, [event], 0])


class Publisher:
    """What an engine publishes. XPUB is PUB that also tells of subscriptions, so that a test need not guess."""

    def __init__(self, context: Any) -> None:
        self._publisher = context.socket(zmq.XPUB)
        self._router = context.socket(zmq.ROUTER)
        self.port = self._publisher.bind_to_random_port("tcp://127.0.0.1")
        self.replay_port = self._router.bind_to_random_port("tcp://127.0.0.1")
        self.kept: dict[int, bytes] = {}
        self.asked: list[int] = []
        self.ends = True  # says when it has repeated all

    async def subscription(self) -> bytes:
        """The next subscription (it begins with 1) or its end (with 0)."""
        async with asyncio.timeout(20):
            return bytes(await self._publisher.recv())

    async def send(self, number: int, content: bytes) -> None:
        await self._publisher.send_multipart([b"kv@tiny", number.to_bytes(8, "big"), content])

    async def send_parts(self, *parts: bytes) -> None:
        await self._publisher.send_multipart(list(parts))

    async def repeat(self) -> None:
        """Answer replays for ever, as vLLM 0.32 does."""
        while True:
            client, empty, since = await self._router.recv_multipart()
            self.asked.append(int.from_bytes(since, "big"))
            for number, content in self.kept.items():
                if number >= self.asked[-1]:
                    await self._router.send_multipart([client, empty, b"kv@tiny", number.to_bytes(8, "big"), content])
            if self.ends:
                await self._router.send_multipart([client, empty, b"", END, b""])

    def close(self) -> None:
        self._publisher.close(linger=0)
        self._router.close(linger=0)


@asynccontextmanager
async def reading(*, replay: bool) -> AsyncIterator[tuple[Publisher, Picker, PlanHolder, CollectorRegistry]]:
    context, registry, holder = Context(), CollectorRegistry(), PlanHolder()
    publisher = Publisher(context)
    picker = Picker(SystemClock())
    plan = publishing(publisher.port, publisher.replay_port if replay else 0)
    picker.apply(plan)
    picker.models(KEY, frozenset({"m"}))
    picker._engines.token_prompts = True
    holder.publish(plan)
    tasks = [asyncio.create_task(KvEventReader(picker, holder, registry).run())]
    tasks.append(asyncio.create_task(publisher.repeat()))
    try:
        assert (await publisher.subscription())[:1] == b"\1"
        yield publisher, picker, holder, registry
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        publisher.close()
        context.destroy(linger=0)


def publishing(port: int, replay_port: int = 0) -> Plan:
    """A Plan of one endpoint that publishes."""
    plan = make_plan({"near": [KEY]})
    (pool,) = plan.pools
    (group,) = pool.groups
    endpoint = replace(group.endpoints[0], kv_events_port=port, kv_replay_port=replay_port)
    return replace(plan, pools=(replace(pool, groups=(replace(group, endpoints=(endpoint,)),)),))


def count(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(f"pointsman_kv_event{name}_total", labels) or 0.0


async def test_events_correct_the_index_and_what_is_malformed_is_counted() -> None:
    async with reading(replay=False) as (publisher, picker, _, registry):
        await publisher.send(0, payload(1, 4))
        await eventually(lambda: picker.index.total_blocks == 4)
        await publisher.send_parts(b"alone")
        await publisher.send_parts(b"topic", b"short", payload(5))
        await publisher.send(1, b"\xc1 no msgpack")
        await publisher.send(2, payload(1, 2))
        await eventually(lambda: count(registry, "s", kind="stored") == 2)
        assert count(registry, "_batches", outcome="malformed") == 3
        assert count(registry, "_gaps") == 0
        assert picker.index.total_blocks == 2, "what the unreadable batch may have taken away is in doubt"


async def test_lost_batches_are_repeated_by_the_engine() -> None:
    async with reading(replay=True) as (publisher, picker, _, registry):
        publisher.kept = {number: payload(number + 1) for number in range(4)}
        await publisher.send(0, publisher.kept[0])
        await eventually(lambda: picker.index.total_blocks == 1)
        await publisher.send(3, publisher.kept[3])
        await eventually(lambda: picker.index.total_blocks == 4)
        assert publisher.asked == [1]
        assert count(registry, "_batches", outcome="replayed") == 2
        assert count(registry, "_gaps") == 0


async def test_an_engine_that_ran_before_repeats_all() -> None:
    async with reading(replay=True) as (publisher, picker, _, _registry):
        publisher.kept = {number: payload(number + 1) for number in range(3)}
        await publisher.send(2, publisher.kept[2])
        await eventually(lambda: picker.index.total_blocks == 3)
        assert publisher.asked == [0]


async def test_without_a_replay_what_is_in_doubt_is_forgotten() -> None:
    async with reading(replay=False) as (publisher, picker, _, registry):
        await publisher.send(0, payload(1, 4))
        await eventually(lambda: picker.index.total_blocks == 4)
        with capture_logs() as logs:
            await publisher.send(9, payload(1))
            await eventually(lambda: picker.index.total_blocks == 1)
        assert [line["number"] for line in logs if "lost" in line["event"]] == [9]
        assert count(registry, "_gaps") == 1


async def test_the_plan_says_who_is_listened_to() -> None:
    async with reading(replay=False) as (publisher, picker, holder, registry):
        holder.publish(publishing(0))
        assert (await publisher.subscription())[:1] == b"\0"
        holder.publish(publishing(publisher.port))
        assert (await publisher.subscription())[:1] == b"\1"
        await publisher.send(0, payload(1))
        await eventually(lambda: picker.index.total_blocks == 1)
        assert registry.get_sample_value("pointsman_kv_events_reader_restarts_total") == 0


async def test_an_engine_that_repeats_what_nobody_asked_for_is_not_heard_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "MAX_REPLAYED", 20)
    async with reading(replay=True) as (publisher, picker, _, registry):
        publisher.kept, publisher.ends = dict.fromkeys(range(100, 1_000), b""), False
        with capture_logs() as logs:
            await publisher.send(3, payload(1))
            await eventually(lambda: picker.stats().prefix_blocks == 1)
    assert publisher.asked == [0]
    assert count(registry, "pointsman_kv_event_batches_total", outcome="replayed") == 0
    assert not [line for line in logs if "does not repeat" in line["event"]], "it did not wait for the end"


async def test_without_pyzmq_the_endpoints_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "zmq", None)
    holder, plan = PlanHolder(), publishing(5557)
    with capture_logs() as logs:
        task = asyncio.create_task(KvEventReader(Picker(SystemClock()), holder, CollectorRegistry()).run())
        holder.publish(plan)
        await eventually(lambda: logs)
        task.cancel()
    assert "pointsman[kv-events]" in logs[0]["event"]
    assert logs[0]["endpoints"] == [KEY]
