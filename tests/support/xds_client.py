"""A hand-held xDS client, and plans whose every resource can be changed alone by its letter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
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
from pointsman.xds.resources import CLUSTER, ENDPOINT
from pointsman.xds.server import AGGREGATED, SERVICES

QUIET_S = 0.03
"""How long silence must last to count once the server has answered what was asked later. Too short could hide a defect,
but never make a good server fail."""

HEALTH_CHECK = "/grpc.health.v1.Health/Check"

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
    """One type on a stream; several types can share an aggregated one (`beside`).

    `versions` holds the version of every resource that came, or of its response in SotW; `nonces` all nonces.
    """

    channel: grpc.aio.Channel
    call: Any
    type_url: str
    delta: bool
    names: list[str] = field(default_factory=list)
    nonce: str = ""
    version: str = ""
    held: dict[str, str] = field(default_factory=dict)
    nonces: list[str] = field(default_factory=list)
    first: bool = True
    pending: asyncio.Task[Any] | None = None

    def beside(self, type_url: str) -> Client:
        """Another type on the same stream. Their answers must be read in the order in which they come."""
        return Client(
            channel=self.channel, call=self.call, type_url=type_url, delta=self.delta, first=False, nonces=self.nonces
        )

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
        assert response.nonce and response.nonce not in self.nonces
        self.nonce = response.nonce
        self.nonces.append(response.nonce)
        if self.delta:
            found = {resource.name: resource.version for resource in response.resources}
            self.held |= found
        else:
            self.version = response.version_info
            found = dict.fromkeys((resource_name(any_.value) for any_ in response.resources), "")
            assert len(found) == len(response.resources)
        await self.send()
        return sorted(letter(n) for n in found), sorted(letter(n) for n in getattr(response, "removed_resources", ()))

    async def quiet(self) -> None:
        """Nothing comes, and the server has read all that was sent: it has answered what was asked behind it."""
        reading = self.reading()
        await self.channel.unary_unary(HEALTH_CHECK)(b"")
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
async def connect(port: int, type_url: str, *, delta: bool, aggregated: bool = True) -> AsyncIterator[Client]:
    """A client on a stream of its own."""
    service, noun = AGGREGATED if aggregated else SERVICES[type_url]
    kind = "Delta" if delta else "Stream"
    request = discovery_pb2.DeltaDiscoveryRequest if delta else discovery_pb2.DiscoveryRequest
    response = discovery_pb2.DeltaDiscoveryResponse if delta else discovery_pb2.DiscoveryResponse
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.stream_stream(
            f"/{service}/{kind}{noun}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        call = method()
        yield Client(channel=channel, call=call, type_url=type_url, delta=delta)
        call.cancel()
