"""gRPC over our HTTP/2 against the `h2` library as a client, in memory: no socket, any cut of the bytes, any window."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, ClassVar

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.extproc.http2 import calls, connection, frames
from pointsman.extproc.http2.calls import Call, Calls
from pointsman.extproc.http2.frames import Http2Error
from pointsman.extproc.http2.header_blocks import HeaderReader, header_block

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/s/Echo"),
    (":authority", "picker"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


def grpc_message(data: bytes) -> bytes:
    return struct.pack(">BL", 0, len(data)) + data


class Echo:
    """Answers each message with itself, and `leave` with the end."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.closes = 0

    def message(self, data: bytes) -> None:
        if data == b"raise":
            raise RuntimeError("a defect")
        if data == b"leave":
            self.call.finish()
        else:
            self.call.send(data)

    def ended(self) -> None:
        self.call.finish()

    def closed(self) -> None:
        self.closes += 1


class Pair:
    """A client of `h2` and our machine, and what the client has got."""

    def __init__(self, *, window: int = 65_535, frame: int = 16_384) -> None:
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.client.initiate_connection()
        self.client.update_settings(
            {
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window,
                h2.settings.SettingCodes.MAX_FRAME_SIZE: frame,
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
            }
        )
        self.echoes: list[Echo] = []
        self.defects: list[BaseException] = []
        self.server = Calls(
            {b"/s/Echo": self._open},
            wake=lambda: None,
            on_defect=self.defects.append,
            refuse=lambda path: "",
        )
        self.data: dict[int, bytearray] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.resets: dict[int, int] = {}
        self.credit = True
        self.turn()

    def _open(self, call: Call) -> Echo:
        self.echoes.append(Echo(call))
        return self.echoes[-1]

    def open(self, headers: list[tuple[str, str]] | None = None, *, ended: bool = False) -> int:
        stream: int = self.client.get_next_available_stream_id()
        self.client.send_headers(stream, headers or HEADERS, end_stream=ended)
        return stream

    def turn(self, cut: Callable[[bytes], list[bytes]] = lambda data: [data]) -> None:
        """Bytes to and fro until both are silent."""
        while True:
            out = self.client.data_to_send()
            for piece in cut(out) if out else []:
                self.server.receive(piece)
            answer = self.server.output()
            if not out and not answer:
                return
            for event in self.client.receive_data(answer) if answer else []:
                self._event(event)

    def _event(self, event: Any) -> None:
        if isinstance(event, h2.events.DataReceived):
            self.data.setdefault(event.stream_id, bytearray()).extend(event.data)
            if self.credit:
                self.client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            self.trailers[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.StreamReset):
            self.resets[event.stream_id] = event.error_code

    def send(self, stream: int, data: bytes, *, ended: bool = False) -> None:
        """All of it, as the server's windows allow."""
        while data:
            size = min(len(data), self.client.local_flow_control_window(stream), self.client.max_outbound_frame_size)
            assert size > 0, "the server gives no credit"
            self.client.send_data(stream, data[:size])
            data = data[size:]
            self.turn()
        if ended:
            self.client.end_stream(stream)


def test_one_message_in_one_out_and_the_stream_ends() -> None:
    pair = Pair()
    stream = pair.open()
    pair.send(stream, grpc_message(b"hello") + grpc_message(b"leave"))
    pair.turn()
    assert bytes(pair.data[stream]) == grpc_message(b"hello")
    assert pair.trailers[stream] == {"grpc-status": "0"}
    assert pair.resets == {stream: frames.NO_ERROR}  # the client had not ended: it need not send the rest
    assert len(pair.server) == 0
    assert pair.echoes[0].closes == 1


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 90_000), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 5_000), min_size=1, max_size=6),
    window=st.sampled_from([1, 100, 65_535, 1_000_000]),
    frame=st.sampled_from([16_384, 70_000]),
)
def test_messages_of_any_size_come_back_whole_whatever_the_cuts_and_windows(
    sizes: list[int], cuts: list[int], window: int, frame: int
) -> None:
    if window <= 100:  # byte by byte: short ones will do
        sizes = [size % 300 for size in sizes]

    def cut(data: bytes) -> list[bytes]:
        pieces, at, turn = [], 0, 0
        while at < len(data):
            size = cuts[turn % len(cuts)]
            pieces.append(data[at : at + size])
            at, turn = at + size, turn + 1
        return pieces

    pair = Pair(window=window, frame=frame)
    streams = [pair.open() for _ in range(2)]
    pair.turn(cut)
    sent = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    for stream in streams:
        pair.send(stream, b"".join(map(grpc_message, sent)), ended=True)
        pair.turn(cut)
    for stream in streams:
        assert bytes(pair.data.get(stream, b"")) == b"".join(map(grpc_message, sent))
        assert pair.trailers[stream]["grpc-status"] == "0"
    assert len(pair.server) == 0


