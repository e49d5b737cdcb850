"""Header blocks (HPACK, RFC 7541): read with the package `hpack`, remembered; written without a dynamic table.

A proxy sends the same headers with every call, but for those of a trace. We ask it for no dynamic table
(`frames.HEADER_TABLE_SIZE` 0): each header then means the same whatever stood before it, so what was read once, a whole
block or a single header, is looked up. With a dynamic table every trace would shift the numbers of all entries.
Until the peer has heard so, `hpack` reads its blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Final

import hpack
from hpack import huffman_table

from pointsman.extproc.http2.frames import COMPRESSION_ERROR, Http2Error

MAX_HEADER_LIST_BYTES: Final = 64 * 1024
"""Envoy sends half a kilobyte; this leaves room for the metadata and traces of others, and bounds a hostile block."""

REMEMBERED: Final = 64
"""Blocks, and headers. A gateway has one or two blocks for each service, of a dozen headers. The first ones are kept:
those that are always the same come with the first call already."""

MAX_REMEMBERED_BYTES: Final = 1024
"""Of a block that is remembered."""

Headers = tuple[tuple[bytes, bytes], ...]

_STATIC_ENTRIES: Final = 61


class HeaderReader:
    """The header blocks of one connection, in the order in which they come."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=MAX_HEADER_LIST_BYTES)
        self._blocks: dict[bytes, Headers] = {}
        self._headers: dict[bytes, tuple[bytes, bytes]] = {}
        self._tableless = False

    def read(self, block: bytes) -> Headers:
        """The headers of a block. Raises `Http2Error`: the tables of the two sides have parted."""
        known = self._blocks.get(block)
        if known is not None:
            return known
        headers = self._looked_up(block) if self._tableless else None
        if headers is None:
            headers = self._decoded(block)
            was, self._tableless = self._tableless, self._decoder.header_table_size == 0
            if was and not self._tableless:
                self._blocks.clear()
        if self._tableless and len(self._blocks) < REMEMBERED and len(block) <= MAX_REMEMBERED_BYTES:
            self._blocks[block] = headers
        return headers

    def _decoded(self, block: bytes) -> Headers:
        try:
            return tuple((bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True))
        except hpack.HPACKError as error:
            raise Http2Error(COMPRESSION_ERROR, f"a header block that cannot be read: {error}") from error

    def _looked_up(self, block: bytes) -> Headers | None:
        """The headers one by one; None for a block with anything unusual in it."""
        found: list[tuple[bytes, bytes]] = []
        at, size = 0, 0
        while at < len(block):
            end = _end_of_header(block, at)
            if not end:
                return None
            text = block[at:end]
            header = self._headers.get(text)
            if header is None:
                header = _plain_header(text) or self._decoded(text)[0]
                if len(self._headers) < REMEMBERED:
                    self._headers[text] = header
            found.append(header)
            size += len(header[0]) + len(header[1]) + 32  # as RFC 9113 counts them
            at = end
        return tuple(found) if size <= MAX_HEADER_LIST_BYTES else None


_Step = tuple[int, bytes, bool]
"""Where a byte of Huffman code leads: the state, what it gives, and whether the text may end there."""


def _plain_header(text: bytes) -> tuple[bytes, bytes] | None:
    """A literal with a name of its own, which is what a trace is; None for all others, and for what is wrong."""
    if text[0] & 0x80 or text[0] & (0x3F if text[0] & 0x40 else 0x0F):
        return None
    end = 2 + (text[1] & 0x7F)
    name, value = _string(text[1], text[2:end]), _string(text[end], text[end + 1 :])
    return None if name is None or value is None else (name, value)


def _string(head: int, data: bytes) -> bytes | None:
    """A string literal by its first byte and the rest. By whole bytes; the package goes by half ones."""
    if not head & 0x80:
        return data
    state, may_end, parts = 0, True, []
    for byte in data:
        step = _step(state, byte)
        if step is None:
            return None
        state, given, may_end = step
        parts.append(given)
    return b"".join(parts) if may_end else None


@functools.cache  # 65,536 at most; texts of traces lead to a few hundred
def _step(state: int, byte: int) -> _Step | None:
    given = b""
    flags = 0
    for half in (byte >> 4, byte & 0x0F):
        state, flags, symbol = huffman_table.HUFFMAN_TABLE[state << 4 | half]
        if flags & huffman_table.HUFFMAN_FAIL:
            return None
        if flags & huffman_table.HUFFMAN_EMIT_SYMBOL:
            given += bytes((symbol,))
    return state, given, bool(flags & huffman_table.HUFFMAN_COMPLETE)


def _end_of_header(block: bytes, at: int) -> int:
    """Where the header at `at` ends; 0 if it is no usual one (a new table size, very long, cut)."""
    first = block[at]
    if first & 0x80:
        return at + 1 if first & 0x7F <= _STATIC_ENTRIES else 0
    if first & 0xE0 == 0x20:
        return 0
    mask = 0x3F if first & 0x40 else 0x0F
    strings = 1
    at += 1
    if first & mask == mask:  # the name is entry `mask` and what the next byte says
        if at >= len(block) or mask + block[at] > _STATIC_ENTRIES:
            return 0
        at += 1
    elif not first & mask:
        strings = 2
    for _ in range(strings):
        if at >= len(block) or block[at] & 0x7F == 0x7F:
            return 0
        at += 1 + (block[at] & 0x7F)
    return at if at <= len(block) else 0


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
