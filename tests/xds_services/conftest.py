"""A control plane with all its services, and upstreams that fail when told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
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
    Site,
    SiteGroup,
    VirtualHost,
    WeightedPool,
)
from pointsman.core.snapshot import PlanHolder
from pointsman.xds import BuildOptions, XdsServer, bootstrap
from pointsman.xds.services import ClientStatus, LoadReports, add_health, add_reflection
from pointsman.xds.stream import StreamTimes
from support.waiting import eventually

GATEWAY = "default/gw"
LISTENER = f"{GATEWAY}/http"


class Plane:
    """One gRPC server with everything that the control plane serves."""

    def __init__(self) -> None:
        self.holder = PlanHolder()
        self.registry = CollectorRegistry()
        options = BuildOptions(picker_port=1)
        times = StreamTimes(warm_s=(options.health_timeout_ms + 200) / 1000, linger_s=0.0)  # nobody sends requests
        self.xds = XdsServer(self.holder, options, self.registry, times=times)
        self.loads = LoadReports(self.xds.find_gateway, self.registry, interval_s=0.2)
        self.status = ClientStatus(self.xds.streams)

    async def start(self) -> None:
        self.server = grpc.aio.server()
        self.xds.add_to(self.server)
        self.loads.add_to(self.server)
        self.status.add_to(self.server)
        self.health: GrpcHealth = add_health(self.server, self.holder)
        add_reflection(self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")

    async def stop(self) -> None:
        await self.channel.close()
        self.xds.close()
        await self.server.stop(None)

    def bootstrap(self, node: str = "node-1", *, delta: bool = True) -> dict[str, Any]:
        address = ("127.0.0.1", self.port)
        return bootstrap(node, GATEWAY, Locality(region="here"), [address], "127.0.0.1", 0, delta=delta, lrs=True)

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """Value by label values, in the order of the metric's labels."""
        return {
            tuple(sample.labels.values()): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name
        }


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    made = Plane()
    await made.start()
    yield made
    await made.stop()


class Upstream:
    """Answers every request with `status`."""

    def __init__(self, name: str, site: str) -> None:
        self.name, self.site = name, site
        self.status = 200
        self.served = 0

    async def start(self) -> None:
        async def answer(_: web.Request) -> web.Response:
            self.served += 1
            return web.json_response({"by": self.name}, status=self.status)

        async def health(_: web.Request) -> web.Response:
            return web.Response()

        app = web.Application()
        app.router.add_get("/health", health)
        app.router.add_route("*", "/{path:.*}", answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(name=self.name, address="127.0.0.1", port=self._runner.addresses[0][1], site=self.site)

    async def stop(self) -> None:
        await self._runner.cleanup()


@dataclass(frozen=True)
class Kit:
    """Builders of plans and upstreams."""

    @staticmethod
    @asynccontextmanager
    async def upstream(name: str, site: str) -> AsyncIterator[Upstream]:
        made = Upstream(name, site)
        await made.start()
        try:
            yield made
        finally:
            await made.stop()

    @staticmethod
    def pool(name: str, *endpoints: Endpoint, **settings: Any) -> Pool:
        """One group per site; sites in the order of their first endpoint, each one priority further."""
        sites = list(dict.fromkeys(endpoint.site for endpoint in endpoints))
        groups = tuple(
            SiteGroup(site=site, priority=n, weight=1, endpoints=tuple(e for e in endpoints if e.site == site))
            for n, site in enumerate(sites)
        )
        return Pool(name=name, groups=groups, **settings)

    @staticmethod
    def plan(*pools: Pool, serve: str, gateway: str = GATEWAY) -> Plan:
        """All requests go to the pool `serve`."""
        arms = (WeightedPool(pool=serve, weight=10_000),)
        rule = Rule(name="all", route="HTTPRoute/default/all", match=RouteMatch(), arms=arms)
        host = VirtualHost(name="any", domains=("*",), rules=(rule,))
        listener = Listener(name="http", address="127.0.0.1", port=0, hosts=(host,))
        used = tuple(sorted(pools, key=lambda p: p.name))
        sites = tuple(Site(name=name) for name in sorted({group.site for pool in used for group in pool.groups}))
        made = Gateway(name=gateway, site="east", listeners=(listener,), pools=used)
        return Plan(gateways=(made,), sites=sites, pools=used)

    @staticmethod
    async def base_url(envoy: Any) -> str:
        """The address of the gateway's listener, once it is there."""

        async def there() -> bool:
            return LISTENER in await envoy.listener_addresses()

        await eventually(there, what="the listener")
        return f"http://{(await envoy.listener_addresses())[LISTENER]}"

    @staticmethod
    async def ask(url: str, count: int) -> list[int]:
        """Statuses of `count` requests, one after the other."""
        async with aiohttp.ClientSession() as session:
            statuses = []
            for _ in range(count):
                async with session.get(f"{url}/v1/models") as response:
                    await response.read()
                    statuses.append(response.status)
        return statuses


@pytest.fixture
def kit() -> Iterator[Kit]:
    yield Kit()
