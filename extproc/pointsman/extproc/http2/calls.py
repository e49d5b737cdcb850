"""gRPC calls over one HTTP/2 connection, without I/O: messages of each call in, messages and a status out.

A method is a function that is given each new `Call` and answers with what hears of its messages; both are plain
functions that return at once. Whatever they send is in `Calls.output` when they have returned. Who sends later, when a
thread has read a body, say, calls `Call.wake`, so that somebody looks at `output`. A method that fails by a defect
loses its own call (INTERNAL) and no other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, Protocol
from urllib.parse import quote

from pointsman.extproc.http2 import frames
from pointsman.extproc.http2.connection import Connection, Event, Opened, Received
from pointsman.extproc.http2.header_blocks import Headers, header_block

OK: Final = 0
INVALID_ARGUMENT: Final = 3
NOT_FOUND: Final = 5
PERMISSION_DENIED: Final = 7
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13

MAX_MESSAGE_BYTES: Final = 128 * 1024 * 1024
"""The largest prompt (64 MiB) in one message, and room."""

MAX_PARTIAL_BYTES: Final = 256 * 1024 * 1024
"""Messages that are not whole yet, of one connection: a peer that begins many and ends none gets no further."""

_MAX_WHY: Final = 1_000
"""Characters of a reason: trailers must fit in one frame, and names in it may be a peer's."""

_PREFIX: Final = struct.Struct(">BL")
_ANSWER: Final = header_block(((b":status", b"200"), (b"content-type", b"application/grpc")))
_DONE: Final = header_block(((b"grpc-status", b"0"),))


class Heard(Protocol):
    """What a method does with one call."""

    def message(self, data: bytes) -> None:
        """One message of the caller."""

    def ended(self) -> None:
        """The caller sends no more."""

    def closed(self) -> None:
        """The call is over: finished, given up by the caller, or its connection broke. Nothing is told after it."""


class Call:
    """One call, for the method that answers it. `on_coming`, where the method sets it, hears the length in bytes of a
    message whose end is still to come, before the message itself."""

    __slots__ = (
        "_begun",
        "_calls",
        "_chunks",
        "_needed",
        "_size",
        "_stream",
        "heard",
        "metadata",
        "on_coming",
        "open",
        "wake",
    )

    def __init__(self, calls: Calls, stream: int, metadata: Headers, wake: Callable[[], None]) -> None:
        self._calls = calls
        self._stream = stream
        self.metadata = metadata
        self.wake = wake
        self.open = True
        self.heard: Heard | None = None
        self.on_coming: Callable[[int], None] | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._needed = _PREFIX.size
        self._begun = False  # the prefix of a message was read, and not all of the message is there

    def send(self, message: bytes) -> None:
        """One message to the caller; nothing happens where it left."""
        self._calls.send(self._stream, message)

    def finish(self, status: int = OK, why: str = "") -> None:
        """The end of the call; `closed` is told."""
        self._calls.finish(self._stream, status, why)

    def take(self, data: bytes) -> list[bytes]:
        """The messages that `data` makes whole. Raises `ValueError` with the reason why the call must end."""
        self._chunks.append(data)
        self._size += len(data)
        found: list[bytes] = []
        while self._size >= self._needed:
            whole = b"".join(self._chunks) if len(self._chunks) > 1 else self._chunks[0]
            if self._begun:
                found.append(whole[: self._needed])  # no copy where nothing follows, as it is with one message a call
                rest, self._needed, self._begun = whole[self._needed :], _PREFIX.size, False
            else:
                compressed, length = _PREFIX.unpack_from(whole)
                if compressed:
                    raise ValueError("a compressed message; none was offered")
                if length > MAX_MESSAGE_BYTES:
                    raise ValueError(f"a message of {length} bytes; {MAX_MESSAGE_BYTES} are the limit")
                end = _PREFIX.size + length
                if len(whole) >= end:
                    found.append(whole[_PREFIX.size : end])
                    rest = whole[end:]
                else:
                    rest, self._needed, self._begun = whole[_PREFIX.size :], length, True
                    if self.on_coming is not None:
                        self.on_coming(length)
            self._chunks, self._size = [rest] if rest else [], len(rest)
        return found

    def contained(self) -> AbstractContextManager[None]:
        """For what is done later than in a method: a defect in it ends this call, and is told."""
        return self._calls.contained(self)

    @property
    def partial_bytes(self) -> int:
        """Bytes of a message that is not whole."""
        return self._size


Method = Callable[[Call], Heard]


class _Contained(AbstractContextManager[None]):
    """Ends one call by a defect of its method, so that the others of the connection go on."""

    def __init__(self, call: Call, on_defect: Callable[[BaseException], None]) -> None:
        self._call = call
        self._on_defect = on_defect

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self._on_defect(error)
        self._call.finish(INTERNAL, "a defect of the server; its log tells more")
        return True


