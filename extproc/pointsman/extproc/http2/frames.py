"""HTTP/2 frames (RFC 9113, sections 4 and 6): numbers, limits, and frames as bytes."""

from __future__ import annotations

import struct
from typing import Final

from pointsman.core.errors import PeerError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

HEADER_TABLE_SIZE: Final = 0x1
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6

NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
INTERNAL_ERROR: Final = 0x2
FLOW_CONTROL_ERROR: Final = 0x3
STREAM_CLOSED: Final = 0x5
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
COMPRESSION_ERROR: Final = 0x9
ENHANCE_YOUR_CALM: Final = 0xB

DEFAULT_WINDOW_BYTES: Final = 65_535
MAX_WINDOW_BYTES: Final = 2**31 - 1
DEFAULT_FRAME_BYTES: Final = 16_384
MAX_FRAME_BYTES: Final = 2**24 - 1

_HEAD: Final = struct.Struct(">HBBBL")
_UINT32: Final = struct.Struct(">L")
_SETTING: Final = struct.Struct(">HL")


class Http2Error(PeerError):
    """The peer broke HTTP/2: its connection ends with this error code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def head_at(data: bytes, at: int) -> tuple[int, int, int, int]:
    """Length, type, flags and stream of the frame whose head stands at `at`."""
    high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
    return high << 8 | low, kind, flags, stream & 0x7FFFFFFF


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """One frame. The payload must fit: the caller knows the peer's limit."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def settings_in(payload: bytes) -> list[tuple[int, int]]:
    """The settings of a frame, in order."""
    if len(payload) % _SETTING.size:
        raise Http2Error(FRAME_SIZE_ERROR, f"a SETTINGS frame of {len(payload)} bytes")
    return list(_SETTING.iter_unpack(payload))


def uint32(payload: bytes, what: str) -> int:
    """The one number of a frame."""
    if len(payload) != 4:
        raise Http2Error(FRAME_SIZE_ERROR, f"a {what} frame of {len(payload)} bytes")
    return int(_UINT32.unpack(payload)[0])


def window_update(stream: int, credit_bytes: int) -> bytes:
    """More bytes that the peer may send."""
    return frame(WINDOW_UPDATE, 0, stream, _UINT32.pack(credit_bytes))


def rst_stream(stream: int, code: int) -> bytes:
    """The end of a stream without an answer, or before its request was whole."""
    return frame(RST_STREAM, 0, stream, _UINT32.pack(code))


def goaway(last_stream: int, code: int, why: str = "") -> bytes:
    """No stream after `last_stream` was or will be looked at."""
    return frame(GOAWAY, 0, 0, _UINT32.pack(last_stream) + _UINT32.pack(code) + why.encode()[:256])


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of a DATA or HEADERS frame without its padding."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error(PROTOCOL_ERROR, "a frame that is all padding")
    return payload[1 : len(payload) - payload[0]]
