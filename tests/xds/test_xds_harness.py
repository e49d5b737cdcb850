"""The scenarios of the public xDS test harness, against the running server over gRPC.

The harness (Gherkin outlines run with Go) covers subscribing, unsubscribing and delta; these are the same scenarios in
our words, each for clusters, endpoints, listeners and routes, and over the aggregated and the separate services.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import discovery_pb2

from pointsman.core.model import (
    Endpoint,
    Gateway,
    Listener,
    Plan,
    Pool,
    RouteMatch,
    Rule,
    SiteGroup,
    VirtualHost,
    WeightedPool,
)
from pointsman.core.snapshot import PlanHolder
from pointsman.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE
from pointsman.xds.server import AGGREGATED, SERVICES

QUIET_S = 0.15
"""How long silence must last to count; the server answers within a few milliseconds. Too short could hide a defect,
but never make a good server fail."""

TYPES = pytest.mark.parametrize("type_url", [CLUSTER, ENDPOINT, LISTENER, ROUTE], ids=["cds", "eds", "lds", "rds"])
SERVICE = pytest.mark.parametrize("aggregated", [True, False], ids=["ads", "separate"])
WILDCARD_TYPES = pytest.mark.parametrize("type_url", [CLUSTER, LISTENER], ids=["cds", "lds"])

GATEWAY = "default/gw"


def name_of(type_url: str, letter: str) -> str:
    """What resource `letter` is called: routes and listeners carry the gateway's name."""
    return f"default/{letter}" if type_url in {CLUSTER, ENDPOINT} else f"{GATEWAY}/{letter}"


def plan_with(letters: Iterable[str], changed: Iterable[str] = ()) -> Plan:
    """A pool, a listener and a route configuration per letter; those in `changed` differ in every resource."""
    pools, listeners = [], []
    for letter in sorted(letters):
        other = letter in changed
        endpoint = Endpoint(name=letter, address="10.0.0.1", port=(2_000 if other else 1_000) + ord(letter), site="s")
        group = SiteGroup(site="s", priority=0, weight=1, endpoints=(endpoint,))
        pools.append(Pool(name=f"default/{letter}", groups=(group,), health_path="/other" if other else "/health"))
        arms = (WeightedPool(pool=f"default/{letter}", weight=10_000),)
        rule = Rule(name=f"{letter}-{other}", route="HTTPRoute/default/r", match=RouteMatch(), arms=arms)
        hosts = (VirtualHost(name="any", domains=("*",), rules=(rule,)),)
        address = "127.0.0.2" if other else "127.0.0.1"
        listeners.append(Listener(name=letter, address=address, port=3_000 + ord(letter), hosts=hosts))
    gateway = Gateway(name=GATEWAY, listeners=tuple(listeners), pools=tuple(pools))
    return Plan(gateways=(gateway,), pools=gateway.pools)


@dataclass
class Client:
    """A hand-held xDS client: one stream, one type."""

    call: Any
    type_url: str
    delta: bool
    names: list[str] = field(default_factory=list)
    nonce: str = ""
    version: str = ""
    held: dict[str, str] = field(default_factory=dict)
    first: bool = True
    pending: asyncio.Task[Any] | None = None

    async def send(self, **fields: Any) -> None:
        kind = discovery_pb2.DeltaDiscoveryRequest if self.delta else discovery_pb2.DiscoveryRequest
        request: Any = kind(type_url=self.type_url, response_nonce=self.nonce, **fields)
        if not self.delta:
            request.version_info = self.version
            request.resource_names.extend(self.names)
        if self.first:
            request.node.id, request.node.cluster = "harness", GATEWAY
            self.first = False
        await self.call.write(request)

    async def subscribe(self, *letters: str) -> None:
        added = [name_of(self.type_url, letter) for letter in letters]
        self.names += added
        await self.send(**({"resource_names_subscribe": added} if self.delta else {}))

    async def unsubscribe(self, *letters: str) -> None:
        dropped = [name_of(self.type_url, letter) for letter in letters]
        self.names = [name for name in self.names if name not in dropped]
        await self.send(**({"resource_names_unsubscribe": dropped} if self.delta else {}))

    async def receive(self) -> tuple[list[str], list[str]]:
        """Letters of the resources in the next response, and of the removed ones; the response is acknowledged."""
        response = await asyncio.wait_for(self.reading(), 10)
        self.pending = None
        assert response.type_url == self.type_url
        assert response.nonce and response.nonce != self.nonce
        self.nonce = response.nonce
        if self.delta:
            found = {resource.name: resource.version for resource in response.resources}
            self.held |= found
        else:
            self.version = response.version_info
            found = dict.fromkeys((resource_name(any_.value) for any_ in response.resources), "")
        await self.send()
        return sorted(letter(n) for n in found), sorted(letter(n) for n in getattr(response, "removed_resources", ()))

    async def quiet(self) -> None:
        """Nothing comes."""
        reading = self.reading()
        done, _ = await asyncio.wait({reading}, timeout=QUIET_S)
        assert not done, f"unexpected: {reading.result()}"

    def reading(self) -> asyncio.Task[Any]:
        """The read that waits for the next response; it is kept, because to cancel it would end the stream."""
        if self.pending is None:
            self.pending = asyncio.ensure_future(self.call.read())
        return self.pending


