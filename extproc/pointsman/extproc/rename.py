"""The model of a request body under another name: only the value changes, every other byte stays as it came.

A body is not encoded again: engines hash what they get, clients sign it, and numbers and escapes have many spellings.
So the members of the outermost object are walked over, and what is not the key `model` is passed over without being
read. What cannot be walked over stays as it is: the engine refuses it in its own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

MAX_LOOKED_AT_BYTES: Final = 8 * 1024 * 1024
"""Bytes of a body that are looked at one by one, 4 to 8 ns each. Inside of long texts only quotes are looked for, which
costs a twentieth and counts one piece: an image of 20 MB in base64 takes 2 ms."""

MAX_BRACKETS: Final = 40_000
"""Braces and brackets that are passed over, 0.3 µs each. The longest conversations have some thousands; a body of
nothing else would hold up the others for seconds."""

MAX_MEMBERS: Final = 1_000
"""Members of the outermost object, 3 µs each; APIs know some dozens. One of nothing else would hold up the others for
seconds, too, and a thousand times the key `model` would come back many times as long as it was."""

PIECE_BYTES: Final = 16 * 1024
"""What one call of the pattern matcher looks at, 0.1 ms: it lets no other thread run meanwhile."""

_JUMPS: Final = 32
"""Escaped quotes in a row that are jumped to, 0.3 µs each; where they are that dense, the pattern is faster."""

_BACKSLASHES: Final = 64
"""Backslashes before a quote that are counted at first; where there are more, twice as many, and so on."""

_SPACE: Final = re.compile(rb"[ \t\n\r]*+")
_TEXT: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SCALAR: Final = re.compile(rb"[-+.0-9A-Za-z]*+")
_FLAT: Final = re.compile(rb'[^"\[\]{}]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"\[\]{}]*+)*+', re.DOTALL)
"""What lies between two brackets: anything, and strings whole. Possessive throughout: a body that fits nowhere is given
up at once, and not tried in every other way first."""

_KEY: Final = b'"model"'
_MAX_KEY_BYTES: Final = len(r'"\u006d\u006f\u0064\u0065\u006c"')
_BOM: Final = b"\xef\xbb\xbf"
_OPEN: Final = b"{["
_QUOTE: Final = b'"'


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """The model that a body names, and where: the bytes of each value of the key, quotes included, in order.

    `whole`: the body was walked over to its end. Where it was not, and no place is known, the model may stand in the
    part that nobody looked at.
    """

    model: str = ""
    places: tuple[tuple[int, int], ...] = ()
    whole: bool = True

    @property
    def unread(self) -> bool:
        """Whether the model may stand where nobody looked."""
        return not self.places and not self.whole


NO_MODEL: Final = NamedModel()


class _CutError(Exception):
    """The bytes, or what may be looked at of them, ended before the object did; `bound`: the latter."""

    def __init__(self, *, bound: bool = False) -> None:
        super().__init__()
        self.bound = bound


class _CrowdedError(Exception):
    """The object has more members than are walked over."""


class _NoObjectError(Exception):
    """This is no JSON object."""


def find_model(body: bytes, *, partial: bool = False) -> NamedModel:
    """The model of a body; nothing where it has none, or is no JSON object. Never raises.

    A key that stands twice is taken as engines do: the last one holds, and its value must be a string. `partial`: the
    body was cut, so that its end is no fault.
    """
    places: list[tuple[int, int]] = []
    whole = False
    try:
        for key, place in _Walk(body).members():
            if _is_model(key):
                places.append(place)
        whole = True
    except _CutError as cut:
        if not partial and not cut.bound:
            return NO_MODEL
    except _CrowdedError:  # whichever of its models was found: the last one holds, and is not known
        return NamedModel(whole=False)
    except _NoObjectError:
        return NO_MODEL
    if not places:
        return NamedModel(whole=whole)
    model = _text(body[slice(*places[-1])])
    return NO_MODEL if model is None else NamedModel(model=model, places=tuple(places), whole=whole)


def renamed(body: bytes, places: Sequence[tuple[int, int]], model: str) -> bytes:
    """The body with `model` in these places."""
    value = msgspec.json.encode(model)
    parts: list[bytes] = []
    last = 0
    for start, end in places:
        parts += (body[last:start], value)
        last = end
    return b"".join([*parts, body[last:]])


class _Walk:
    """One way through the outermost object of a body, with what may still be looked at."""

    __slots__ = ("_body", "_brackets", "_bytes")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._bytes = MAX_LOOKED_AT_BYTES
        self._brackets = MAX_BRACKETS

    def members(self) -> Iterator[tuple[bytes, tuple[int, int]]]:
        """Each key as it is written, with where its value stands."""
        body, members = self._body, 0
        at = self._expect(len(_BOM) if body.startswith(_BOM) else 0, b"{")
        while (character := self._at(at)) != b"}":
            members += 1
            if members > MAX_MEMBERS:
                raise _CrowdedError
            if character != _QUOTE:
                raise _NoObjectError
            key_end = self._string(at)
            start = self._expect(key_end, b":")
            end = self._value(start)
            yield body[at : min(key_end, at + _MAX_KEY_BYTES + 1)], (start, end)
            at = self._past(_SPACE, end)
            if self._at(at) != b"}":
                at = self._expect(at, b",")

    def _value(self, start: int) -> int:
        """Where a value ends."""
        first = self._at(start)
        if first == _QUOTE:
            return self._string(start)
        if first in {b"{", b"["}:
            return self._nested(start)
        end = self._past(_SCALAR, start)
        if end == start:
            raise _NoObjectError
        return end

    def _nested(self, start: int) -> int:
        """The same for an object or a list. Whether its brackets fit together is the engine's business."""
        body, depth, at = self._body, 0, start
        while self._brackets:
            depth += 1 if body[at] in _OPEN else -1
            at += 1
            if not depth:
                return at
            self._brackets -= 1
            at = self._past(_FLAT, at)
            while self._at(at) == _QUOTE:  # a text that does not end in this piece
                at = self._past(_FLAT, self._string(at))
        raise _CutError(bound=True)

    def _string(self, start: int) -> int:
        """Behind the quote that ends the string that begins here."""
        found = _STRING.match(self._body, start, start + PIECE_BYTES)
        if found is None:
            return self._long_string(start)
        self._looked_at(found.end() - start)
        return found.end()

    def _long_string(self, start: int) -> int:
        """The same by jumps from quote to quote, while few of them are escaped."""
        body, at = self._body, start + 1
        self._looked_at(PIECE_BYTES)  # until it was known to be long
        while True:
            for _ in range(_JUMPS):
                quote = body.find(_QUOTE, at)
                if quote < 0:
                    raise _CutError
                if not _backslashes(body, at, quote) & 1:
                    return quote + 1
                at = quote + 1
            at = self._piece(_TEXT, at)
            if self._at(at) == _QUOTE:
                return at + 1

    def _past(self, pattern: re.Pattern[bytes], at: int) -> int:
        """Behind all that fits a pattern."""
        while (end := self._piece(pattern, at)) == at + PIECE_BYTES:
            at = end
        return end

    def _piece(self, pattern: re.Pattern[bytes], at: int) -> int:
        """Behind what fits a pattern, which takes the empty text, too, in one piece."""
        found = pattern.match(self._body, at, at + PIECE_BYTES)
        end = found.end() if found else at
        self._looked_at(end - at)
        return end

    def _looked_at(self, count: int) -> None:
        self._bytes -= count
        if self._bytes < 0:
            raise _CutError(bound=True)

    def _expect(self, at: int, character: bytes) -> int:
        """Behind this character, and behind the space after it."""
        at = self._past(_SPACE, at)
        if self._at(at) != character:
            raise _NoObjectError
        return self._past(_SPACE, at + 1)

    def _at(self, at: int) -> bytes:
        if at >= len(self._body):
            raise _CutError
        return self._body[at : at + 1]


def _backslashes(body: bytes, start: int, end: int) -> int:
    """How many stand right before `end`, none of them before `start`."""
    window = _BACKSLASHES
    while True:
        before = body[max(start, end - window) : end]
        count = len(before) - len(before.rstrip(b"\\"))
        if count < window:
            return count
        window *= 2


def _is_model(key: bytes) -> bool:
    """Also where it is written with escapes."""
    return key == _KEY or (b"\\" in key and len(key) <= _MAX_KEY_BYTES and _text(key) == "model")


def _text(raw: bytes) -> str | None:
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
