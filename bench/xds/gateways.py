"""A thousand gateways on one control plane: memory of each, time and CPU of a change, and of a restart.

    python bench/xds/gateways.py [--proxies N] [--gateways N] [--pools N] [--routes N]

Three processes: this one, the control plane, and one with all simulated proxies (delta ADS, one stream each). Every
proxy gets the pools (with ten endpoints each) and the routes of its Gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from multiprocessing.connection import Connection
from typing import Any

import grpc
import numpy as np
from gateway_client import simulate
from plans import GATEWAY, OPTIONS, changed_endpoint, changed_weight, endpoints, plan, pool, rule
from processes import Child, child, cpu_s, machine, rss_bytes
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from pointsman.core.model import Plan
from pointsman.core.snapshot import PlanHolder
from pointsman.xds import XdsServer

TIMEOUT_S = 120.0
STEPS = 4
CHANGES = 5


def make_plan(gateways: int, pools: int, routes: int) -> Plan:
    """Gateways that share pools and routes."""
    members = [pool(f"bench/p{n:03}", endpoints(10, first=10 * n)) for n in range(pools)]
    rules = [rule(f"r{n:03}", (members[n % pools].name, 10_000), header=f"model-{n}") for n in range(routes - 1)]
    split = rule("split", (members[0].name, 0), (members[-1].name, 10_000))
    return plan(members, [*rules, split], gateways=names(gateways))


def names(count: int) -> list[str]:
    return [GATEWAY] if count == 1 else [f"bench/gw-{n:04}" for n in range(count)]


class Server:
    """The control plane's side of the benchmark, driven over a pipe."""

    def __init__(self, now: Plan) -> None:
        self._holder = PlanHolder()
        self._registry = CollectorRegistry()
        self._xds = XdsServer(self._holder, OPTIONS, self._registry)
        self._now = now
        self._gateways = [gateway.name for gateway in now.gateways]

    async def run(self, pipe: Connection, port: int) -> None:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
        self._xds.add_to(server)
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
        self._holder.publish(self._now)
        await server.start()
        pipe.send(bound)
        while True:
            command, *arguments = await asyncio.to_thread(pipe.recv)
            pipe.send(await getattr(self, command)(*arguments))

    async def settled(self, proxies: int) -> dict[str, Any]:
        """Wait until so many proxies have everything; seconds since the question, and what was sent so far."""
        began_s = time.perf_counter()
        share, rest = divmod(proxies, len(self._gateways))
        for number, name in enumerate(self._gateways):
            state = await self._xds.wait_acked(name, TIMEOUT_S, nodes=share + (number < rest))
            if not state.done:
                raise SystemExit(f"{name}: {len(state.pending)} proxies are not there after {TIMEOUT_S:g} s")
        return {"seconds": time.perf_counter() - began_s, "sent": self._sent()}

    async def collect(self) -> None:
        """Free what is free, so that the memory measured is the memory needed."""
        gc.collect()

    async def weight(self, proxies: int, weight: int, only: str) -> dict[str, Any]:
        """Change one weight and wait for all ACKs."""
        self._now = changed_weight(self._now, weight, only=only)
        return await self._push(proxies)

    async def endpoint(self, proxies: int, weight: int) -> dict[str, Any]:
        """Change one endpoint and wait for all ACKs."""
        self._now = changed_endpoint(self._now, self._now.pools[0].name, weight)
        return await self._push(proxies)

    async def _push(self, proxies: int) -> dict[str, Any]:
        before, began_s = self._sent(), time.perf_counter()
        self._holder.publish(self._now)
        await self.settled(proxies)
        return {"seconds": time.perf_counter() - began_s, "sent": self._sent() - before}

    def _sent(self) -> int:
        return int(
            sum(
                sample.value
                for family in self._registry.collect()
                for sample in family.samples
                if sample.name == "pointsman_xds_responses_total"
            )
        )


def serve(pipe: Connection, now: Plan, port: int) -> None:
    asyncio.run(Server(now).run(pipe, port))