def test_a_client_that_reads_nothing_gets_no_credit_to_send_more() -> None:
    """An echo that is not read would else fill our memory."""
    pair = Pair(window=1_000)
    pair.credit = False
    stream = pair.open()
    pair.turn()
    sent = 0
    while (room := pair.client.local_flow_control_window(stream)) > 0:
        size = min(room, 16_000)
        pair.client.send_data(stream, grpc_message(b"x" * max(0, size - 5))[:size])
        sent += size
        pair.turn()
        assert sent < 4 * connection.MAX_WAITING_BYTES
    assert len(pair.data[stream]) == 1_000
    other = pair.open()
    pair.send(other, grpc_message(b"leave"))
    pair.turn()
    assert pair.trailers[other] == {"grpc-status": "0"}


def test_a_defect_ends_its_own_call_only() -> None:
    pair = Pair()
    bad, good = pair.open(), pair.open()
    pair.send(bad, grpc_message(b"raise"))
    pair.send(good, grpc_message(b"hello"), ended=True)
    pair.turn()
    assert pair.trailers[bad]["grpc-status"] == str(calls.INTERNAL)
    assert pair.trailers[good]["grpc-status"] == "0"
    assert [str(error) for error in pair.defects] == ["a defect"]


def test_what_is_no_call_of_ours_is_refused_by_status() -> None:
    pair = Pair()
    unknown = pair.open([(name, "/s/Other" if name == ":path" else value) for name, value in HEADERS], ended=True)
    plain = pair.open([header for header in HEADERS if header[0] != "content-type"], ended=True)
    squeezed = pair.open()
    pair.send(squeezed, b"\x01\x00\x00\x00\x02no")
    huge = pair.open()
    pair.send(huge, struct.pack(">BL", 0, calls.MAX_MESSAGE_BYTES + 1))
    pair.turn()
    statuses = {stream: int(found["grpc-status"]) for stream, found in pair.trailers.items()}
    assert statuses == {
        unknown: calls.UNIMPLEMENTED,
        plain: calls.INTERNAL,
        squeezed: calls.RESOURCE_EXHAUSTED,
        huge: calls.RESOURCE_EXHAUSTED,
    }
    assert "/s/Other" in pair.trailers[unknown]["grpc-message"]


def test_messages_that_never_become_whole_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_PARTIAL_BYTES", 100_000)
    pair = Pair()
    streams = [pair.open() for _ in range(8)]
    for stream in streams:
        pair.send(stream, struct.pack(">BL", 0, 1_000_000) + b"x" * 15_000)
        pair.turn()
    assert [stream for stream in streams if stream in pair.trailers] == streams[6:]
    pair.client.reset_stream(streams[0])
    pair.turn()
    assert pair.echoes[0].closes == 1
    late = pair.open()
    pair.send(late, struct.pack(">BL", 0, 1_000_000) + b"x" * 5_000)
    pair.turn()
    assert late not in pair.trailers


def test_refused_messages_give_back_no_more_of_the_bound_than_they_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_PARTIAL_BYTES", 1_000)
    pair = Pair()
    squeezed = pair.open()
    pair.send(squeezed, struct.pack(">BL", 1, 5_000) + b"x" * 900)
    pair.turn()
    assert squeezed in pair.trailers
    partial = pair.open()
    pair.send(partial, struct.pack(">BL", 0, 5_000) + b"x" * 1_200)
    pair.turn()
    assert pair.trailers[partial]["grpc-status"] == str(calls.RESOURCE_EXHAUSTED)


