"""Prompts of token ids as bytes: four for each id, as a token's text has on average."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ID_BYTES = 4

MAX_IDS = 2 * 1024 * 1024
"""Ids of one prompt that are rendered, more than any engine's context window; the others are counted."""

_DIGITS = 8
"""Longest id that is read as a number: no vocabulary has a hundred million tokens."""

_GAPS = b" \t\r\n[]"
_PLAIN = b"0123456789-,"

Words = npt.NDArray[np.uint64]


def render_ids(ids: list[int]) -> bytes:
    """Four bytes for each id, little-endian; ids that no vocabulary has are folded into 32 bits."""
    try:
        return np.array(ids, dtype=np.int64).astype("<u4").tobytes()
    except OverflowError:
        return np.array([i & 0xFFFFFFFF for i in ids], dtype="<u4").tobytes()


def render_id_text(text: bytes) -> tuple[bytes, int] | None:
    """The same bytes from the JSON text of a list of ids (or of a list of such lists), and how many ids it has.

    None when it is anything else. A million ids take 15 ms here, and 100 ms as a list of Python numbers. The text must
    be valid JSON.
    """
    if text[:1] != b"[":
        return None
    flat = text.translate(None, _GAPS)
    if not flat or flat.translate(None, _PLAIN):
        return None
    digits = b"0" * _DIGITS + flat + b","
    ends = np.flatnonzero(np.frombuffer(digits, dtype=np.uint8) == ord(","))
    lengths = np.diff(ends, prepend=_DIGITS - 1) - 1
    if not lengths.all():  # an empty list among lists: two commas in a row
        ends, lengths = ends[lengths > 0], lengths[lengths > 0]
    count, ends, lengths = len(ends), ends[:MAX_IDS], lengths[:MAX_IDS]
    # The eight bytes before each comma as one word, its low bytes cleared where they belong to the id before.
    at_each_byte: Words = np.ndarray((len(digits) - _DIGITS + 1,), "<u8", digits, strides=(1,))
    words = at_each_byte[ends - _DIGITS]
    clear = (np.uint64(8) * (_DIGITS - np.minimum(lengths, _DIGITS))).astype(np.uint64)
    words = (words >> clear) << clear
    return _numbers(words).astype("<u4").tobytes(), count


def _numbers(words: Words) -> Words:
    """The numbers that eight digits each spell, first digit in the lowest byte: pairs, fours, eights."""
    words = (words & np.uint64(0x0F0F0F0F0F0F0F0F)) * np.uint64(10 * 256 + 1) >> np.uint64(8)
    words = (words & np.uint64(0x00FF00FF00FF00FF)) * np.uint64(100 * 65536 + 1) >> np.uint64(16)
    return (words & np.uint64(0x0000FFFF0000FFFF)) * np.uint64(10_000 * 2**32 + 1) >> np.uint64(32)
