"""A manifest as it was read: plain values, and the line of every field.

Values are dict, list, str, int, float, bool and None. A field is named by its path: keys and list indices from the root
of the manifest, `("spec", "rules", 0, "name")`, written `spec.rules[0].name`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pointsman.core.errors import Problem

Path = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
_SHOWN_CHARS = 60  # long enough to recognise a value, short enough for one line of a terminal


@dataclass(slots=True)
class Mark:
    """The line (from 1) where a value or its key begins, and the marks of what it holds."""

    line: int
    items: dict[str | int, Mark] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One manifest of a file. `root` is where it stands in its YAML document: empty, or `("items", 3)` in a List."""

    file: str
    data: dict[str, Any]
    mark: Mark
    root: Path = ()

    def line(self, path: Path = ()) -> int:
        """Line of the field at `path`, or of the nearest thing around it that was written."""
        mark = self.mark
        for step in path:
            inner = mark.items.get(step)
            if inner is None:
                break
            mark = inner
        return mark.line

    def problem(self, path: Path, what: str, mend: str = "") -> Problem:
        """A problem with the field at `path`."""
        return Problem(file=self.file, line=self.line(path), field=show_path(self.root + path), what=what, mend=mend)

    def place(self, path: Path = ()) -> str:
        """`file:line`, for texts that point at another manifest."""
        return f"{self.file}:{self.line(path)}"


def show_path(path: Iterable[str | int]) -> str:
    """`spec.rules[0].name`; keys that are no plain words stand in brackets: `metadata.labels["a.b/c"]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _BARE_KEY.match(step):
            text += f".{step}" if text else step
        else:
            text += f"[{shown(step)}]"
    return text


def shown(value: object) -> str:
    """A value for an error text, on one line: strings in quotes and cut, collections by their kind."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        cut = value if len(value) <= _SHOWN_CHARS else value[: _SHOWN_CHARS - 1] + "…"
        return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in cut) + '"'
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return str(value)
