"""What the rollout benchmarks share: `pointsman up --simulate` over two pools of one route, and its admin API.

Everything runs as a user would start it, each part in a process of its own, on loopback addresses.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from pointsman.app.processes import start_child

Json = dict[str, Any]

POINTSMAN: Final = Path(sys.executable).with_name("pointsman")
MODEL: Final = "bench"
USER: Final = "x-user-id"
VARIANT: Final = ("x-model-variant", "experiment-v2")
PORT: Final = 8000
PREFIXES: Final = {"canary": "1", "stable": "2", "grpc": "3", "exp": "4"}
"""First digit of the last number of a pool's addresses; at most ten endpoints each."""
START_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A running fleet. `replicas` are the names of the simulated ones, `canary-…` and `stable-…`; `pid` is that of
    `pointsman up`: control plane and picker, with Envoy as its child."""

    folder: Path
    url: str
    grpc_target: str
    admin: str
    simulator: str
    replicas: tuple[str, ...]
    session: aiohttp.ClientSession
    pid: int

    def write_policy(self, policy: Json) -> None:
        """Put a RolloutPolicy into the configuration folder, whole."""
        draft = self.folder / "policy-draft.yaml"
        draft.write_text(yaml.safe_dump(policy), encoding="utf-8")
        draft.replace(self.folder / "config" / "policy.yaml")

    async def rollout(self) -> Json:
        """The rollout as the admin API tells it; empty while there is none."""
        async with self.session.get(f"{self.admin}/api/v1/rollouts/default/chat") as response:
            return await response.json() if response.status == 200 else {}

    async def set_faults(self, pool: str, faults: Json | None) -> None:
        """Switch the faults of all replicas of a pool; None ends them."""
        for name in self.replicas:
            if name.startswith(f"{pool}-"):
                url = f"{self.simulator}/replicas/{name}/faults"
                call = self.session.delete(url) if faults is None else self.session.put(url, json=faults)
                async with call as response:
                    response.raise_for_status()


@asynccontextmanager
async def stage(
    network: str,
    *,
    stable: int = 4,
    canary: int = 2,
    grpc: int = 0,
    exp: int = 0,
    simulate: bool = True,
    speed: float = 40.0,
    annotations: Json | None = None,
) -> AsyncIterator[Stage]:
    """Start a fleet on the /24 `network` of the loopback addresses with so many replicas of each pool.

    `speed`: how many times faster than the modelled GPU the replicas answer. `annotations` are the route's. `exp` is
    the pool for requests with `VARIANT`; without it they get the canary. Without `simulate` the endpoints
    (`addresses`) are somebody else's to serve, before this is called.
    """
    with tempfile.TemporaryDirectory(prefix="pointsman-bench-") as place:
        folder = Path(place)
        (folder / "config").mkdir()
        port, grpc_port = _free_port(f"{network}.1"), _free_port(f"{network}.1")
        sizes = {"canary": canary, "stable": stable, "grpc": grpc, "exp": exp}
        documents = _fleet(network, port, grpc_port, sizes, annotations or {})
        (folder / "config" / "fleet.yaml").write_text(yaml.safe_dump_all(documents), encoding="utf-8")
        ready, log = folder / "ready.json", folder / "log"
        simulated = ["--simulate", "--speed", str(speed)] if simulate else []
        with log.open("wb") as stderr:
            child = await start_child(
                [POINTSMAN, "up", "--config", folder / "config", "--state", folder / "state", *simulated,
                 "--grpc-port", "0", "--admin-port", "0", "--ready-file", ready],
                name="pointsman up", stdout=asyncio.subprocess.DEVNULL, stderr=stderr,
            )  # fmt: skip
        try:
            async with asyncio.timeout(START_S), aiohttp.ClientSession() as probe:
                while not ready.exists() or not await _answers(probe, f"http://{network}.1:{port}"):
                    if child.returncode is not None:
                        raise SystemExit(f"pointsman up ended: {log.read_text()}")
                    await asyncio.sleep(0.05)
            state = json.loads(ready.read_text())
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                yield Stage(
                    folder=folder,
                    url=f"http://{network}.1:{port}",
                    grpc_target=f"{network}.1:{grpc_port}",
                    admin=state["admin"],
                    simulator=state["simulator"],
                    replicas=tuple(state["replicas"]),
                    session=session,
                    pid=child.pid,
                )
        finally:
            await child.stop()


def own_network() -> Callable[[], str]:
    """Networks of the loopback addresses that belong to this process, one after the other."""
    numbers = iter(range(16, 250))
    second = 100 + os.getpid() % 100
    return lambda: f"127.{second}.{next(numbers)}"


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/v1/models") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def addresses(network: str, pool: str, count: int) -> list[str]:
    """Where the endpoints of a pool are, all on `PORT`."""
    return [f"{network}.{PREFIXES[pool]}{number}" for number in range(count)]


def _fleet(network: str, port: int, grpc_port: int, sizes: dict[str, int], annotations: Json) -> list[Json]:
    listeners = [{"name": "http", "port": port, "protocol": "HTTP"}]
    if sizes["grpc"]:
        listeners.append({"name": "grpc", "port": grpc_port, "protocol": "HTTP"})
    variant = [{"headers": [{"name": VARIANT[0], "value": VARIANT[1]}]}]
    rules = [
        {"name": "variant", "matches": variant, "backendRefs": [_backend("exp" if sizes["exp"] else "canary", 1)]},
        {"name": "split", "backendRefs": [_backend("canary", 0), _backend("stable", 100)]},
    ]
    gateway = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "main", "annotations": {"pointsman.dev/site": "here"}},
        "spec": {
            "gatewayClassName": "pointsman",
            "addresses": [{"type": "IPAddress", "value": f"{network}.1"}],
            "listeners": listeners,
        },
    }
    documents: list[Json] = [
        {"apiVersion": "pointsman.dev/v1alpha1", "kind": "Site", "metadata": {"name": "here"}},
        gateway,
        _route("HTTPRoute", "chat", "http", rules, annotations),
    ]
    if sizes["grpc"]:
        documents.append(_route("GRPCRoute", "generate", "grpc", [{"backendRefs": [_backend("grpc", 1)]}], {}))
    for pool, count in sizes.items():
        if count:
            protocol = "kubernetes.io/h2c" if pool == "grpc" else "http"
            documents += _pool(pool, addresses(network, pool, count), protocol)
    return documents


def _route(kind: str, name: str, section: str, rules: list[Json], annotations: Json) -> Json:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"parentRefs": [{"name": "main", "sectionName": section}], "rules": rules},
    }


def _backend(pool: str, weight: int) -> Json:
    return {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": pool, "weight": weight}


def _pool(name: str, places: list[str], protocol: str) -> list[Json]:
    return [
        {
            "apiVersion": "inference.networking.k8s.io/v1",
            "kind": "InferencePool",
            "metadata": {"name": name, "annotations": {"pointsman.dev/model": MODEL}},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "targetPorts": [{"number": PORT}],
                "appProtocol": protocol,
            },
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"pointsman.dev/pool": name, "pointsman.dev/site": "here"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": [place], "targetRef": {"kind": "Pod", "name": f"{name}-{number}"}}
                for number, place in enumerate(places)
            ],
        },
    ]
