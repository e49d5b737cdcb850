"""Runs a whole simulation in one process: every replica on its own port, and the admin endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import msgspec
from aiohttp import web

from pointsman.core.clock import Clock, SystemClock
from pointsman.sim.admin import admin_app
from pointsman.sim.fleet import Fleet
from pointsman.sim.listener import ReservedPort, TcpListener
from pointsman.sim.replica import Replica, host_port
from pointsman.sim.spec import SimSpec


class ReadyReplica(msgspec.Struct, frozen=True, kw_only=True):
    """Where a replica listens: `address` is `ip:port`."""

    name: str
    site: str
    pool: str
    protocol: str
    address: str


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """What the simulation says when every port is open. `admin` is `ip:port`."""

    ready: bool = True
    admin: str
    replicas: tuple[ReadyReplica, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A running simulation, for those who live in the same process."""

    ready: Ready
    replicas: dict[str, Replica]


@asynccontextmanager
async def simulation(spec: SimSpec, *, clock: Clock | None = None) -> AsyncIterator[Simulation]:
    """Run `spec` inside the block; everything listens when it is entered, nothing is left when it is done.

    Raises ConfigError that names replica, address and port when a port cannot be had.
    """
    async with AsyncExitStack() as stack:
        fleet = Fleet(speed=spec.speed, seed=spec.seed, clock=clock or SystemClock())
        stack.push_async_callback(fleet.close)
        await fleet.apply(spec.replicas)
        admin_port = await _open_admin(spec, fleet, stack)
        ready = Ready(
            admin=host_port(spec.admin_address, admin_port),
            replicas=tuple(
                ReadyReplica(
                    name=replica.spec.name,
                    site=replica.spec.site,
                    pool=replica.spec.pool,
                    protocol=replica.spec.protocol,
                    address=host_port(replica.spec.address, shell.port),
                )
                for replica, shell in fleet.values()
            ),
        )
        yield Simulation(ready=ready, replicas={name: replica for name, (replica, _) in fleet.items()})


async def serve(spec: SimSpec, *, on_ready: Callable[[Ready], None], stop: asyncio.Event | None = None) -> None:
    """Run `spec` until `stop` is set, or for ever; `on_ready` is called once, when everything listens.

    Raises ConfigError as `simulation` does. Cancelling ends it cleanly.
    """
    async with simulation(spec) as running:
        on_ready(running.ready)
        await (stop or asyncio.Event()).wait()


async def _open_admin(spec: SimSpec, fleet: Fleet, stack: AsyncExitStack) -> int:
    reserved = ReservedPort(spec.admin_address, spec.admin_port, what="admin_port")
    stack.callback(reserved.close)
    runner = web.AppRunner(admin_app(fleet), access_log=None, shutdown_timeout=0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    server = runner.server
    assert server is not None, "set up above"
    listener = TcpListener(reserved, server)
    await listener.open()
    stack.callback(listener.close)
    return reserved.port
