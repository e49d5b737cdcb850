"""Does Envoy's RE2 accept a regular expression? Envoy refuses a whole route table over one that it does not.

Python's `re` can't answer: it takes look-around and back-references, which RE2 has not, and refuses `\\z` or `\\pL`,
which it has. This reads RE2's syntax (https://github.com/google/re2/wiki/Syntax) and bounds the size of the program
that RE2 makes of it. The tests compare it with a real Envoy; where the two differ, this one refuses more.

Envoy compares bytes, not characters, so `é` is two of them and no range may go past `\\xff`.
"""

from __future__ import annotations

import re
from typing import Final

MAX_PROGRAM: Final = 100
"""Instructions. Envoy's own limit, runtime key `re2.max_program_size.error_level`; a plain character is one."""
MAX_REPEAT: Final = 1000
"""RE2's bound for `{n,m}`, for the product of nested ones, too."""
MAX_NESTING: Final = 50
"""Depth of groups; RE2 allows 1,000, people stop at three."""

_FRAME = 5  # instructions around any expression: the unanchored start, match and fail
_GROUP_SIZE = 2
_CLASS_SIZES = {"d": 1, "D": 2, "w": 4, "W": 5, "s": 3, "S": 4}
_PROPERTY_SIZE = 20  # a Unicode class has at most that many byte ranges below \xff
_POSIX_SIZE = 6
_DOT_SIZE = 2  # everything below and everything above the newline
_ONE_BYTE = frozenset("aftnrvC")
_ASSERTIONS = frozenset("AzbB")
_CONTROLS = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_COUNT = re.compile(r"\{(\d+)(?:(,)(\d*))?\}")
_GROUP = re.compile(r"\(\?(?:P?<(\w+)>|([imsU]*(?:-[imsU]+)?)([:)]))", re.ASCII)
_HEX = re.compile(r"[0-9a-fA-F]{2}|\{0*([0-9a-fA-F]{1,6})\}")
_OCTAL = re.compile(r"0[0-7]{0,2}|[1-7][0-7]{1,2}")
_POSIX = re.compile(
    r"\[:\^?(?:alnum|alpha|ascii|blank|cntrl|digit|graph|lower|print|punct|space|upper|word|xdigit):\]",
)
_PROPERTY = re.compile(
    r"(?:[CLMNPSZ]|\{\^?(?:Any|C[cfos]?|L[lmotu]?|M[cen]?|N[dlo]?|P[cdefios]?|S[ckmo]?|Z[lps]?|Latin|Common)\})",
)


def re2_complaint(pattern: str) -> str:
    """Why Envoy would refuse the expression; empty if it would not."""
    try:
        _Reader(pattern).read()
    except _RefusedError as refused:
        return str(refused)
    return ""


class _RefusedError(Exception):
    pass


