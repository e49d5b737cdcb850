"""Tiny HTTP/1.1 upstreams and a paced client, in processes of their own so that they cost the control plane nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from multiprocessing.connection import Connection

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
REQUEST = b"GET /v1/models HTTP/1.1\r\nhost: bench\r\n\r\n"


class _Upstream(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(b"\r\n\r\n")
        self._transport.write(ANSWER * len(whole))  # type: ignore[attr-defined]


def serve(pipe: Connection, count: int) -> None:
    """Serve on `count` ports and send them, until killed."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        servers = [await loop.create_server(_Upstream, "127.0.0.1", 0) for _ in range(count)]
        pipe.send([server.sockets[0].getsockname()[1] for server in servers])
        await asyncio.Event().wait()

    asyncio.run(main())


def load(pipe: Connection, host: str, port: int, rate: float, connections: int) -> None:
    """Ask `rate` times a second over `connections` kept connections; on any command stop and send the outcomes.

    The outcome of a request is its status line, or what went wrong; there are no retries here.
    """

    async def ask(number: int, outcomes: Counter[str], stop: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        loop = asyncio.get_running_loop()
        pause_s = connections / rate
        due_s = loop.time() + pause_s * number / connections
        while not stop.is_set():
            await asyncio.sleep(due_s - loop.time())
            due_s += pause_s
            try:
                writer.write(REQUEST)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                length = next(
                    int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
                )
                await asyncio.wait_for(reader.readexactly(length), 10)
                outcomes[head.partition(b"\r\n")[0].decode()] += 1
                closing = b"connection: close" in head.lower()
            except (OSError, EOFError, TimeoutError) as error:
                outcomes[type(error).__name__] += 1
                closing = True
            if closing:
                writer.close()
                reader, writer = await asyncio.open_connection(host, port)
        writer.close()

    async def main() -> None:
        outcomes: Counter[str] = Counter()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(pipe.fileno(), stop.set)
        began_s = loop.time()
        await asyncio.gather(*(ask(number, outcomes, stop) for number in range(connections)))
        loop.remove_reader(pipe.fileno())
        pipe.recv()
        pipe.send((dict(outcomes), loop.time() - began_s))

    asyncio.run(main())
