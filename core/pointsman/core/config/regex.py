"""Does RE2 accept a regular expression? Envoy refuses a whole route table over one that it does not.

Python's `re` can't answer: it takes look-around and back-references, which RE2 has not, and refuses `\\z` or `\\p{L}`, which
it has. This is a reader of RE2's syntax (https://github.com/google/re2/wiki/Syntax) that builds nothing; it is compared with
a real Envoy in the tests. Where it is unsure about size, it is stricter than RE2.
"""

from __future__ import annotations

import re
import unicodedata

MAX_REPEAT = 1000
"""RE2's bound for `{n,m}`, for the product of nested ones, too."""
MAX_SIZE = 10_000
"""Bound for the expanded expression in characters and classes; RE2 gives up at 8 MiB of program."""
MAX_NESTING = 50
"""Depth of groups; RE2 allows 1,000, people stop at three."""

_CLASS_LETTERS = frozenset("dswDSW")
_PLAIN_ESCAPES = frozenset("aftnrv")
_ASSERTIONS = frozenset("AzbB")
_UNICODE_WEIGHT = 40  # a class of Unicode letters is hundreds of UTF-8 byte ranges
_COUNT = re.compile(r"\{(\d+)(?:(,)(\d*))?\}")
_GROUP = re.compile(r"\(\?(?:P?<([^>]*)>|([imsU]*(?:-[imsU]+)?)([:)]))")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_POSIX = re.compile(
    r"\[:\^?(?:alnum|alpha|ascii|blank|cntrl|digit|graph|lower|print|punct|space|upper|word|xdigit):\]",
)
_GENERAL_CATEGORIES = frozenset(
    {"Any", *"CLMNPSZ"} | {unicodedata.category(chr(c)) for c in range(0x3000)} | {"Cs", "Co", "Zl", "Zp"} - {"Cn"},
) - {"Cn"}
_SCRIPTS = frozenset(
    {"Arabic", "Armenian", "Cyrillic", "Devanagari", "Greek", "Han", "Hangul", "Hebrew", "Hiragana"}
) | {
    "Katakana",
    "Latin",
    "Thai",
    "Common",
}


def re2_complaint(pattern: str) -> str:
    """Why RE2 would refuse the expression; empty if it would not."""
    try:
        _Reader(pattern).read()
    except _RefusedError as refused:
        return str(refused)
    return ""


class _RefusedError(Exception):
    pass


