"""The server's side of one HTTP/2 connection without I/O: bytes in, events out; calls in, bytes out.

    the peer sends                    the machine tells                  the caller may
    HEADERS (+ CONTINUATION)          Opened(stream, headers, ended)     send_headers, send_data, finish, reset
    DATA, or trailers                 Received(stream, data, ended)      the same
    RST_STREAM                        Reset(stream)                      nothing more on this stream
    WINDOW_UPDATE, SETTINGS, PING     nothing; what waited goes out      -
    GOAWAY                            nothing; its streams go on         -

What RFC 9113 calls a connection error is raised as `Http2Error`; `output` then ends with the GOAWAY that says so.
Faults of a stream reset this stream. A stream is forgotten once its answer is out; what still comes for it is passed
over.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pointsman.extproc.http2 import frames
from pointsman.extproc.http2.frames import Http2Error
from pointsman.extproc.http2.header_blocks import MAX_HEADER_LIST_BYTES, HeaderReader, Headers

STREAM_WINDOW_BYTES: Final = 1024 * 1024
"""What a peer may send on a stream before we give credit: nearly all prompts, so that they need no second word."""

CONNECTION_WINDOW_BYTES: Final = 16 * 1024 * 1024
"""The same for all streams of a connection together."""

MAX_STREAMS: Final = 4_096
"""Streams at a time. Envoy opens another connection beyond; a picker that has so many waiting is lost anyway."""

MAX_WAITING_BYTES: Final = 1024 * 1024
"""Output of a stream that waits for the peer's window; with more of it the peer gets no credit to send us more."""


class Opened(NamedTuple):
    """A request begins. (Events are tuples: there are several for each pick, and dataclasses cost twice as much.)"""

    stream: int
    headers: Headers
    ended: bool


class Received(NamedTuple):
    """A piece of a request's body; `ended`: the last one, perhaps empty."""

    stream: int
    data: bytes
    ended: bool


class Reset(NamedTuple):
    """The peer gave up a stream."""

    stream: int


Event = Opened | Received | Reset


@dataclass(slots=True)
class _Stream:
    """A stream that is not finished. Windows in bytes."""

    window: int  # what we may send
    owed: int = 0  # what was received and not credited yet
    ended: bool = False  # by the peer
    waiting: deque[memoryview] = field(default_factory=deque)  # views: a renamed prompt is cut into a thousand frames
    waiting_bytes: int = 0
    trailers: bytes | None = None


