"""A simulation inside the test's own loop, with a client for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import pytest_asyncio

from pointsman.sim.replica import Replica
from pointsman.sim.server import Simulation, simulation
from pointsman.sim.spec import SimSpec, check_spec


@dataclass(frozen=True)
class Sim:
    """Base URLs by replica name, the admin endpoint, the replicas themselves, and an HTTP client."""

    running: Simulation
    session: aiohttp.ClientSession

    def address(self, name: str) -> str:
        return next(r.address for r in self.running.ready.replicas if r.name == name)

    def url(self, name: str, path: str) -> str:
        return f"http://{self.address(name)}{path}"

    def replica(self, name: str) -> Replica:
        return self.running.replicas[name]

    async def post(self, name: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        async with self.session.post(self.url(name, path), json=body) as response:
            return response.status, await response.json()

    async def get(self, name: str, path: str) -> tuple[int, bytes]:
        async with self.session.get(self.url(name, path)) as response:
            return response.status, await response.read()

    async def chat(self, name: str, text: str = "hello", **more: Any) -> tuple[int, Any]:
        return await self.post(name, "/v1/chat/completions", chat_body(text, **more))

    async def events(self, name: str, text: str = "hello", **more: Any) -> list[str]:
        """The `data:` lines of a streamed answer, which must be framed as SSE."""
        body = chat_body(text, stream=True, **more)
        async with self.session.post(self.url(name, "/v1/chat/completions"), json=body) as response:
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("text/event-stream")
            return split_events((await response.read()).decode())

    async def faults(self, name: str, faults: dict[str, Any] | None) -> None:
        """Set the faults of a replica over the admin endpoint, or end them."""
        url = f"http://{self.running.ready.admin}/replicas/{name}/faults"
        call = self.session.delete(url) if faults is None else self.session.put(url, json=faults)
        async with call as response:
            assert response.status == 200, await response.text()

    async def status(self, name: str) -> dict[str, Any]:
        async with self.session.get(f"http://{self.running.ready.admin}/replicas/{name}") as response:
            status: dict[str, Any] = await response.json()
            return status


def split_events(text: str) -> list[str]:
    assert text.endswith("\n\n")
    events = text[:-2].split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    return [event.removeprefix("data: ") for event in events]


def chat_body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "llama", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}


Start = Callable[..., Awaitable[Sim]]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """`await start(replica, …, speed=…)`: dictionaries of `ReplicaSpec`; name `one` and model `llama` by default."""
    async with AsyncExitStack() as stack:

        async def start_one(*replicas: dict[str, Any], **more: Any) -> Sim:
            wanted = [{"name": "one", "model": "llama", **r} for r in replicas or ({},)]
            spec = msgspec.convert({"speed": 200.0, "replicas": wanted, **more}, SimSpec)
            check_spec(spec)
            running = await stack.enter_async_context(simulation(spec))
            connector = aiohttp.TCPConnector(limit=0)
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            return Sim(running, session)

        yield start_one
