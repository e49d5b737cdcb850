"""What clients that misbehave, or are slow, or come too early, do to others: nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import structlog

from pointsman.core.snapshot import PlanHolder
from pointsman.xds.memory import Memories
from pointsman.xds.pace import BURST, PER_S, Pace
from pointsman.xds.quarantine import NAMES_KEPT, RETRIES, Quarantine
from pointsman.xds.resources import CLUSTER, ENDPOINT, LISTENER, make_resource
from pointsman.xds.server import AGGREGATED
from pointsman.xds.session import NAMES_PER_TYPE
from pointsman.xds.stream import StreamTimes
from support.waiting import eventually
from support.xds_client import connect, name_of, plan_with


@pytest.fixture
async def fleet(kit: Any) -> AsyncIterator[tuple[PlanHolder, Any]]:
    holder = PlanHolder()
    holder.publish(plan_with("abc"))
    async with kit.ControlPlane(holder) as plane:
        yield holder, plane


async def test_a_stream_without_a_node_is_refused(fleet: Any) -> None:
    _, plane = fleet
    async with connect(plane.port, CLUSTER, delta=False, aggregated=True) as client:
        client.first = False
        await client.send()
        with pytest.raises(grpc.aio.AioRpcError, match="names no node"):
            await asyncio.wait_for(client.call.read(), 10)


async def test_a_slow_client_finds_the_newest_state_and_holds_up_nobody(fleet: Any) -> None:
    holder, plane = fleet
    async with (
        connect(plane.port, ENDPOINT, delta=True, aggregated=True) as slow,
        connect(plane.port, ENDPOINT, delta=True, aggregated=True) as fast,
    ):
        await slow.subscribe("a")
        response = await asyncio.wait_for(slow.call.read(), 10)  # and no ACK
        await fast.subscribe("a")
        await fast.receive()
        for turn in range(5):
            holder.publish(plan_with("abc", changed="a" if turn % 2 == 0 else ""))
            assert await fast.receive() == (["a"], [])
        slow.nonce = response.nonce
        await slow.send()
        assert await slow.receive() == (["a"], [])
        await slow.quiet()
        assert slow.held[name_of(ENDPOINT, "a")] == fast.held[name_of(ENDPOINT, "a")]


async def test_an_unknown_type_is_empty_and_a_flood_of_them_ends_one_stream_only(fleet: Any) -> None:
    holder, plane = fleet
    async with (
        connect(plane.port, CLUSTER, delta=True, aggregated=True) as other,
        connect(plane.port, "type.googleapis.com/unknown.Type0", delta=True, aggregated=True) as flood,
    ):
        await other.send()
        await other.receive()
        await flood.send()
        assert await flood.receive() == ([], [])
        with pytest.raises(grpc.aio.AioRpcError, match="more than 32 resource types"):
            for number in range(1, 64):
                flood.type_url, flood.nonce = f"type.googleapis.com/unknown.Type{number}", ""
                await flood.subscribe("a")
                await flood.receive()
        holder.publish(plan_with("abcd"))
        assert await other.receive() == (["d"], [])
        assert plane.total("pointsman_xds_requests_total", type="other") > 0


async def test_a_control_plane_without_a_plan_answers_nobody(kit: Any) -> None:
    """A gateway that reconnects to a control plane that is still starting keeps what it has."""
    holder = PlanHolder()
    async with kit.ControlPlane(holder) as plane, connect(plane.port, CLUSTER, delta=False, aggregated=True) as client:
        await client.send()
        await client.quiet()
        holder.publish(plan_with("a"))
        assert await client.receive() == (["a", "pointsman-picker"], [])


async def test_ten_thousand_names_in_one_request(fleet: Any) -> None:
    """Most of them do not exist: one answer says so, and the others are served meanwhile."""
    holder, plane = fleet
    async with connect(plane.port, ENDPOINT, delta=True) as many, connect(plane.port, ENDPOINT, delta=True) as other:
        await other.subscribe("a")
        await other.receive()
        await many.subscribe("a", *(f"ghost-{number}" for number in range(10_000)))
        found, absent = await many.receive()
        assert found == ["a"]
        assert len(absent) == 10_000
        holder.publish(plan_with("abc", changed="a"))
        assert await other.receive() == (["a"], [])
        assert await many.receive() == (["a"], [])


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
async def test_more_names_than_anybody_has_end_the_stream(fleet: Any, delta: bool) -> None:
    _, plane = fleet
    async with connect(plane.port, ENDPOINT, delta=delta) as client:
        await client.subscribe(*(str(number) for number in range(NAMES_PER_TYPE + 1)))
        with pytest.raises(grpc.aio.AioRpcError, match="more than 100000 names"):
            await asyncio.wait_for(client.call.read(), 10)
    await eventually(lambda: not plane.xds.streams(), what="the stream is forgotten")


async def test_a_flood_is_read_slowly_and_the_others_are_served(fleet: Any) -> None:
    holder, plane = fleet
    async with connect(plane.port, CLUSTER, delta=True) as other, connect(plane.port, ENDPOINT, delta=True) as flood:
        await other.send()
        await other.receive()

        async def pour() -> None:
            for number in range(100_000):
                await (flood.subscribe if number % 2 else flood.unsubscribe)("ghost")

        pouring = asyncio.ensure_future(pour())
        await eventually(lambda: plane.total("pointsman_xds_throttled_requests_total") > 0, what="slowed down")
        holder.publish(plan_with("abcd"))
        assert await other.receive() == (["d"], [])
        # No more is read than the bucket gives: what is not read stays with the sender (flow control).
        assert plane.total("pointsman_xds_requests_total", type="EDS") < 10 * BURST
        assert not pouring.done()
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)


async def test_a_stream_that_says_nothing_is_ended(kit: Any) -> None:
    async with (
        kit.ControlPlane(PlanHolder(), times=StreamTimes(warm_s=0.1, first_s=0.05)) as plane,
        connect(plane.port, CLUSTER, delta=True) as silent,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(silent.call.read(), 10)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_what_one_proxy_refuses_is_sent_to_another_of_the_same_name(fleet: Any) -> None:
    holder, plane = fleet
    async with connect(plane.port, CLUSTER, delta=True) as one, connect(plane.port, CLUSTER, delta=True) as other:
        for client in (one, other):
            await client.send()
            await client.receive()
        holder.publish(plan_with("abcd"))
        response = await asyncio.wait_for(one.reading(), 10)
        one.nonce = response.nonce
        await one.send(error_detail={"code": 13, "message": "default/d: no"})
        await eventually(lambda: plane.total("pointsman_xds_rejected_resources") == 1, what="one refused d")
        assert await other.receive() == (["d"], [])
        async with connect(plane.port, CLUSTER, delta=True) as third:
            await third.send()
            assert "d" in (await third.receive())[0]
        assert plane.total("pointsman_xds_doubled_nodes_total") == 2
        assert plane.total("pointsman_xds_rejected_resources") == 1


async def test_bytes_that_are_no_request_end_one_stream_only(fleet: Any) -> None:
    holder, plane = fleet
    async with (
        connect(plane.port, CLUSTER, delta=True) as other,
        grpc.aio.insecure_channel(f"127.0.0.1:{plane.port}") as channel,
    ):
        await other.send()
        await other.receive()
        service, noun = AGGREGATED
        call: Any = channel.stream_stream(f"/{service}/Delta{noun}", request_serializer=bytes)()
        await call.write(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError):
            await asyncio.wait_for(call.read(), 10)
        holder.publish(plan_with("abcd"))
        assert await other.receive() == (["d"], [])
        assert [stream.identity.id for stream in plane.xds.streams()] == ["harness"]


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
async def test_names_that_are_not_served_are_told_once_per_stream(fleet: Any, delta: bool) -> None:
    _, plane = fleet
    foreign = "xdstp://authority/envoy.config.cluster.v3.Cluster/foo/*"
    async with connect(plane.port, CLUSTER, delta=delta) as client:
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                client.names = [foreign, *client.names]
                await client.send(**({"resource_names_subscribe": [foreign]} if delta else {}))
                if not client.nonce or delta:
                    found, absent = await client.receive()
                    assert not found
                    assert len(absent) == delta
            await client.quiet()
        (line,) = [entry for entry in logs if "not served" in entry["event"]]
        assert line["names"] == [foreign]
        (node,) = plane.xds.status()["nodes"]
        assert node["unsupported"] == [foreign]
        assert plane.total("pointsman_xds_unsupported_names_total", type="CDS") == 1


async def test_reconnects_leave_nothing_behind(fleet: Any) -> None:
    """Tasks, streams, timers and memories; `bench/xds/reconnects.py` watches the process from outside."""
    _, plane = fleet

    async def visit(number: int) -> None:
        async with connect(plane.port, CLUSTER, delta=number % 2 == 0) as client:
            await client.send()
            await client.receive()

    await visit(0)
    before = len(asyncio.all_tasks())
    for number in range(100):
        await visit(number)
    await eventually(lambda: not plane.xds.streams(), what="no streams")
    await eventually(lambda: len(asyncio.all_tasks()) <= before, what="no tasks")


def test_memories_are_bounded_by_what_they_hold() -> None:
    memories = Memories(limit=100)
    connected = memories.enter("connected")
    for number in range(200):
        memory = memories.enter(number)
        memory.held["type"] = {str(i): make_resource("type", str(i), b"") for i in range(9)}
        memories.leave(number)
    assert len(memories) == 1 + 10
    assert memories.enter(199).held  # the last ones are kept
    assert not memories.enter(0).held
    assert memories.enter("connected") is connected


def test_answers_cost_no_pace_and_requests_come_back_with_time() -> None:
    pace = Pace()
    for _ in range(10 * BURST):
        pace.count(answers=True)
        assert pace.delay_s(0.0) == 0
    for _ in range(BURST):
        pace.count(answers=False)
        assert pace.delay_s(0.0) == 0
    pace.count(answers=False)
    assert pace.delay_s(0.0) == 1 / PER_S
    assert pace.delay_s(1.0) == 0


def test_tries_end_and_the_last_refusal_says_so() -> None:
    quarantine, listener = Quarantine(), make_resource(LISTENER, "a", b"")
    now_s, waits = 0.0, []
    rejection = quarantine.add(listener, "a: cannot bind '10.0.0.1:80': Address already in use")
    while not rejection.final:
        quarantine.tick(now_s)
        due_s = quarantine.tick(now_s)
        assert due_s is not None
        assert listener in quarantine
        waits.append(due_s - now_s)
        quarantine.tick(now_s := due_s)
        assert listener not in quarantine
        assert quarantine.current([listener]) == [rejection]  # shown all the time
        rejection = quarantine.add(listener, "a: cannot bind '10.0.0.1:80': Address already in use")
    assert waits[:7] == [1, 2, 4, 8, 16, 32, 60]
    assert (len(waits), rejection.retries) == (RETRIES, RETRIES)
    assert 600 < now_s < 1_200
    assert quarantine.tick(now_s + 10_000) is None
    assert listener in quarantine


def test_only_listeners_are_tried_again() -> None:
    cluster = make_resource(CLUSTER, "a", b"")
    assert Quarantine().add(cluster, "a: cannot bind '10.0.0.1:80': Address already in use").final


def test_the_quarantine_is_bounded() -> None:
    quarantine = Quarantine()
    for number in range(NAMES_KEPT + 10):
        quarantine.add(make_resource(LISTENER, str(number), b""), "cannot bind to it")
    assert len(quarantine) == NAMES_KEPT
    assert quarantine.tick(0.0) == 1.0