def letter(name: str) -> str:
    return name.rpartition("/")[2]


def resource_name(body: bytes) -> str:
    """Field 1 of all four resource types is its name."""
    assert body[0] == 0x0A
    return body[2 : 2 + body[1]].decode()


@asynccontextmanager
async def connect(plane: Any, type_url: str, *, delta: bool, aggregated: bool) -> AsyncIterator[Client]:
    service, noun = AGGREGATED if aggregated else SERVICES[type_url]
    kind = "Delta" if delta else "Stream"
    request = discovery_pb2.DeltaDiscoveryRequest if delta else discovery_pb2.DiscoveryRequest
    response = discovery_pb2.DeltaDiscoveryResponse if delta else discovery_pb2.DiscoveryResponse
    async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.port}") as channel:
        method = channel.stream_stream(
            f"/{service}/{kind}{noun}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        call = method()
        yield Client(call=call, type_url=type_url, delta=delta)
        call.cancel()


@pytest.fixture
async def fleet(kit: Any) -> AsyncIterator[tuple[PlanHolder, Any]]:
    holder = PlanHolder()
    holder.publish(plan_with("abc"))
    async with kit.ControlPlane(holder) as plane:
        yield holder, plane


WITH_PICKER = {CLUSTER: ["pointsman-picker"], LISTENER: [], ENDPOINT: [], ROUTE: []}
DELTA = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])


