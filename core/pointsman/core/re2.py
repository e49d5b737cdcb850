"""Does a regular expression match, as RE2 and so Envoy would say, in time linear to the text.

Python's `re` backtracks: one expression of a manifest and one header value could hold up a control plane for hours.
This is Thompson's construction over bytes: a program of at most a few hundred instructions, and the set of those that
are alive. Only whole matches are told; that is all that routes ask, and it makes lazy and greedy the same.
`pointsman.core.config.regex` says which expressions Envoy takes; of those, `\\p` classes are not read here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

MAX_INSTRUCTIONS: Final = 4_000
"""Envoy takes programs of 100; `x{1000}` in an expression that it would refuse is more than is worth a try."""

MAX_TEXT_BYTES: Final = 64 * 1024
"""Envoy's default limit of all headers together."""


class UnreadableError(ValueError):
    """The expression cannot be judged here; the message says why."""


def full_match(pattern: str, text: str) -> bool:
    """Whether the whole text matches.

    Raises:
        UnreadableError: the expression is not read here, or the text is too long.
    """
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > MAX_TEXT_BYTES:
        raise UnreadableError(f"the text has more than {MAX_TEXT_BYTES} bytes")
    program = _compile(pattern)
    alive = program.closure([program.start], data, 0)
    for position, byte in enumerate(data):
        alive = program.closure(
            [arrow for mask, arrow in program.bytes_of(alive) if mask >> byte & 1], data, position + 1
        )
        if not alive:
            return False
    return program.end in alive


_ALL: Final = (1 << 256) - 1
_NEWLINE: Final = 1 << 10


def _mask(text: str) -> int:
    return sum(1 << ord(char) for char in set(text))


def _span(low: int, high: int) -> int:
    return ((1 << (high - low + 1)) - 1) << low


_DIGIT: Final = _span(48, 57)
_LOWER: Final = _span(97, 122)
_UPPER: Final = _span(65, 90)
_WORD: Final = _DIGIT | _LOWER | _UPPER | _mask("_")
_SPACE: Final = _mask("\t\n\f\r ")
_PUNCT: Final = _span(33, 47) | _span(58, 64) | _span(91, 96) | _span(123, 126)
_CLASSES: Final = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_POSIX: Final = {
    "alnum": _DIGIT | _LOWER | _UPPER,
    "alpha": _LOWER | _UPPER,
    "ascii": _span(0, 127),
    "blank": _mask("\t "),
    "cntrl": _span(0, 31) | 1 << 127,
    "digit": _DIGIT,
    "graph": _span(33, 126),
    "lower": _LOWER,
    "print": _span(32, 126),
    "punct": _PUNCT,
    "space": _SPACE | 1 << 11,
    "upper": _UPPER,
    "word": _WORD,
    "xdigit": _DIGIT | _span(65, 70) | _span(97, 102),
}
_CONTROLS: Final = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_COUNT: Final = re.compile(r"\{(\d{1,4})(?:(,)(\d{0,4}))?\}")
_GROUP: Final = re.compile(r"\(\?(?:P?<\w+>|([imsU]*)(?:-([imsU]+))?([:)]))", re.ASCII)
_HEX: Final = re.compile(r"([0-9a-fA-F]{2})|\{0*([0-9a-fA-F]{1,6})\}")
_OCTAL: Final = re.compile(r"0[0-7]{0,2}|[1-7][0-7]{1,2}")
_POSIX_CLASS: Final = re.compile(r"\[:(\^?)([a-z]+):\]")

Assertion = Callable[[bytes, int], bool]
Fragment = tuple[int, list[int]]
"""First instruction, and those whose way on is still open."""


def _word_at(data: bytes, at: int) -> bool:
    return 0 <= at < len(data) and bool(_WORD >> data[at] & 1)


def _boundary(data: bytes, at: int) -> bool:
    return _word_at(data, at - 1) != _word_at(data, at)


_ASSERTIONS: Final[dict[str, Assertion]] = {
    "A": lambda _, at: at == 0,
    "z": lambda data, at: at == len(data),
    "b": _boundary,
    "B": lambda data, at: not _boundary(data, at),
    "^": lambda data, at: at == 0 or data[at - 1] == 10,
    "$": lambda data, at: at == len(data) or data[at] == 10,
}
"""`^` and `$` are those of (?m); without it they are \\A and \\z."""


@dataclass(slots=True)
class _Step:
    """One instruction: a byte out of `mask` (0: none is read), an assertion, ways on."""

    mask: int = 0
    holds: Assertion | None = None
    ways: tuple[int, ...] = ()


