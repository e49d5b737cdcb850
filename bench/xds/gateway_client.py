"""Many gateways in one process: each a delta ADS stream that asks as Envoy does and accepts everything.

Raw on purpose: a stream keeps its versions and answers; nothing is stored of the resources. Streams share channels, a
hundred on each.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import grpc
from envoy.service.discovery.v3 import discovery_pb2

from pointsman.core import wire
from pointsman.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE

STREAMS_PER_CHANNEL = 100
METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
NEXT_TYPES = {CLUSTER: (ENDPOINT, LISTENER), LISTENER: (ROUTE,)}
"""What Envoy asks for once it has a type: endpoints for its clusters, then listeners, then their routes."""

RECONNECT_S = 0.1


class Gateway:
    """One proxy. `versions` survive the stream, as they do in Envoy."""

    def __init__(self, number: int, gateway: str, counts: Counter[str]) -> None:
        self.node = f"sim-{number:05}"
        self._gateway = gateway
        self._counts = counts
        self._versions: dict[str, dict[str, str]] = {}

    async def run(self, channel: grpc.aio.Channel) -> None:
        """Connect, again and again."""
        open_stream: Any = channel.stream_stream(
            METHOD,
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )
        while True:
            try:
                await self._converse(open_stream(wait_for_ready=True))
            except grpc.aio.AioRpcError:
                self._counts["lost"] += 1
            await asyncio.sleep(RECONNECT_S)

    async def _converse(self, call: Any) -> None:
        asked: set[str] = set()
        # After a reconnect Envoy names at once all types it had, with what it holds.
        for type_url in [CLUSTER, *(known for known in (ENDPOINT, LISTENER, ROUTE) if known in self._versions)]:
            await self._ask(call, type_url, asked)
        while (response := await call.read()) is not grpc.aio.EOF:
            self._counts["responses"] += 1
            self._counts["resources"] += len(response.resources)
            self._counts[response.type_url.rpartition(".")[2]] += len(response.resources)
            held = self._versions.setdefault(response.type_url, {})
            held.update((resource.name, resource.version) for resource in response.resources)
            for name in response.removed_resources:
                held.pop(name, None)
            await call.write(
                discovery_pb2.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
            )
            for following in NEXT_TYPES.get(response.type_url, ()):
                if following not in asked:
                    await self._ask(call, following, asked)

    async def _ask(self, call: Any, type_url: str, asked: set[str]) -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url)
        if not asked:
            request.node.id, request.node.cluster = self.node, self._gateway
        if type_url == ENDPOINT:
            names = self._versions[CLUSTER].keys() - {wire.PICKER_CLUSTER}
            request.resource_names_subscribe.extend(sorted(names))
        elif type_url == ROUTE:
            request.resource_names_subscribe.extend(sorted(self._versions[LISTENER]))
        request.initial_resource_versions.update(self._versions.get(type_url, {}))
        asked.add(type_url)
        await call.write(request)


def simulate(pipe: Connection, port: int, gateways: Sequence[str]) -> None:
    """Commands: `connect N` more proxies, spread over the gateways; `counts` since they were asked for last."""

    async def main() -> None:
        counts: Counter[str] = Counter()
        channels: list[grpc.aio.Channel] = []
        tasks: list[asyncio.Task[None]] = []
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        options += [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]
        while True:
            command, *arguments = await asyncio.to_thread(pipe.recv)
            if command == "connect":
                for _ in range(arguments[0]):
                    number = len(tasks)
                    if number % STREAMS_PER_CHANNEL == 0:
                        channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options))
                    proxy = Gateway(number, gateways[number % len(gateways)], counts)
                    tasks.append(asyncio.create_task(proxy.run(channels[-1])))
            pipe.send(dict(counts))
            counts.clear()

    asyncio.run(main())