@TYPES
@SERVICE
@DELTA
async def test_a_named_resource_is_sent(fleet: Any, type_url: str, aggregated: bool, delta: bool) -> None:
    _, plane = fleet
    async with connect(plane, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("a")
        assert await client.receive() == (["a"], [])
        await client.quiet()


@TYPES
@SERVICE
@DELTA
async def test_a_change_of_a_named_resource_is_sent(fleet: Any, type_url: str, aggregated: bool, delta: bool) -> None:
    holder, plane = fleet
    async with connect(plane, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("a", "b")
        assert await client.receive() == (["a", "b"], [])
        holder.publish(plan_with("abc", changed="b"))
        full = not delta and type_url in {CLUSTER, LISTENER}
        assert await client.receive() == (["a", "b"] if full else ["b"], [])
        await client.quiet()


@TYPES
@SERVICE
@DELTA
async def test_a_change_of_another_is_not_sent(fleet: Any, type_url: str, aggregated: bool, delta: bool) -> None:
    holder, plane = fleet
    async with connect(plane, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("a")
        assert await client.receive() == (["a"], [])
        holder.publish(plan_with("abc", changed="bc"))
        await client.quiet()


@TYPES
@SERVICE
@DELTA
async def test_a_resource_that_does_not_exist_is_sent_when_it_does(
    fleet: Any, type_url: str, aggregated: bool, delta: bool
) -> None:
    holder, plane = fleet
    async with connect(plane, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("x")
        if delta:
            assert await client.receive() == ([], ["x"])
        elif type_url in {CLUSTER, LISTENER}:
            assert await client.receive() == ([], [])
        await client.quiet()
        holder.publish(plan_with("abcx"))
        assert await client.receive() == (["x"], [])


@TYPES
@SERVICE
@DELTA
async def test_a_name_can_be_added(fleet: Any, type_url: str, aggregated: bool, delta: bool) -> None:
    holder, plane = fleet
    async with connect(plane, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("a")
        assert await client.receive() == (["a"], [])
        await client.subscribe("b")
        full = not delta and type_url in {CLUSTER, LISTENER}
        assert await client.receive() == (["a", "b"] if full else ["b"], [])
        holder.publish(plan_with("abc", changed="ab"))
        assert await client.receive() == (["a", "b"], [])


@TYPES
@SERVICE
@DELTA
async def test_after_unsubscribing_changes_are_not_sent(
    fleet: Any, type_url: str, aggregated: bool, delta: bool
) -> None:
    holder, plane = fleet
    async with connect(plane, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("a", "b")
        assert await client.receive() == (["a", "b"], [])
        await client.unsubscribe("b")
        await client.quiet()
        holder.publish(plan_with("abc", changed="b"))
        await client.quiet()
        holder.publish(plan_with("abc", changed="ab"))
        assert await client.receive() == (["a"], [])


@TYPES
@SERVICE
@DELTA
async def test_after_unsubscribing_from_all_nothing_is_sent(
    fleet: Any, type_url: str, aggregated: bool, delta: bool
) -> None:
    holder, plane = fleet
    async with connect(plane, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("a", "b")
        assert await client.receive() == (["a", "b"], [])
        await client.unsubscribe("a", "b")
        await client.quiet()
        holder.publish(plan_with("abc", changed="abc"))
        await client.quiet()


@TYPES
@SERVICE
@DELTA
async def test_a_name_can_be_subscribed_again(fleet: Any, type_url: str, aggregated: bool, delta: bool) -> None:
    _, plane = fleet
    async with connect(plane, type_url, delta=delta, aggregated=aggregated) as client:
        await client.subscribe("a", "b")
        assert await client.receive() == (["a", "b"], [])
        await client.unsubscribe("b")
        await client.subscribe("b")
        full = not delta and type_url in {CLUSTER, LISTENER}
        assert await client.receive() == (["a", "b"] if full else ["b"], [])


@WILDCARD_TYPES
@SERVICE
@DELTA
async def test_the_wildcard_gets_everything(fleet: Any, type_url: str, aggregated: bool, delta: bool) -> None:
    holder, plane = fleet
    async with connect(plane, type_url, delta=delta, aggregated=aggregated) as client:
        await client.send()
        everything = [*"abc", *WITH_PICKER[type_url]]
        assert await client.receive() == (everything, [])
        holder.publish(plan_with("abcd", changed="c"))
        full = [*"abcd", *WITH_PICKER[type_url]]
        assert await client.receive() == (["c", "d"] if delta else full, [])


@WILDCARD_TYPES
@SERVICE
@DELTA
async def test_a_removed_resource_leaves_the_wildcard(fleet: Any, type_url: str, aggregated: bool, delta: bool) -> None:
    holder, plane = fleet
    async with connect(plane, type_url, delta=delta, aggregated=aggregated) as client:
        await client.send()
        await client.receive()
        holder.publish(plan_with("ab"))
        rest = [*"ab", *WITH_PICKER[type_url]]
        assert await client.receive() == (([], ["c"]) if delta else (rest, []))


@TYPES
@SERVICE
async def test_delta_reports_a_removed_resource(fleet: Any, type_url: str, aggregated: bool) -> None:
    holder, plane = fleet
    async with connect(plane, type_url, delta=True, aggregated=aggregated) as client:
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
    async with connect(plane, type_url, delta=True, aggregated=aggregated) as client:
        await client.subscribe("a")
        assert await client.receive() == (["a"], [])
        await client.subscribe("a")
        assert await client.receive() == (["a"], [])


@TYPES
@SERVICE
async def test_delta_sends_only_what_a_returning_client_lacks(fleet: Any, type_url: str, aggregated: bool) -> None:
    holder, plane = fleet
    async with connect(plane, type_url, delta=True, aggregated=aggregated) as client:
        await client.subscribe("a", "b")
        await client.receive()
        held = client.held
    holder.publish(plan_with("abc", changed="b"))
    async with connect(plane, type_url, delta=True, aggregated=aggregated) as client:
        names = [name_of(type_url, "a"), name_of(type_url, "b")]
        await client.send(resource_names_subscribe=names, initial_resource_versions=held)
        assert await client.receive() == (["b"], [])
        await client.quiet()


@SERVICE
@DELTA
async def test_the_wrong_type_on_a_separate_stream_ends_it(fleet: Any, aggregated: bool, delta: bool) -> None:
    _, plane = fleet
    async with connect(plane, CLUSTER, delta=delta, aggregated=aggregated) as client:
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


async def test_a_stream_without_a_node_is_refused(fleet: Any) -> None:
    _, plane = fleet
    async with connect(plane, CLUSTER, delta=False, aggregated=True) as client:
        client.first = False
        await client.send()
        with pytest.raises(grpc.aio.AioRpcError, match="names no node"):
            await asyncio.wait_for(client.call.read(), 10)


async def test_a_slow_client_finds_the_newest_state_and_holds_up_nobody(fleet: Any) -> None:
    holder, plane = fleet
    async with (
        connect(plane, ENDPOINT, delta=True, aggregated=True) as slow,
        connect(plane, ENDPOINT, delta=True, aggregated=True) as fast,
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
        connect(plane, CLUSTER, delta=True, aggregated=True) as other,
        connect(plane, "type.googleapis.com/unknown.Type0", delta=True, aggregated=True) as flood,
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
    async with kit.ControlPlane(holder) as plane, connect(plane, CLUSTER, delta=False, aggregated=True) as client:
        await client.send()
        await client.quiet()
        holder.publish(plan_with("a"))
        assert await client.receive() == (["a", *WITH_PICKER[CLUSTER]], [])
