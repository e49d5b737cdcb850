"""A gateway for the tests of the replay: a small server that answers as each test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from pointsman.replay.trace import TraceRequest

Behaviour = Callable[["FakeGateway", web.Request, web.StreamResponse], Awaitable[None]]


def event(**fields: Any) -> bytes:
    return f"data: {json.dumps(fields)}\n\n".encode()


def token(text: str, replica: str = "") -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}}], system_fingerprint=replica or None)


DONE = b"data: [DONE]\n\n"


class FakeGateway:
    """Every chat request is noted and answered by `behave`, which writes to a prepared event stream or raises."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.arrived = asyncio.Condition()
        self.release = asyncio.Event()
        self.behave: Behaviour = answer
        self.metrics: Callable[[], str] = str
        self.endpoints: Any = []

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        async with self.arrived:
            self.bodies.append(body)
            self.arrived.notify_all()
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await self.behave(self, request, response)
        return response

    async def wait_for(self, count: int) -> None:
        """Until `count` requests have arrived."""
        async with asyncio.timeout(30), self.arrived:
            await self.arrived.wait_for(lambda: len(self.bodies) >= count)

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "llama-3-8b"}, {"id": "other"}]})

    async def page(self, _request: web.Request) -> web.Response:
        return web.Response(text=self.metrics())

    async def listed(self, _request: web.Request) -> web.Response:
        return web.json_response(self.endpoints)


async def answer(_gateway: FakeGateway, request: web.Request, response: web.StreamResponse) -> None:
    """A whole answer of three tokens with usage, as vLLM streams it."""
    await response.prepare(request)
    await response.write(event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}]))
    for word in ("one", " two", " three"):
        await response.write(token(word, "us-east-0"))
    usage = {"prompt_tokens": 600, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 512}}
    await response.write(event(choices=[], usage=usage, system_fingerprint="us-east-0") + DONE)


def requests_at(*arrivals_ms: float) -> list[TraceRequest]:
    """One short request at each of these times."""
    return [
        TraceRequest(arrival_ms=arrival_ms, input_tokens=600, output_tokens=3, hash_ids=(0, n + 1))
        for n, arrival_ms in enumerate(arrivals_ms)
    ]
