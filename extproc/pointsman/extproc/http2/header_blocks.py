"""Header blocks (HPACK, RFC 7541): read with the package `hpack`, remembered; written without a dynamic table.

A proxy sends the same headers with every call. After the first one they are in the dynamic table, so a block is a dozen
bytes that each name an entry. Such a block means the same as long as the table does not change, and only a block with
something else than such bytes can change it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import hpack

from pointsman.extproc.http2.frames import COMPRESSION_ERROR, Http2Error

MAX_HEADER_LIST_BYTES: Final = 64 * 1024
"""Envoy sends half a kilobyte; this leaves room for the metadata and traces of others, and bounds a hostile block."""

REMEMBERED: Final = 64
"""Blocks of one table state. A gateway has one or two for each service; more are not worth the memory."""

Headers = tuple[tuple[bytes, bytes], ...]

_ENTRIES: Final = bytes(range(0x81, 0xFF))  # one byte each: an entry of the table, which stays as it is


class HeaderReader:
    """The header blocks of one connection, in the order in which they come."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=MAX_HEADER_LIST_BYTES)
        self._known: dict[bytes, Headers] = {}

    def read(self, block: bytes) -> Headers:
        """The headers of a block. Raises `Http2Error`: the tables of the two sides have parted."""
        known = self._known.get(block)
        if known is not None:
            return known
        try:
            headers = tuple((bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True))
        except hpack.HPACKError as error:
            raise Http2Error(COMPRESSION_ERROR, f"a header block that cannot be read: {error}") from error
        if block.translate(None, _ENTRIES) or len(self._known) >= REMEMBERED:
            self._known.clear()
        else:
            self._known[block] = headers
        return headers


def header_block(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block of literals that are to be in no table, so it is the same for every connection."""
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in headers)


def _text(value: bytes) -> bytes:
    size = len(value)
    if size < 0x7F:
        return bytes((size,)) + value
    parts = bytearray(b"\x7f")
    size -= 0x7F
    while size >= 0x80:
        parts.append(size & 0x7F | 0x80)
        size >>= 7
    parts.append(size)
    return bytes(parts) + value
