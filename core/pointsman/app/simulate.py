"""`--simulate`: one child process that serves a simulated vLLM replica at every endpoint of the Plan."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from pointsman.app.ports import Wanted, is_loopback
from pointsman.app.processes import ChildProcess, start_child
from pointsman.core.errors import PointsmanError
from pointsman.core.model import AppProtocol, Plan

START_TIMEOUT_S = 20.0


class SimulatorError(PointsmanError):
    """The simulated replicas could not be started."""


class Simulator:
    """The running simulator. Faults of its `replicas` (names) are switched at `admin_url`."""

    def __init__(self, child: ChildProcess, admin_url: str, spec: dict[str, Any]) -> None:
        self.child = child
        self.admin_url = admin_url
        self._spec = spec

    @property
    def replicas(self) -> tuple[str, ...]:
        """Names of all replicas."""
        return tuple(replica["name"] for replica in self._spec["replicas"])

    async def reconcile(self, plan: Plan) -> None:
        """Start replicas for new endpoints of `plan` and end those of endpoints that are gone.

        Raises:
            SimulatorError: an address is taken or not on loopback, or the simulator is gone.
        """
        spec = simulator_spec(plan, speed=self._spec["speed"])
        if spec == self._spec:
            return
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
        self._spec = spec

    async def stop(self) -> None:
        """End all simulated replicas."""
        await self.child.stop()


def simulator_spec(plan: Plan, *, speed: float, seed: int = 1) -> dict[str, Any]:
    """The specification for `pointsman sim` with one replica for each endpoint of `plan`.

    `speed` is how many times faster than the modelled GPU the replicas run. The network between the site of the first
    Gateway and a replica's site takes the round-trip time that the Sites declare.

    Raises:
        SimulatorError: an endpoint is not on a loopback address: there may be a real model server.
    """
    replicas: dict[str, dict[str, Any]] = {}
    names: set[str] = set()
    home = next((gateway.site for gateway in plan.gateways), "")
    for pool in plan.pools:
        for endpoint in pool.endpoints():
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
            }
    return {"seed": seed, "speed": speed, "replicas": list(replicas.values())}


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
        for endpoint in pool.endpoints()
    ]


async def start_simulator(plan: Plan, folder: Path, *, speed: float) -> Simulator:
    """Start the replicas of `plan` in a child process and wait until all of them listen.

    Raises:
        SimulatorError: it ended or was not ready in time; the message holds what it said.
    """
    spec = folder / "simulator.json"
    wanted = simulator_spec(plan, speed=speed)
    log = folder / "simulator.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        spec.write_bytes(msgspec.json.format(msgspec.json.encode(wanted), indent=1))
        with log.open("wb") as log_file:
            child = await start_child(
                [sys.executable, "-m", "pointsman.sim.main", "--spec", spec],
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
        raise SimulatorError(f"the simulator was not ready after {START_TIMEOUT_S:g} s, see {log}") from error
    if not line:
        await child.wait()
        raise SimulatorError(f"the simulator ended: {log.read_text(encoding='utf-8', errors='replace').strip()}")
    ready = msgspec.json.decode(line)
    return Simulator(child, f"http://{ready['admin']}", wanted)