class Calls:
    """All calls of one connection. `methods` by path; `refuse` says why this peer may not call a path, or "";
    `on_defect` hears what a method raised."""

    def __init__(
        self,
        methods: Mapping[bytes, Method],
        *,
        wake: Callable[[], None],
        on_defect: Callable[[BaseException], None],
        refuse: Callable[[bytes], str] = lambda _path: "",
    ) -> None:
        self._connection = Connection()
        self._methods = methods
        self._wake = wake
        self._on_defect = on_defect
        self._refuse = refuse
        self._calls: dict[int, Call] = {}
        self._answered: set[int] = set()
        self._partial_bytes = 0

    def __len__(self) -> int:
        return len(self._calls)

    def output(self) -> bytes:
        """What is to be written now; it is taken away."""
        return self._connection.output()

    def receive(self, data: bytes) -> None:
        """Some bytes of the peer. Raises `Http2Error`; then write `output`, close, and tell `lost`."""
        for event in self._connection.receive(data):
            self._event(event)

    def drain(self) -> None:
        """Let the peer open no new calls here."""
        self._connection.go_away()

    def lost(self) -> None:
        """The connection is gone, and every call with it."""
        for call in list(self._calls.values()):
            self._close(call)

    def send(self, stream: int, message: bytes) -> None:
        """A message of a call that is open."""
        if stream not in self._calls:
            return
        self._answer(stream)
        prefix = _PREFIX.pack(0, len(message))
        if len(message) <= frames.DEFAULT_FRAME_BYTES:
            self._connection.send_data(stream, prefix + message)
        else:
            self._connection.send_data(stream, prefix)
            self._connection.send_data(stream, message)

    def finish(self, stream: int, status: int, why: str) -> None:
        """The status of a call that is open."""
        call = self._calls.get(stream)
        if call is None:
            return
        self._answer(stream)
        trailers = _DONE
        if status or why:
            text = quote(why[:_MAX_WHY], safe=" !#$&'()*+,/:;=?@[]")
            trailers = header_block(((b"grpc-status", b"%d" % status), (b"grpc-message", text.encode())))
        self._connection.finish(stream, trailers)
        self._close(call)

    def contained(self, call: Call) -> AbstractContextManager[None]:
        """See `Call.contained`."""
        return _Contained(call, self._on_defect)

    def _answer(self, stream: int) -> None:
        if stream not in self._answered:
            self._answered.add(stream)
            self._connection.send_headers(stream, _ANSWER)

    def _event(self, event: Event) -> None:
        if isinstance(event, Opened):
            self._open(event)
            return
        call = self._calls.get(event.stream)
        if call is None:
            return
        if isinstance(event, Received):
            self._received(call, event)
        else:
            self._close(call)

    def _open(self, event: Opened) -> None:
        path, kind = b"", b""
        for name, value in event.headers:
            if name == b":path":
                path = value
            elif name == b"content-type":
                kind = value
        call = self._calls[event.stream] = Call(self, event.stream, event.headers, self._wake)
        method = self._methods.get(path)
        if not kind.startswith(b"application/grpc"):
            call.finish(INTERNAL, "not a gRPC call")
        elif method is None:
            call.finish(UNIMPLEMENTED, f"no method {path.decode('utf-8', 'replace')}")
        elif why := self._refuse(path):
            call.finish(PERMISSION_DENIED, why)
        else:
            with self.contained(call):
                call.heard = method(call)
                if event.ended:
                    call.heard.ended()

    def _received(self, call: Call, event: Received) -> None:
        if event.data:
            self._partial_bytes -= call.partial_bytes
            try:
                messages = call.take(event.data)
            except ValueError as error:
                self._partial_bytes += call.partial_bytes  # which the end of the call takes off again
                call.finish(RESOURCE_EXHAUSTED, str(error))
                return
            self._partial_bytes += call.partial_bytes
            if self._partial_bytes > MAX_PARTIAL_BYTES:
                call.finish(RESOURCE_EXHAUSTED, "too many messages that are not whole on this connection")
                return
            with self.contained(call):
                for message in messages:
                    if call.open and call.heard is not None:
                        call.heard.message(message)
        if event.ended and call.open and call.heard is not None:
            with self.contained(call):
                call.heard.ended()

    def _close(self, call: Call) -> None:
        if not call.open:
            return
        call.open = False
        stream = call._stream
        self._partial_bytes -= call.partial_bytes
        self._calls.pop(stream, None)
        self._answered.discard(stream)
        if call.heard is not None:
            call.heard.closed()
