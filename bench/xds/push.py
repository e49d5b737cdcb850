"""How long a change takes from the Plan to Envoy's ACK, and whether a request fails meanwhile.

    python bench/xds/push.py [--rounds N] [--rate R] [--sotw]

A control plane in this process, a real Envoy beside it. Part 1 pushes changes of different sizes; part 2 changes
weights and priorities under load. Each part is bounded in time.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from plans import (
    GATEWAY,
    LISTENER,
    OPTIONS,
    SITES,
    changed_endpoint,
    changed_weight,
    endpoints,
    plan,
    pool,
    rule,
    two_sites,
)
from processes import child, cpu_s, machine, rss_bytes
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table
from traffic import load, serve

from pointsman.app.envoy import Envoy, start_envoy
from pointsman.core.model import Endpoint, Locality, Plan
from pointsman.core.snapshot import PlanHolder
from pointsman.xds import BuildCache, XdsServer, bootstrap, build_resources

ACK_TIMEOUT_S = 60
WEIGHT_CHANGES, WEIGHT_CHANGES_PER_S = 100, 10
FLIPS, FLIPS_PER_S = 20, 4


@dataclass(frozen=True)
class Case:
    """`steps` are the Plans to push one after the other, the first of them to get there (timed apart)."""

    name: str
    steps: Iterator[Plan]


class Plane:
    """The control plane under test, and counters of what it sent."""

    def __init__(self) -> None:
        self.holder = PlanHolder()
        self.registry = CollectorRegistry()
        self.xds = XdsServer(self.holder, OPTIONS, self.registry)

    async def start(self) -> int:
        self.server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        self.xds.add_to(self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        return port

    def sent(self) -> tuple[int, int, float]:
        """Responses, bytes and seconds of building so far."""
        found = {"responses_total": 0.0, "response_bytes_total": 0.0, "build_seconds_sum": 0.0}
        for family in self.registry.collect():
            for sample in family.samples:
                name = sample.name.removeprefix("pointsman_xds_")
                if name in found:
                    found[name] += sample.value
        return int(found["responses_total"]), int(found["response_bytes_total"]), found["build_seconds_sum"]

    async def push(self, target: Plan) -> float:
        """Seconds from publishing to the last ACK."""
        began_s = time.perf_counter()
        self.holder.publish(target)
        state = await self.xds.wait_acked(GATEWAY, ACK_TIMEOUT_S, nodes=1)
        if not state.done:
            raise SystemExit(f"not acknowledged: {self.xds.status()}")
        return time.perf_counter() - began_s


def cases(rounds: int) -> Iterator[Case]:
    """Part 1: first Plan, then `rounds` changes of one kind."""
    split = rule("split", ("bench/a", 5_000), ("bench/b", 5_000))
    base = [pool("bench/a", endpoints(2)), pool("bench/b", endpoints(2, first=8))]

    def series(first: Plan, change: Callable[[Plan, int], Plan]) -> Iterator[Plan]:
        yield first
        now = first
        for turn in range(rounds):
            now = change(now, turn)
            yield now

    def weights(now: Plan, turn: int) -> Plan:
        return changed_weight(now, turn + 1)

    def member(name: str) -> Callable[[Plan, int], Plan]:
        return lambda now, turn: changed_endpoint(now, name, turn + 2)

    yield Case("one weight, 2 pools", series(plan(base, [split]), weights))
    for count in (1_000, 10_000):
        big = plan([pool("bench/a", endpoints(count)), base[1]], [split])
        yield Case(f"one endpoint in a pool of {count:,}", series(big, member("bench/a")))
    many = [rule(f"r{n:04}", ("bench/a", 10_000), header=f"model-{n}") for n in range(1_000)]
    yield Case("one weight among 1,000 routes", series(plan(base, [*many, split]), weights))
    spread = [pool(f"bench/p{n:03}", endpoints(100, first=100 * n)) for n in range(100)]
    yield Case("one endpoint of 10,000 in 100 pools", series(plan([*spread, *base], [split]), member("bench/p000")))
    single = [pool("bench/p000", endpoints(100))]
    yield Case("one endpoint of 100 in 1 pool", series(plan([*single, *base], [split]), member("bench/p000")))
    fresh = [pool(f"bench/new-{n:04}", endpoints(1, first=n)) for n in range(1_000)]

    def come_and_go(now: Plan, turn: int) -> Plan:
        return plan(base if turn % 2 else [*fresh, *base], [split])

    yield Case("1,000 clusters come or go", series(plan(base, [split]), come_and_go))


async def sizes(plane: Plane, envoy: Envoy, console: Console, rounds: int) -> None:
    table = Table(title=f"One change, from the Plan to Envoy's ACK: milliseconds, {rounds} changes each")
    columns = ("change", "first ms", "build best", "CPU", "Envoy CPU", "ACK best", "p50", "max", "kB", "Envoy MB")
    for column in columns:
        table.add_column(column, justify="left" if column == "change" else "right")
    pid = envoy.child.pid
    for case in cases(rounds):
        first_ms = 1000 * await plane.push(next(case.steps))
        times_ms, builds_ms = [], []
        responses, size_bytes, _ = plane.sent()
        used_s, envoy_s = 0.0, cpu_s(pid)
        for step in case.steps:
            built_s = plane.sent()[2]
            began_s = time.process_time()
            times_ms.append(1000 * await plane.push(step))
            used_s += time.process_time() - began_s
            builds_ms.append(1000 * (plane.sent()[2] - built_s))
        envoy_s = cpu_s(pid) - envoy_s
        after = plane.sent()
        if after[0] - responses > 2 * rounds:
            console.print(f"{case.name}: {after[0] - responses} responses for {rounds} changes")
        table.add_row(
            case.name,
            f"{first_ms:,.0f}",
            f"{min(builds_ms):.2f}",
            f"{1000 * used_s / rounds:.1f}",
            f"{1000 * envoy_s / rounds:.0f}",
            f"{min(times_ms):.1f}",
            f"{np.median(times_ms):.1f}",
            f"{max(times_ms):.1f}",
            f"{(after[1] - size_bytes) / rounds / 1000:,.1f}",
            f"{rss_bytes(pid) / 1e6:.0f}",
        )
    console.print(table)


def what_is_rebuilt(console: Console) -> None:
    """One endpoint changes among 10,000: entries of the cache that are made anew, against the size of the fleet."""
    table = Table(title="What one changed endpoint rebuilds (pools of 100 endpoints; no Envoy)")
    for column in (
        "endpoints",
        "cold build ms",
        "entries made",
        "rebuild best ms",
        "entries made again",
        "resources changed",
    ):
        table.add_column(column, justify="right")
    for count in (1, 10, 100):
        spread = [pool(f"bench/p{n:03}", endpoints(100, first=100 * n)) for n in range(count)]
        now = plan(spread, [rule("all", (spread[0].name, 10_000))])
        cache = BuildCache()
        began_s = time.perf_counter()
        before = build_resources(now.gateways[0], OPTIONS, sites=SITES, cache=cache)
        cold_ms = 1000 * (time.perf_counter() - began_s)
        made, best_s = cache.misses, float("inf")
        for turn in range(20):
            now = changed_endpoint(now, spread[0].name, turn + 2)
            began_s = time.perf_counter()
            after = build_resources(now.gateways[0], OPTIONS, sites=SITES, cache=cache)
            best_s = min(best_s, time.perf_counter() - began_s)
        changed = sum(after[kind][name] is not before[kind].get(name) for kind in after for name in after[kind])
        table.add_row(
            f"{100 * count:,}",
            f"{cold_ms:.1f}",
            str(made),
            f"{1000 * best_s:.2f}",
            f"{(cache.misses - made) / 20:.0f}",
            str(changed),
        )
    console.print(table)


async def under_load(plane: Plane, envoy: Envoy, console: Console, rate: float) -> None:
    table = Table(title=f"Changes under load ({rate:.0f} requests/s asked for)")
    for column in ("what", "changes", "requests", "req/s", "failed", "ACK p50 ms", "p99 ms", "max ms", "Envoy CPU %"):
        table.add_column(column, justify="left" if column == "what" else "right")
    with child(serve, 4) as upstreams:
        ports = upstreams.answer()
        near, far, canary = (
            [Endpoint(name=f"{site}-{port}", address="127.0.0.1", port=port, site=site) for port in chosen]
            for site, chosen in (("east", ports[:1]), ("west", ports[1:2]), ("east", ports[2:]))
        )
        pools = [two_sites("bench/stable", near, far), pool("bench/canary", canary)]
        rules = [rule("split", ("bench/canary", 0), ("bench/stable", 10_000))]
        split = plan(pools, rules)
        swapped = plan([two_sites("bench/stable", near, far, swapped=True), pools[1]], rules)
        await plane.push(split)
        host, _, port = (await envoy.listener_addresses())[LISTENER].partition(":")
        weights = [changed_weight(split, (turn * 3_700 + 1) % 10_001) for turn in range(WEIGHT_CHANGES)]
        flips = [swapped if turn % 2 == 0 else split for turn in range(FLIPS)]
        for what, steps, per_s in (
            (f"weights, {WEIGHT_CHANGES_PER_S}/s", weights, WEIGHT_CHANGES_PER_S),
            (f"priorities, {FLIPS_PER_S}/s", flips, FLIPS_PER_S),
        ):
            await plane.push(split)
            with child(load, host, int(port), rate, 16) as client:
                await asyncio.sleep(1.5)  # the client starts and connects
                used_s, began_s = cpu_s(envoy.child.pid), time.perf_counter()
                times_ms = await paced(plane, steps, per_s)
                busy = (cpu_s(envoy.child.pid) - used_s) / (time.perf_counter() - began_s)
                client.tell("stop")
                outcomes, seconds = await asyncio.to_thread(client.answer)
            total = sum(outcomes.values())
            failed = total - outcomes.get("HTTP/1.1 200 OK", 0)
            p50, p99 = np.percentile(times_ms, [50, 99])
            table.add_row(
                what,
                str(len(steps)),
                f"{total:,}",
                f"{total / seconds:.0f}",
                f"[bold]{failed}[/]",
                f"{p50:.1f}",
                f"{p99:.1f}",
                f"{max(times_ms):.1f}",
                f"{100 * busy:.0f}",
            )
            if failed:
                console.print(outcomes)
    console.print(table)


async def paced(plane: Plane, steps: list[Plan], per_s: float) -> list[float]:
    """Push one step after the other, `per_s` a second; milliseconds to the ACK of each."""
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    times_ms = []
    for step in steps:
        await asyncio.sleep(due_s - loop.time())
        times_ms.append(1000 * await plane.push(step))
        due_s += 1 / per_s
    return times_ms


async def run(rounds: int, rate: float, *, delta: bool) -> None:
    console = Console(width=140)
    console.print(f"{machine()}; {'delta' if delta else 'SotW'} ADS")
    what_is_rebuilt(console)
    plane = Plane()
    port = await plane.start()
    with tempfile.TemporaryDirectory(prefix="pointsman-bench-") as folder:
        config = bootstrap("bench-1", GATEWAY, Locality(), [("127.0.0.1", port)], "127.0.0.1", 0, delta=delta)
        envoy = await start_envoy(config, Path(folder), concurrency=1, log_level="error")
        try:
            pools = [pool("bench/a", endpoints(2)), pool("bench/b", endpoints(2, first=8))]
            plane.holder.publish(plan(pools, [rule("split", ("bench/a", 5_000), ("bench/b", 5_000))]))
            await envoy.wait_ready(30)
            await sizes(plane, envoy, console, rounds)
            await under_load(plane, envoy, console, rate)
        finally:
            await envoy.stop()
    plane.xds.close()
    await plane.server.stop(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="changes of each kind (default 10)")
    parser.add_argument("--rate", type=float, default=700, help="requests per second in part 2 (default 700)")
    parser.add_argument("--sotw", action="store_true", help="state of the world instead of delta")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.rounds, arguments.rate, delta=not arguments.sotw))


if __name__ == "__main__":
    main()