class Cut(bytes):
    """Bytes that count what is copied when parts of them are taken."""

    copied: ClassVar[int] = 0

    def __getitem__(self, part: Any) -> Any:
        found = Cut(super().__getitem__(part))
        Cut.copied += len(found)
        return found


def test_a_large_answer_is_cut_into_frames_without_copying_its_rest_for_each() -> None:
    machine = connection.Connection()
    opened = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, header_block(()))
    wide = frames.settings({frames.INITIAL_WINDOW_SIZE: 2**24}) + frames.window_update(0, 2**24)
    machine.receive(frames.PREFACE + wide + opened)
    machine.output()
    answer = Cut(bytes(range(250)) * 4_000)
    Cut.copied = 0
    machine.send_data(1, answer)
    assert Cut.copied <= len(answer)
    written, at, found = machine.output(), 0, b""
    while at < len(written):
        length = frames.head_at(written, at)[0]
        found += written[at + frames.HEAD_BYTES : at + frames.HEAD_BYTES + length]
        at += frames.HEAD_BYTES + length
    assert found == bytes(answer)


def test_what_comes_for_a_finished_stream_is_passed_over() -> None:
    pair = Pair()
    stream = pair.open()
    pair.send(stream, grpc_message(b"leave"))
    pair.turn()
    late = frames.frame(frames.DATA, 0, stream, grpc_message(b"late"))
    credit = frames.window_update(stream, 10)
    trailers = frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream, header_block(()))
    pair.server.receive(late + credit + trailers + frames.rst_stream(stream, frames.CANCEL))
    assert pair.server.output() == b""


def _after_preface(data: bytes) -> None:
    server = Calls({}, wake=lambda: None, on_defect=lambda error: None)
    server.receive(frames.PREFACE + frames.settings({}))
    server.output()
    with pytest.raises(Http2Error):
        try:
            server.receive(data)
        finally:
            assert server.output()[3] == frames.GOAWAY


HEADERS_FRAME = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, header_block(()))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frames.frame(frames.DATA, 0, 1, b"x"), id="data before headers"),
        pytest.param(frames.frame(frames.DATA, 0, 0, b"x"), id="data on stream 0"),
        pytest.param(frames.frame(frames.HEADERS, frames.END_HEADERS, 2, b""), id="even stream"),
        pytest.param(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xff\xff\xff\x7f"), id="bad HPACK"),
        pytest.param(frames.frame(frames.HEADERS, 0, 1, b"") + HEADERS_FRAME, id="headers not continued"),
        pytest.param(
            frames.frame(frames.HEADERS, 0, 1, b"") + frames.frame(frames.CONTINUATION, 0, 1, b"") * 20,
            id="headers without end",
        ),
        pytest.param(frames.frame(frames.CONTINUATION, 0, 1, b""), id="continuation of nothing"),
        pytest.param(frames.frame(frames.PUSH_PROMISE, 0, 1, b""), id="push"),
        pytest.param(frames.frame(frames.SETTINGS, 0, 1, b""), id="settings of a stream"),
        pytest.param(frames.frame(frames.SETTINGS, 0, 0, b"\0\1\0"), id="half a setting"),
        pytest.param(frames.settings({frames.MAX_FRAME_SIZE: 1}), id="frames of one byte"),
        pytest.param(frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31}), id="window of 2^31"),
        pytest.param(frames.window_update(0, 2**31 - 1), id="window overflow"),
        pytest.param(frames.window_update(0, 0), id="no credit"),
        pytest.param(frames.frame(frames.PING, 0, 0, b"short"), id="short ping"),
        pytest.param(frames.frame(frames.RST_STREAM, 0, 9, b"\0\0\0\0"), id="reset of nothing"),
        pytest.param(b"\x00\x40\x01\x00\x00\x00\x00\x00\x01", id="frame past our limit"),
        pytest.param(HEADERS_FRAME + frames.frame(frames.DATA, frames.PADDED, 1, b"\x05a"), id="all padding"),
    ],
)
def test_a_peer_that_breaks_http2_is_told_by_goaway(data: bytes) -> None:
    _after_preface(data)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=40))))