class _Reader:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._names: set[str] = set()

    def read(self) -> None:
        size, _ = self._alternatives(0)
        if self._at < len(self._text):
            raise _RefusedError("unexpected )")
        if size > MAX_SIZE:
            raise _RefusedError("the expression is too large")

    def _alternatives(self, depth: int) -> tuple[int, int]:
        """Read up to a closing parenthesis. Returns (size, product of nested repetitions)."""
        if depth > MAX_NESTING:
            raise _RefusedError("groups are nested too deep")
        size, repeat = 1, 1
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == ")":
                break
            if char == "|":
                self._at += 1
                continue
            atom = self._atom(depth)
            if atom is None:  # flags such as (?i) for the rest of the group; nothing that can be repeated
                self._not_repeated()
                continue
            atom_size, atom_repeat = self._repetition(*atom)
            size, repeat = size + atom_size, max(repeat, atom_repeat)
            if size > MAX_SIZE * 10:
                raise _RefusedError("the expression is too large")
        return size, repeat

    def _not_repeated(self) -> None:
        if self._at < len(self._text) and (self._text[self._at] in "*+?" or _COUNT.match(self._text, self._at)):
            raise _RefusedError(f"nothing to repeat before {self._text[self._at]}")

    def _repetition(self, size: int, repeat: int) -> tuple[int, int]:
        """Read what follows an atom: one of `* + ? {n,m}`, lazy or not."""
        seen = False
        while self._at < len(self._text):
            char = self._text[self._at]
            if char in "*+?":
                self._at += 1
                low = high = 1
            elif count := _COUNT.match(self._text, self._at):
                low = int(count[1][:9])
                high = low if not count[2] else int(count[3][:9]) if count[3] else max(low, 1)
                if low > MAX_REPEAT or high > MAX_REPEAT or high < low:
                    raise _RefusedError(f"bad repetition {count[0]}")
                self._at = count.end()
            else:
                break
            if seen:
                raise _RefusedError(f"a repetition of a repetition: {self._text[self._at - 2 : self._at]}")
            seen = True
            if self._text[self._at : self._at + 1] == "?":
                self._at += 1
            size, repeat = size * max(high, 1), repeat * max(high, low, 1)
            if repeat > MAX_REPEAT:
                raise _RefusedError(f"nested repetitions make more than {MAX_REPEAT}")
        return size, repeat

    def _atom(self, depth: int) -> tuple[int, int] | None:
        char = self._text[self._at]
        if char == "(":
            return self._group(depth)
        if char == "[":
            return self._char_class(), 1
        if char == "\\":
            return self._escape(in_class=False), 1
        if char in "*+?" or _COUNT.match(self._text, self._at):
            raise _RefusedError(f"nothing to repeat before {char}")
        self._at += 1
        return 1, 1

    def _group(self, depth: int) -> tuple[int, int] | None:
        if self._text.startswith("(?", self._at):
            group = _GROUP.match(self._text, self._at)
            if group is None:
                shown = self._text[self._at : self._at + 4]
                raise _RefusedError(f"RE2 has no {shown}… (look-around, back-references and atomic groups)")
            if group[1] is not None:
                if not _NAME.match(group[1]) or group[1] in self._names:
                    raise _RefusedError(f"bad or repeated group name {group[1]}")
                self._names.add(group[1])
            elif group[3] == ")":
                if not group[2]:
                    raise _RefusedError("missing argument to repetition in (?)")
                self._at = group.end()
                return None
            self._at = group.end()
        else:
            self._at += 1
        inner = self._alternatives(depth + 1)
        if self._at >= len(self._text):
            raise _RefusedError("missing )")
        self._at += 1
        return inner

    def _char_class(self) -> int:
        self._at += 1
        if self._text.startswith("^", self._at):
            self._at += 1
        size, first = 1, True
        while True:
            if self._at >= len(self._text):
                raise _RefusedError("missing ]")
            char = self._text[self._at]
            if char == "]" and not first:
                self._at += 1
                return size
            if char == "-" and not first and self._text[self._at + 1 : self._at + 2] not in {"]", ""}:
                raise _RefusedError("bad range with - in a class; put the - first or last, or escape it")
            first = False
            if self._text.startswith("[:", self._at) and ":]" in self._text[self._at + 2 :]:
                posix = _POSIX.match(self._text, self._at)
                if posix is None:
                    raise _RefusedError(f"unknown class {self._text[self._at : self._text.index(':]', self._at) + 2]}")
                self._at = posix.end()
                continue
            size += self._class_item()

    def _class_item(self) -> int:
        low, size = self._class_char()
        if not (self._text.startswith("-", self._at) and self._text[self._at + 1 : self._at + 2] not in {"]", ""}):
            return size
        if low is None:
            return size
        self._at += 1
        high, _ = self._class_char()
        if high is None or high < low:
            raise _RefusedError("bad range in a class")
        return size

    def _class_char(self) -> tuple[int | None, int]:
        """One character of a class as a code point; None for a class escape such as \\d."""
        if self._text[self._at] != "\\":
            self._at += 1
            return ord(self._text[self._at - 1]), 1
        start = self._at
        size = self._escape(in_class=True)
        return _code_point(self._text[start : self._at]), size

    def _escape(self, *, in_class: bool) -> int:
        """Read one escape; returns its size."""
        self._at += 1
        if self._at >= len(self._text):
            raise _RefusedError("a \\ at the end")
        char = self._text[self._at]
        self._at += 1
        if char in _CLASS_LETTERS or char in _PLAIN_ESCAPES or (char in _ASSERTIONS and not in_class):
            return 1
        if char in "pP":
            return self._property()
        if char == "x":
            return self._hexadecimal()
        if char == "Q" and not in_class:
            end = self._text.find("\\E", self._at)
            literal = self._text[self._at :] if end < 0 else self._text[self._at : end]
            self._at = len(self._text) if end < 0 else end + 2
            return len(literal) + 1
        if char == "C" and not in_class:
            return 1
        if char == "0" or (char in "1234567" and self._text[self._at : self._at + 1] in set("01234567")):
            if char != "0" and not self._text[self._at : self._at + 1]:
                raise _RefusedError(f"RE2 has no back-references (\\{char})")
            while len(self._text) > self._at and self._text[self._at] in "01234567" and self._octal_room(char):
                self._at += 1
            return 1
        if char.isdigit():
            raise _RefusedError(f"RE2 has no back-references (\\{char})")
        if char.isascii() and (not char.isalnum()) and char != "_":
            return 1
        if char == "_":
            return 1
        raise _RefusedError(f"RE2 has no \\{char}")

    def _octal_room(self, _first: str) -> bool:
        start = self._text.rindex("\\", 0, self._at)
        return self._at - start < 4

    def _hexadecimal(self) -> int:
        found = re.compile(r"[0-9a-fA-F]{2}|\{([0-9a-fA-F]{1,8})\}").match(self._text, self._at)
        if found is None or (found[1] and int(found[1], 16) > 0x10FFFF):
            raise _RefusedError("bad \\x: expected two digits, or up to 10FFFF in braces")
        self._at = found.end()
        return 1

    def _property(self) -> int:
        found = re.compile(r"\{\^?([A-Za-z_]+)\}|([A-Z])").match(self._text, self._at)
        name = (found[1] or found[2]) if found else ""
        if found is None or (name not in _GENERAL_CATEGORIES and name not in _SCRIPTS):
            raise _RefusedError(f"unknown Unicode class \\p{name and '{' + name + '}'}")
        self._at = found.end()
        return _UNICODE_WEIGHT


def _code_point(escape: str) -> int | None:
    letter = escape[1]
    if letter in "dswDSWpP":
        return None
    if letter == "x":
        return int(escape[2:].strip("{}"), 16)
    if letter.isdigit():
        return int(escape[1:], 8)
    return {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}.get(letter, ord(letter))
