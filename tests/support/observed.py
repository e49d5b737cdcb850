"""A fleet under load that goes through a rollout and a failover while Prometheus looks on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from pointsman.app.observe.rules import rule_files
from pointsman.app.processes import start_child
from pointsman.app.trial_certificates import TrialCa
from support.fleet import POINTSMAN, Fleet, Layout, Loopback, running_fleet
from support.load import Outcomes, ask, chat_body
from support.prometheus import Prometheus, running_prometheus
from support.waiting import eventually

PRIMARY = "us-east"
LAYOUT = Layout(stable={PRIMARY: 2, "eu-west": 2}, canary={PRIMARY: 1, "eu-west": 1})
SHARED = "All trains between the northern line and the harbour run every ten minutes until midnight. " * 24
"""What conversations have in common, so that there is something in the engines' caches to be hit."""


@dataclass
class Observed:
    """The run. `began_s` is wall time; `events` (wall time, words) are what was done, for pictures."""

    fleet: Fleet
    prometheus: Prometheus
    began_s: float
    events: list[tuple[float, str]]

    @property
    def drills(self) -> Path:
        """Where the control plane looks for reports of drills."""
        return self.fleet.manifests.folder.parent / "state" / "drills"

    def note(self, words: str) -> None:
        self.events.append((time.time(), words))

    async def rollout(self) -> dict[str, Any]:
        found: list[dict[str, Any]] = (await self.fleet.status())["rollouts"]
        return found[0] if found else {}

    async def site_state(self, site: str) -> str:
        """The state of the stable pool at a site."""
        policies = (await self.fleet.get(f"{self.fleet.admin}/api/v1/failover"))["policies"]
        return next(
            (one["state"] for policy in policies for one in policy["sites"] if one["site"] == site and
             one["pool"] == "default/stable"), ""
        )  # fmt: skip

    async def fail_over_and_back(self) -> None:
        """All replicas of the primary answer 503 until the other site has taken over; then they are well again."""
        replicas = [name for name in await self.fleet.replicas() if name.startswith(f"stable-{PRIMARY}")]
        self.note(f"{PRIMARY} answers 503")
        for name in replicas:
            await self.fleet.set_faults(name, {"error": {"status": 503}})
        await self._until(PRIMARY, "Failed", "HoldDown")
        self.note("failed over")
        for name in replicas:
            await self.fleet.set_faults(name, None)
        self.note(f"{PRIMARY} is well again")
        await self._until(PRIMARY, "Healthy")
        self.note("failed back")

    async def _until(self, site: str, *states: str) -> None:
        async def there() -> bool:
            return await self.site_state(site) in states

        await eventually(there, timeout_s=90, what=f"{site} is {' or '.join(states)}")

    async def roll_out(self) -> None:
        """Start a rollout and wait until its second step waits for a person."""
        self.note("rollout begins")
        _put(self.fleet, "rollout", ROLLOUT)

        async def waits() -> bool:
            found = await self.rollout()
            return found.get("phase") == "Paused" and found["step"] == 2

        await eventually(waits, timeout_s=90, what="the rollout waits for a person in its second step")
        self.note("half of the requests go to the canary")


@asynccontextmanager
async def observed(folder: Path, rules: Path) -> AsyncIterator[Observed]:
    """Start everything: fleet, load, a second control plane with TLS, and Prometheus that scrapes both.

    `rules` is the folder with the files that `rule_files` names.
    """
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(running_fleet(folder, LAYOUT))
        _describe_sites(fleet)
        _put(fleet, "failover", FAILOVER)
        net = Loopback()
        secure = await _secure_control_plane(folder / "secure", fleet, net, stack)
        targets = [fleet.admin, secure]
        port = net.free_port("127.0.0.1")
        prometheus = await stack.enter_async_context(
            running_prometheus(
                folder / "prometheus",
                [target.removeprefix("http://") for target in targets],
                [rules / name for name in rule_files()],
                port,
            )
        )
        await stack.enter_async_context(_load(fleet.url))

        async def both() -> bool:
            return await prometheus.targets_up() == len(targets)

        await eventually(both, what="Prometheus has scraped both control planes")
        yield Observed(fleet=fleet, prometheus=prometheus, began_s=time.time(), events=[])