def test_any_frames_are_answered_or_end_the_connection(found: list[tuple[int, int, int, bytes]]) -> None:
    server = Calls({b"/s/Echo": Echo}, wake=lambda: None, on_defect=lambda error: None)
    data = frames.PREFACE + b"".join(frames.frame(*one) for one in found)
    try:
        server.receive(data)
    except Http2Error:
        assert server.output()
    server.lost()
    assert len(server) == 0


def test_remembered_headers_follow_the_table() -> None:
    """The same bytes name another header once the table has grown."""
    reader = HeaderReader()
    first = b"\x40" + b"\x01a" + b"\x011"  # literal, into the table: entry 62
    other = b"\x40" + b"\x01b" + b"\x012"
    assert reader.read(first) == ((b"a", b"1"),)
    assert reader.read(b"\xbe") == reader.read(b"\xbe") == ((b"a", b"1"),)
    reader.read(other)
    assert reader.read(b"\xbe") == ((b"b", b"2"),)
    assert reader.read(b"\xbf") == ((b"a", b"1"),)


HEADER = st.sampled_from(
    [(b":method", b"POST"), (b":path", b"/s/M"), (b"te", b"trailers"), (b"content-type", b"application/grpc")]
) | st.tuples(st.sampled_from([b"traceparent", b"x", b"n" * 130]), st.binary(max_size=200))


@given(st.lists(st.lists(HEADER, max_size=6), max_size=12), st.integers(0, 12), st.integers(0, 14))
def test_headers_are_read_alike_with_and_without_a_dynamic_table(
    calls: list[list[tuple[bytes, bytes]]], without_at: int, with_at: int
) -> None:
    reader, encoder = HeaderReader(), hpack.Encoder()
    for number, headers in enumerate([*calls, *calls]):
        if number == without_at:
            encoder.header_table_size = 0
        if number == with_at:
            encoder.header_table_size = 4_096
        assert reader.read(encoder.encode(headers)) == tuple(headers)


def test_a_trace_of_each_call_lets_the_other_headers_be_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, encoder, read = HeaderReader(), hpack.Encoder(), 0
    encoder.header_table_size = 0
    decode = hpack.Decoder.decode

    def counted(self: hpack.Decoder, data: bytes, raw: bool = False) -> Any:
        nonlocal read
        read += len(data)
        return decode(self, data, raw=raw)

    monkeypatch.setattr(hpack.Decoder, "decode", counted)
    for number in range(200):
        constant = [(b":path", b"/s/M"), (b"x", b"v" * 100)]
        assert reader.read(encoder.encode([*constant, (b"traceparent", b"%d" % number)]))[:2] == tuple(constant)
    assert read < 200 * len(encoder.encode(constant))


@pytest.mark.parametrize(
    "block", [b"\xbe", b"\x40\x7f\xff\xff\xff\xff\xff\xff", b"\x82\x40", b"\x82\x00\x05abc", b"\x80"]
)
def test_a_bad_block_ends_the_connection_without_a_table_too(block: bytes) -> None:
    reader = HeaderReader()
    assert reader.read(b"\x20\x82") == ((b":method", b"GET"),)
    with pytest.raises(Http2Error):
        reader.read(block)


def test_headers_past_the_limit_are_refused_however_they_come() -> None:
    reader = HeaderReader()
    value = b"v" * 100
    many = b"".join(b"\x00\x01" + bytes((97 + n,)) + bytes((len(value),)) + value for n in range(20))
    assert reader.read(b"\x20" + many)
    with pytest.raises(Http2Error):
        reader.read(many * 40)


def test_long_values_are_written_as_others_read_them() -> None:
    value = b"v" * 5_000
    assert HeaderReader().read(header_block(((b"name", value), (b"x", b"")))) == ((b"name", value), (b"x", b""))


def test_drained_connections_finish_what_they_have() -> None:
    pair = Pair()
    stream = pair.open()
    pair.turn()
    pair.server.drain()
    pair.turn()
    pair.server.receive(frames.frame(frames.DATA, frames.END_STREAM, stream, grpc_message(b"hello")))
    assert grpc_message(b"hello") in pair.server.output()
    assert len(pair.server) == 0
