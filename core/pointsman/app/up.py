"""`pointsman up`: everything in one command, and one Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from pointsman.app.control_plane import ControlPlane
from pointsman.app.control_plane_options import ControlPlaneOptions
from pointsman.app.envoy import Envoy, EnvoyError, find_envoy, start_envoy
from pointsman.app.ports import Wanted, check_free
from pointsman.app.simulate import Simulator, SimulatorError, start_simulator, wanted_ports
from pointsman.core.compile import compile_plan
from pointsman.core.config import load
from pointsman.core.model import Gateway, Listener, Locality, PickProfile, Plan
from pointsman.xds import GatewayLimits, bootstrap
from pointsman.xds.limits import DEFAULT_LIMITS

log = structlog.get_logger()

READY_TIMEOUT_S: Final = 20.0
RESTART_DELAY_S: Final = 1.0
"""Wait before an Envoy that ended by itself is started again, so that one that cannot start does not burn a core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What the user chose for `pointsman up`. `state` is the folder for logs and generated files, `limits` are those of
    each Envoy."""

    control_plane: ControlPlaneOptions
    state: Path
    simulate: bool = False
    envoy: bool = True
    speed: float = 1.0
    concurrency: int = 1
    limits: GatewayLimits = DEFAULT_LIMITS
    delta: bool = True
    ready_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Addresses of what runs; written to the ready file as JSON.

    `gateways`: the URLs of each Gateway's listeners that take HTTP requests first, then the others. `model` is one that
    they serve, `replicas` are the names of the simulated ones.
    """

    grpc: str
    admin: str
    gateways: dict[str, list[str]]
    model: str = ""
    simulator: str = ""
    replicas: tuple[str, ...] = ()


class EnvoyFleet:
    """One Envoy for each Gateway of the Plan, started and stopped as Gateways come and go."""

    def __init__(self, options: UpOptions, grpc_port: int) -> None:
        self._options = options
        self._xds = (options.control_plane.grpc_address, grpc_port)
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._started: dict[str, asyncio.Future[Envoy]] = {}

    async def reconcile(self, plan: Plan) -> None:
        """Start what is missing and stop what is gone; returns when all new ones are ready.

        Raises:
            EnvoyError: one of the new ones did not become ready.
        """
        wanted = {gateway.name: gateway for gateway in plan.gateways}
        for name in [name for name in self._keepers if name not in wanted]:
            await self._end(name)
        fresh = [gateway for name, gateway in wanted.items() if name not in self._keepers]
        for gateway in fresh:
            self._started[gateway.name] = asyncio.get_running_loop().create_future()
            self._keepers[gateway.name] = asyncio.create_task(self._keep(gateway, _locality(plan, gateway)))
        outcomes = await asyncio.gather(*(self._started[gateway.name] for gateway in fresh), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def stop(self) -> None:
        """Stop all of them."""
        for name in list(self._keepers):
            await self._end(name)

    async def _end(self, name: str) -> None:
        keeper = self._keepers.pop(name)
        del self._started[name]
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)

    async def _keep(self, gateway: Gateway, locality: Locality) -> None:
        """Keep one Envoy running. Whoever waits for it is told of the first start; further ones are tried anyway."""
        started = self._started[gateway.name]
        while True:
            try:
                envoy = await self._start(gateway, locality)
            except EnvoyError as error:
                if started.done():
                    log.error("Envoy does not start", gateway=gateway.name, error=str(error))
                else:
                    started.set_exception(error)
                await asyncio.sleep(RESTART_DELAY_S)
                continue
            try:
                if not started.done():
                    started.set_result(envoy)
                status = await envoy.child.wait()
            finally:
                await envoy.stop()
            log.error("Envoy ended and is started again", gateway=gateway.name, status=status)
            await asyncio.sleep(RESTART_DELAY_S)

    async def _start(self, gateway: Gateway, locality: Locality) -> Envoy:
        short = gateway.name.replace("/", ".")
        config = bootstrap(
            f"{short}-embedded",
            gateway.name,
            locality,
            [self._xds],
            "127.0.0.1",
            0,
            delta=self._options.delta,
            lrs=True,
            limits=self._options.limits,
        )
        folder = self._options.state / "envoy" / short
        try:
            envoy = await start_envoy(config, folder, concurrency=self._options.concurrency)
        except OSError as error:  # no right to run it, no room for its files
            raise EnvoyError(f"Envoy cannot be started: {error}") from error
        try:
            await envoy.wait_ready(READY_TIMEOUT_S)
        except BaseException:
            await envoy.stop()
            raise
        return envoy


