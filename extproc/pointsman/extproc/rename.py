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

MAX_WALK_BYTES: Final = 32 * 1024 * 1024
"""Bytes of a body that are walked over: an image of 20 MB, as the largest APIs take it, in base64, with the model
behind it. It takes 4 ms for each MiB, and the others wait so long."""

MAX_BRACKETS: Final = 40_000
"""Braces and brackets that are passed over, 0.3 µs each. The longest conversations have some thousands; a body of
nothing else would hold up the others for seconds."""

MAX_MEMBERS: Final = 1_000
"""Members of the outermost object, 3 µs each; APIs know some dozens. One of nothing else would hold up the others for
seconds, too, and a thousand times the key `model` would come back many times as long as it was."""

_SPACE: Final = re.compile(rb"[ \t\n\r]*+")
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SCALAR: Final = re.compile(rb"[-+.0-9A-Za-z]++")
_FLAT: Final = re.compile(rb'[^"\[\]{}]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"\[\]{}]*+)*+', re.DOTALL)
"""What lies between two brackets: anything, and strings whole. Possessive throughout: a body that fits nowhere is given
up at once, and not tried in every other way first."""

_KEY: Final = b'"model"'
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
    """The bytes, or what may be passed over of them, ended before the object did; `bound`: the latter."""

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
    shortened = partial or len(body) > MAX_WALK_BYTES
    whole = False
    read = body if len(body) <= MAX_WALK_BYTES else body[:MAX_WALK_BYTES]
    try:
        for key, place in _members(read):
            if _is_model(key):
                places.append(place)
        whole = True
    except _CutError as cut:
        if not shortened and not cut.bound:
            return NO_MODEL
    except _CrowdedError:  # whichever of its models was found: the last one holds, and is not known
        return NamedModel(whole=False)
    except _NoObjectError:
        return NO_MODEL
    if not places:
        return NamedModel(whole=whole)
    model = _text(read[slice(*places[-1])])
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


def _members(body: bytes) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Each key of the outermost object as it is written, with where its value stands."""
    left, members = MAX_BRACKETS, 0
    at = _expect(body, len(_BOM) if body.startswith(_BOM) else 0, b"{")
    while (character := _at(body, at)) != b"}":
        members += 1
        if members > MAX_MEMBERS:
            raise _CrowdedError
        key = _STRING.match(body, at)
        if key is None:
            raise _CutError if character == _QUOTE else _NoObjectError
        start = _expect(body, _skip(body, key.end()), b":")
        end, left = _value(body, start, left)
        yield key.group(), (start, end)
        at = _skip(body, end)
        if _at(body, at) != b"}":
            at = _expect(body, at, b",")


def _value(body: bytes, start: int, left: int) -> tuple[int, int]:
    """Where a value ends, and how many brackets may still be passed over."""
    first = _at(body, start)
    if first in {b"{", b"["}:
        return _nested(body, start, left)
    found = (_STRING if first == _QUOTE else _SCALAR).match(body, start)
    if found is None:
        raise _CutError if first == _QUOTE else _NoObjectError
    return found.end(), left


def _nested(body: bytes, start: int, left: int) -> tuple[int, int]:
    """The same for an object or a list. Whether its brackets fit together is the engine's business."""
    depth, at = 0, start
    while left:
        depth += 1 if body[at] in _OPEN else -1
        at += 1
        if not depth:
            return at, left
        left -= 1
        flat = _FLAT.match(body, at)
        at = flat.end() if flat else at
        if _at(body, at) == _QUOTE:  # a text without an end
            raise _CutError
    raise _CutError(bound=True)


def _expect(body: bytes, at: int, character: bytes) -> int:
    """Behind this character, and behind the space after it."""
    at = _skip(body, at)
    if _at(body, at) != character:
        raise _NoObjectError
    return _skip(body, at + 1)


def _at(body: bytes, at: int) -> bytes:
    if at >= len(body):
        raise _CutError
    return body[at : at + 1]


def _skip(body: bytes, at: int) -> int:
    space = _SPACE.match(body, at)
    return space.end() if space else at


def _is_model(key: bytes) -> bool:
    """Also where it is written with escapes."""
    return key == _KEY or (b"\\" in key and _text(key) == "model")


def _text(raw: bytes) -> str | None:
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
