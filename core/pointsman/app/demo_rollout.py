"""The story of two rollouts, to be watched: a good canary gets everything, then a bad one is taken back.

Everything is real but the model servers: the control plane, the picker, an Envoy and its access logs. Manifests are
made here, on loopback addresses of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from pointsman.app.control_plane_options import ControlPlaneOptions
from pointsman.app.up import UpOptions, running
from pointsman.core.errors import PointsmanError

Json = dict[str, Any]

NETWORK: Final = "127.0.77"
"""The first three numbers of all addresses."""
POOLS: Final = {"v1": 1, "v2": 2, "v3": 3}
"""Pool → the first digit of the last number of its replicas' addresses."""
REPLICAS: Final = 2
CLIENTS: Final = 6
SPEED: Final = 40.0
"""Simulated replicas answer this many times faster than the modelled GPU: the story shall not take an hour."""
LIMIT_S: Final = 60.0
POLL_S: Final = 0.2


class DemoError(PointsmanError):
    """The story did not come to its end."""


@dataclass
class Traffic:
    """What clients saw since the chapter began."""

    total: int = 0
    failed: int = 0
    by_pool: Counter[str] = field(default_factory=Counter)


async def tell(folder: Path, say: Callable[[str], None], *, network: str = NETWORK) -> bool:
    """Tell the story with files in `folder`; True when both rollouts ended as they should.

    Everything listens on the /24 `network` of the loopback addresses.

    Raises:
        PointsmanError: something could not be started, or a rollout did not end.
    """
    config = folder / "config"
    config.mkdir(parents=True)
    manifest = config / "fleet.yaml"
    port = _free_port(f"{network}.1")
    _write(manifest, _fleet("v1", network, port))
    options = UpOptions(
        control_plane=ControlPlaneOptions(config=config, grpc_port=0, admin_port=0, state=folder / "state"),
        state=folder / "state",
        simulate=True,
        speed=SPEED,
    )
    began_s = time.monotonic()
    async with running(options) as plane, aiohttp.ClientSession() as session:
        url = plane.gateways["default/main"][0]
        traffic = Traffic()
        clients = [asyncio.create_task(_client(session, url, traffic, number)) for number in range(CLIENTS)]
        try:
            say(f"A gateway at {url}, {CLIENTS} clients, all requests go to v1.\n")
            say("v2 is as good as v1. Its RolloutPolicy gives it 20 %, then 50 %, then everything:")
            _write(manifest, [*_fleet("v1", network, port), _policy("v1", "v2")])
            good = await _watch(session, plane.admin, "v2", say)
            say(_figures(traffic, "v2"))
            say("v3 fails half of its requests. The same plan, with v2 as the stable one:")
            await _break(session, plane.simulator, "v3")
            _reset(traffic)
            _write(manifest, [*_fleet("v2", network, port), _policy("v2", "v3")])
            bad = await _watch(session, plane.admin, "v3", say)
            say(_figures(traffic, "v3"))
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
    say(f"Both stories took {time.monotonic() - began_s:.0f} s.")
    return (good, bad) == ("Completed", "Aborted")


async def _watch(session: aiohttp.ClientSession, admin: str, canary: str, say: Callable[[str], None]) -> str:
    """Say each thing that changes until the rollout of `canary` ends; its last phase."""
    began_s, said = time.monotonic(), ""
    while time.monotonic() < began_s + LIMIT_S:
        await asyncio.sleep(POLL_S)
        async with session.get(f"{admin}/api/v1/rollouts/default/chat") as response:
            found: Json = await response.json() if response.status == 200 else {}
        if found.get("canary") != f"default/{canary}":
            continue
        phase = str(found["phase"])
        place = f"{phase:<11} {canary} {found['weight'] * 100:>3.0f} %"
        if place != said:
            said = place
            why = "" if phase in {"Progressing", "Promoting"} else f"  {found['why']}"
            say(f"  {time.monotonic() - began_s:>5.1f} s  {place}{why}")
        if phase in {"Completed", "Aborted"}:
            return phase
    raise DemoError(f"the rollout of {canary} did not end within {LIMIT_S:g} s; it was {said}")


