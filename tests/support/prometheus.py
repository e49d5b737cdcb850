"""Debian's Prometheus for tests: found, or a failure that says how to install it. Nothing is skipped."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from pointsman.app.processes import start_child
from support.waiting import eventually


def promtool() -> str:
    """Where promtool is."""
    return _find("promtool")


def _find(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is not installed: `apt-get install -y --no-install-recommends prometheus` brings it"
    return found


@dataclass
class Prometheus:
    """A running server."""

    url: str
    session: aiohttp.ClientSession

    async def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples of an instant query; an error of Prometheus is an AssertionError."""
        return await self._ask("query", {"query": expr})

    async def range(self, expr: str, start_s: float, end_s: float, step_s: float = 1) -> list[dict[str, Any]]:
        """The series of a range query."""
        return await self._ask(
            "query_range", {"query": expr, "start": str(start_s), "end": str(end_s), "step": str(step_s)}
        )

    async def targets_up(self) -> int:
        """How many targets answered the last scrape."""
        return len(await self.query("up == 1"))

    async def _ask(self, verb: str, parameters: Mapping[str, str]) -> list[dict[str, Any]]:
        async with self.session.post(f"{self.url}/api/v1/{verb}", data=parameters) as response:
            answer = json.loads(await response.text())
        assert answer["status"] == "success", (parameters["query"], answer.get("error"))
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


@asynccontextmanager
async def running_prometheus(
    folder: Path, targets: Sequence[str], rules: Sequence[Path], port: int
) -> AsyncIterator[Prometheus]:
    """Prometheus that scrapes `targets` (host:port) once a second and evaluates `rules`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rule) for rule in rules],
        "scrape_configs": [{"job_name": "pointsman", "static_configs": [{"targets": list(targets)}]}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with (folder / "prometheus.log").open("wb") as log:
        child = await start_child(
            [_find("prometheus"), f"--config.file={folder / 'prometheus.yaml'}",
             f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
            name="Prometheus",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=log,
        )  # fmt: skip
    async with aiohttp.ClientSession() as session:
        server = Prometheus(url=f"http://127.0.0.1:{port}", session=session)

        async def ready() -> bool:
            assert child.returncode is None, (folder / "prometheus.log").read_text()
            try:
                async with session.get(f"{server.url}/-/ready") as response:
                    return response.status == 200
            except aiohttp.ClientError:
                return False

        try:
            await eventually(ready, what="Prometheus is ready")
            yield server
        finally:
            await child.stop()
