"""`pytest tests/xds --rewrite` writes what the traces answer now into their files; read the diff before committing."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from pointsman.core.grpc_health import GrpcHealth
from pointsman.core.model import (
    Endpoint,
    Gateway,
    Listener,
    Locality,
    Plan,
    Pool,
    RouteMatch,
    Rule,
    SiteGroup,
    VirtualHost,
    WeightedPool,
)
from pointsman.core.snapshot import PlanHolder
from pointsman.xds import BuildOptions, XdsServer, bootstrap
from pointsman.xds.heartbeat import Lifetime
from pointsman.xds.stream import StreamTimes


def pytest_addoption(parser: pytest.Parser) -> None:
    with contextlib.suppress(ValueError):  # another folder with traces has the same option
        parser.addoption("--rewrite", action="store_true", default=False, help="update the expected replies of traces")


class Upstreams:
    """Small HTTP servers that answer like a model server and count what they get.

    Those that are `broken` answer 503, those that are `failing` 500; so does each to a request with `x-poison`.
    """

    def __init__(self) -> None:
        self._runners: list[web.AppRunner] = []
        self.served: Counter[str] = Counter()
        self.broken: set[str] = set()
        self.failing: set[str] = set()

    async def start(self, name: str) -> Endpoint:
        async def answer(request: web.Request) -> web.Response:
            self.served[name] += 1
            size = len(await request.read())
            if name in self.failing or "x-poison" in request.headers:
                return web.json_response({"error": "this is too much for me"}, status=500)
            if name in self.broken:
                return web.json_response({"error": "out of order"}, status=503)
            return web.json_response({"system_fingerprint": name, "bytes": size, "headers": dict(request.headers)})

        async def health(_: web.Request) -> web.Response:
            return web.Response()

        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/health", health)
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port: int = runner.addresses[0][1]
        return Endpoint(name=name, address="127.0.0.1", port=port, site="here")

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()


class ControlPlane:
    """An xDS server on a port of its own, without anything around it."""

    def __init__(
        self,
        holder: PlanHolder,
        port: int = 0,
        *,
        times: StreamTimes | None = None,
        lifetimes: Sequence[Lifetime] = (),
        linger_s: float = 0.0,
        **settings: Any,
    ) -> None:
        self.registry = CollectorRegistry()
        # A picker that nobody serves: requests fall back to Envoy's own balancing at once.
        options = BuildOptions(**{"picker_port": 1, **settings})
        times = times or StreamTimes(warm_s=(options.health_timeout_ms + 200) / 1000, linger_s=linger_s)
        self.xds = XdsServer(holder, options, self.registry, times=times, lifetimes=lifetimes)
        self._port = port

    async def __aenter__(self) -> ControlPlane:
        self.server = grpc.aio.server()
        self.xds.add_to(self.server)
        GrpcHealth().add_to(self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self._port}")
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.xds.close()
        await self.server.stop(None)

    def bootstrap(self, *others: ControlPlane, delta: bool, gateway: str = "default/gw") -> dict[str, Any]:
        addresses = [("127.0.0.1", plane.port) for plane in (self, *others)]
        return bootstrap("node-1", gateway, Locality(region="here"), addresses, "127.0.0.1", 0, delta=delta)

    def total(self, name: str, **labels: str) -> float:
        """Sum of a counter over the series that have these labels."""
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def acked(self, gateway: str = "default/gw") -> None:
        """Wait until one proxy has everything."""
        state = await self.xds.wait_acked(gateway, 20, nodes=1)
        assert state.done, self.xds.status()


def pool(name: str, *endpoints: Endpoint, **settings: Any) -> Pool:
    group = SiteGroup(site="here", priority=0, weight=1, endpoints=tuple(sorted(endpoints, key=lambda e: e.name)))
    return Pool(name=name, groups=(group,), **settings)


def rule(name: str, *arms: tuple[str, int], match: RouteMatch | None = None, **settings: Any) -> Rule:
    return Rule(
        name=name,
        route=f"HTTPRoute/default/{name}",
        match=match or RouteMatch(),
        arms=tuple(WeightedPool(pool=target, weight=weight) for target, weight in arms),
        **settings,
    )


def listener(name: str, *rules: Rule, port: int = 0) -> Listener:
    host = VirtualHost(name="any", domains=("*",), rules=rules)
    return Listener(name=name, address="127.0.0.1", port=port, hosts=(host,))


def plan_of(pools: Iterable[Pool], *listeners: Listener, gateway: str = "default/gw") -> Plan:
    used = tuple(sorted(pools, key=lambda p: p.name))
    return Plan(gateways=(Gateway(name=gateway, site="here", listeners=listeners, pools=used),), pools=used)


@dataclass(frozen=True)
class Kit:
    """Builders for tests."""

    ControlPlane = ControlPlane
    pool = staticmethod(pool)
    rule = staticmethod(rule)
    listener = staticmethod(listener)
    plan_of = staticmethod(plan_of)


@pytest.fixture
def kit() -> Kit:
    return Kit()


@pytest.fixture
async def upstreams() -> AsyncIterator[Upstreams]:
    servers = Upstreams()
    yield servers
    await servers.stop()
