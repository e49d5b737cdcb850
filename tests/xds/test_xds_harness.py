"""The 18 scenario outlines of the public xDS test harness, against the running server over gRPC.

The harness (Gherkin outlines run with Go) covers subscribing, unsubscribing and delta; these are the same scenarios in
our words, each for the types it is meant for, by SotW and by delta, on the aggregated and the separate services.
`docs/xds.md` lists which test stands for which outline. In all of them "and nothing else comes" is asserted, too, and
no nonce is seen twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from pointsman.core.snapshot import PlanHolder
from pointsman.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE
from support.waiting import eventually
from support.xds_client import connect, name_of, plan_with

TYPES = pytest.mark.parametrize("type_url", [CLUSTER, ENDPOINT, LISTENER, ROUTE], ids=["cds", "eds", "lds", "rds"])
SERVICE = pytest.mark.parametrize("aggregated", [True, False], ids=["ads", "separate"])
WILDCARD_TYPES = pytest.mark.parametrize("type_url", [CLUSTER, LISTENER], ids=["cds", "lds"])
DELTA = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])

WITH_PICKER = {CLUSTER: ["pointsman-picker"], LISTENER: [], ENDPOINT: [], ROUTE: []}
FULL = {CLUSTER, LISTENER}
"""Types whose SotW responses hold everything that is wanted."""


@pytest.fixture
async def fleet(kit: Any) -> AsyncIterator[tuple[PlanHolder, Any]]:
    holder = PlanHolder()
    holder.publish(plan_with("abc"))
    async with kit.ControlPlane(holder) as plane:
        yield holder, plane


@TYPES
@SERVICE
@DELTA
async def test_named_resources_are_sent_and_no_others(fleet: Any, type_url: str, aggregated: bool, delta: bool) -> None:
    _, plane = fleet
    async with connect(plane.port, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("a", "c")
        assert await client.receive() == (["a", "c"], [])
        await client.quiet()


@TYPES
@SERVICE
@DELTA
async def test_a_change_of_a_named_resource_is_sent(fleet: Any, type_url: str, aggregated: bool, delta: bool) -> None:
    holder, plane = fleet
    async with connect(plane.port, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("a", "b")
        assert await client.receive() == (["a", "b"], [])
        before, version = dict(client.held), client.version
        holder.publish(plan_with("abc", changed="b"))
        assert await client.receive() == (["a", "b"] if not delta and type_url in FULL else ["b"], [])
        if delta:
            changed = {name for name, held in client.held.items() if held != before[name]}
            assert changed == {name_of(type_url, "b")}
        else:
            assert client.version != version
        await client.quiet()


@TYPES
@SERVICE
@DELTA
async def test_what_does_not_exist_is_sent_once_it_does(
    fleet: Any, type_url: str, aggregated: bool, delta: bool
) -> None:
    """Delta clients are told that it does not exist, too; the harness leaves that out."""
    holder, plane = fleet
    async with connect(plane.port, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("a", "x")
        assert await client.receive() == (["a"], ["x"] if delta else [])
        await client.quiet()
        holder.publish(plan_with("abcx"))
        assert await client.receive() == (["a", "x"] if not delta and type_url in FULL else ["x"], [])
        await client.quiet()


@TYPES
@SERVICE
@DELTA
async def test_after_unsubscribing_changes_are_not_sent(
    fleet: Any, type_url: str, aggregated: bool, delta: bool
) -> None:
    holder, plane = fleet
    async with connect(plane.port, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("a", "b", "c")
        assert await client.receive() == (["a", "b", "c"], [])
        await client.unsubscribe("b")
        await client.quiet()
        holder.publish(plan_with("abc", changed="b"))
        await client.quiet()
        await client.unsubscribe("c")
        await client.quiet()
        holder.publish(plan_with("abc", changed="bc"))
        await client.quiet()
        holder.publish(plan_with("abc", changed="abc"))
        assert await client.receive() == (["a"], [])
        await client.quiet()


@TYPES
@SERVICE
@DELTA
async def test_after_unsubscribing_from_all_nothing_is_sent(
    fleet: Any, type_url: str, aggregated: bool, delta: bool
) -> None:
    """And an empty list of names is no wildcard then."""
    holder, plane = fleet
    async with connect(plane.port, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("a", "b")
        assert await client.receive() == (["a", "b"], [])
        await client.unsubscribe("a", "b")
        await client.quiet()
        holder.publish(plan_with("abc", changed="abc"))
        await client.quiet()


@WILDCARD_TYPES
@SERVICE
@DELTA
async def test_the_wildcard_gets_everything_in_one_response(
    fleet: Any, type_url: str, aggregated: bool, delta: bool
) -> None:
    _, plane = fleet
    async with connect(plane.port, type_url, delta=delta, aggregated=aggregated) as client:
        await client.send()
        assert await client.receive() == ([*"abc", *WITH_PICKER[type_url]], [])
        await client.quiet()


@WILDCARD_TYPES
@SERVICE
@DELTA
async def test_the_wildcard_gets_changes(fleet: Any, type_url: str, aggregated: bool, delta: bool) -> None:
    holder, plane = fleet
    async with connect(plane.port, type_url, delta=delta, aggregated=aggregated) as client:
        await client.send()
        await client.receive()
        holder.publish(plan_with("abc", changed="c"))
        assert await client.receive() == (["c"] if delta else [*"abc", *WITH_PICKER[type_url]], [])
        await client.quiet()


@WILDCARD_TYPES
@SERVICE
@DELTA
async def test_the_wildcard_gets_what_is_new(fleet: Any, type_url: str, aggregated: bool, delta: bool) -> None:
    holder, plane = fleet
    async with connect(plane.port, type_url, delta=delta, aggregated=aggregated) as client:
        await client.send()
        await client.receive()
        holder.publish(plan_with("abcd"))
        assert await client.receive() == (["d"] if delta else [*"abcd", *WITH_PICKER[type_url]], [])
        await client.quiet()


@pytest.mark.parametrize(("one", "other"), [(CLUSTER, LISTENER), (ROUTE, ENDPOINT)], ids=["cds-lds", "rds-eds"])
@DELTA
async def test_several_types_share_an_aggregated_stream(fleet: Any, one: str, other: str, delta: bool) -> None:
    holder, plane = fleet
    async with connect(plane.port, one, delta=delta, aggregated=True) as client:
        await client.subscribe("b")
        assert await client.receive() == (["b"], [])
        second = client.beside(other)
        await second.subscribe("b")
        assert await second.receive() == (["b"], [])
        # With an answer outstanding the other type may go first: nothing of the one depends on the other.
        await eventually(lambda: plane.xds.status()["nodes"][0]["settled"], what="both are acknowledged")
        holder.publish(plan_with("abc", changed="b"))
        order = sorted([client, second], key=lambda c: [CLUSTER, ENDPOINT, LISTENER, ROUTE].index(c.type_url))
        for each in order:
            assert await each.receive() == (["b"], [])
        await client.quiet()


@TYPES
@SERVICE
@DELTA
async def test_a_change_of_another_is_not_sent(fleet: Any, type_url: str, aggregated: bool, delta: bool) -> None:
    holder, plane = fleet
    async with connect(plane.port, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("a")
        assert await client.receive() == (["a"], [])
        holder.publish(plan_with("abc", changed="bc"))
        await client.quiet()


@TYPES
@SERVICE
@DELTA
async def test_a_name_can_be_added(fleet: Any, type_url: str, aggregated: bool, delta: bool) -> None:
    holder, plane = fleet
    async with connect(plane.port, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("a")
        assert await client.receive() == (["a"], [])
        await client.subscribe("b")
        full = not delta and type_url in FULL
        assert await client.receive() == (["a", "b"] if full else ["b"], [])
        holder.publish(plan_with("abc", changed="ab"))
        assert await client.receive() == (["a", "b"], [])


@TYPES
@SERVICE
@DELTA
async def test_a_name_can_be_subscribed_again(fleet: Any, type_url: str, aggregated: bool, delta: bool) -> None:
    _, plane = fleet
    async with connect(plane.port, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("a", "b")
        assert await client.receive() == (["a", "b"], [])
        await client.unsubscribe("b")
        await client.subscribe("b")
        full = not delta and type_url in FULL
        assert await client.receive() == (["a", "b"] if full else ["b"], [])


@WILDCARD_TYPES
@SERVICE
@DELTA
async def test_a_removed_resource_leaves_the_wildcard(fleet: Any, type_url: str, aggregated: bool, delta: bool) -> None:
    holder, plane = fleet
    async with connect(plane.port, type_url, delta=delta, aggregated=aggregated) as client:
        await client.send()
        await client.receive()
        holder.publish(plan_with("ab"))
        rest = [*"ab", *WITH_PICKER[type_url]]
        assert await client.receive() == (([], ["c"]) if delta else (rest, []))


@TYPES
@SERVICE
async def test_delta_reports_a_removed_resource(fleet: Any, type_url: str, aggregated: bool) -> None:
    holder, plane = fleet
    async with connect(plane.port, type_url, delta=True, aggregated=aggregated) as client:
        await client.subscribe("a", "b")
        await client.receive()
        holder.publish(plan_with("bc"))
        assert await client.receive() == ([], ["a"])
        holder.publish(plan_with("abc"))
        assert await client.receive() == (["a"], [])


@TYPES
@SERVICE
async def test_delta_answers_a_repeated_subscription(fleet: Any, type_url: str, aggregated: bool) -> None:
    _, plane = fleet
    async with connect(plane.port, type_url, delta=True, aggregated=aggregated) as client:
        await client.subscribe("a")
        assert await client.receive() == (["a"], [])
        await client.subscribe("a")
        assert await client.receive() == (["a"], [])


@TYPES
@SERVICE
async def test_delta_sends_only_what_a_returning_client_lacks(fleet: Any, type_url: str, aggregated: bool) -> None:
    holder, plane = fleet
    async with connect(plane.port, type_url, delta=True, aggregated=aggregated) as client:
        await client.subscribe("a", "b")
        await client.receive()
        held = client.held
    holder.publish(plan_with("abc", changed="b"))
    async with connect(plane.port, type_url, delta=True, aggregated=aggregated) as client:
        names = [name_of(type_url, "a"), name_of(type_url, "b")]
        await client.send(resource_names_subscribe=names, initial_resource_versions=held)
        assert await client.receive() == (["b"], [])
        await client.quiet()


@SERVICE
@DELTA
async def test_the_wrong_type_on_a_separate_stream_ends_it(fleet: Any, aggregated: bool, delta: bool) -> None:
    _, plane = fleet
    async with connect(plane.port, CLUSTER, delta=delta, aggregated=aggregated) as client:
        await client.send()
        await client.receive()
        client.type_url = LISTENER
        client.nonce = ""
        await client.send()
        if aggregated:
            assert (await client.receive())[0] == ["a", "b", "c"]
            return
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(client.call.read(), 10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