def _locality(plan: Plan, gateway: Gateway) -> Locality:
    site = plan.site(gateway.site)
    return site.locality if site else Locality()


def gateway_ports(plan: Plan) -> list[Wanted]:
    """The addresses that the embedded Envoys listen on."""
    return [
        Wanted(
            address=listener.address,
            port=listener.port,
            purpose=f"listener {listener.name} of Gateway {gateway.name}",
            setting="another spec.listeners[].port in its manifest",
        )
        for gateway in plan.gateways
        for listener in gateway.listeners
    ]


def gateway_urls(plan: Plan) -> dict[str, list[str]]:
    """`http://address:port` of every listener, by gateway; those whose requests the picker reads come first."""

    def reads_bodies(listener: Listener) -> bool:
        return any(rule.profile is PickProfile.BODY for host in listener.hosts for rule in host.rules)

    return {
        gateway.name: [
            f"http://{_host(listener.address)}:{listener.port}"
            for listener in sorted(gateway.listeners, key=reads_bodies, reverse=True)
        ]
        for gateway in plan.gateways
    }


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@contextlib.asynccontextmanager
async def running(options: UpOptions) -> AsyncIterator[Running]:
    """Start everything that `options` ask for, in the order pools, control plane, Envoy; stop it in reverse.

    Raises:
        ConfigError: the folder is not good.
        PortError: an address is taken or not allowed.
        SimulatorError, EnvoyError: a child did not start.
    """
    plan = compile_plan(load(options.control_plane.config))
    options.control_plane.check()
    check_free(
        [
            *options.control_plane.wanted_ports(),
            *(wanted_ports(plan) if options.simulate else []),
            *(gateway_ports(plan) if options.envoy else []),
        ]
    )
    if options.envoy:
        find_envoy()
    plans: asyncio.Queue[Plan] = asyncio.Queue()
    async with contextlib.AsyncExitStack() as stack:
        simulator: Simulator | None = None
        if options.simulate:
            simulator = await start_simulator(plan, options.state / "simulator", speed=options.speed)
            stack.push_async_callback(simulator.stop)
            keeper = asyncio.create_task(simulator.keep(), name="keep the simulator")
            stack.push_async_callback(_cancel, keeper)
        control_plane = await stack.enter_async_context(ControlPlane(options.control_plane, on_plan=plans.put_nowait))
        envoys: EnvoyFleet | None = None
        if options.envoy:
            envoys = EnvoyFleet(options, control_plane.grpc_port)
            stack.push_async_callback(envoys.stop)
            await envoys.reconcile(plan)
        follower = asyncio.create_task(_follow(plans, envoys, simulator), name="follow the plan")
        stack.push_async_callback(_cancel, follower)
        state = Running(
            grpc=f"{_host(options.control_plane.grpc_address)}:{control_plane.grpc_port}",
            admin=control_plane.admin_url,
            gateways=gateway_urls(plan),
            model=next((pool.model for pool in plan.pools if pool.model), ""),
            simulator=simulator.admin_url if simulator else "",
            replicas=simulator.replicas if simulator else (),
        )
        if options.ready_file is not None:
            _write_whole(options.ready_file, msgspec.json.encode(state))
        yield state


async def _follow(plans: asyncio.Queue[Plan], envoys: EnvoyFleet | None, simulator: Simulator | None) -> None:
    """Bring the children in line with each new Plan; a child that fails is told and does not stop the others."""
    while True:
        plan = await plans.get()
        if simulator is not None:
            try:
                await simulator.reconcile(plan)
            except (SimulatorError, OSError) as error:
                log.error("the simulated replicas do not follow the configuration", error=str(error))
        if envoys is not None:
            try:
                await envoys.reconcile(plan)
            except (EnvoyError, OSError) as error:
                log.error("an Envoy of the new configuration did not start", error=str(error))


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _write_whole(path: Path, content: bytes) -> None:
    """Write so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(content)
    draft.replace(path)


async def until_stopped(serving: Coroutine[None, None, None]) -> None:
    """Run `serving` until it ends by itself (then its error is raised) or SIGINT or SIGTERM comes.

    It is cancelled on the first signal, also while it still starts, so that its own clean-up stops what has started. A
    second signal ends the process at once, and the kernel ends the children.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(serving)

    def on_signal() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    with contextlib.suppress(asyncio.CancelledError):
        await task
