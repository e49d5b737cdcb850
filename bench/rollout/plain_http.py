"""HTTP/1.1 at little cost, for benchmarks that measure a gateway: clients and endpoints on bare asyncio protocols.

Both ends speak just as much HTTP as the other end of a gateway needs: requests and answers have a content-length, a
connection carries one exchange at a time. What is not understood ends the connection and counts as a failure.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Final

HEAD_END: Final = b"\r\n\r\n"
CHUNKED_END: Final = b"0\r\n\r\n"
ANSWER_S: Final = 15.0
"""A request without an answer for so long has failed."""
LATE_S: Final = 5.0
"""A connection further behind its schedule than this gives up what it has missed: the rate shows it."""

Stream = Callable[[asyncio.Transport], Coroutine[object, object, None]]


class Endpoint(asyncio.Protocol):
    """An endpoint that gives the same answer to everybody; to a body with `marker` it writes a stream of its own."""

    def __init__(self, answer: bytes, marker: bytes, stream: Stream, tasks: set[asyncio.Task[None]]) -> None:
        self._answer = answer
        self._marker = marker
        self._stream = stream
        self._tasks = tasks
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (request := self._next()) is not None:
            assert self._transport is not None
            if self._marker in request:
                task = asyncio.ensure_future(self._stream(self._transport))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                self._transport.write(self._answer)

    def _next(self) -> bytes | None:
        """The next whole request, None while it is not all there."""
        head, found, rest = self._buffer.partition(HEAD_END)
        if not found:
            return None
        length = length_of(head.lower())
        if length is None:
            end = rest.find(CHUNKED_END)
            if end < 0:
                return None
            length = end + len(CHUNKED_END)
        if len(rest) < length:
            return None
        self._buffer = rest[length:]
        return head + HEAD_END + rest[:length]


def length_of(head: bytes) -> int | None:
    """Bytes of the body behind a head in lower case; None: it is chunked."""
    _, found, after = head.partition(b"\r\ncontent-length:")
    if found:
        return int(after.partition(b"\r\n")[0])
    return None if b"\r\ntransfer-encoding: chunked" in head else 0


def answer(body: bytes, **headers: str) -> bytes:
    """A whole answer 200; `x_arm` becomes the header `x-arm`."""
    fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 200 OK\r\n{fields}content-length: {len(body)}\r\n\r\n".encode() + body


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A request as a template, which is asked every `every`-th time. `body` has one %d, the number of the request."""

    name: str
    path: str
    headers: str
    body: str

    def request(self, host: str, number: int) -> bytes:
        """The whole of it."""
        body = self.body % number
        return (
            f"POST {self.path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n{self.headers}"
            f"content-length: {len(body)}\r\n\r\n{body}"
        ).encode()


@dataclass(slots=True)
class Tally:
    """What came of requests: (kind, value of the header `told_by`, or what went wrong) → how many."""

    told_by: bytes
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)


class Client(asyncio.Protocol):
    """One connection: sends a request when it is due and the one before is answered."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[str] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def ask(self, request: bytes) -> str:
        """Who answered, or what went wrong. After the latter the connection is closed."""
        assert self._transport is not None
        self._answered = asyncio.get_running_loop().create_future()
        self._buffer = b""
        self._transport.write(request)
        timer = asyncio.get_running_loop().call_later(ANSWER_S, self._fail, "no answer")
        try:
            return await self._answered
        finally:
            timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(HEAD_END)
        if not found:
            return
        head = head.lower()
        length = length_of(head)
        if length is None:
            self._fail("a chunked answer")
        elif len(rest) >= length and self._answered is not None and not self._answered.done():
            self._answered.set_result(self._teller(head))

    def _teller(self, head: bytes) -> str:
        status = head.partition(b"\r\n")[0].decode("latin-1")
        _, found, after = head.partition(b"\r\n" + self._tally.told_by + b": ")
        return after.partition(b"\r\n")[0].decode("latin-1") if found and " 200 " in status else status

    def _fail(self, what: str) -> None:
        self.close()
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(what)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(type(exc).__name__ if exc else "connection closed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a process asks: `per_s` requests a second on `connections`, `requests` in all, of the kinds in turn."""

    host: str
    port: int
    per_s: float
    connections: int
    requests: int
    kinds: tuple[Kind, ...]
    told_by: str


def clients(pipe: Connection, load: Load) -> None:
    """A process that connects, sends "ready", and at any message begins; it sends (outcomes, seconds) at the end."""
    asyncio.run(_clients(pipe, load))


async def _clients(pipe: Connection, load: Load) -> None:
    loop = asyncio.get_running_loop()
    tally = Tally(load.told_by.encode())

    async def connect() -> Client:
        _, client = await loop.create_connection(lambda: Client(tally), load.host, load.port)
        return client

    numbers = iter(range(load.requests))
    opened = [await connect() for _ in range(load.connections)]
    pipe.send("ready")
    await asyncio.to_thread(pipe.recv)
    began_s = loop.time()

    async def work(client: Client, first: int) -> None:
        due_s = began_s + first / load.per_s
        for number in numbers:  # whoever is free takes the next one
            await asyncio.sleep(due_s - loop.time())
            due_s = max(due_s + load.connections / load.per_s, loop.time() - LATE_S)
            kind = load.kinds[number % len(load.kinds)]
            try:
                client = await connect() if client.closed else client
                told = await client.ask(kind.request(load.host, number))
            except OSError as error:
                told = type(error).__name__
            tally.outcomes[kind.name, told] += 1
        client.close()

    await asyncio.gather(*(work(client, first) for first, client in enumerate(opened)))
    seconds = loop.time() - began_s
    pipe.send((dict(tally.outcomes), seconds))
