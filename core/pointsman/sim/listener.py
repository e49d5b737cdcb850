"""A TCP port that can be closed and opened again without losing it, and connections that end with a reset."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable

from pointsman.core.errors import ConfigError, Problem

BACKLOG = 1024
"""Connections that the kernel holds while the loop is busy; a burst from a load generator must not be refused."""

_LINGER_0 = struct.pack("ii", 1, 0)


def bind(address: str, port: int, *, what: str) -> socket.socket:
    """A bound socket that does not listen yet. Raises ConfigError with `what`, address and port when it is taken."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    # Without it a port is refused while old connections are in TIME_WAIT; a listening one is refused all the same.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        raise port_error(address, port, what, error) from error
    sock.setblocking(False)
    return sock


def port_error(address: str, port: int, what: str, error: Exception) -> ConfigError:
    """The error for a port that cannot be had."""
    taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
    reason = "is in use" if taken else f"cannot be bound: {error}"
    mend = "end the program that holds it or choose another `port`; 0 takes a free one"
    return ConfigError(
        Problem(file="spec", line=0, field=what, what=f"port {port} on address {address} {reason}", mend=mend)
    )


class ReservedPort:
    """Keeps a port while nobody listens on it: connecting to a bound socket that does not listen is refused."""

    def __init__(self, address: str, port: int, *, what: str) -> None:
        self.address = address
        self.what = what
        self._holder = bind(address, port, what=what)
        self.port: int = self._holder.getsockname()[1]

    def close(self) -> None:
        """Give the port back."""
        self._holder.close()


class TcpListener:
    """Accepts connections on a reserved port, while it is open."""

    def __init__(self, reserved: ReservedPort, factory: Callable[[], asyncio.Protocol]) -> None:
        self._reserved = reserved
        self._factory = factory
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen; raises ConfigError when somebody else does."""
        if self._server is not None:
            return
        place = self._reserved
        sock = bind(place.address, place.port, what=place.what)
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._factory, sock=sock, backlog=BACKLOG)
        except OSError as error:
            sock.close()
            raise port_error(place.address, place.port, place.what, error) from error

    def close(self) -> None:
        """Stop listening; connections stay."""
        if self._server is not None:
            self._server.close()
            self._server = None


def reset(transport: asyncio.BaseTransport | None) -> None:
    """End a connection with RST at once; what was not sent is lost."""
    if not isinstance(transport, asyncio.WriteTransport) or transport.is_closing():
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
    transport.abort()