async def _client(session: aiohttp.ClientSession, url: str, traffic: Traffic, number: int) -> None:
    """Ask without a pause."""
    turn = 0
    while True:
        turn += 1
        body = {
            "model": "demo",
            "max_tokens": 8,
            "messages": [{"role": "user", "content": f"client {number} asks for the {turn}. time: where to? " * 4}],
        }
        replica = ""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                answer = await response.json(content_type=None)
                replica = str(answer.get("system_fingerprint", "")) if response.status == 200 else ""
        traffic.total += 1
        traffic.failed += not replica
        traffic.by_pool[replica.partition("-")[0]] += 1


async def _break(session: aiohttp.ClientSession, simulator: str, pool: str) -> None:
    for number in range(REPLICAS):
        url = f"{simulator}/replicas/{pool}-{number}/faults"
        async with session.put(url, json={"error": {"status": 500, "percent": 50}}) as response:
            if response.status != 200:
                raise DemoError(f"the simulator answers {response.status}")


def _reset(traffic: Traffic) -> None:
    traffic.total = traffic.failed = 0
    traffic.by_pool.clear()


def _figures(traffic: Traffic, canary: str) -> str:
    share = 100 * traffic.failed / max(1, traffic.total)
    return (
        f"  {traffic.total} requests, {traffic.by_pool[canary]} answered by {canary}, "
        f"{traffic.failed} failed ({share:.1f} %)\n"
    )


def _policy(stable: str, canary: str) -> Json:
    return {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "RolloutPolicy",
        "metadata": {"name": "chat"},
        "spec": {
            "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "chat"}],
            "stable": {"name": stable},
            "canary": {"name": canary},
            "steps": [
                {"weight": "20%", "pause": "2s"},
                {"weight": "50%", "pause": "2s"},
                {"weight": "100%", "pause": "2s"},
            ],
            "analysis": {
                "interval": "300ms",
                "checks": [
                    {"name": "errors", "metric": "errorRate", "max": "+5pp", "mustCatch": "+30pp"},
                    {"name": "first-token", "metric": "ttft.p50", "max": "+300ms", "mustCatch": "+900ms"},
                ],
            },
        },
    }


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def _fleet(stable: str, network: str, port: int) -> list[Json]:
    """All manifests but the policy; by them everything goes to `stable`."""
    documents: list[Json] = [
        {"apiVersion": "pointsman.dev/v1alpha1", "kind": "Site", "metadata": {"name": "here"}},
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "main", "annotations": {"pointsman.dev/site": "here"}},
            "spec": {
                "gatewayClassName": "pointsman",
                "addresses": [{"type": "IPAddress", "value": f"{network}.1"}],
                "listeners": [{"name": "http", "port": port, "protocol": "HTTP"}],
            },
        },
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "chat"},
            "spec": {
                "parentRefs": [{"name": "main"}],
                "rules": [
                    {
                        "name": "split",
                        "backendRefs": [
                            {
                                "group": "inference.networking.k8s.io",
                                "kind": "InferencePool",
                                "name": pool,
                                "weight": 100 if pool == stable else 0,
                            }
                            for pool in reversed(POOLS)
                        ],
                    }
                ],
            },
        },
    ]
    for pool, number in POOLS.items():
        documents += _pool(pool, f"{network}.{number}")
    return documents


def _pool(name: str, address: str) -> list[Json]:
    return [
        {
            "apiVersion": "inference.networking.k8s.io/v1",
            "kind": "InferencePool",
            "metadata": {"name": name, "annotations": {"pointsman.dev/model": "demo"}},
            "spec": {"selector": {"matchLabels": {"app": name}}, "targetPorts": [{"number": 8000}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"pointsman.dev/pool": name, "pointsman.dev/site": "here"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": [f"{address}{number}"], "targetRef": {"kind": "Pod", "name": f"{name}-{number}"}}
                for number in range(REPLICAS)
            ],
        },
    ]


def _write(path: Path, documents: list[Json]) -> None:
    """Whole or not at all: the watcher may look at any moment."""
    draft = path.parent.parent / f".{path.name}.draft"
    draft.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    draft.replace(path)
