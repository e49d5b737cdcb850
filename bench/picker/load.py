"""A small load generator and a small model server, both bare protocols of asyncio, so that they cost little."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

ANSWER = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 27\r\n\r\n{"choices":[{"index":"0"}]}'


class Upstream(asyncio.Protocol):
    """Reads requests with a content-length or in chunks, and answers each at its end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._head = b""
        self._left = -1  # bytes of the body to come; -1: in the head
        self._chunked = False

    def data_received(self, data: bytes) -> None:
        while data:
            if self._chunked:
                data = self._chunks(data)
            elif self._left >= 0:
                taken = min(self._left, len(data))
                self._left -= taken
                data = data[taken:]
                if not self._left:
                    self._answer()
            else:
                data = self._headers(data)

    def _headers(self, data: bytes) -> bytes:
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            return b""
        self._head = b""
        lines = head.lower().split(b"\r\n")
        length = next((line for line in lines if line.startswith(b"content-length:")), None)
        self._chunked = any(line.startswith(b"transfer-encoding:") for line in lines)
        self._left = int(length.split(b":")[1]) if length and not self._chunked else -1
        if not self._chunked and self._left <= 0:
            self._answer()
        return rest

    def _chunks(self, data: bytes) -> bytes:
        self._head = (self._head + data)[-5:]  # the last chunk is empty
        if self._head == b"0\r\n\r\n":
            self._answer()
        return b""

    def _answer(self) -> None:
        self._left, self._chunked, self._head = -1, False, b""
        self._transport.write(ANSWER)  # type: ignore[attr-defined]


@dataclass(slots=True)
class Result:
    """What a phase of load gave. Seconds."""

    requests: int = 0
    errors: int = 0
    elapsed_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)


class _Client(asyncio.Protocol):
    """One connection: requests one after the other."""

    def __init__(self) -> None:
        self._data = b""
        self._done: asyncio.Future[bool] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        if not end or self._done is None or self._done.done():
            return
        lines = head.lower().split(b"\r\n")
        length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), None)
        if (length is not None and len(body) >= length) or (length is None and body.endswith(b"0\r\n\r\n")):
            self._data = b""
            self._done.set_result(lines[0].startswith(b"http/1.1 200"))

    def connection_lost(self, _error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError("closed"))

    async def ask(self, request: bytes) -> bool:
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(request)  # type: ignore[attr-defined]
        return await self._done


def request_of(body: bytes) -> bytes:
    """A chat request as bytes."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def closed_loop(address: tuple[str, int], requests: Sequence[bytes], *, connections: int, for_s: float) -> Result:
    """As many requests as go through `connections`, each of which asks again at once."""
    result = Result()
    loop = asyncio.get_running_loop()
    end_s = time.perf_counter() + for_s

    async def client(number: int) -> None:
        _, protocol = await loop.create_connection(_Client, *address)
        while (began_s := time.perf_counter()) < end_s:
            ok = await protocol.ask(requests[(number * 7919 + result.requests) % len(requests)])
            result.requests += 1
            result.errors += not ok
            result.latencies_s.append(time.perf_counter() - began_s)
        protocol.transport.close()

    began_s = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(connections)))
    result.elapsed_s = time.perf_counter() - began_s
    return result


async def paced(address: tuple[str, int], requests: Sequence[bytes], *, rate: float, for_s: float) -> Result:
    """Requests at fixed times, whether or not earlier ones are answered; late starts count as latency."""
    result = Result()
    loop = asyncio.get_running_loop()
    idle: list[_Client] = []

    async def one(request: bytes, due_s: float) -> None:
        if idle:
            protocol = idle.pop()
        else:
            _, protocol = await loop.create_connection(_Client, *address)
        result.errors += not await protocol.ask(request)
        result.latencies_s.append(time.perf_counter() - due_s)
        idle.append(protocol)

    began_s = time.perf_counter()
    tasks = []
    for number in range(int(rate * for_s)):
        due_s = began_s + number / rate
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(one(requests[number % len(requests)], due_s)))
    await asyncio.gather(*tasks)
    result.requests, result.elapsed_s = len(tasks), time.perf_counter() - began_s
    for protocol in idle:
        protocol.transport.close()
    return result