ROLLOUT: dict[str, Any] = {
    "apiVersion": "pointsman.dev/v1alpha1",
    "kind": "RolloutPolicy",
    "metadata": {"name": "chat"},
    "spec": {
        "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "chat"}],
        "stable": {"name": "stable"},
        "canary": {"name": "canary"},
        "steps": [{"weight": "20%", "pause": "3s"}, {"weight": "50%", "pause": "Manual"}, {"weight": "100%"}],
        "analysis": {
            "interval": "500ms",
            "checks": [
                {"name": "errors", "metric": "errorRate", "max": "+5pp", "mustCatch": "+40pp"},
                {"name": "first-token", "metric": "ttft.p50", "max": "+500ms", "mustCatch": "+3000ms"},
            ],
        },
    },
}

FAILOVER: dict[str, Any] = {
    "apiVersion": "pointsman.dev/v1alpha1",
    "kind": "FailoverPolicy",
    "metadata": {"name": "chat"},
    "spec": {
        "targetRefs": [{"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "stable"}],
        "tiers": [{"sites": [PRIMARY]}, {"sites": ["eu-west"]}],
        "triggers": {"errorRate": {"threshold": "10%", "window": "2s", "minRequests": 5}},
        "failback": {"holdDown": "3s", "healthyFor": "1s", "ramp": ["50%", "100%"], "rampInterval": "1s"},
    },
}


def _put(fleet: Fleet, name: str, manifest: dict[str, Any]) -> None:
    draft = fleet.manifests.folder.parent / f"{name}-draft.yaml"
    draft.write_text(yaml.safe_dump(manifest), encoding="utf-8")
    draft.replace(fleet.manifests.folder / f"{name}.yaml")


def _describe_sites(fleet: Fleet) -> None:
    """Give the sites a capacity and a price."""
    path = fleet.manifests.folder / "fleet.yaml"
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    for document in documents:
        if document["kind"] == "Site":
            primary = document["metadata"]["name"] == PRIMARY
            document["spec"]["capacity"] = {"maxConcurrent": 40 if primary else 20}
            document["spec"]["cost"] = {"usdPerGpuHour": 2.1 if primary else 3.4}
    draft = path.parent.parent / "sites-draft.yaml"
    draft.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    draft.replace(path)


async def _secure_control_plane(folder: Path, fleet: Fleet, net: Loopback, stack: AsyncExitStack) -> str:
    """A control plane with certificates, for the series that only such a one has; returns its admin URL.

    It leads a fleet of its own, which is empty: what two control planes say of one fleet must come from one state.
    """
    config = folder / "config"
    config.mkdir(parents=True)
    documents = yaml.safe_load_all((fleet.manifests.folder / "fleet.yaml").read_text(encoding="utf-8"))
    gateway = next(document for document in documents if document["kind"] == "Gateway")
    gateway["metadata"] = {"name": "spare"}
    (config / "fleet.yaml").write_text(yaml.safe_dump(gateway), encoding="utf-8")
    ca = TrialCa(folder / "certs")
    ca.server()
    address = net.address()
    ready = folder / "ready.json"
    child = await start_child(
        [POINTSMAN, "up", "--config", config, "--no-envoy", "--state", folder / "state",
         "--grpc-address", address, "--grpc-port", str(net.free_port(address)), "--admin-port", "0",
         "--ready-file", ready, "--tls-cert", ca.folder / "server.pem", "--tls-key", ca.folder / "server.key",
         "--tls-client-ca", ca.certificate],
        name="control plane with TLS",
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    stack.push_async_callback(child.stop)
    await eventually(
        lambda: ready.exists() or child.returncode is not None, what="the second control plane is ready", timeout_s=60
    )
    assert child.returncode is None, "the second control plane ended"
    admin: str = json.loads(ready.read_text())["admin"]
    return admin


@asynccontextmanager
async def _load(url: str, workers: int = 4) -> AsyncIterator[Outcomes]:
    """Conversations that begin alike, streamed; bounded by the block, with pauses so that others get some CPU, too."""
    outcomes = Outcomes()

    async def converse(session: aiohttp.ClientSession, worker: int) -> None:
        for turn in range(100_000):
            body = chat_body(f"{SHARED} Question {turn} of guest {worker}.", stream=True)
            await ask(session, url, body, outcomes)
            await asyncio.sleep(0.05)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)) as session:
        tasks = [asyncio.create_task(converse(session, worker)) for worker in range(workers)]
        try:
            yield outcomes
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
