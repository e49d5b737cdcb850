"""The clients of a drill, a process of their own: `python -m pointsman.app.drill.client_process ORDERS`.

They know the gateways' addresses and nothing else of Pointsman. Requests go out at fixed times, whatever became of
those before (an open loop); every other one is streamed. Each request that has ended is one JSON line on stdout, and
ten times a second a line says since when the oldest is still open. Ends with SIGTERM.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import msgspec

from pointsman.app.drill.manifests import MODEL, STREAMED
from pointsman.failover.outcome import Seen
from pointsman.replay.chat_stream import ChatStream, StreamError

BEAT_S: Final = 0.1
PATIENCE_S: Final = 4.0
"""A request without an end after this has failed. Twice the longest bar: who waits longer is not saved by it."""
TOKENS: Final = {True: 16, False: 4}
"""Answer lengths, streamed or not: some 100 and 25 ms at the speed of the simulated replicas, so that each moment has
streams in the middle."""
CONVERSATIONS: Final = 64
"""Prompts share their beginnings within so many conversations: enough to spread over all replicas."""


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to ask (site → URL) how often (requests/s) for which model. `fresh`: a new connection for each request."""

    source: str
    gateways: dict[str, str]
    per_s: dict[str, float]
    model: str = MODEL
    fresh: bool = False


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """All requests that began before `oldest_s` have ended and been told."""

    oldest_s: float


class Clients:
    """The requests that are under way."""

    def __init__(self, orders: Orders, session: aiohttp.ClientSession, tell: Callable[[Seen | Beat], None]) -> None:
        self._orders = orders
        self._session = session
        self._tell = tell
        self._numbers = itertools.count()
        self._open: dict[int, float] = {}

    async def beat(self) -> None:
        """Tell what is open, until cancelled."""
        while True:
            self._tell(Beat(oldest_s=min(self._open.values(), default=time.monotonic())))
            await asyncio.sleep(BEAT_S)

    async def ask(self, site: str) -> None:
        """Ask the gateway of `site` at its rate, until cancelled."""
        period_s = 1 / self._orders.per_s[site]
        next_s = time.monotonic()
        async with asyncio.TaskGroup() as requests:
            while True:
                number = next(self._numbers)
                self._open[number] = time.monotonic()
                requests.create_task(self._one(site, number, stream=bool(number % 2)))
                next_s += period_s
                await asyncio.sleep(max(0.0, next_s - time.monotonic()))

    async def _one(self, site: str, number: int, *, stream: bool) -> None:
        start_s = self._open[number]
        found: dict[str, Any] = {}
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._exchange(site, number, found, stream=stream)
        except TimeoutError:
            begun = "headers came, " if found.get("status") == 200 and "first_s" not in found else ""
            found |= {"late": True, "error": f"{begun}no end after {PATIENCE_S:g} s"}
        except (aiohttp.ClientError, OSError, StreamError, msgspec.DecodeError) as error:
            found["error"] = _name(error)
        self._tell(
            Seen(
                source="probe" if self._orders.source == "probe" else "load",
                gateway=site,
                stream=stream,
                start_s=start_s,
                end_s=time.monotonic(),
                **found,
            )
        )
        del self._open[number]

    async def _exchange(self, site: str, number: int, found: dict[str, Any], *, stream: bool) -> None:
        talk = number % CONVERSATIONS
        body = {
            "model": self._orders.model,
            "stream": stream,
            "max_tokens": TOKENS[stream],
            "messages": [{"role": "user", "content": f"Conversation {talk} wants to know. " * 12 + f"Turn {number}."}],
        }
        headers = dict([STREAMED]) if stream else {}
        url = f"{self._orders.gateways[site]}/v1/chat/completions"
        async with self._session.post(url, json=body, headers=headers) as response:
            found["status"] = response.status
            if response.status != 200:
                text = await response.text()
                found["error"] = f"status {response.status} {response.headers.get('x-pointsman-reason', '')}".strip()
                found["error"] = found["error"] or text[:80]
                return
            if not stream:
                answer = msgspec.json.decode(await response.read())
                found |= {"replica": str(answer.get("system_fingerprint", "")), "complete": True}
                return
            talk_back = ChatStream()
            try:
                async for data in response.content.iter_any():
                    talk_back.feed(data)
                    if talk_back.started and "first_s" not in found:
                        found["first_s"] = time.monotonic()
            finally:
                found |= {"replica": talk_back.replica, "complete": talk_back.done}


def _name(error: BaseException) -> str:
    """What went wrong, short and without addresses, so that equal causes count as one."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return "the gateway refused the connection"
    if isinstance(error, StreamError):
        return "the answer held an error"
    return type(error).__name__


async def run(orders: Orders) -> None:
    """Ask until cancelled."""
    encoder = msgspec.json.Encoder()
    out = sys.stdout.buffer

    def tell(what: Seen | Beat) -> None:
        out.write(encoder.encode(what) + b"\n")
        out.flush()

    connector = aiohttp.TCPConnector(limit=0, force_close=orders.fresh)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        clients = Clients(orders, session, tell)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(clients.beat())
            for site in orders.per_s:
                tasks.create_task(clients.ask(site))


if __name__ == "__main__":
    asyncio.run(run(msgspec.json.decode(sys.argv[1], type=Orders)))
