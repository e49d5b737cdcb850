"""Several control planes and gateways over one folder of manifests and one simulator, each a process of its own.

Where `support.fleet` starts the usual set, this lets a test say what each of them is started with.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from pointsman.app.envoy import Envoy, start_envoy
from pointsman.app.processes import ChildProcess, start_child
from support.fleet import POINTSMAN, Layout, Loopback, Manifests, start_simulator
from support.waiting import eventually


@dataclass
class Plane:
    """A control plane. `target` is its gRPC address, `log` what it wrote so far."""

    child: ChildProcess
    target: str
    admin: str
    log_file: Path
    session: aiohttp.ClientSession

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    async def status(self) -> dict[str, Any]:
        async with self.session.get(f"{self.admin}/api/v1/status") as response:
            found: dict[str, Any] = await response.json()
            return found

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels."""
        async with self.session.get(f"{self.admin}/metrics") as response:
            text = await response.text()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def freeze(self) -> None:
        """Stop it without killing it."""
        os.kill(self.child.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.child.pid, signal.SIGCONT)

    async def kill(self) -> None:
        os.kill(self.child.pid, signal.SIGKILL)
        await self.child.wait()


@dataclass
class Rails:
    """The parts, and what starts more of them. Everything ends with the block that made it."""

    folder: Path
    net: Loopback
    manifests: Manifests
    session: aiohttp.ClientSession
    stack: AsyncExitStack
    simulator: str
    started: int = 0

    @property
    def url(self) -> str:
        return f"http://{self.manifests.gateway_address}:{self.manifests.http_port}"

    def reserve(self) -> str:
        """An address and port for a control plane."""
        address = self.net.address()
        return f"{address}:{self.net.free_port(address)}"

    async def control_plane(self, target: str, *words: str | Path) -> Plane:
        """`pointsman up --no-envoy` at `target`, once it is ready."""
        self.started += 1
        ready, log = self.folder / f"ready-{self.started}.json", self.folder / f"plane-{self.started}.log"
        address, _, port = target.rpartition(":")
        with log.open("wb") as stderr:
            child = await start_child(
                [POINTSMAN, "up", "--config", self.manifests.folder, "--no-envoy", "--state", self.folder / "state",
                 "--grpc-address", address, "--grpc-port", port, "--admin-port", "0", "--ready-file", ready,
                 "--log-format", "json", *words],
                name="control plane",
                stdout=asyncio.subprocess.DEVNULL,
                stderr=stderr,
            )  # fmt: skip
        self.stack.push_async_callback(child.stop)
        await eventually(
            lambda: ready.exists() or child.returncode is not None, what="the control plane is ready", timeout_s=60
        )
        assert child.returncode is None, log.read_text()
        admin = json.loads(ready.read_text())["admin"]
        return Plane(child=child, target=target, admin=admin, log_file=log, session=self.session)

    async def bootstrap(self, *words: str | Path, gateway: str = "default/main") -> dict[str, Any]:
        """What `pointsman bootstrap` writes."""
        out = self.folder / f"gateway-{len(list(self.folder.glob('gateway-*')))}"
        process = await asyncio.create_subprocess_exec(
            POINTSMAN, "bootstrap", "--gateway", gateway, "--admin-port", "0", "--out", out, *words,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, said = await process.communicate()
        assert process.returncode == 0, said.decode()
        config: dict[str, Any] = json.loads((out / "bootstrap.json").read_text())
        return config

    async def gateway(self, config: dict[str, Any], *, ready: bool = True) -> Envoy:
        """An Envoy with this bootstrap; with `ready` it has its configuration and answers."""
        self.started += 1
        envoy = await start_envoy(config, self.folder / f"envoy-{self.started}", concurrency=1, log_level="info")
        self.stack.push_async_callback(envoy.stop)
        if not ready:
            await envoy.wait_started(60)
            return envoy
        await envoy.wait_ready(60)
        await eventually(self._answers, what="the gateway answers")
        return envoy

    async def stats(self, envoy: Envoy) -> dict[str, int]:
        """Envoy's counters and gauges."""
        async with self.session.get(f"{envoy.admin_url}/stats", params={"format": "json"}) as response:
            found = json.loads(await response.text())["stats"]
        return {stat["name"]: stat["value"] for stat in found if "value" in stat}

    async def _answers(self) -> bool:
        try:
            async with self.session.get(f"{self.url}/v1/models") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False


@asynccontextmanager
async def rails(folder: Path, layout: Layout | None = None, *, speed: float = 50) -> AsyncIterator[Rails]:
    """Manifests and the simulated replicas they name."""
    net = Loopback()
    manifests = Manifests(folder / "config", net)
    manifests.write(layout or Layout())
    async with AsyncExitStack() as stack:
        simulator = await start_simulator(folder, manifests, speed, stack)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Rails(folder=folder, net=net, manifests=manifests, session=session, stack=stack, simulator=simulator)