class Connection:
    """One connection, from its preface on."""

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}
        self._last = 0
        self._reader = HeaderReader()
        self._parts: list[bytes] = []
        self._held = 0
        self._needed = len(frames.PREFACE)
        self._prefaced = False
        self._block: tuple[int, bool, list[bytes]] | None = None  # headers that go on: stream, ended, pieces
        self._window = frames.DEFAULT_WINDOW_BYTES
        self._owed = 0
        self._peer_stream_window = frames.DEFAULT_WINDOW_BYTES
        self._peer_frame = frames.DEFAULT_FRAME_BYTES
        self._events: list[Event] = []
        ours = {
            frames.HEADER_TABLE_SIZE: 0,
            frames.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            frames.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST_BYTES,
        }
        more = frames.window_update(0, CONNECTION_WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES)
        self._out = [frames.settings(ours), more]

    @property
    def open_streams(self) -> int:
        """Streams that are not finished."""
        return len(self._streams)

    def output(self) -> bytes:
        """What is to be written now; it is taken away."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def receive(self, data: bytes) -> list[Event]:
        """What some bytes of the peer mean. Raises `Http2Error`; then write `output` and close."""
        self._held += len(data)
        if self._held < self._needed:
            self._parts.append(data)
            return []
        if self._parts:
            self._parts.append(data)
            data = b"".join(self._parts)
            self._parts.clear()
        self._events = []
        try:
            at = self._read(data)
        except Http2Error as error:
            self._out.append(frames.goaway(self._last, error.code, str(error)))
            raise
        if at < len(data):
            self._parts.append(data[at:])
        self._held = len(data) - at
        return self._events

    def send_headers(self, stream_id: int, block: bytes) -> None:
        """The headers of an answer. A block must fit in one frame."""
        if stream_id in self._streams:
            self._out.append(frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, block))

    def send_data(self, stream_id: int, data: bytes) -> None:
        """A piece of an answer; it waits where the peer's windows are full."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not stream.waiting and len(data) <= min(self._window, stream.window, self._peer_frame):
            self._window -= len(data)
            stream.window -= len(data)
            self._out.append(frames.frame(frames.DATA, 0, stream_id, data))
            return
        stream.waiting.append(memoryview(data))
        stream.waiting_bytes += len(data)
        self._flush(stream_id, stream)

    def finish(self, stream_id: int, trailers: bytes) -> None:
        """The trailers of an answer, after all of its data."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.trailers = trailers
        if not stream.waiting:
            self._close(stream_id, stream)

    def reset(self, stream_id: int, code: int) -> None:
        """Give up a stream without an answer."""
        if self._streams.pop(stream_id, None) is not None:
            self._out.append(frames.rst_stream(stream_id, code))

    def go_away(self, code: int = frames.NO_ERROR) -> None:
        """Tell the peer to open its next streams elsewhere; those that are open go on."""
        self._out.append(frames.goaway(self._last, code))

    def _read(self, data: bytes) -> int:
        at = 0
        if not self._prefaced:
            if not data.startswith(frames.PREFACE):
                raise Http2Error(frames.PROTOCOL_ERROR, "no HTTP/2 preface")
            self._prefaced = True
            at = len(frames.PREFACE)
        size = len(data)
        self._needed = frames.HEAD_BYTES
        while size - at >= frames.HEAD_BYTES:
            length, kind, flags, stream_id = frames.head_at(data, at)
            if length > frames.DEFAULT_FRAME_BYTES:  # we announce no larger ones
                raise Http2Error(frames.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            begin = at + frames.HEAD_BYTES
            if begin + length > size:
                self._needed = frames.HEAD_BYTES + length
                break
            at = begin + length
            if self._block is not None and kind != frames.CONTINUATION:
                raise Http2Error(frames.PROTOCOL_ERROR, "headers that were not continued")
            self._frame(kind, flags, stream_id, data[begin:at])
        return at

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == frames.DATA:
            self._data(flags, stream_id, payload)
        elif kind == frames.HEADERS:
            self._headers(flags, stream_id, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._credit(stream_id, frames.uint32(payload, "WINDOW_UPDATE") & 0x7FFFFFFF)
        elif kind == frames.RST_STREAM:
            frames.uint32(payload, "RST_STREAM")
            self._known(stream_id, "RST_STREAM")
            if self._streams.pop(stream_id, None) is not None:
                self._events.append(Reset(stream_id))
        elif kind == frames.SETTINGS:
            self._settings(flags, stream_id, payload)
        elif kind == frames.PING:
            if stream_id or len(payload) != 8:
                raise Http2Error(frames.FRAME_SIZE_ERROR, f"a PING of {len(payload)} bytes on stream {stream_id}")
            if not flags & frames.ACK:
                self._out.append(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.CONTINUATION:
            self._continuation(flags, stream_id, payload)
        elif kind == frames.PUSH_PROMISE:
            raise Http2Error(frames.PROTOCOL_ERROR, "a client that pushes")

    def _known(self, stream_id: int, what: str) -> None:
        if not stream_id or stream_id > self._last:
            raise Http2Error(frames.PROTOCOL_ERROR, f"{what} on stream {stream_id}, which was never opened")

    def _headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = frames.unpadded(flags, payload)
        if flags & frames.HAS_PRIORITY:
            block = block[5:]
        ended = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._block_read(stream_id, ended, block)
        else:
            self._block = (stream_id, ended, [block])

    def _continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != stream_id:
            raise Http2Error(frames.PROTOCOL_ERROR, "a CONTINUATION of nothing")
        _, ended, pieces = self._block
        pieces.append(payload)
        # Each piece counts: a flood of empty ones would never end.
        if sum(map(len, pieces)) > MAX_HEADER_LIST_BYTES or len(pieces) > 16:
            raise Http2Error(frames.ENHANCE_YOUR_CALM, "headers without end")
        if flags & frames.END_HEADERS:
            self._block = None
            self._block_read(stream_id, ended, b"".join(pieces))

    def _block_read(self, stream_id: int, ended: bool, block: bytes) -> None:
        headers = self._reader.read(block)  # also where nobody wants them: the table must follow
        if stream_id > self._last:
            if not stream_id & 1:
                raise Http2Error(frames.PROTOCOL_ERROR, f"a client that opens stream {stream_id}")
            self._last = stream_id
            if len(self._streams) >= MAX_STREAMS:
                self._out.append(frames.rst_stream(stream_id, frames.REFUSED_STREAM))
                return
            self._streams[stream_id] = _Stream(self._peer_stream_window, ended=ended)
            self._events.append(Opened(stream_id, headers, ended))
            return
        self._known(stream_id, "HEADERS")
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.ended or not ended:
            self._fault(stream_id, frames.STREAM_CLOSED if stream.ended else frames.PROTOCOL_ERROR)
            return
        stream.ended = True
        self._events.append(Received(stream_id, b"", True))

    def _data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._owed += size
        if self._owed > CONNECTION_WINDOW_BYTES:
            raise Http2Error(frames.FLOW_CONTROL_ERROR, "more data than the connection's window")
        if self._owed * 2 >= CONNECTION_WINDOW_BYTES:
            self._out.append(frames.window_update(0, self._owed))
            self._owed = 0
        self._known(stream_id, "DATA")
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.ended:
            self._fault(stream_id, frames.STREAM_CLOSED)
            return
        stream.owed += size
        if stream.owed > STREAM_WINDOW_BYTES:
            self._fault(stream_id, frames.FLOW_CONTROL_ERROR)
            return
        stream.ended = bool(flags & frames.END_STREAM)
        if not stream.ended:
            self._give_credit(stream_id, stream)
        self._events.append(Received(stream_id, frames.unpadded(flags, payload), stream.ended))

    def _give_credit(self, stream_id: int, stream: _Stream) -> None:
        if stream.owed * 2 >= STREAM_WINDOW_BYTES and stream.waiting_bytes <= MAX_WAITING_BYTES:
            self._out.append(frames.window_update(stream_id, stream.owed))
            stream.owed = 0

    def _fault(self, stream_id: int, code: int) -> None:
        self.reset(stream_id, code)
        self._events.append(Reset(stream_id))

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise Http2Error(frames.PROTOCOL_ERROR, f"SETTINGS on stream {stream_id}")
        if flags & frames.ACK:
            return
        for name, value in frames.settings_in(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                if value > frames.MAX_WINDOW_BYTES:
                    raise Http2Error(frames.FLOW_CONTROL_ERROR, f"an initial window of {value} bytes")
                more = value - self._peer_stream_window
                self._peer_stream_window = value
                for stream in self._streams.values():
                    stream.window += more
                    if stream.window > frames.MAX_WINDOW_BYTES:
                        raise Http2Error(frames.FLOW_CONTROL_ERROR, "a stream's window beyond 2^31")
            elif name == frames.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME_BYTES <= value <= frames.MAX_FRAME_BYTES:
                    raise Http2Error(frames.PROTOCOL_ERROR, f"frames of at most {value} bytes")
                self._peer_frame = value
        self._out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._flush_all()

    def _credit(self, stream_id: int, credit_bytes: int) -> None:
        if not stream_id:
            if not credit_bytes or self._window + credit_bytes > frames.MAX_WINDOW_BYTES:
                raise Http2Error(frames.FLOW_CONTROL_ERROR, f"a credit of {credit_bytes} bytes for the connection")
            self._window += credit_bytes
            self._flush_all()
            return
        self._known(stream_id, "WINDOW_UPDATE")
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not credit_bytes or stream.window + credit_bytes > frames.MAX_WINDOW_BYTES:
            self._fault(stream_id, frames.FLOW_CONTROL_ERROR if credit_bytes else frames.PROTOCOL_ERROR)
            return
        stream.window += credit_bytes
        self._flush(stream_id, stream)

    def _flush_all(self) -> None:
        for stream_id, stream in list(self._streams.items()):
            if stream.waiting:
                self._flush(stream_id, stream)

    def _flush(self, stream_id: int, stream: _Stream) -> None:
        """Write what waits, as far as the windows reach."""
        while stream.waiting:
            piece = stream.waiting[0]
            size = min(len(piece), self._window, stream.window, self._peer_frame)
            if size <= 0 < len(piece):
                return
            self._out.append(frames.frame(frames.DATA, 0, stream_id, piece[:size]))
            self._window -= size
            stream.window -= size
            stream.waiting_bytes -= size
            if size == len(piece):
                stream.waiting.popleft()
            else:
                stream.waiting[0] = piece[size:]
        if stream.trailers is not None:
            self._close(stream_id, stream)
        elif not stream.ended:
            self._give_credit(stream_id, stream)

    def _close(self, stream_id: int, stream: _Stream) -> None:
        trailers = stream.trailers or b""
        self._out.append(frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream_id, trailers))
        if not stream.ended:  # the answer is whole, and nothing more is read
            self._out.append(frames.rst_stream(stream_id, frames.NO_ERROR))
        del self._streams[stream_id]
