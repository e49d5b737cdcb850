"""Pickers that talk over gRPC: they share load, prefixes and outcomes, also through a third one, and survive losses."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import grpc
import pytest

from extproc.fleet import POOL, make_plan
from pointsman.core.clock import SystemClock
from pointsman.extproc import Decision, Feedback, Picker, PickRequest
from pointsman.extproc.gossip import GossipState, Outbox
from pointsman.extproc.peers import MAX_QUEUED, GossipNode, Link, add_gossip, converse
from pointsman.extproc.request import read_body
from pointsman.picker.v1 import gossip_pb2
from support.waiting import eventually

KEYS = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]
LONG = "the quick brown fox jumps over the lazy dog. " * 200


def asking(text: str, only: str | None = None) -> PickRequest:
    body = read_body(json.dumps({"model": "m", "prompt": text}).encode())
    return PickRequest(pool=POOL, body=body, subset=frozenset({only}) if only else None)


class Member:
    """A picker with its node, and a server where others reach it."""

    def __init__(self, name: str, epoch: int = 1) -> None:
        outbox, clock = Outbox(), SystemClock()
        self.picker = Picker(clock, instance=name, outbox=outbox)
        self.picker.apply(make_plan({"near": KEYS}))
        self.node = GossipNode(self.picker, GossipState(name, epoch, ttl_s=1.0), outbox, clock, interval_s=0.02)
        self.server = grpc.aio.server()
        add_gossip(self.server, self.node)
        self.port = 0
        self.channels: list[grpc.aio.Channel] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, stack: AsyncExitStack, *peers: Member, port: int = 0) -> Member:
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()
        self._tasks.append(asyncio.create_task(self.node.run()))
        for peer in peers:
            talk = converse(self.node, functools.partial(self._open, peer.port), peer=str(peer.port))
            self._tasks.append(asyncio.create_task(talk))
        stack.push_async_callback(self.stop)
        return self

    def _open(self, port: int) -> grpc.aio.Channel:
        self.channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        return self.channels[-1]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.server.stop(None)

    def remote(self, key: str) -> int:
        row = self.picker.table.row(key)
        assert row is not None
        return int(self.picker.table.remote_requests[row])

    def pick(self, text: str, only: str | None = None) -> Decision:
        return self.picker.pick(asking(text, only))


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


async def test_load_and_prefixes_are_shared_both_ways(stack: AsyncExitStack) -> None:
    one = await Member("one").start(stack)
    two = await Member("two").start(stack, one)
    await eventually(lambda: one.node.live() and two.node.live())  # prefixes are told once, loads again and again
    first = [one.pick(f"{n} {LONG}", KEYS[0]) for n in range(3)]
    two.pick(LONG, KEYS[1])
    await eventually(lambda: two.remote(KEYS[0]) == 3 and one.remote(KEYS[1]) == 1)
    assert two.picker.table.remote_pending_tokens[:3].any()
    warm = two.pick(f"0 {LONG} and then?")
    assert warm.cached_tokens is not None
    assert warm.cached_tokens[0] > 1_000
    for made in first:
        one.picker.feedback(Feedback(pick_id=made.pick_id, ended=True, status=200))
    await eventually(lambda: two.remote(KEYS[0]) == 0)


async def test_a_burst_at_two_pickers_spreads_as_at_one(stack: AsyncExitStack) -> None:
    one = await Member("one").start(stack)
    two = await Member("two").start(stack, one)
    for number in range(3):
        one.pick(f"{number} {LONG}", KEYS[0])
        one.pick(f"{number + 10} {LONG}", KEYS[1])
    await eventually(lambda: two.remote(KEYS[0]) == two.remote(KEYS[1]) == 3)
    assert {two.pick(f"cold {number} {LONG}").endpoints[0] for number in range(2)} == {KEYS[2]}


async def test_what_one_picker_hears_of_anothers_pick_reaches_it(stack: AsyncExitStack) -> None:
    """A gateway's access log stream may end at another picker than its picks."""
    one = await Member("one").start(stack)
    two = await Member("two").start(stack, one)
    await eventually(lambda: one.node.live() and two.node.live())
    made = one.pick(LONG)
    assert two.picker.feedback(Feedback(pick_id=made.pick_id, ended=True, status=200, ttft_ms=5.0)) is None
    await eventually(lambda: len(one.picker.inflight) == 0)
    assert one.picker.stats().unmatched_feedback == 0
    assert two.picker.stats().unmatched_feedback == 1


async def test_a_picker_in_the_middle_passes_on(stack: AsyncExitStack) -> None:
    middle = await Member("middle").start(stack)
    ends = [await Member(name).start(stack, middle) for name in ("left", "right")]
    ends[0].pick(LONG, KEYS[2])
    await eventually(lambda: ends[1].remote(KEYS[2]) == middle.remote(KEYS[2]) == 1)
    assert set(ends[1].node.live()) == {"left", "middle"}
    late = await Member("late").start(stack, middle)
    await eventually(lambda: late.remote(KEYS[2]) == 1)


async def test_a_dead_picker_s_load_vanishes_and_its_next_life_counts_anew(stack: AsyncExitStack) -> None:
    one = await Member("one").start(stack)
    two = await Member("two", epoch=1).start(stack, one)
    two.pick(LONG, KEYS[0])
    await eventually(lambda: one.remote(KEYS[0]) == 1)
    await two.stop()
    await eventually(lambda: one.remote(KEYS[0]) == 0)
    assert one.node.live() == ()
    reborn = await Member("two", epoch=2).start(stack, one)
    reborn.pick(LONG, KEYS[1])
    await eventually(lambda: one.remote(KEYS[1]) == 1)
    assert one.remote(KEYS[0]) == 0


async def test_a_peer_that_is_away_is_found_when_it_comes(stack: AsyncExitStack) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    absent = Member("absent")
    absent.port = port
    one = await Member("one").start(stack, absent)
    await eventually(lambda: len(one.channels) > 1, what="the first channel was given up")
    one.pick(LONG, KEYS[0])
    await absent.start(stack, port=port)
    await eventually(lambda: absent.remote(KEYS[0]) == 1)


async def test_a_neighbour_that_does_not_read_costs_bounded_memory() -> None:
    link = Link()
    for number in range(3 * MAX_QUEUED):
        link.put(gossip_pb2.Update(picker="a", version=number + 1))
    assert (await link.next()).version == 2 * MAX_QUEUED + 1
