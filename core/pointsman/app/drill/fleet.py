"""The embedded set-up of drills: at each of two sites a gateway (Envoy), a control plane with its picker, and simulated
replicas, each a process of its own, so that any of them can be killed or frozen alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from pointsman.app.drill import manifests, rest
from pointsman.app.drill.manifests import RTT_MS, SITES, Place, WayBack
from pointsman.app.drill.relay import Relay
from pointsman.app.envoy import Envoy, start_envoy
from pointsman.app.processes import ChildProcess, start_child
from pointsman.app.simulate import simulator_spec
from pointsman.app.trial_certificates import SERVER_NAME, TrialCa
from pointsman.core.compile import compile_plan
from pointsman.core.config import load
from pointsman.core.errors import PointsmanError
from pointsman.core.model import Locality
from pointsman.xds import GatewayTls, bootstrap
from pointsman.xds.bootstrap import gateway_secrets

Json = dict[str, Any]

READY_S: Final = 60.0
"""A part starts in a second or two at rest, and in half a minute beside much other work."""
POLL_S: Final = 0.05
SPEED: Final = 4.0
"""Replicas answer this many times faster than the modelled GPU: streams of 150 ms, so that a run takes seconds."""
STREAM_AGE_S: Final = 5.0
"""Gateways come back to their own control plane this soon after it is back: the next run is to begin as the first."""
_POINTSMAN: Final = ("-c", "from pointsman.app.cli import main; main()")
STEADFAST: Final = WayBack()
_DOMAIN: Final = "drill"


class DrillError(PointsmanError):
    """The set-up could not be started or does not come to rest."""


@dataclass
class SiteParts:
    """What runs at one site. Parts that were killed are None until they are started again."""

    place: Place
    folder: Path
    relays: list[Relay] = field(default_factory=list)
    simulator: ChildProcess | None = None
    control_plane: ChildProcess | None = None
    envoy: Envoy | None = None
    simulator_admin: str = ""
    admin: str = ""


class DrillFleet:
    """The running set-up. `heal` ends every fault and starts what was killed."""

    def __init__(self, folder: Path, *, primary: str, tls: bool, way_back: WayBack) -> None:
        self._primary = primary
        self._way_back = way_back
        self._config = folder / "config"
        self._ca = TrialCa(folder / "certificates") if tls else None
        self._stack = AsyncExitStack()
        self._frozen: set[int] = set()
        self._full: dict[int, tuple[int, int]] = {}
        self._evacuated = ""
        # Of 127.0.0.0/8 a /24 of its own, so that two drills on a machine do not meet.
        network = f"127.{20 + secrets.randbelow(200)}.{secrets.randbelow(256)}"
        self.places = manifests.places(network)
        self._relay_address = f"{network}.250"
        self.sites = {place.site: SiteParts(place=place, folder=folder / place.site) for place in self.places}
        self.site_of: Mapping[str, str] = {name: place.site for place in self.places for name in place.replicas}

    @property
    def gateways(self) -> dict[str, str]:
        """Site → URL of its gateway."""
        return {place.site: place.url for place in self.places}

    def other(self, site: str) -> str:
        """The other site."""
        return next(name for name in self.sites if name != site)

    async def start(self) -> None:
        """Start everything.

        Raises:
            DrillError, EnvoyError: a part did not become ready.
        """
        self.session = await self._stack.enter_async_context(aiohttp.ClientSession())
        manifests.write(self._config, self.places, primary=self._primary, way_back=self._way_back)
        if self._ca is not None:
            self._ca.server([place.control_plane[0] for place in self.places])
        for parts in self.sites.values():
            parts.folder.mkdir(parents=True, exist_ok=True)
            home = [parts.place, *(place for place in self.places if place is not parts.place)]
            for place in home:
                relay = Relay(self._relay_address, place.control_plane)
                await relay.start()
                self._stack.push_async_callback(relay.stop)
                parts.relays.append(relay)
        await self._start_missing()

    async def stop(self) -> None:
        """End everything, at once: nothing of it is kept, so nobody need say goodbye."""
        self._thaw_all()
        await _kill([child for parts in self.sites.values() for child in _children(parts)])
        await self._stack.aclose()

    async def set_faults(self, replicas: Sequence[str], faults: Json | None) -> None:
        """Switch the faults of simulated replicas; None ends them."""
        await asyncio.gather(*(self._set_faults(name, faults) for name in replicas))

    async def received(self, site: str) -> dict[str, int]:
        """How many requests each replica of a site got so far, {} while nobody can say."""
        try:
            async with self.session.get(f"{self.sites[site].simulator_admin}/replicas", timeout=rest.SOON) as response:
                found = await response.json(content_type=None)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return {}
        return {replica["name"]: replica["requests_received"] for replica in found}

    async def kill_control_plane(self, site: str) -> None:
        """SIGKILL for the process that is control plane and picker of a site."""
        await _kill([self.sites[site].control_plane])

    def freeze_control_plane(self, site: str) -> None:
        """SIGSTOP for it: its sockets stay open, nothing answers."""
        self._freeze(self.sites[site].control_plane)

    async def kill_replicas(self, site: str) -> None:
        """SIGKILL for all replicas of a site, which are one process."""
        await _kill([self.sites[site].simulator])

    def freeze_replicas(self, site: str) -> None:
        """SIGSTOP for them: the kernel still takes connections, nothing answers, not even probes."""
        self._freeze(self.sites[site].simulator)

    async def kill_site(self, site: str) -> None:
        """SIGKILL for the gateway, the control plane with the picker, and all replicas of a site."""
        await _kill(_children(self.sites[site]))

    def cut(self, site: str) -> None:
        """Let the gateway of a site lose every control plane, while all live."""
        for relay in self.sites[site].relays:
            relay.cut()

    def fill_disk(self, site: str) -> None:
        """From now on the control plane of a site cannot write to any file, as on a full disk."""
        parts = self.sites[site]
        if parts.control_plane is not None:
            pid = parts.control_plane.pid
            soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
            self._full[pid] = (soft, hard)

    async def command(self, action: str, site: str) -> None:
        """Ask every control plane to do something with a site, as `pointsman site` does.

        Raises:
            DrillError: one refuses or does not answer.
        """
        for name, parts in self.sites.items():
            if refusal := await rest.ask(self.session, parts.admin, action, site=site):
                raise DrillError(f"the control plane of {name} does not {action} {site}: {refusal}")

    async def evacuate(self, site: str) -> None:
        """Take every new request away from a site."""
        self._evacuated = site
        await self.command("evacuate", site)

    async def policies(self, site: str) -> list[Json]:
        """What the control plane of a site says of failover, [] while it does not answer."""
        return await rest.policies(self.session, self.sites[site].admin)

    async def heal(self) -> None:
        """End every fault and start what was killed."""
        self._thaw_all()
        for pid, limits in self._full.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        self._full.clear()
        for parts in self.sites.values():
            for relay in parts.relays:
                relay.mend()
        await self._start_missing()
        await self.set_faults(list(self.site_of), None)
        if self._evacuated:
            await self.command("activate", self._evacuated)
            self._evacuated = ""

    async def at_rest(self) -> str:
        """Why the gateways do not send to every replica as they should yet, "" when they do."""
        for site, parts in self.sites.items():
            if why := await rest.failover_unrest(self.session, parts.admin):
                return f"the control plane of {site} {why}"
        for site, parts in self.sites.items():
            if parts.envoy is None or parts.envoy.child.returncode is not None:
                return f"the gateway of {site} does not run"
            if why := await rest.gateway_unrest(self.session, parts.envoy.admin_url, len(self.site_of)):
                return f"the gateway of {site} {why}"
        return ""

    async def _start_missing(self) -> None:
        """Start what does not run, replicas first."""
        gone = [parts for parts in self.sites.values() if not _runs(parts.simulator)]
        await asyncio.gather(*(self._start_simulator(parts) for parts in gone))
        gone = [parts for parts in self.sites.values() if not _runs(parts.control_plane)]
        await asyncio.gather(*(self._start_control_plane(parts) for parts in gone))
        gone = [parts for parts in self.sites.values() if not _runs(parts.envoy.child if parts.envoy else None)]
        await asyncio.gather(*(self._start_envoy(parts) for parts in gone))

    async def _start_simulator(self, parts: SiteParts) -> None:
        spec = simulator_spec(compile_plan(load(self._config)), speed=SPEED)
        # The stand-by is far from both gateways: a replica has one distance, and picks are to stay at the primary.
        far_ms = 0 if parts.place.site == self._primary else RTT_MS * SPEED
        mine = [{**one, "rtt_ms": far_ms} for one in spec["replicas"] if one["site"] == parts.place.site]
        path = parts.folder / "simulator.json"
        path.write_bytes(msgspec.json.encode({**spec, "replicas": mine}))
        child = await start_child(
            [sys.executable, "-m", "pointsman.sim.main", "--spec", path],
            name=f"replicas of {parts.place.site}",
            stderr=subprocess.DEVNULL,
            pipe_stdout=True,
        )
        parts.simulator = child
        async with _in_time(f"the replicas of {parts.place.site}"):
            line = await child.stdout.readline()
        if not line:
            raise DrillError(f"the replicas of {parts.place.site} do not start")
        parts.simulator_admin = f"http://{json.loads(line)['admin']}"

    async def _start_control_plane(self, parts: SiteParts) -> None:
        ready = parts.folder / "ready.json"
        ready.unlink(missing_ok=True)
        address, port = parts.place.control_plane
        words: list[str | Path] = [
            "up", "--no-envoy", "--config", self._config, "--state", parts.folder / "state", "--ready-file", ready,
            "--grpc-address", address, "--grpc-port", str(port), "--admin-port", "0", "--log-format", "json",
            "--stream-age", str(STREAM_AGE_S),
        ]  # fmt: skip
        for place in (parts.place, *(place for place in self.places if place is not parts.place)):
            words += ["--picker", f"{place.control_plane[0]}:{place.control_plane[1]}"]
        if self._ca is not None:
            folder = self._ca.folder
            words += ["--tls-cert", folder / "server.pem", "--tls-key", folder / "server.key"]
            words += ["--tls-client-ca", self._ca.certificate]
        child = await start_child(
            [sys.executable, *_POINTSMAN, *words],
            name=f"control plane of {parts.place.site}",
            stderr=subprocess.STDOUT,
            pipe_stdout=True,
        )
        parts.control_plane = child
        # Through a pipe: a process that cannot write to files must still be able to say so.
        log = asyncio.create_task(_copy(child.stdout, parts.folder / "control-plane.log"))
        self._stack.push_async_callback(_cancel, log)
        async with _in_time(f"the control plane of {parts.place.site}"):
            while not ready.exists():
                if child.returncode is not None:
                    await log
                    said = (parts.folder / "control-plane.log").read_text(encoding="utf-8", errors="replace")
                    raise DrillError(f"the control plane of {parts.place.site} ended:\n{said[-2_000:]}")
                await asyncio.sleep(POLL_S)
        parts.admin = json.loads(ready.read_bytes())["admin"]

    async def _start_envoy(self, parts: SiteParts) -> None:
        site = parts.place.site
        tls = None
        if self._ca is not None:
            secrets_folder = parts.folder / "gateway"
            secrets_folder.mkdir(exist_ok=True)
            certificate, key = self._ca.gateway([f"default/{site}"], trust_domain=_DOMAIN)
            files = gateway_secrets(str(certificate), str(key), str(self._ca.certificate), SERVER_NAME)
            for name, content in files.items():
                (secrets_folder / name).write_text(json.dumps(content), encoding="utf-8")
            tls = GatewayTls(folder=str(secrets_folder), server_name=SERVER_NAME)
        config = bootstrap(
            f"{site}-drill",
            f"default/{site}",
            Locality(region=site),
            [(self._relay_address, relay.port) for relay in parts.relays],
            "127.0.0.1",
            0,
            delta=True,
            lrs=True,
            tls=tls,
        )
        parts.envoy = await start_envoy(config, parts.folder / "envoy", concurrency=1)
        await parts.envoy.wait_ready(READY_S)

    async def _set_faults(self, name: str, faults: Json | None) -> None:
        url = f"{self.sites[self.site_of[name]].simulator_admin}/replicas/{name}/faults"
        try:
            request = self.session.delete(url) if faults is None else self.session.put(url, json=faults)
            async with request as response:
                if response.status != 200:
                    raise DrillError(f"{name} does not take its faults: {await response.text()}")
        except (aiohttp.ClientError, OSError) as error:
            raise DrillError(f"{name} cannot be reached to take its faults: {error}") from error

    def _freeze(self, child: ChildProcess | None) -> None:
        if child is not None and child.returncode is None:
            os.kill(child.pid, signal.SIGSTOP)
            self._frozen.add(child.pid)

    def _thaw_all(self) -> None:
        for pid in self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen.clear()


def _children(parts: SiteParts) -> list[ChildProcess | None]:
    return [parts.envoy.child if parts.envoy else None, parts.control_plane, parts.simulator]


async def _kill(children: Sequence[ChildProcess | None]) -> None:
    running = [child for child in children if child and child.returncode is None]
    for child in running:
        child.kill()
    for child in running:
        await child.wait()


def _runs(child: ChildProcess | None) -> bool:
    return child is not None and child.returncode is None


@contextlib.asynccontextmanager
async def _in_time(what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(READY_S):
            yield
    except TimeoutError as error:
        raise DrillError(f"{what} did not become ready within {READY_S:g} s") from error


async def _copy(source: asyncio.StreamReader, path: Path) -> None:
    with path.open("ab") as file:
        while data := await source.read(65_536):
            file.write(data)
            file.flush()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def drill_fleet(
    folder: Path, *, primary: str = SITES[0], tls: bool = False, way_back: WayBack = STEADFAST
) -> AsyncIterator[DrillFleet]:
    """The set-up with its files in `folder`; `primary` is the site that everybody is near to. It ends with the block.

    Raises:
        PointsmanError: a part did not start.
    """
    fleet = DrillFleet(folder, primary=primary, tls=tls, way_back=way_back)
    try:
        await fleet.start()
        yield fleet
    finally:
        await fleet.stop()
