"""How long requests go to a replica that answers 500 to all of them, by Envoy's own means.

    python bench/xds/ejection.py [--replicas N …] [--rate R] [--runs N] [--answer-ms T]

A real Envoy with the generated configuration and nobody to pick, replicas in this process, an open loop of requests.
After half a second one replica begins to fail; the figures count from there to the last 500 that a client got.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp
from aiohttp import web
from plans import GATEWAY, OPTIONS, plan, pool, rule
from processes import machine

from pointsman.app.envoy import start_envoy
from pointsman.core.model import Endpoint
from pointsman.xds import build_resources, static_bootstrap

ADMIN = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
BEFORE_S, AFTER_S = 0.5, 2.5


class Replicas:
    """Servers that answer after `answer_s`; the one that is `failing` answers 500 at once."""

    def __init__(self, answer_s: float) -> None:
        self.failing = ""
        self._answer_s = answer_s
        self._runners: list[web.AppRunner] = []

    async def start(self, name: str) -> Endpoint:
        async def answer(_: web.Request) -> web.Response:
            if name == self.failing:
                return web.Response(status=500)
            await asyncio.sleep(self._answer_s)
            return web.Response()

        async def health(_: web.Request) -> web.Response:
            return web.Response()

        app = web.Application()
        app.router.add_get("/health", health)
        app.router.add_post("/{rest:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return Endpoint(name=name, address="127.0.0.1", port=runner.addresses[0][1], site="east")

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()


async def once(count: int, rate: float, answer_s: float) -> tuple[float, int]:
    """Seconds until the last 500, and how many there were."""
    replicas = Replicas(answer_s)
    members = [await replicas.start(f"r{index}") for index in range(count)]
    gateway = plan([pool("default/p", members)], [rule("r", ("default/p", 10_000))]).gateway(GATEWAY)
    assert gateway is not None
    bad_s: list[float] = []
    config = {"admin": ADMIN, **static_bootstrap(build_resources(gateway, OPTIONS))}
    with tempfile.TemporaryDirectory() as folder:
        envoy = await start_envoy(config, Path(folder), concurrency=1)
        try:
            await envoy.wait_ready(30)
            url = f"http://{next(iter(dict(await envoy.listener_addresses()).values()))}/v1/completions"
            async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:

                async def ask() -> None:
                    async with session.post(url, data=b"{}") as response:
                        if response.status != 200:
                            bad_s.append(time.monotonic())

                begin_s = time.monotonic()
                fault_s = begin_s + BEFORE_S
                for number in range(int(rate * (BEFORE_S + AFTER_S))):
                    await asyncio.sleep(max(0.0, begin_s + number / rate - time.monotonic()))
                    if not replicas.failing and time.monotonic() >= fault_s:
                        replicas.failing, fault_s = "r0", time.monotonic()
                    group.create_task(ask())
        finally:
            await envoy.stop()
            await replicas.stop()
    return max(bad_s, default=fault_s) - fault_s, len(bad_s)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--answer-ms", type=float, default=200.0, help="how long a good answer takes")
    args = parser.parse_args()
    print(machine())
    for count in args.replicas:
        found = [await once(count, args.rate, args.answer_ms / 1000) for _ in range(args.runs)]
        times_s = [seconds for seconds, _ in found]
        bad = [number for _, number in found]
        print(
            f"{count} replicas, {args.rate:g} req/s, {args.runs} runs: left after median "
            f"{statistics.median(times_s):.2f} s, at most {max(times_s):.2f} s; {min(bad)} to {max(bad)} answers of 500"
        )


if __name__ == "__main__":
    asyncio.run(main())
