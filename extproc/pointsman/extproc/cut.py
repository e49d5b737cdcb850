"""A JSON object whose end is missing, made whole again: the proxy cuts bodies at its buffer limit, we at our bounds."""

from __future__ import annotations

import re

MAX_DEPTH = 64
"""Open brackets that a cut body may have to be read; real requests have fewer than ten."""

MAX_CUT_TOKENS = 100_000
"""Strings, brackets, commas and colons of a cut body that are looked at, 20 ms of work; the text ends behind them. A
megabyte of chat has a few thousand."""

MAX_ESCAPES = 1_000_000
"""Escapes of one text that are looked at, 20 ms of work; the text ends behind them. 8 MB of source code have fewer."""

_STRUCTURE = re.compile(rb"[\"{}\[\],:]")
_INSIDE = re.compile(rb"[^\"\\]*+(?:\\.[^\"\\]*+){0,%d}+" % MAX_ESCAPES, re.DOTALL)
_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_ASCII = bytes(range(0x80))
_CLOSING = {b"{": b"}", b"[": b"]"}


def close_json(cut: bytes) -> bytes | None:
    """The beginning of a JSON object made whole: an open string value ends at the cut, a half member is dropped.

    It ends early behind `MAX_CUT_TOKENS`. None when it nests deeper than `MAX_DEPTH` or its brackets do not match.
    """
    open_brackets: list[bytes] = []
    last = b""  # the structural token before this one
    end = 0  # where all before is whole
    position = 0
    for _ in range(MAX_CUT_TOKENS):
        match = _STRUCTURE.search(cut, position)
        if match is None:
            break
        token, position = match[0], match.end()
        if token == b'"':
            start, position = position, _INSIDE.match(cut, position).end()  # type: ignore[union-attr] # matches nothing
            is_value = last == b":" or (open_brackets[-1:] == [b"["] and last in (b"[", b","))
            if cut.startswith(b'"', position):
                position += 1
                end = position if is_value else end
                continue
            if is_value:
                return cut[:start] + _whole_text(cut[start:position]) + b'"' + _closers(open_brackets)
            break
        if token in (b"{", b"["):
            open_brackets.append(token)
            end = position
        elif token in (b"}", b"]"):
            if not open_brackets or _CLOSING[open_brackets.pop()] != token:
                return None
            end = position
        elif token == b",":
            end = match.start()
        if len(open_brackets) > MAX_DEPTH:
            return None
        last = token
    # Every bracket, comma and text has moved `end`, so what is open now was open there.
    return cut[:end] + _closers(open_brackets) if end else None


def _closers(open_brackets: list[bytes]) -> bytes:
    return b"".join(_CLOSING[bracket] for bracket in reversed(open_brackets))


def _is_escaped(text: bytes, start: int, position: int) -> bool:
    """True when an odd number of backslashes stands between `start` and `position`, right before the latter."""
    window = text[max(start, position - 32) : position]
    kept = len(window.rstrip(b"\\"))
    if kept == 0 and position - start > len(window):
        window = text[start:position]
        kept = len(window.rstrip(b"\\"))
    return (len(window) - kept) % 2 == 1


def _whole_text(text: bytes) -> bytes:
    """The inside of a JSON string up to a cut, without a half `\\u12`, surrogate pair or UTF-8 sequence at its end."""
    slash = text.rfind(b"\\", max(0, len(text) - 5))
    if slash >= 0 and text.startswith(b"u", slash + 1) and not _is_escaped(text, 0, slash):
        text = text[:slash]
    high = _HIGH_SURROGATE.search(text, max(0, len(text) - 6))
    if high is not None and not _is_escaped(text, 0, high.start()):
        text = text[: high.start()]
    return text.decode("utf-8", "ignore").encode() if text[-4:].translate(None, _ASCII) else text
