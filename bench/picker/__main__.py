"""The price of a pick, for each request: CPU of the picker and of Envoy, latency, throughput; all ways in one run.

    python bench/picker [--seconds N] [--rounds N] [--shells native,grpc] [--json FILE]

One real Envoy has a listener for each way: no picker (alone), the one-message profile with access log feedback, where
the gateway promises a single message (single) and where it does not (one-message), and the Endpoint Picker Protocol in
full duplex (without feedback, so it is shown cheaper than it is). They are measured in turn, in several rounds, before
the same pool, with the same bodies: chats of 64 conversations. CPU is user and system time of the processes from /proc,
under a closed loop; latency is that of requests at a fixed rate that does not fill the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import platform
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from gateway import LISTENERS, POOL, bootstrap
from load import Result, Upstream, closed_loop, paced, request_of
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table
from texts import BODIES, bodies_of, plan_of

from pointsman.app.envoy import start_envoy
from pointsman.app.pick_shell import PickerShell
from pointsman.app.workers.supervisor import PickerWorkers
from pointsman.core.clock import SystemClock
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.extproc import Picker
from pointsman.extproc.gossip import GossipState, Outbox
from pointsman.extproc.peers import GossipNode

CONNECTIONS = 16
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One way, one body, one set-up. Microseconds of CPU for each request, milliseconds of latency."""

    way: str
    body: str
    endpoints: int
    workers: int
    shell: str
    requests: int
    errors: int
    picker_us: float
    envoy_us: float
    per_s: float
    p50_ms: float
    p99_ms: float