class _Program:
    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.start = 0
        self.end = 0

    def add(self, step: _Step) -> int:
        if len(self.steps) >= MAX_INSTRUCTIONS:
            raise UnreadableError("it is too large")
        self.steps.append(step)
        return len(self.steps) - 1

    def join(self, loose: list[int], to: int) -> None:
        for index in loose:
            self.steps[index].ways = (*self.steps[index].ways, to)

    def closure(self, first: list[int], data: bytes, at: int) -> frozenset[int]:
        """All instructions that are reached without reading a byte."""
        found: set[int] = set()
        stack = list(first)
        while stack:
            index = stack.pop()
            if index in found:
                continue
            step = self.steps[index]
            if step.holds is not None and not step.holds(data, at):
                continue
            found.add(index)
            if not step.mask:
                stack += step.ways
        return frozenset(found)

    def bytes_of(self, alive: frozenset[int]) -> list[tuple[int, int]]:
        return [(step.mask, step.ways[0]) for index in alive if (step := self.steps[index]).mask]


@lru_cache(maxsize=256)
def _compile(pattern: str) -> _Program:
    reader = _Reader(pattern)
    first, loose = reader.read()
    program = reader.program
    program.start = first
    program.end = program.add(_Step())
    program.join(loose, program.end)
    return program


