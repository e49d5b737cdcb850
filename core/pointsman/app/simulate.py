"""`--simulate`: one child process that serves a simulated vLLM replica at every endpoint of the Plan."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import structlog

from pointsman.app.ports import Wanted, is_loopback
from pointsman.app.processes import ChildProcess, start_child
from pointsman.core.errors import PointsmanError
from pointsman.core.model import AppProtocol, Endpoint, Plan, Pool

log = structlog.get_logger()

START_TIMEOUT_S = 60.0
"""A start takes a second at rest, and half a minute beside much other work."""
RESTART_DELAY_S = 1.0
"""Wait before a simulator that ended by itself is started again, so that one that cannot start does not burn a core."""


class SimulatorError(PointsmanError):
    """The simulated replicas could not be started."""


class Simulator:
    """The running simulator. Faults of its `replicas` (names) are switched at `admin_url`."""

    def __init__(self, child: ChildProcess, admin: str, spec: dict[str, Any], folder: Path) -> None:
        self.child = child
        self.admin_url = f"http://{admin}"
        self._spec = spec
        self._folder = folder

    @property
    def replicas(self) -> tuple[str, ...]:
        """Names of all replicas, those that get most of the traffic first: nearest, and of the largest pool."""
        replicas = self._spec["replicas"]
        sizes = Counter(replica["pool"] for replica in replicas)
        ordered = sorted(replicas, key=lambda replica: (replica["rtt_ms"], -sizes[replica["pool"]]))
        return tuple(replica["name"] for replica in ordered)

    async def reconcile(self, plan: Plan) -> None:
        """Start replicas for new endpoints of `plan` and end those of endpoints that are gone.

        Raises:
            SimulatorError: an address is taken or not on loopback, or the simulator is gone.
        """
        spec = simulator_spec(plan, speed=self._spec["speed"])
        if spec == self._spec:
            return
        if self.child.returncode is not None:
            self._spec = spec  # `keep` starts it with this
            return
        await self._replace(spec)
        self._spec = spec

    async def keep(self) -> None:
        """Start the simulator again, at the same addresses, whenever it ends by itself; runs until cancelled."""
        while True:
            status = await self.child.wait()
            log.error("the simulator ended and is started again", status=status)
            await asyncio.sleep(RESTART_DELAY_S)
            address, _, port = self.admin_url.removeprefix("http://").rpartition(":")
            spec = self._spec
            try:
                child, _ = await _launch({**spec, "admin_address": address, "admin_port": int(port)}, self._folder)
                self.child = child
                if self._spec is not spec:  # the Plan changed while it started
                    await self._replace(self._spec)
            except SimulatorError as error:
                log.error("the simulator does not start", error=str(error))

    async def _replace(self, spec: dict[str, Any]) -> None:
        body = msgspec.json.encode(spec["replicas"])
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=START_TIMEOUT_S)) as session,
                session.put(f"{self.admin_url}/replicas", data=body) as response,
            ):
                if response.status != 200:
                    raise SimulatorError(msgspec.json.decode(await response.read())["error"])
        except (aiohttp.ClientError, TimeoutError) as error:
            raise SimulatorError(f"the simulator does not answer: {error or type(error).__name__}") from error

    async def stop(self) -> None:
        """End all simulated replicas."""
        await self.child.stop()


def simulator_spec(plan: Plan, *, speed: float, seed: int = 1) -> dict[str, Any]:
    """The specification for `pointsman sim` with one replica for each endpoint of `plan`.

    `speed` is how many times faster than the modelled GPU the replicas run. What requests are renamed to is an adapter
    (LoRA) of the pool's model. The network between the site of the first
    Gateway and a replica's site takes the round-trip time that the Sites declare.

    Raises:
        SimulatorError: an endpoint is not on a loopback address: there may be a real model server.
    """
    replicas: dict[str, dict[str, Any]] = {}
    names: set[str] = set()
    home = next((gateway.site for gateway in plan.gateways), "")
    for pool in plan.pools:
        for endpoint in _endpoints(pool):
            if endpoint.key in replicas:
                continue  # pools may share endpoints
            if not is_loopback(endpoint.address):
                raise SimulatorError(
                    f"--simulate only serves endpoints on loopback addresses; {endpoint.name} of pool {pool.name} "
                    f"is at {endpoint.key}"
                )
            name = endpoint.name if endpoint.name not in names else f"{endpoint.name}-{endpoint.port}-{len(names)}"
            names.add(name)
            replicas[endpoint.key] = {
                "name": name,
                "site": endpoint.site,
                "pool": pool.name,
                "address": endpoint.address,
                "port": endpoint.port,
                "protocol": "grpc" if pool.app_protocol is AppProtocol.H2C else "http",
                "model": pool.model or pool.name.rpartition("/")[2],
                "rtt_ms": plan.rtt_ms(home, endpoint.site),
                **({"loras": loras} if (loras := _adapters(pool)) else {}),
            }
    return {"seed": seed, "speed": speed, "replicas": list(replicas.values())}


def _adapters(pool: Pool) -> list[str]:
    """What requests of the pool are renamed to, and is not its model."""
    names = {name for rewrite in pool.rewrites for name, _ in rewrite.targets}
    return sorted(names - {pool.model or pool.name.rpartition("/")[2]})


def wanted_ports(plan: Plan) -> list[Wanted]:
    """The addresses that the simulated replicas of `plan` listen on."""
    return [
        Wanted(
            address=endpoint.address,
            port=endpoint.port,
            purpose=f"the simulated replica {endpoint.name} of pool {pool.name}",
            setting="another port in its EndpointSlice",
        )
        for pool in plan.pools
        for endpoint in _endpoints(pool)
    ]


def _endpoints(pool: Pool) -> list[Endpoint]:
    """Those that are model servers: behind a gateway stands somebody else's fleet."""
    return [endpoint for group in pool.groups if group.hop is None for endpoint in group.endpoints]


async def start_simulator(plan: Plan, folder: Path, *, speed: float) -> Simulator:
    """Start the replicas of `plan` in a child process and wait until all of them listen.

    Raises:
        SimulatorError: it ended or was not ready in time; the message holds what it said.
    """
    spec = simulator_spec(plan, speed=speed)
    child, admin = await _launch(spec, folder)
    return Simulator(child, admin, spec, folder)


async def _launch(spec: dict[str, Any], folder: Path) -> tuple[ChildProcess, str]:
    """A child that serves `spec`, and the address of its admin endpoint, once all replicas listen."""
    path = folder / "simulator.json"
    output = folder / "simulator.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=1))
        with output.open("wb") as log_file:
            child = await start_child(
                [sys.executable, "-m", "pointsman.sim.main", "--spec", path],
                name="simulator",
                pipe_stdout=True,
                stderr=log_file,
            )
    except OSError as error:
        raise SimulatorError(f"the simulator cannot be started: {error}") from error
    try:
        line = await asyncio.wait_for(child.stdout.readline(), START_TIMEOUT_S)
    except TimeoutError as error:
        await child.stop()
        told = _last_words(output) or "it has said nothing"
        raise SimulatorError(f"the simulator was not ready after {START_TIMEOUT_S:g} s: {told}") from error
    except asyncio.CancelledError:
        await child.stop()
        raise
    if not line:
        await child.wait()
        raise SimulatorError(f"the simulator ended: {_last_words(output)}")
    return child, msgspec.json.decode(line)["admin"]


def _last_words(log_file: Path) -> str:
    """The end of its log, which may lie in a folder that goes away with us."""
    return "\n".join(log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:])