def cpu_s(pids: Sequence[int]) -> float:
    """User and system time of the processes so far."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


class Rig:
    """The pool, the picker workers and Envoy for one number of endpoints and workers."""

    def __init__(self, endpoints: int, workers: int, shell: PickerShell = PickerShell.NATIVE) -> None:
        self.endpoints, self.workers, self.shell = endpoints, workers, shell

    async def __aenter__(self) -> Rig:
        self._server = await asyncio.get_running_loop().create_server(Upstream, "0.0.0.0", 0, backlog=1024)
        port = self._server.sockets[0].getsockname()[1]
        keys = [f"127.1.{n // 250}.{n % 250 + 1}:{port}" for n in range(self.endpoints)]
        clock = SystemClock()
        picker = Picker(clock)
        gossip = GossipNode(picker, GossipState("bench", 1), Outbox(), clock)
        self._pickers = await PickerWorkers(
            self.workers,
            address="127.0.0.1",
            picker=picker,
            registry=CollectorRegistry(),
            gossip=gossip,
            shell=self.shell,
            log_level="warning",
        ).__aenter__()
        plan = plan_of(keys, POOL)
        picker.apply(plan)
        self._pickers.publish(plan)
        await self._pickers.ready()
        rng = random.Random(7)
        for key in keys:
            metrics = EngineMetrics(
                waiting=0,
                running=rng.randrange(30),
                kv_usage=rng.random() / 2,
                block_tokens=16,
                capacity_tokens=400_000,
            )
            self._pickers.signals(key, metrics, rtt_ms=1.0)
            self._pickers.models(key, frozenset({"llama"}))
        self._folder = tempfile.TemporaryDirectory()
        # As many workers as the picker has, so that each of them can have a connection of its own.
        self._envoy = await start_envoy(
            bootstrap(keys, self._pickers.port), Path(self._folder.name), concurrency=self.workers
        )
        await self._envoy.wait_ready(60)
        found = await self._envoy.listener_addresses()
        self.addresses = {n: (a.rsplit(":", 1)[0], int(a.rsplit(":", 1)[1])) for n, a in found.items()}
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._envoy.stop()
        await self._pickers.__aexit__(None, None, None)
        self._server.close()
        self._folder.cleanup()

    async def measure(self, way: str, body: str, *, seconds: float, rate: float) -> Cell:
        """One cell of one round."""
        requests = [request_of(text) for text in bodies_of(BODIES[body])]
        address = self.addresses[way]
        await closed_loop(address, requests, connections=CONNECTIONS, for_s=min(1.0, seconds / 2))  # warm
        gc.collect()
        picker_s, envoy_s = cpu_s(self._pickers.pids), cpu_s([self._envoy.child.pid])
        busy: Result = await closed_loop(address, requests, connections=CONNECTIONS, for_s=seconds)
        await asyncio.sleep(0.15)  # the access log of the last requests
        picker_s, envoy_s = cpu_s(self._pickers.pids) - picker_s, cpu_s([self._envoy.child.pid]) - envoy_s
        calm = await paced(address, requests, rate=rate, for_s=seconds)
        quantiles = statistics.quantiles(calm.latencies_s, n=100) if len(calm.latencies_s) > 1 else [0.0] * 99
        return Cell(
            way=way,
            body=body,
            endpoints=self.endpoints,
            workers=self.workers,
            shell=self.shell.value,
            requests=busy.requests,
            errors=busy.errors + calm.errors,
            picker_us=picker_s / busy.requests * 1e6,
            envoy_us=envoy_s / busy.requests * 1e6,
            per_s=busy.requests / busy.elapsed_s,
            p50_ms=quantiles[49] * 1e3,
            p99_ms=quantiles[98] * 1e3,
        )


async def run(
    bodies: Sequence[str],
    setups: Sequence[tuple[int, int]],
    shells: Sequence[PickerShell],
    *,
    seconds: float,
    rounds: int,
) -> list[Cell]:
    """All cells: each set-up, and in it each body, way and shell in turn, `rounds` times over."""
    cells = []
    for endpoints, workers in setups:
        async with AsyncExitStack() as stack:
            rigs = [await stack.enter_async_context(Rig(endpoints, workers, shell)) for shell in shells]
            for _ in range(rounds):
                for body in bodies if (endpoints, workers) == setups[0] else ["32 KB"]:
                    rate = 20.0 if body == "1 MB" else 40.0
                    for way, rig in itertools.product(LISTENERS, rigs):
                        cells.append(await rig.measure(way, body, seconds=seconds, rate=rate))
                        print(cells[-1], file=sys.stderr, flush=True)
    return cells


def merged(cells: Sequence[Cell]) -> list[Cell]:
    """The rounds of each cell together: the median of each figure, the sum of the counts."""
    groups: dict[tuple[int, int, str, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.endpoints, cell.workers, cell.shell, cell.body, cell.way), []).append(cell)
    made = []
    for group in groups.values():
        values = {
            name: statistics.median(getattr(cell, name) for cell in group)
            for name in ("picker_us", "envoy_us", "per_s", "p50_ms", "p99_ms")
        }
        counts = {name: sum(getattr(cell, name) for cell in group) for name in ("requests", "errors")}
        made.append(Cell(**{**asdict(group[0]), **values, **counts}))
    return made


def show(cells: Sequence[Cell], console: Console) -> None:
    """The table, and the bars of the design beside what was measured."""
    table = Table(title="Price of a request")
    for column in (
        "endpoints", "workers", "shell", "body", "way", "picker µs", "Envoy µs", "both µs", "× duplex", "req/s",
        "p50 ms", "p99 ms", "added p50", "added p99", "errors",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    by = {(c.endpoints, c.workers, c.shell, c.body, c.way): c for c in cells}
    for cell in cells:
        key = (cell.endpoints, cell.workers, cell.shell, cell.body)
        alone, duplex = by[(*key, "alone")], by[(*key, "duplex")]
        ratio = (cell.picker_us + cell.envoy_us) / (duplex.picker_us + duplex.envoy_us)
        table.add_row(
            f"{cell.endpoints:,}", str(cell.workers), cell.shell, cell.body, cell.way, f"{cell.picker_us:,.0f}",
            f"{cell.envoy_us:,.0f}", f"{cell.picker_us + cell.envoy_us:,.0f}", f"{ratio:.2f}", f"{cell.per_s:,.0f}",
            f"{cell.p50_ms:.1f}", f"{cell.p99_ms:.1f}", f"{cell.p50_ms - alone.p50_ms:+.1f}",
            f"{cell.p99_ms - alone.p99_ms:+.1f}", str(cell.errors),
        )  # fmt: skip
    console.print(table)
    for key in dict.fromkeys((c.endpoints, c.workers, c.shell) for c in cells if c.body == "32 KB"):
        duplex = by[(*key, "32 KB", "duplex")]
        for way in ("single", "one-message"):
            one = by[(*key, "32 KB", way)]
            ratio = (one.picker_us + one.envoy_us) / (duplex.picker_us + duplex.envoy_us)
            verdict = "reached" if ratio <= 0.6 else "missed"
            setup = f"{key[0]} endpoints, {key[1]} workers, {key[2]}"
            console.print(f"{way} at 32 KB, {setup}: {ratio:.2f} of the CPU of full duplex (bar 0.60: {verdict})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each phase (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="times that all ways are measured in turn (default 3)")
    parser.add_argument("--bodies", default=",".join(BODIES), help="comma-separated (default all)")
    parser.add_argument("--setups", default="100x1,10x1,1000x1,100x2", help="endpoints x workers, first for all bodies")
    parser.add_argument("--shells", default="native", help="native, grpc, or both: in turn, each with its own Envoy")
    parser.add_argument("--json", type=Path, help="write all cells of all rounds here")
    chosen = parser.parse_args()
    setups = [(int(e), int(w)) for e, w in (setup.split("x") for setup in chosen.setups.split(","))]
    shells = [PickerShell(shell) for shell in chosen.shells.split(",")]
    cells = asyncio.run(run(chosen.bodies.split(","), setups, shells, seconds=chosen.seconds, rounds=chosen.rounds))
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1))
    console = Console(width=170)
    show(merged(cells), console)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()}"
    )


if __name__ == "__main__":
    main()
