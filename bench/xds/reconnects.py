"""Does a control plane grow when its gateways come and go? `python bench/xds/reconnects.py [--rounds 2000]`

A server in a process of its own; a client connects, asks for everything (clusters, endpoints, listeners, routes), gets
and acknowledges it, and leaves, over and over: delta and SotW in turn, under 50 node ids. Every fourth leaves without a
word while a response is on its way. Prints the server's memory (RSS) along the way. Growth after the first rounds would
be a leak; grpc's and Python's allocators take some rounds to fill up. With `--strangers 10` every tenth is a node never
seen before: what it holds is remembered, up to a limit (`pointsman.xds.memory.ENTRIES_KEPT`).
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import multiprocessing.connection
import time
from pathlib import Path
from typing import Any

import grpc
from envoy.service.discovery.v3 import discovery_pb2
from prometheus_client import CollectorRegistry

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
from pointsman.xds import BuildOptions, XdsServer
from pointsman.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE
from pointsman.xds.server import AGGREGATED

GATEWAY = "default/gw"
POOLS = 100
REPLICAS = 10


def plan() -> Plan:
    """100 pools of 10 replicas, one listener with a rule for each pool."""
    pools, rules = [], []
    for number in range(POOLS):
        endpoints = tuple(
            Endpoint(name=f"r{number}-{i}", address=f"10.0.{number}.{i + 1}", port=8_000, site="here")
            for i in range(REPLICAS)
        )
        name = f"default/pool-{number:03}"
        pools.append(Pool(name=name, groups=(SiteGroup(site="here", priority=0, weight=1, endpoints=endpoints),)))
        arms = (WeightedPool(pool=name, weight=10_000),)
        rules.append(Rule(name=f"rule-{number}", route="HTTPRoute/default/r", match=RouteMatch(), arms=arms))
    hosts = (VirtualHost(name="any", domains=("*",), rules=tuple(rules)),)
    listener = Listener(name="http", address="127.0.0.1", port=8_080, hosts=hosts)
    gateway = Gateway(name=GATEWAY, listeners=(listener,), pools=tuple(pools))
    return Plan(gateways=(gateway,), pools=gateway.pools)


def serve(pipe: multiprocessing.connection.Connection) -> None:
    """The control plane's process."""

    async def run() -> None:
        holder = PlanHolder()
        holder.publish(plan())
        server = grpc.aio.server()
        xds = XdsServer(holder, BuildOptions(), CollectorRegistry())
        xds.add_to(server)
        pipe.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(run())


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


async def visit(port: int, node: str, *, delta: bool, abrupt: bool) -> None:
    """One life of a gateway."""
    service, noun = AGGREGATED
    kind = "Delta" if delta else "Stream"
    request: Any = discovery_pb2.DeltaDiscoveryRequest if delta else discovery_pb2.DiscoveryRequest
    response: Any = discovery_pb2.DeltaDiscoveryResponse if delta else discovery_pb2.DiscoveryResponse
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.stream_stream(
            f"/{service}/{kind}{noun}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )()
        names = {
            CLUSTER: [],
            ENDPOINT: [f"default/pool-{number:03}" for number in range(POOLS)],
            LISTENER: [],
            ROUTE: [f"{GATEWAY}/http"],
        }
        for type_url, wanted in names.items():
            first = request(type_url=type_url)
            first.node.id, first.node.cluster = node, GATEWAY
            field = first.resource_names_subscribe if delta else first.resource_names
            field.extend(wanted)
            await call.write(first)
            answer = await call.read()
            if abrupt and type_url == LISTENER:
                break
            ack = request(type_url=type_url, response_nonce=answer.nonce)
            if not delta:
                ack.version_info = answer.version_info
                ack.resource_names.extend(wanted)
            await call.write(ack)
        call.cancel()


async def run(rounds: int, strangers: int) -> None:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    port = await asyncio.to_thread(ours.recv)
    pid = process.pid or 0
    print(f"{POOLS} pools of {REPLICAS} replicas; {'reconnects':>10} {'RSS MiB':>8} {'per s':>6}")
    print(f"{'':36} {0:>10} {rss_mib(pid):>8.1f}")
    step = max(1, rounds // 10)
    began_s = time.monotonic()
    for number in range(1, rounds + 1):
        node = f"new-{number}" if strangers and number % strangers == 0 else f"node-{number % 50}"
        await visit(port, node, delta=number % 2 == 0, abrupt=number % 4 == 0)
        if number % step == 0:
            speed = step / (time.monotonic() - began_s)
            print(f"{'':36} {number:>10} {rss_mib(pid):>8.1f} {speed:>6.0f}", flush=True)
            began_s = time.monotonic()
    process.terminate()
    process.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2_000, help="how often a gateway connects (2000)")
    parser.add_argument("--strangers", type=int, default=0, help="every how many-th node is a new one (0: none)")
    chosen = parser.parse_args()
    asyncio.run(run(chosen.rounds, chosen.strangers))
