"""What traces cost: CPU of the picker and of Envoy for each request, with tracing off and at three shares of sampling.

    python bench/picker/traced.py [--seconds N] [--rounds N] [--endpoints N]

One Envoy in the one-message profile, as in `bench/picker`, with a listener for each way that traces as the control
plane configures it, but for the one that is off; one picker worker; 4 KB chats in a closed loop; a collector that takes
all spans and looks at none. The ways are measured in turn, in several rounds and each time in another order. Figures
are medians of the rounds, in µs of user and system time of the processes, from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import platform
import random
import statistics
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import grpc
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm
from gateway import POOL, bootstrap
from google.protobuf import json_format
from load import Upstream, closed_loop, request_of
from prometheus_client import CollectorRegistry

from pointsman.app.envoy import Envoy, start_envoy
from pointsman.app.tracing_options import TracingOptions
from pointsman.app.tracing_otlp import EXPORT_METHOD
from pointsman.app.workers.supervisor import PickerWorkers
from pointsman.core import wire
from pointsman.core.clock import SystemClock
from pointsman.core.model import Endpoint, Plan, Pool, Site, SiteGroup
from pointsman.extproc import Picker
from pointsman.extproc.gossip import GossipState, Outbox
from pointsman.extproc.peers import GossipNode
from pointsman.xds import GatewayTracing
from pointsman.xds.generate.tracing import fill_tracing

WAYS: Final = {"off": None, "0": 0.0, "0.01": 0.01, "1": 1.0}
"""Name of the listener → share that is sampled; None: nothing is traced."""

CONNECTIONS: Final = 16
TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def chats() -> list[bytes]:
    """64 requests of 4 KB, each of its own."""
    texts = (f"{number} " + f"points and signals of yard {number} " * 120 for number in range(64))
    return [
        request_of(json.dumps({"model": "m", "messages": [{"role": "user", "content": text[:4_000]}]}).encode())
        for text in texts
    ]


def traced(keys: list[str], picker_port: int, collector_port: int) -> dict[str, Any]:
    """The gateway of `bench/picker` in the one-message profile, with a listener for each way."""
    config = bootstrap(keys, picker_port)
    resources = config["static_resources"]
    base = next(listener for listener in resources["listeners"] if listener["name"] == "single")
    picker = next(cluster for cluster in resources["clusters"] if cluster["name"] == wire.PICKER_CLUSTER)
    collector = json.dumps(picker).replace(wire.PICKER_CLUSTER, wire.COLLECTOR_CLUSTER)
    resources["clusters"].append(
        json.loads(collector.replace(f'"port_value": {picker_port}', f'"port_value": {collector_port}'))
    )
    resources["listeners"] = []
    for way, ratio in WAYS.items():
        listener = copy.deepcopy(base)
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        if ratio is not None:
            filled = hcm.HttpConnectionManager()
            tracing = GatewayTracing(collector_address="127.0.0.1", collector_port=collector_port, ratio=ratio)
            fill_tracing(filled, "bench/gateway", tracing)
            manager.update(json_format.MessageToDict(filled, preserving_proto_field_name=True))
        resources["listeners"].append({**listener, "name": way})
    return config


async def _collect(_: bytes, __: Any) -> bytes:
    return b""


async def _collector(stack: AsyncExitStack) -> int:
    server = grpc.aio.server()
    service, method = EXPORT_METHOD.strip("/").split("/")
    handler = grpc.unary_unary_rpc_method_handler(_collect)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, None)
    return int(port)


async def _worker(stack: AsyncExitStack, plan: Plan, tracing: TracingOptions) -> PickerWorkers:
    clock, picker = SystemClock(), Picker(SystemClock())
    workers = await stack.enter_async_context(
        PickerWorkers(
            1,
            address="127.0.0.1",
            picker=picker,
            registry=CollectorRegistry(),
            gossip=GossipNode(picker, GossipState("bench", 1), Outbox(), clock),
            tracing=tracing,
            log_level="warning",
        )
    )
    workers.publish(plan)
    await workers.ready()
    return workers


async def run(*, endpoints: int, seconds: float, rounds: int) -> None:
    async with AsyncExitStack() as stack:
        server = await asyncio.get_running_loop().create_server(Upstream, "0.0.0.0", 0, backlog=1024)
        stack.callback(server.close)
        upstream_port = server.sockets[0].getsockname()[1]
        keys = [f"127.1.{n // 250}.{n % 250 + 1}:{upstream_port}" for n in range(endpoints)]
        members = tuple(Endpoint(name=k, address=k.split(":")[0], port=upstream_port, site="here") for k in keys)
        group = SiteGroup(site="here", priority=0, weight=1, endpoints=members)
        plan = Plan(sites=(Site(name="here"),), pools=(Pool(name=POOL, groups=(group,)),))
        collector_port = await _collector(stack)
        workers = await _worker(stack, plan, TracingOptions(host="127.0.0.1", port=collector_port))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        envoy = await start_envoy(traced(keys, workers.port, collector_port), Path(folder), concurrency=1)
        stack.push_async_callback(envoy.stop)
        await envoy.wait_ready(60)
        costs: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in random.sample(list(WAYS), len(WAYS)):
                costs[way].append(await _measure(envoy, way, workers.pids[0], seconds))
        _show(costs, endpoints)


async def _measure(envoy: Envoy, way: str, picker_pid: int, seconds: float) -> tuple[float, float]:
    """µs of CPU for each request: the picker's and Envoy's."""
    host, _, port = (await envoy.listener_addresses())[way].rpartition(":")
    requests = chats()
    await closed_loop((host, int(port)), requests, connections=CONNECTIONS, for_s=min(0.5, seconds / 2))
    before = cpu_s(picker_pid), cpu_s(envoy.child.pid)
    result = await closed_loop((host, int(port)), requests, connections=CONNECTIONS, for_s=seconds)
    await asyncio.sleep(0.3)  # the spans and the access log of the last requests
    if result.errors:
        raise SystemExit(f"{result.errors} of {result.requests} requests failed")
    after = cpu_s(picker_pid), cpu_s(envoy.child.pid)
    return (
        (after[0] - before[0]) / result.requests * 1e6,
        (after[1] - before[1]) / result.requests * 1e6,
    )


def _show(costs: dict[str, list[tuple[float, float]]], endpoints: int) -> None:
    print(f"{'sampled':>8} {'picker µs':>10} {'Envoy µs':>10}    (lowest to highest round)")
    for way, rounds in costs.items():
        picker, envoy = ([one[side] for one in rounds] for side in (0, 1))
        print(
            f"{way:>8} {statistics.median(picker):>10.0f} {statistics.median(envoy):>10.0f}    "
            f"({min(picker):.0f} to {max(picker):.0f}, {min(envoy):.0f} to {max(envoy):.0f})"
        )
    print(
        f"{endpoints} endpoints, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a measurement (default 2)")
    parser.add_argument("--rounds", type=int, default=7, help="times that all ways are measured in turn (default 7)")
    parser.add_argument("--endpoints", type=int, default=100, help="of the pool (default 100)")
    chosen = parser.parse_args()
    asyncio.run(run(endpoints=chosen.endpoints, seconds=chosen.seconds, rounds=chosen.rounds))


if __name__ == "__main__":
    main()
