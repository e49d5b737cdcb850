"""A whole fleet for a test: simulated pools, control plane with picker, and Envoy, each in a process of its own.

They are started by the commands that a user types, on loopback addresses that no other test uses, so that any of them
can be frozen or killed alone.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from pointsman.app.envoy import Envoy, start_envoy
from pointsman.app.processes import ChildProcess, start_child
from pointsman.app.simulate import simulator_spec
from pointsman.core.compile import compile_plan
from pointsman.core.config import load
from support.waiting import eventually

POINTSMAN = Path(sys.executable).with_name("pointsman")
MODEL = "llama-3-8b"
_subnets = itertools.count()


class Loopback:
    """Addresses in a /24 of 127.0.0.0/8 that belongs to this process and this test."""

    def __init__(self) -> None:
        number = os.getpid() * 64 + next(_subnets) % 64
        self._prefix = f"127.{16 + (number >> 8) % 200}.{number % 256}"
        self._hosts = itertools.count(1)

    def address(self) -> str:
        """The next address."""
        return f"{self._prefix}.{next(self._hosts)}"

    def free_port(self, address: str) -> int:
        """A port that nobody listens on."""
        with socket.socket() as probe:
            probe.bind((address, 0))
            port: int = probe.getsockname()[1]
            return port


@dataclass
class Layout:
    """What the manifests of a test say: replicas of each pool at each site, and the weights of the split.

    `annotations` are those of the HTTPRoute, `rules` stand before its split, `not_ready` are replicas by name, `edges`
    further Gateways of the same routes with their sites, `pool_annotations` those of each InferencePool. `capacity` is
    `maxConcurrent` of sites, `jurisdictions` theirs, `documents` are further manifests.
    """

    stable: dict[str, int] = field(default_factory=lambda: {"us-east": 3, "eu-west": 3})
    canary: dict[str, int] = field(default_factory=lambda: {"us-east": 1})
    grpc: dict[str, int] = field(default_factory=dict)
    idle: dict[str, int] = field(default_factory=dict)  # a second pool for gRPC, which only `grpc_rules` use
    canary_weight: int = 0
    stable_weight: int = 100
    failure_mode: str = "FailOpen"
    annotations: dict[str, str] = field(default_factory=dict)
    rules: list[dict[str, Any]] = field(default_factory=list)
    grpc_rules: list[dict[str, Any]] = field(default_factory=list)
    not_ready: frozenset[str] = frozenset()
    edges: dict[str, str] = field(default_factory=dict)
    pool_annotations: dict[str, str] = field(default_factory=dict)
    capacity: dict[str, int] = field(default_factory=dict)
    jurisdictions: dict[str, list[str]] = field(default_factory=dict)
    documents: list[dict[str, Any]] = field(default_factory=list)


class Manifests:
    """A configuration folder; `write` replaces its content in one go."""

    def __init__(self, folder: Path, net: Loopback) -> None:
        self.folder = folder
        self._net = net
        self._endpoints: dict[str, tuple[str, int]] = {}
        self._edges: dict[str, str] = {}
        self.gateway_address = net.address()
        self.http_port = net.free_port(self.gateway_address)
        self.grpc_port = net.free_port(self.gateway_address)

    def write(self, layout: Layout) -> None:
        """Write the manifests of `layout`; endpoints keep their addresses from call to call."""
        documents = [*self._gateway(layout), *self._pool("stable", layout.stable, layout)]
        documents += self._pool("canary", layout.canary, layout)
        for name, sites in (("grpc", layout.grpc), ("idle", layout.idle)):
            if sites:
                documents += self._pool(name, sites, layout, protocol="kubernetes.io/h2c")
        documents += layout.documents
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder.parent / "draft.yaml"
        draft.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
        draft.replace(self.folder / "fleet.yaml")

    def _gateway(self, layout: Layout) -> list[dict[str, Any]]:
        sites = sorted({*layout.stable, *layout.canary, *layout.grpc, *layout.edges.values()})
        listeners = [{"name": "http", "port": self.http_port, "protocol": "HTTP"}]
        if layout.grpc:
            listeners.append({"name": "grpc", "port": self.grpc_port, "protocol": "HTTP"})
        documents: list[dict[str, Any]] = [
            {
                "apiVersion": "pointsman.dev/v1alpha1",
                "kind": "Site",
                "metadata": {"name": site},
                "spec": {
                    "locality": {"region": site},
                    "jurisdictions": layout.jurisdictions.get(site, []),
                    **({"capacity": {"maxConcurrent": layout.capacity[site]}} if site in layout.capacity else {}),
                },
            }
            for site in sites
        ]
        for name, site, address in [
            ("main", "us-east", self.gateway_address),
            *((name, site, self.edge(name)) for name, site in layout.edges.items()),
        ]:
            documents.append(
                {
                    "apiVersion": "gateway.networking.k8s.io/v1",
                    "kind": "Gateway",
                    "metadata": {"name": name, "annotations": {"pointsman.dev/site": site}},
                    "spec": {
                        "gatewayClassName": "pointsman",
                        "addresses": [{"type": "IPAddress", "value": address}],
                        "listeners": listeners,
                    },
                }
            )
        documents.append(
            _route(
                "HTTPRoute",
                "chat",
                "http",
                [
                    *layout.rules,
                    {
                        "matches": [{"headers": [{"name": "x-model-variant", "value": "canary"}]}],
                        "backendRefs": [backend("canary")],
                    },
                    {
                        "backendRefs": [
                            backend("canary", layout.canary_weight),
                            backend("stable", layout.stable_weight),
                        ]
                    },
                ],
                layout.annotations,
                ("main", *layout.edges),
            )
        )
        if layout.grpc:
            rules = [*layout.grpc_rules, {"backendRefs": [backend("grpc")]}]
            documents.append(_route("GRPCRoute", "generate", "grpc", rules))
        return documents

    def _pool(self, name: str, sites: dict[str, int], layout: Layout, protocol: str = "http") -> list[dict[str, Any]]:
        pool: dict[str, Any] = {
            "apiVersion": "inference.networking.k8s.io/v1",
            "kind": "InferencePool",
            "metadata": {"name": name, "annotations": {"pointsman.dev/model": MODEL, **layout.pool_annotations}},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "targetPorts": [{"number": 8000}],
                "appProtocol": protocol,
                "endpointPickerRef": {
                    "name": "pointsman",
                    "port": {"number": 18_000},
                    "failureMode": layout.failure_mode,
                },
            },
        }
        slices = []
        for site, count in sites.items():
            for index in range(count):
                replica = f"{name}-{site}-{index}"
                address, port = self.endpoint(replica)
                slices.append(
                    {
                        "apiVersion": "discovery.k8s.io/v1",
                        "kind": "EndpointSlice",
                        "metadata": {
                            "name": replica,
                            "labels": {"pointsman.dev/pool": name, "pointsman.dev/site": site},
                        },
                        "addressType": "IPv4",
                        "ports": [{"name": "http", "port": port}],
                        "endpoints": [
                            {
                                "addresses": [address],
                                "conditions": {"ready": replica not in layout.not_ready},
                                "targetRef": {"kind": "Pod", "name": replica},
                            }
                        ],
                    }
                )
        return [pool, *slices]

    def edge(self, name: str) -> str:
        """Address of a further Gateway; its ports are those of the first."""
        if name not in self._edges:
            self._edges[name] = self._net.address()
        return self._edges[name]

    def endpoint(self, replica: str) -> tuple[str, int]:
        """Address and port of a replica, the same at every call."""
        if replica not in self._endpoints:
            address = self._net.address()
            self._endpoints[replica] = (address, self._net.free_port(address))
        return self._endpoints[replica]


def backend(pool: str, weight: int = 1) -> dict[str, Any]:
    return {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": pool, "weight": weight}


def _route(
    kind: str,
    name: str,
    section: str,
    rules: Sequence[dict[str, Any]],
    annotations: dict[str, str] | None = None,
    gateways: Sequence[str] = ("main",),
) -> dict[str, Any]:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, "annotations": annotations or {}},
        "spec": {
            "parentRefs": [{"name": gateway, "sectionName": section} for gateway in gateways],
            "rules": list(rules),
        },
    }


@dataclass
class Fleet:
    """A running fleet. `url` is the gateway's, `admin` the control plane's, `simulator` the simulator's admin URL."""

    manifests: Manifests
    url: str
    grpc_target: str
    control_plane_target: str
    admin: str
    simulator: str
    control_plane: ChildProcess
    envoy: Envoy
    session: aiohttp.ClientSession
    restart_control_plane: Any = None

    async def get(self, url: str) -> Any:
        """The JSON answer of a GET."""
        async with self.session.get(url) as response:
            assert response.status == 200, (url, response.status, await response.text())
            return await response.json(content_type=None)

    async def status(self) -> dict[str, Any]:
        """The status as the admin API tells it."""
        found: dict[str, Any] = await self.get(f"{self.admin}/api/v1/status")
        return found

    async def set_faults(self, replica: str, faults: dict[str, Any] | None) -> None:
        """Switch the faults of a simulated replica; None ends them."""
        url = f"{self.simulator}/replicas/{replica}/faults"
        request = self.session.delete(url) if faults is None else self.session.put(url, json=faults)
        async with request as response:
            assert response.status == 200, await response.text()

    async def replicas(self) -> dict[str, dict[str, Any]]:
        """What each simulated replica counted, by name."""
        return {replica["name"]: replica for replica in await self.get(f"{self.simulator}/replicas")}

    async def envoy_stats(self, prefix: str) -> dict[str, int]:
        """Envoy's counters and gauges whose names begin with `prefix`."""
        async with self.session.get(f"{self.envoy.admin_url}/stats", params={"format": "json"}) as response:
            stats = json.loads(await response.text())["stats"]
        return {s["name"]: s["value"] for s in stats if s.get("name", "").startswith(prefix) and "value" in s}

    def freeze_control_plane(self) -> None:
        """Stop the control plane and the picker (one process) without killing it."""
        os.kill(self.control_plane.pid, signal.SIGSTOP)

    def thaw_control_plane(self) -> None:
        os.kill(self.control_plane.pid, signal.SIGCONT)

    async def kill_control_plane(self) -> None:
        """Kill the control plane and the picker with SIGKILL."""
        os.kill(self.control_plane.pid, signal.SIGKILL)
        await self.control_plane.wait()


