"""`pointsman up` as a child: manifests for a list of model servers, a real Envoy, and where to reach both."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from peers.proc import free_port, with_children

from pointsman.app.processes import start_child

START_TIMEOUT_S = 40.0
CORE, GROUP = "gateway.networking.k8s.io/v1", "inference.networking.k8s.io"


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """A running Pointsman. `log` holds its JSON log lines; `pids`: name by pid, `envoy` among them."""

    gateway: str
    admin: str
    log: Path
    pids: dict[int, str]


def manifests(upstreams: Sequence[tuple[str, int]], *, model: str, port: int) -> list[dict[str, object]]:
    """One site, one pool with an endpoint for each (address, port), one route, one listener on `port`."""
    slices: list[dict[str, object]] = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"replica-{i}",
                "labels": {"pointsman.dev/pool": "pool", "pointsman.dev/site": "here"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": upstream_port}],
            "endpoints": [{"addresses": [address], "targetRef": {"kind": "Pod", "name": f"replica-{i}"}}],
        }
        for i, (address, upstream_port) in enumerate(upstreams)
    ]
    return [
        {
            "apiVersion": "pointsman.dev/v1alpha1",
            "kind": "Site",
            "metadata": {"name": "here"},
            "spec": {"locality": {"region": "here"}},
        },
        {
            "apiVersion": CORE,
            "kind": "Gateway",
            "metadata": {"name": "main", "annotations": {"pointsman.dev/site": "here"}},
            "spec": {
                "gatewayClassName": "pointsman",
                "listeners": [{"name": "http", "port": port, "protocol": "HTTP"}],
            },
        },
        {
            "apiVersion": CORE,
            "kind": "HTTPRoute",
            "metadata": {"name": "chat"},
            "spec": {
                "parentRefs": [{"name": "main"}],
                "rules": [{"backendRefs": [{"group": GROUP, "kind": "InferencePool", "name": "pool"}]}],
            },
        },
        {
            "apiVersion": f"{GROUP}/v1",
            "kind": "InferencePool",
            "metadata": {"name": "pool", "annotations": {"pointsman.dev/model": model}},
            "spec": {"selector": {"matchLabels": {"app": "pool"}}, "targetPorts": [{"number": upstreams[0][1]}]},
        },
        *slices,
    ]


@asynccontextmanager
async def pointsman_up(
    folder: Path, upstreams: Sequence[tuple[str, int]], *, model: str, policy: str
) -> AsyncIterator[Up]:
    """Run `pointsman up --policy …` with an Envoy in front of these model servers; its files go to `folder`."""
    config, ready, log = folder / "config", folder / "ready.json", folder / "up.log"
    config.mkdir(parents=True)
    port = free_port()
    (config / "fleet.yaml").write_text(
        "\n---\n".join(json.dumps(document) for document in manifests(upstreams, model=model, port=port))
    )
    command = [sys.executable, "-c", "from pointsman.app.cli import main; main()", "up", "--config", config]
    command += ["--policy", policy, "--grpc-port", "0", "--admin-port", "0", "--state", folder / "state"]
    command += ["--ready-file", ready, "--log-format", "json"]
    with log.open("wb") as output:
        child = await start_child(command, name="pointsman", stdout=output, stderr=output)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not ready.exists():
                if child.returncode is not None:
                    raise SystemExit(f"pointsman up ended:\n{log.read_text()}")
                await asyncio.sleep(0.05)
        admin = msgspec.json.decode(ready.read_bytes())["admin"]
        yield Up(gateway=f"http://127.0.0.1:{port}", admin=admin, log=log, pids=with_children(child.pid))
    finally:
        await child.stop()
