"""YAML (and with it JSON) text to documents with line numbers.

The parser works on YAML events with its own stack, so depth and size are bounded before anything is built: an alias
bomb or 100,000 brackets cost nothing. Plain words mean what `kubectl` makes of them (`yes` is a boolean, a date is a
string). Refused, because they surprise: duplicate keys, merge keys, tags beyond the JSON types, anchors inside
themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from pointsman.core.config.document import Mark, shown
from pointsman.core.errors import Problem

MAX_DEPTH = 64
"""Nesting of one document. A Kubernetes object needs about 12."""
MAX_VALUES = 500_000
"""Values in one file, aliases counted as what they stand for: about 60,000 endpoints of an EndpointSlice."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, ten times as fast, where it is built in

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})\Z")
_OCTAL = re.compile(r"0o?([0-7]{1,20})\Z")
_HEX = re.compile(r"0x([0-9a-fA-F]{1,16})\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?\Z")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {
    spelling: value
    for value, words in ((True, ("true", "yes", "on")), (False, ("false", "no", "off")))
    for word in words
    for spelling in (word, word.capitalize(), word.upper())
}
_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS: dict[str, tuple[type, ...]] = {
    f"{_TAG}int": (int,),
    f"{_TAG}float": (float, int),
    f"{_TAG}bool": (bool,),
    f"{_TAG}null": (type(None),),
}
_PLAIN_TAGS = frozenset({None, "!", f"{_TAG}map", f"{_TAG}seq"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One YAML document: its value and where its parts stand."""

    value: Any
    mark: Mark


class _RefusedError(Exception):
    """The rest of the file can't be read."""

    def __init__(self, line: int, what: str, mend: str = "") -> None:
        super().__init__(what)
        self.line, self.what, self.mend = line, what, mend


def parse(text: str, file: str) -> tuple[list[Tree], list[Problem]]:
    """All documents of a file that are not empty. With problems, the documents are what could be read before them."""
    trees: list[Tree] = []
    builder = _Builder(file)
    if bad := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        return [], [Problem(file=file, line=line, field="", what=f"control character U+{ord(bad[0]):04X} in the text")]
    try:
        trees.extend(tree for tree in builder.documents(yaml.parse(text, Loader=_LOADER)) if tree.value is not None)
    except _RefusedError as refused:
        builder.problems.append(
            Problem(file=file, line=refused.line, field="", what=refused.what, mend=refused.mend),
        )
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        line = min(mark.line, text.count("\n")) + 1 if mark else 0  # the end may be counted as a line of its own
        builder.problems.append(Problem(file=file, line=line, field="", what=f"not valid YAML: {what}"))
    except yaml.YAMLError as error:
        builder.problems.append(Problem(file=file, line=0, field="", what=f"not valid YAML: {error}"))
    return trees, builder.problems


@dataclass(slots=True)
class _Frame:
    """A collection that is being read."""

    value: dict[str, Any] | list[Any]
    mark: Mark
    anchor: str | None
    count_before: int
    key: str | None = None
    key_line: int = 0


@dataclass(frozen=True, slots=True)
class _Anchored:
    value: Any
    mark: Mark
    count: int


class _Builder:
    """Makes values and marks of the events of one file."""

    def __init__(self, file: str) -> None:
        self.problems: list[Problem] = []
        self._file = file
        self._count = 0
        self._stack: list[_Frame] = []
        self._anchors: dict[str, _Anchored] = {}
        self._root: Tree | None = None

    def documents(self, events: Iterator[Any]) -> Iterator[Tree]:
        """The documents as they are completed."""
        for event in events:
            match event:
                case yaml.ScalarEvent():
                    self._scalar(event)
                case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                    self._start(event)
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    self._end()
                case yaml.AliasEvent():
                    self._alias(event)
                case yaml.DocumentStartEvent():
                    self._anchors, self._root = {}, None
                case yaml.DocumentEndEvent() if self._root is not None:
                    yield self._root
                case _:
                    pass

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        line = _line(event)
        frame = self._stack[-1] if self._stack else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            self._key(frame, event, line)
            return
        self._counted(1, line)
        value = _scalar_value(event, line)
        mark = Mark(line)
        if event.anchor:
            self._anchors[event.anchor] = _Anchored(value, mark, 1)
        self._add(value, mark)

    def _key(self, frame: _Frame, event: yaml.ScalarEvent, line: int) -> None:
        key = event.value
        if key == "<<" and event.implicit[0]:
            raise _RefusedError(line, "merge keys (<<) are not supported", "write the fields out")
        if event.tag not in {None, "!", f"{_TAG}str"} and not event.implicit[0]:
            raise _RefusedError(line, f"the tag {shown(event.tag)} can't be used on a field name")
        if key in frame.value:
            first = frame.mark.items[key].line
            self.problems.append(
                Problem(
                    file=self._file,
                    line=line,
                    field="",
                    what=f"{shown(key)} is written twice in one mapping",
                    mend=f"first on line {first}; remove one",
                )
            )
        if event.anchor:
            self._anchors[event.anchor] = _Anchored(key, Mark(line), 1)
        frame.key, frame.key_line = key, line

    def _start(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        line = _line(event)
        if event.tag not in _PLAIN_TAGS:
            raise _RefusedError(line, f"the tag {shown(event.tag)} is not supported", "remove it")
        self._no_key(line, "a collection")
        if len(self._stack) >= MAX_DEPTH:
            raise _RefusedError(line, f"nested more than {MAX_DEPTH} deep")
        value: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._stack.append(_Frame(value, Mark(line), event.anchor, self._count))
        self._counted(1, line)
        if event.anchor:
            self._anchors.pop(event.anchor, None)

    def _end(self) -> None:
        frame = self._stack.pop()
        if frame.anchor:
            self._anchors[frame.anchor] = _Anchored(frame.value, frame.mark, self._count - frame.count_before)
        self._add(frame.value, frame.mark)

    def _alias(self, event: yaml.AliasEvent) -> None:
        line = _line(event)
        self._no_key(line, "an alias")
        target = self._anchors.get(event.anchor or "")
        if target is None:
            inside = any(frame.anchor == event.anchor for frame in self._stack)
            what = "stands inside what it names" if inside else "names no anchor"
            raise _RefusedError(line, f"the alias *{event.anchor} {what}")
        self._counted(target.count, line)
        self._add(target.value, target.mark)

    def _no_key(self, line: int, what: str) -> None:
        if self._stack and isinstance(self._stack[-1].value, dict) and self._stack[-1].key is None:
            raise _RefusedError(line, f"{what} can't be a field name", "expected a word; put braces in quotes")

    def _counted(self, values: int, line: int) -> None:
        self._count += values
        if self._count > MAX_VALUES:
            raise _RefusedError(line, f"more than {MAX_VALUES} values in one file", "split the file")

    def _add(self, value: Any, mark: Mark) -> None:
        if not self._stack:
            self._root = Tree(value=value, mark=mark)
            return
        frame = self._stack[-1]
        if isinstance(frame.value, list):
            frame.mark.items[len(frame.value)] = mark
            frame.value.append(value)
        elif frame.key is not None:
            frame.mark.items[frame.key] = Mark(frame.key_line, mark.items)
            frame.value[frame.key] = value
            frame.key = None


def _line(event: yaml.NodeEvent) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _scalar_value(event: yaml.ScalarEvent, line: int) -> str | int | float | bool | None:
    if event.tag in _SCALAR_TAGS:
        value = _plain(event.value)
        if type(value) not in _SCALAR_TAGS[event.tag]:
            raise _RefusedError(line, f"{shown(event.value)} does not fit its tag {shown(event.tag)}", "remove the tag")
        return value
    if event.tag not in {None, "!", f"{_TAG}str"}:
        raise _RefusedError(line, f"the tag {shown(event.tag)} is not supported", "remove it")
    if event.tag is None and event.implicit[0]:
        return _plain(event.value)
    return event.value


def _plain(text: str) -> str | int | float | bool | None:
    """What a word without quotes means."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    return _number(text)


def _number(text: str) -> str | int | float:
    if _DECIMAL.match(text):
        return int(text)
    if octal := _OCTAL.match(text):
        return int(octal[1], 8)
    if hexadecimal := _HEX.match(text):
        return int(hexadecimal[1], 16)
    if _FLOAT.match(text) and math.isfinite(number := float(text)):
        return number
    return text
