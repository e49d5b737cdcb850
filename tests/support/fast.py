"""Many requests in little time: upstreams that answer with their pool's name, and a client that pipelines.

A request costs some ten microseconds on either side, so that what is counted (splits, users) needs
seconds, not minutes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack

from pointsman.core.compile import compile_plan
from pointsman.core.config import load
from support.fleet import Manifests

BATCH = 100
"""Requests on their way on one connection; more would fill Envoy's buffers and gain nothing."""


class _Upstream(asyncio.Protocol):
    """Answers every request (without a body) with 200 and the pool's name."""

    def __init__(self, pool: str) -> None:
        self._answer = f"HTTP/1.1 200 OK\r\nx-arm: {pool}\r\ncontent-length: 2\r\n\r\nok".encode()
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._rest = (self._rest + data).split(b"\r\n\r\n")
        self._transport.write(self._answer * len(requests))


async def serve_names(manifests: Manifests, stack: AsyncExitStack) -> None:
    """Serve every endpoint of the manifests; for `running_fleet(serve=...)`."""
    loop = asyncio.get_running_loop()
    for pool in compile_plan(load(manifests.folder)).pools:
        for endpoint in pool.endpoints():
            name = pool.name.rpartition("/")[2]
            server = await loop.create_server(lambda name=name: _Upstream(name), endpoint.address, endpoint.port)
            stack.callback(server.close)


class Pipe:
    """One keep-alive connection to a gateway.

    Envoy closes a connection on which more requests wait when it has answered one by itself; then, and only then, the
    rest goes over a new one, one by one while that lasts.
    """

    def __init__(self, address: str, port: int) -> None:
        self._place = (address, port)

    async def ask(self, headers: Sequence[str], *, path: str = "/v1/models") -> list[str]:
        """One GET for each of `headers` (whole lines, or empty); who answered, in order, or status and reason."""
        found: list[str] = []
        while len(found) < len(headers):
            reader, writer = await asyncio.open_connection(*self._place)
            try:
                while len(found) < len(headers):
                    size = 1 if found and found[-1][0].isdigit() else BATCH
                    batch = headers[len(found) : len(found) + size]
                    requests = (f"GET {path} HTTP/1.1\r\nhost: x\r\n{line}\r\n" for line in map(_line, batch))
                    writer.write("".join(requests).encode())
                    for _ in batch:
                        found.append(await _answer(reader))  # noqa: PERF401  # what came before an end counts
            except (asyncio.IncompleteReadError, ConnectionResetError):
                if not found or not found[-1][0].isdigit():
                    raise
            finally:
                writer.close()
        return found


async def _answer(reader: asyncio.StreamReader) -> str:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines if line)
    await reader.readexactly(int(fields.get("content-length", "0")))
    return fields.get("x-arm") or f"{status.split(' ')[1]} {fields.get('x-pointsman-reason', '')}".rstrip()


def _line(header: str) -> str:
    return f"{header}\r\n" if header else ""


async def ask_all(
    address: str, port: int, headers: Sequence[str], *, connections: int = 8, path: str = "/v1/models"
) -> list[str]:
    """Send one request for each of `headers` over several connections; answers in the order of `headers`."""
    pipes = [Pipe(address, port) for _ in range(connections)]
    parts = await asyncio.gather(
        *(pipe.ask(headers[index::connections], path=path) for index, pipe in enumerate(pipes))
    )
    answers = [""] * len(headers)
    for index, part in enumerate(parts):
        answers[index::connections] = part
    return answers


def users(count: int) -> list[str]:
    """Header lines of that many users."""
    return [f"x-user-id: user-{number}" for number in range(count)]


def counted(answers: Iterable[str]) -> Counter[str]:
    """How often each arm (or status) answered."""
    return Counter(answers)
