"""The shell of `http2`: sockets, TLS and tasks. One event loop accepts, reads, answers in the same turn, and writes.

That a pick is answered in the turn in which its last byte was read is what makes it cheap: no task, no queue, one write
for the answers to all messages of one read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from pointsman.core.errors import PeerError
from pointsman.extproc.http2.calls import Calls, Method
from pointsman.extproc.http2.frames import Http2Error

log = structlog.get_logger()

BACKLOG: Final = 1024

ACCEPT_AGAIN_S: Final = 0.1
"""Wait after a failed accept: the process is out of file descriptors, and spinning would not free one."""

HANDSHAKE_S: Final = 10.0

Refusals = Callable[[Mapping[str, Any]], Callable[[bytes], str]]
"""From a client's certificate, as `ssl.SSLObject.getpeercert` gives it, to what says why it may not call a path."""


class PickServer:
    """Serves `methods` over HTTP/2, with prior knowledge or by TLS, on one address.

    `tls`: the context for the next connection, asked each time; None: no TLS. `refusals`: who may call what with TLS.
    """

    def __init__(
        self,
        methods: Mapping[bytes, Method],
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        self._methods = methods
        self._tls = tls
        self._refusals = refusals
        self._listening: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._greeting: set[asyncio.Task[None]] = set()
        self._connections: set[_Connection] = set()

    def listen(self, address: str, port: int, *, shared: bool) -> int:
        """Listen from now on; the port. `shared`: other processes do too. Raises OSError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.setblocking(False)
            listening.bind((address, port))
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
        self._listening = listening
        self._accepting = asyncio.create_task(self._accept(listening), name="pick server")
        return int(listening.getsockname()[1])

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, let those that run end for `grace_s`, then close."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        if self._listening is not None:
            self._listening.close()
        for task in self._greeting:
            task.cancel()
        for connection in self._connections:
            connection.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                for connection in list(self._connections):
                    await connection.idle.wait()
        for connection in list(self._connections):
            connection.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listening)
            except ConnectionError:
                continue  # it left before it was taken
            except OSError as error:
                log.warning("pick server cannot accept", error=str(error))
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            task = asyncio.create_task(self._greet(accepted))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    async def _greet(self, accepted: socket.socket) -> None:
        """Make a connection of it; with TLS that takes the client's part in a handshake."""
        options: dict[str, Any] = {}
        try:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls is not None:
                options = {"ssl": self._tls(), "ssl_handshake_timeout": HANDSHAKE_S}
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, accepted, **options)
        except (OSError, ValueError, PeerError) as error:  # `ssl.SSLError` is an OSError; the others are of the files
            log.warning("pick server: no connection", error=str(error))
            accepted.close()

    def _protocol(self) -> _Connection:
        return _Connection(self._methods, self._connections, self._refusals)


class _Connection(asyncio.Protocol):
    def __init__(
        self, methods: Mapping[bytes, Method], connections: set[_Connection], refusals: Refusals | None
    ) -> None:
        self._connections = connections
        self._methods = methods
        self._refusals = refusals
        self._transport: asyncio.Transport | None = None
        self._calls = Calls(methods, wake=self._flush, on_defect=_tell_defect)
        self.idle = asyncio.Event()
        """Set when no call is open; looked after once `drain` was called."""
        self._draining = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)
        certificate = transport.get_extra_info("peercert")
        if self._refusals is not None:
            refuse = self._refusals(certificate or {})
            self._calls = Calls(self._methods, wake=self._flush, on_defect=_tell_defect, refuse=refuse)
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            self._calls.receive(data)
        except Http2Error as error:
            peer = None if self._transport is None else self._transport.get_extra_info("peername")
            log.warning("HTTP/2 connection ended", error=str(error), peer=peer)
            self.close()
            return
        self._flush()

    def pause_writing(self) -> None:
        """The peer does not read: it gets no further answers until it does, because nothing it asks is read."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connections.discard(self)
        self._calls.lost()
        self.idle.set()

    def drain(self) -> None:
        """Let the peer open its next calls elsewhere."""
        self._draining = True
        self._calls.drain()
        self._flush()

    def close(self) -> None:
        """Write what is left and close."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        data = self._calls.output()
        if data and self._transport is not None:
            self._transport.write(data)
        if self._draining and not len(self._calls):
            self.idle.set()


def _tell_defect(error: BaseException) -> None:
    log.error("a defect ended a gRPC call", exc_info=error)