class _Reader:
    """Recursive descent; sizes are upper bounds of RE2's instructions."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0

    def read(self) -> None:
        """Read it all. Raises _RefusedError."""
        if not self._text.isascii():
            raise _RefusedError("Envoy compares bytes: expected ASCII, other bytes as \\xNN")
        size, _ = self._alternatives(0)
        if self._at < len(self._text):
            raise _RefusedError("unexpected )")
        if size + _FRAME > MAX_PROGRAM:
            raise _RefusedError(f"too large: about {size + _FRAME} instructions, Envoy takes {MAX_PROGRAM}")

    def _next(self, length: int = 1) -> str:
        return self._text[self._at : self._at + length]

    def _alternatives(self, depth: int) -> tuple[int, int]:
        """Read up to a closing parenthesis or the end. Returns (size, product of nested repetitions)."""
        if depth > MAX_NESTING:
            raise _RefusedError("groups are nested too deep")
        size, repeat = 1, 1
        while (char := self._next()) not in {"", ")"}:
            if char == "|":
                self._at += 1
                size += 1
                continue
            atom = self._atom(depth)
            if atom is None:
                self._nothing_to_repeat()
                continue
            atom_size, atom_repeat = self._repetition(*atom)
            size, repeat = size + atom_size, max(repeat, atom_repeat)
        return size, repeat

    def _nothing_to_repeat(self) -> None:
        if self._next() in {"*", "+", "?"} or _COUNT.match(self._text, self._at):
            raise _RefusedError(f"nothing to repeat before {self._next()}")

    def _repetition(self, size: int, repeat: int) -> tuple[int, int]:
        """Read what may follow an atom: one of `* + ? {n} {n,} {n,m}`, then `?` if it is lazy."""
        count = _COUNT.match(self._text, self._at)
        if self._next() in {"*", "+", "?"}:
            self._at += 1
            size += 1
        elif count:
            low = int(count[1][:9])
            high = low if not count[2] else int(count[3][:9]) if count[3] else low
            repeat *= max(high, 1)
            if high < low or high > MAX_REPEAT:
                raise _RefusedError(f"bad repetition {count[0]}")
            if repeat > MAX_REPEAT:
                raise _RefusedError(f"nested repetitions make more than {MAX_REPEAT}")
            self._at = count.end()
            size = (size + 1) * max(high, 1) + 1
        else:
            return size, repeat
        if self._next() == "?":
            self._at += 1
        if self._next() in {"*", "+", "?"} or _COUNT.match(self._text, self._at):
            raise _RefusedError(f"a repetition of a repetition: {self._text[self._at - 1 : self._at + 1]}")
        return size, repeat

    def _atom(self, depth: int) -> tuple[int, int] | None:
        """One thing that can be repeated; None for flags and empty quotes, which can't."""
        match self._next():
            case "(":
                return self._group(depth)
            case "[":
                return self._char_class(), 1
            case "\\":
                size = self._escape()
                return (size, 1) if size else None
            case _:
                self._nothing_to_repeat()
                size = _DOT_SIZE if self._next() == "." else 1
                self._at += 1
                return size, 1

    def _group(self, depth: int) -> tuple[int, int] | None:
        if self._next(2) == "(?":
            group = _GROUP.match(self._text, self._at)
            if group is None or (group[3] == ")" and not group[2]):
                raise _RefusedError(f"RE2 has no {self._next(3)} (look-around, atomic and conditional groups)")
            self._at = group.end()
            if group[3] == ")":
                return None
        else:
            self._at += 1
        size, repeat = self._alternatives(depth + 1)
        if self._next() != ")":
            raise _RefusedError("missing )")
        self._at += 1
        return size + _GROUP_SIZE, repeat

    def _char_class(self) -> int:
        self._at += 1
        size = 1
        if self._next() == "^":
            self._at += 1
        first = True
        while first or self._next() != "]":
            if not self._next():
                raise _RefusedError("missing ]")
            first = False
            if self._next(2) == "[:" and ":]" in self._text[self._at + 2 :]:
                posix = _POSIX.match(self._text, self._at)
                if posix is None:
                    raise _RefusedError("unknown class after [:")
                self._at = posix.end()
                size += _POSIX_SIZE
            else:
                size += self._range()
        self._at += 1
        return size

    def _range(self) -> int:
        low, size = self._class_char()
        if low is None or self._next() != "-" or self._next(2)[1:] in {"]", ""}:
            return size
        self._at += 1
        high, _ = self._class_char()
        if high is None or high < low:
            raise _RefusedError("bad range in a class")
        return 2  # upper and lower case may be two ranges under (?i)

    def _class_char(self) -> tuple[int | None, int]:
        """(byte, size) of one member of a class; the byte is None for a class in the class such as \\d."""
        char = self._next()
        if char != "\\":
            self._at += 1
            return ord(char), 1
        letter = self._next(2)[1:]
        if letter in _ASSERTIONS or letter in {"C", "Q", "E"}:
            raise _RefusedError(f"\\{letter} can't stand in a class")
        start = self._at
        size = self._escape()
        return _byte(self._text[start + 1 : self._at]), size

    def _escape(self) -> int:
        """Read one escape. Returns its size, 0 for an empty \\Q\\E."""
        letter = self._next(2)[1:]
        if not letter:
            raise _RefusedError("a \\ at the end")
        self._at += 2
        if letter in _CLASS_SIZES:
            return _CLASS_SIZES[letter]
        if letter in "pP":
            self._must_match(_PROPERTY, f"unknown Unicode class after \\{letter}")
            return _PROPERTY_SIZE
        if letter == "Q":
            return self._quoted()
        if letter == "x":
            self._must_match(_HEX, "bad \\x: expected two hexadecimal digits")
        elif letter.isdigit():
            self._at -= 1
            self._must_match(_OCTAL, f"RE2 has no back-references (\\{letter})")
        elif letter.isalnum() and letter not in _ONE_BYTE and letter not in _ASSERTIONS:
            raise _RefusedError(f"RE2 has no \\{letter}")
        return 1

    def _quoted(self) -> int:
        end = self._text.find("\\E", self._at)
        literal = self._text[self._at :] if end < 0 else self._text[self._at : end]
        self._at = len(self._text) if end < 0 else end + 2
        return len(literal)

    def _must_match(self, part: re.Pattern[str], complaint: str) -> None:
        found = part.match(self._text, self._at)
        if found is None:
            raise _RefusedError(complaint)
        self._at = found.end()
        if part is _HEX and int(found[0].strip("{}"), 16) > 0xFF:
            raise _RefusedError(f"\\x{found[0]} is more than a byte")
        if part is _OCTAL and int(found[0], 8) > 0xFF:
            raise _RefusedError(f"\\{found[0]} is more than a byte")


def _byte(escape: str) -> int | None:
    """The value of an escape without its backslash; None for a class."""
    letter = escape[0]
    if letter in _CLASS_SIZES or letter in "pP":
        return None
    if letter == "x":
        return int(escape[1:].strip("{}"), 16)
    if letter.isdigit():
        return int(escape, 8)
    return _CONTROLS.get(letter, ord(letter))