@asynccontextmanager
async def running_fleet(
    folder: Path,
    layout: Layout | None = None,
    *,
    speed: float = 50,
    extra: Sequence[str] = (),
    serve: Callable[[Manifests, AsyncExitStack], Awaitable[None]] | None = None,
) -> AsyncIterator[Fleet]:
    """Start a fleet as an operator would: `pointsman sim`, `pointsman up --no-envoy`, `pointsman bootstrap`, Envoy.

    `extra` are further words for `pointsman up`. With `serve` that function serves the endpoints of the manifests
    instead of the simulator. The block starts when the gateway answers.
    """
    net = Loopback()
    manifests = Manifests(folder / "config", net)
    manifests.write(layout or Layout())
    async with AsyncExitStack() as stack:
        simulator = ""
        if serve is None:
            simulator = await start_simulator(folder, manifests, speed, stack)
        else:
            await serve(manifests, stack)
        grpc_address = net.address()
        grpc_port = net.free_port(grpc_address)
        ready_file = folder / "ready.json"

        async def start_control_plane() -> ChildProcess:
            ready_file.unlink(missing_ok=True)
            child = await start_child(
                [POINTSMAN, "up", "--config", manifests.folder, "--no-envoy", "--state", folder / "state",
                 "--grpc-address", grpc_address, "--grpc-port", str(grpc_port), "--admin-port", "0",
                 "--ready-file", ready_file, *extra],
                name="control plane",
                stdout=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            stack.push_async_callback(child.stop)
            await eventually(
                lambda: ready_file.exists() or child.returncode is not None,
                timeout_s=60,
                what="the control plane is ready",
            )
            assert child.returncode is None, "the control plane ended"
            return child

        control_plane = await start_control_plane()
        envoy = await start_envoy(await _bootstrap(f"{grpc_address}:{grpc_port}"), folder / "envoy", concurrency=1)
        stack.push_async_callback(envoy.stop)
        await envoy.wait_ready(60)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        fleet = Fleet(
            manifests=manifests,
            url=f"http://{manifests.gateway_address}:{manifests.http_port}",
            grpc_target=f"{manifests.gateway_address}:{manifests.grpc_port}",
            control_plane_target=f"{grpc_address}:{grpc_port}",
            admin=json.loads(ready_file.read_text())["admin"],
            simulator=simulator,
            control_plane=control_plane,
            envoy=envoy,
            session=session,
        )

        async def restart() -> None:
            fleet.control_plane = await start_control_plane()
            fleet.admin = json.loads(ready_file.read_text())["admin"]

        fleet.restart_control_plane = restart
        await eventually(lambda: _answers(session, fleet.url), what="the gateway answers")
        yield fleet


async def start_simulator(folder: Path, manifests: Manifests, speed: float, stack: AsyncExitStack) -> str:
    spec = folder / "sim.json"
    spec.write_text(json.dumps(simulator_spec(compile_plan(load(manifests.folder)), speed=speed)), encoding="utf-8")
    child = await start_child([POINTSMAN, "sim", "--spec", spec], name="simulator", pipe_stdout=True)
    stack.push_async_callback(child.stop)
    ready = json.loads(await asyncio.wait_for(child.stdout.readline(), 60))
    return f"http://{ready['admin']}"


async def _bootstrap(xds: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        str(POINTSMAN), "bootstrap", "--gateway", "default/main", "--xds", xds, "--admin-port", "0",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0
    config: dict[str, Any] = json.loads(output)
    return config


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/v1/models") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