class _Reader:
    """Recursive descent from text to instructions."""

    def __init__(self, pattern: str) -> None:
        if not pattern.isascii():
            raise UnreadableError("it has other characters than ASCII")
        self.program = _Program()
        self._text = pattern
        self._at = 0
        self._flags: frozenset[str] = frozenset()

    def read(self) -> Fragment:
        found = self._alternatives()
        if self._at < len(self._text):
            raise UnreadableError("unexpected )")
        return found

    def _next(self, length: int = 1) -> str:
        return self._text[self._at : self._at + length]

    def _alternatives(self) -> Fragment:
        flags = self._flags
        branches = [self._sequence()]
        while self._next() == "|":
            self._at += 1
            branches.append(self._sequence())
        self._flags = flags  # a flag holds to the end of its group
        if len(branches) == 1:
            return branches[0]
        fork = self.program.add(_Step(ways=tuple(first for first, _ in branches)))
        return fork, [index for _, loose in branches for index in loose]

    def _sequence(self) -> Fragment:
        empty = self.program.add(_Step())
        first, loose = empty, [empty]
        while self._next() not in {"", "|", ")"}:
            start = self._at
            flags = self._flags
            atom = self._atom()
            if atom is None:
                continue
            one, ends = self._repeated(atom, start, flags)
            self.program.join(loose, one)
            loose = ends
        return first, loose

    def _repeated(self, atom: Fragment, start: int, flags: frozenset[str]) -> Fragment:
        """The atom with what follows it; a counted one is read again as often as it is needed."""
        sign = self._next()
        count = _COUNT.match(self._text, self._at)
        if sign in {"*", "+", "?"}:
            self._at += 1
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        elif count:
            self._at = count.end()
            low = int(count[1])
            high = low if not count[2] else int(count[3]) if count[3] else None
        else:
            return atom
        end = self._at
        if self._next() == "?":
            end += 1
        copies = max(low, 1 if high is None else high)
        atoms = [atom] if copies else []
        for _ in range(copies - 1):
            self._at, kept, self._flags = start, self._flags, flags
            again = self._atom()
            self._flags = kept
            if again is None:
                raise UnreadableError("nothing to repeat")
            atoms.append(again)
        self._at = end
        return self._chain(atoms, low, high)

    def _chain(self, atoms: list[Fragment], low: int, high: int | None) -> Fragment:
        program = self.program
        first = program.add(_Step())
        loose, exits = [first], []
        for number, (one, ends) in enumerate(atoms):
            if number >= low:
                fork = program.add(_Step(ways=(one,)))
                exits.append(fork)
                program.join(loose, fork)
            else:
                program.join(loose, one)
            loose = ends
        if high is None:
            last = atoms[-1][0]
            fork = program.add(_Step(ways=(last,)))
            program.join(loose, fork)
            loose = [fork]
        return first, [*loose, *exits]

    def _atom(self) -> Fragment | None:
        char = self._next()
        match char:
            case "(":
                return self._group()
            case "[":
                return self._byte(self._char_class())
            case "\\":
                return self._escaped()
            case ".":
                self._at += 1
                return self._byte(_ALL if "s" in self._flags else _ALL & ~_NEWLINE)
            case "^" | "$":
                self._at += 1
                return self._assertion(char if "m" in self._flags else {"^": "A", "$": "z"}[char])
            case "*" | "+" | "?":
                raise UnreadableError(f"nothing to repeat before {char}")
        self._at += 1
        return self._byte(1 << ord(char))

    def _byte(self, mask: int) -> Fragment:
        if "i" in self._flags:
            mask |= (mask & _LOWER) >> 32 | (mask & _UPPER) << 32
        # A class without members reads a byte that is never there.
        index = self.program.add(_Step(mask=mask or 1 << 256))
        return index, [index]

    def _assertion(self, name: str) -> Fragment:
        index = self.program.add(_Step(holds=_ASSERTIONS[name]))
        return index, [index]

    def _group(self) -> Fragment | None:
        outer = self._flags
        if self._next(2) == "(?":
            group = _GROUP.match(self._text, self._at)
            if group is None:
                raise UnreadableError("RE2 has no look-around")
            self._at = group.end()
            flags = (self._flags | set(group[1] or "")) - set(group[2] or "")
            self._flags = flags
            if group[3] == ")":
                return None  # the flags hold from here on
        else:
            self._at += 1
        found = self._alternatives()
        self._flags = outer
        if self._next() != ")":
            raise UnreadableError("missing )")
        self._at += 1
        return found

    def _escaped(self) -> Fragment | None:
        letter = self._next(2)[1:]
        if letter in {"A", "z", "b", "B"}:
            self._at += 2
            return self._assertion(letter)
        if letter == "Q":
            return self._quoted()
        if letter == "C":
            self._at += 2
            return self._byte(_ALL)
        return self._byte(self._escape())

    def _quoted(self) -> Fragment | None:
        self._at += 2
        end = self._text.find("\\E", self._at)
        literal = self._text[self._at :] if end < 0 else self._text[self._at : end]
        self._at = len(self._text) if end < 0 else end + 2
        if len(literal) > 1 and (self._next() in {"*", "+", "?"} or _COUNT.match(self._text, self._at)):
            raise UnreadableError("a quoted text is repeated")
        first: int | None = None
        loose: list[int] = []
        for char in literal:
            index, ends = self._byte(1 << ord(char))
            self.program.join(loose, index)
            first, loose = index if first is None else first, ends
        return None if first is None else (first, loose)

    def _escape(self) -> int:
        """The bytes that one escape means; reads it."""
        letter = self._next(2)[1:]
        if not letter:
            raise UnreadableError("a \\ at the end")
        self._at += 2
        if letter.lower() in _CLASSES:
            mask = _CLASSES[letter.lower()]
            return mask if letter.islower() else _ALL & ~mask
        if letter in "pP":
            raise UnreadableError(f"the Unicode class \\{letter} is not read here")
        if letter == "x":
            found = _HEX.match(self._text, self._at)
            value = int(found[1] or found[2], 16) if found else 256
        elif letter.isdigit():
            found = _OCTAL.match(self._text, self._at - 1)
            value = int(found[0], 8) if found else 256
        elif letter.isalnum() and letter not in _CONTROLS:
            raise UnreadableError(f"RE2 has no \\{letter}")
        else:
            return 1 << _CONTROLS.get(letter, ord(letter))
        if found is None or value > 255:
            raise UnreadableError(f"bad escape \\{letter}")
        self._at = found.end()
        return 1 << value

    def _char_class(self) -> int:
        self._at += 1
        negated = self._next() == "^"
        self._at += negated
        mask, first = 0, True
        while first or self._next() != "]":
            if not self._next():
                raise UnreadableError("missing ]")
            first = False
            posix = _POSIX_CLASS.match(self._text, self._at)
            if posix:
                if posix[2] not in _POSIX:
                    raise UnreadableError("unknown class after [:")
                self._at = posix.end()
                mask |= _ALL & ~_POSIX[posix[2]] if posix[1] else _POSIX[posix[2]]
            else:
                mask |= self._members()
        self._at += 1
        if "i" in self._flags:
            mask |= (mask & _LOWER) >> 32 | (mask & _UPPER) << 32
        return _ALL & ~mask if negated else mask

    def _members(self) -> int:
        low = self._member()
        if low.bit_count() != 1 or self._next() != "-" or self._next(2)[1:] in {"]", ""}:
            return low
        self._at += 1
        high = self._member()
        if high.bit_count() != 1 or high < low:
            raise UnreadableError("bad range in a class")
        return _span(low.bit_length() - 1, high.bit_length() - 1)

    def _member(self) -> int:
        if self._next() == "\\":
            return self._escape()
        char = self._next()
        self._at += 1
        return 1 << ord(char)