class Measured:
    """CPU seconds of the control plane and of the proxies during a block."""

    def __init__(self, server: Child, proxies: Child) -> None:
        self._pids = (server.pid, proxies.pid)

    def __enter__(self) -> Measured:
        self._before = [cpu_s(pid) for pid in self._pids]
        self._began_s = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.perf_counter() - self._began_s
        self.server_s, self.proxies_s = (
            cpu_s(pid) - before for pid, before in zip(self._pids, self._before, strict=True)
        )


def run(console: Console, proxies: int, gateways: int, pools: int, routes: int) -> None:
    console.print(machine())
    now = make_plan(gateways, pools, routes)
    table = Table(
        title=f"{proxies:,} proxies of {gateways:,} Gateway(s) with {pools} pools of 10 and {routes} routes (delta ADS)"
    )
    for column in ("what", "seconds", "server CPU s", "proxies CPU s", "responses sent"):
        table.add_column(column, justify="left" if column == "what" else "right")

    def row(what: str, measured: Measured, seconds: float, sent: int) -> None:
        cells = (f"{seconds:.2f}", f"{measured.server_s:.2f}", f"{measured.proxies_s:.2f}", f"{sent:,}")
        table.add_row(what, *cells)

    with child(serve, now, 0) as server:
        port = server.answer()
        with child(simulate, port, names(gateways)) as fleet:
            memory = [rss_bytes(server.pid)]
            with Measured(server, fleet) as measured:
                for step in range(1, STEPS + 1):
                    fleet.ask("connect", proxies // STEPS)
                    state = server.ask("settled", step * (proxies // STEPS))
                    server.ask("collect")
                    memory.append(rss_bytes(server.pid))
            proxies = STEPS * (proxies // STEPS)
            row("all connect and get everything", measured, measured.wall_s, state["sent"])
            slope = np.polyfit(np.arange(STEPS + 1) * (proxies // STEPS), memory, 1)[0]
            for what, command, arguments in (
                ("one weight of all Gateways", "weight", [""]),
                ("one weight of one Gateway", "weight", [names(gateways)[0]]),
                ("one endpoint of a pool of all", "endpoint", []),
            ):
                with Measured(server, fleet) as measured:
                    states = [server.ask(command, proxies, 1_000 + n, *arguments) for n in range(CHANGES)]
                seconds = [state["seconds"] for state in states]
                row(
                    f"{what} ({CHANGES}×: median; CPU and responses of all)",
                    measured,
                    float(np.median(seconds)),
                    sum(state["sent"] for state in states),
                )
            grown = rss_bytes(server.pid)
            fleet.ask("counts")
            server.kill()
            with child(serve, last_plan(now), port) as restarted:
                restarted.answer()
                with Measured(restarted, fleet) as measured:
                    state = restarted.ask("settled", proxies)
                row("all come back after a restart", measured, measured.wall_s, state["sent"])
                counts = fleet.ask("counts")
                console.print(table)
                console.print(
                    f"memory: {memory[0] / 1e6:.0f} MB without proxies, {memory[-1] / 1e6:.0f} MB with all of them "
                    f"([bold]{slope / 1e3:.0f} kB each[/]), {grown / 1e6:.0f} MB after the changes, "
                    f"{rss_bytes(restarted.pid) / 1e6:.0f} MB after the restart; "
                    f"proxies that lost the control plane: {counts.get('lost', 0):,}, resources they were sent again: "
                    f"{counts.get('resources', 0):,}"
                )


def last_plan(now: Plan) -> Plan:
    """The state after all changes: a restarted control plane has the same configuration."""
    last = 1_000 + CHANGES - 1
    return changed_endpoint(changed_weight(now, last), now.pools[0].name, last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxies", type=int, default=1_000, help="simulated proxies (default 1000)")
    parser.add_argument("--gateways", type=int, default=1, help="Gateways they belong to (default 1)")
    parser.add_argument("--pools", type=int, default=20, help="pools of each Gateway (default 20)")
    parser.add_argument("--routes", type=int, default=50, help="routes of each Gateway (default 50)")
    arguments = parser.parse_args()
    console = Console(width=130)
    run(console, arguments.proxies, arguments.gateways, arguments.pools, arguments.routes)


if __name__ == "__main__":
    main()
