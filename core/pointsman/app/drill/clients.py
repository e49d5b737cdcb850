"""The client processes of a drill, seen from the drill: what they saw so far."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import msgspec

from pointsman.app.drill.client_process import Beat, Orders
from pointsman.app.drill.manifests import MODEL
from pointsman.app.processes import ChildProcess, start_child
from pointsman.failover.outcome import Seen

PROBES_PER_S: Final = 10.0
START_TIMEOUT_S: Final = 30.0


class Watch:
    """What all clients saw. `oldest_s`: everything that began before it has ended and is in `seen`."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self._oldest_s: dict[str, float] = {}
        self._news = asyncio.Event()

    @property
    def oldest_s(self) -> float:
        return min(self._oldest_s.values(), default=0.0)

    def began(self, client: str) -> None:
        """A client was started; until it says more it may have anything open."""
        self._oldest_s[client] = 0.0

    def take(self, client: str, line: bytes) -> None:
        """One line of a client."""
        if line.startswith(b'{"oldest_s"'):
            self._oldest_s[client] = msgspec.json.decode(line, type=Beat).oldest_s
            self._news.set()
        else:
            self.seen.append(msgspec.json.decode(line, type=Seen))

    async def news(self) -> None:
        """Wait for the next beat."""
        self._news.clear()
        await self._news.wait()

    def forget_before(self, at_s: float) -> None:
        """Drop what began earlier: a long series of drills is not kept."""
        self.seen = [seen for seen in self.seen if seen.start_s >= at_s]


@asynccontextmanager
async def clients(
    gateways: Mapping[str, str], per_s: Mapping[str, float], *, model: str = MODEL
) -> AsyncIterator[Watch]:
    """A prober with ten requests/s and a load of `per_s` at each gateway (site → URL), each in a process of its own."""
    watch = Watch()
    orders = (
        Orders(
            source="probe",
            gateways=dict(gateways),
            per_s=dict.fromkeys(gateways, PROBES_PER_S),
            model=model,
            fresh=True,  # a probe also sees that nobody listens any more
        ),
        Orders(source="load", gateways=dict(gateways), per_s=dict(per_s), model=model),
    )
    async with AsyncExitStack() as stack:
        for order in (order for order in orders if order.per_s):
            watch.began(order.source)
            child = await start_child(
                [sys.executable, "-m", "pointsman.app.drill.client_process", msgspec.json.encode(order).decode()],
                name=f"drill {order.source}",
                stderr=subprocess.DEVNULL,
                pipe_stdout=True,
            )
            stack.push_async_callback(child.stop)
            reader = asyncio.create_task(_read(child, order.source, watch))
            stack.push_async_callback(_cancel, reader)
        async with asyncio.timeout(START_TIMEOUT_S):
            while not watch.oldest_s:
                await watch.news()
        yield watch


async def _read(child: ChildProcess, client: str, watch: Watch) -> None:
    while line := await child.stdout.readline():
        watch.take(client, line)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
