"""A small closed-loop client: keeps requests running against a gateway and counts every outcome."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass
class Outcomes:
    """What the clients saw. A request failed when it did not end as a complete 200 answer."""

    ok: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    replicas: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def total(self) -> int:
        return self.ok + self.failed


def chat_body(text: str, *, model: str = "llama-3-8b", stream: bool = False, max_tokens: int = 4) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "stream": stream,
        "max_tokens": max_tokens,
    }


async def ask(
    session: aiohttp.ClientSession,
    base_url: str,
    body: dict[str, Any],
    outcomes: Outcomes,
    headers: dict[str, str] | None = None,
) -> None:
    """One chat request; its outcome is added to `outcomes`."""
    try:
        async with session.post(f"{base_url}/v1/chat/completions", json=body, headers=headers) as response:
            text = await response.text()
            if response.status != 200:
                outcomes.failures[f"{response.status} {response.headers.get('x-pointsman-reason', text[:120])}"] += 1
                return
    except (aiohttp.ClientError, TimeoutError) as error:
        outcomes.failures[type(error).__name__] += 1
        return
    if body["stream"]:
        if not text.rstrip().endswith("data: [DONE]"):
            outcomes.failures["truncated stream"] += 1
            return
        first = next(line for line in text.splitlines() if line.startswith("data: "))
        replica = json.loads(first.removeprefix("data: ")).get("system_fingerprint", "")
    else:
        replica = json.loads(text).get("system_fingerprint", "")
    outcomes.ok += 1
    outcomes.replicas[replica] += 1


class Load:
    """`workers` clients that ask without a pause until told to stop; bounded by `limit` requests in all.

    Used as a context manager. `progressed(n)` waits until `n` more requests have ended.
    """

    def __init__(
        self,
        base_url: str,
        *,
        workers: int = 8,
        limit: int = 20_000,
        stream: bool = False,
        headers: dict[str, str] | None = None,
        timeout_s: float = 15,
        model: str = "llama-3-8b",
    ) -> None:
        self.outcomes = Outcomes()
        self._base_url = base_url
        self._workers = workers
        self._left = limit
        self._stream = stream
        self._headers = headers
        self._model = model
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._ended = asyncio.Condition()

    async def __aenter__(self) -> Load:
        self._session = aiohttp.ClientSession(timeout=self._timeout, connector=aiohttp.TCPConnector(limit=0))
        self._tasks = [asyncio.create_task(self._work(worker)) for worker in range(self._workers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)
        await self._session.close()

    async def progressed(self, count: int, timeout_s: float = 60) -> None:
        """Wait until `count` more requests have ended, well or badly."""
        goal = self.outcomes.total + count
        async with asyncio.timeout(timeout_s), self._ended:
            await self._ended.wait_for(lambda: self.outcomes.total >= goal)

    async def _work(self, worker: int) -> None:
        turn = 0
        while not self._stopping and self._left > 0:
            self._left -= 1
            turn += 1
            text = f"conversation {worker} of the load test, turn {turn}. " * 8
            body = chat_body(text, stream=self._stream, model=self._model)
            await ask(self._session, self._base_url, body, self.outcomes, self._headers)
            async with self._ended:
                self._ended.notify_all()
