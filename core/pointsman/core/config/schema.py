"""Plain values to msgspec structs, with every problem named by its field.

`msgspec.convert` stops at the first error and writes list indices as `[...]`; an operator with a long file wants all of
them, with their places. So the struct types are the schema, and this module walks value and type side by side.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, ClassVar

import msgspec
from msgspec import inspect

from pointsman.core.config.document import Document, Path, shown
from pointsman.core.errors import Problem

Complaint = tuple[str, str]
"""What is wrong with a value, and how to mend it."""
Check = Callable[[str], Complaint | None]
"""A rule for a string; rules stand in `Annotated[str, rule(...)]`."""


class Fields(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A mapping with known fields, written in camelCase in manifests.

    `not_yet` names fields that the API has and Pointsman does not act on: they are refused rather than ignored.
    """

    not_yet: ClassVar[frozenset[str]] = frozenset()

    def complaints(self) -> Iterable[tuple[Path, str, str]]:
        """Rules between the fields of one mapping: (path below it, what, mend)."""
        return ()


def rule(check: Check) -> msgspec.Meta:
    """Annotation of a string type with a rule."""
    return msgspec.Meta(extra={"check": check})


def not_yet(*values: str) -> msgspec.Meta:
    """Annotation of a choice with values that the API has and Pointsman does not support yet."""
    return msgspec.Meta(extra={"not_yet": frozenset(values)})


class _Invalid:
    """Stands for a value whose problems have been reported."""


_INVALID = _Invalid()


def read(document: Document, struct: type[Fields]) -> tuple[Any, list[Problem]]:
    """The document as a `struct` (None if it does not fit) and everything that is wrong with it."""
    walk = _Walk(document)
    value = walk.value(document.data, _type_of(struct), ())
    return (None if value is _INVALID else value), walk.problems


def suggest(word: str, known: Iterable[str]) -> str:
    """`did you mean "x"?` for the most similar known word, else the list of them."""
    words = sorted(known)
    if close := difflib.get_close_matches(word, words, n=1, cutoff=0.6):
        return f"did you mean {shown(close[0])}?"
    lower = {w.lower(): w for w in words}
    if close := difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6):
        return f"did you mean {shown(lower[close[0]])}?"
    return f"expected {'one of ' if len(words) > 1 else ''}{', '.join(words)}" if words else ""


@cache
def _type_of(struct: type[Fields]) -> inspect.Type:
    return inspect.type_info(struct)


class _Walk:
    """One pass over one document."""

    def __init__(self, document: Document) -> None:
        self.problems: list[Problem] = []
        self._document = document

    def _bad(self, path: Path, what: str, mend: str = "") -> _Invalid:
        self.problems.append(self._document.problem(path, what, mend))
        return _INVALID

    def value(self, value: Any, kind: inspect.Type, path: Path) -> Any:
        """The value as `kind`, or `_INVALID` after the problem was noted."""
        match kind:
            case inspect.Metadata(type=inner, extra=extra):
                result = self._annotated(value, inner, extra or {}, path)
            case inspect.StructType():
                result = self._struct(value, kind, path)
            case inspect.VarTupleType():
                result = self._list(value, kind, path)
            case inspect.DictType():
                result = self._dict(value, kind, path)
            case inspect.UnionType(types=types):  # only ever `X | None`
                result = self.value(value, next(t for t in types if not isinstance(t, inspect.NoneType)), path)
            case inspect.LiteralType():
                result = self._choice(value, kind, path)
            case inspect.StrType():
                result = self._string(value, kind, path)
            case inspect.IntType() | inspect.FloatType():
                result = self._number(value, kind, path)
            case inspect.BoolType():
                result = value if isinstance(value, bool) else self._unexpected(value, "true or false", path)
            case _:  # Any: nothing of it is read
                result = value
        return result

    def _annotated(self, value: Any, kind: inspect.Type, extra: dict[str, Any], path: Path) -> Any:
        if isinstance(value, str) and value in extra.get("not_yet", ()):
            return self._bad(path, f"{shown(value)} is not supported yet", _choices(kind))
        check: Check | None = extra.get("check")
        if check is None:
            return self.value(value, kind, path)
        if _is_number(value) and (complaint := check(str(value))):
            return self._bad(path, *complaint)  # quotes alone would not mend it
        result = self.value(value, kind, path)
        if not isinstance(result, str) or (complaint := check(result)) is None:
            return result
        return self._bad(path, *complaint)

    def _unexpected(self, value: Any, expected: str, path: Path) -> _Invalid:
        return self._bad(path, f"found {shown(value)}", f"expected {expected}")

    def _choice(self, value: Any, kind: inspect.LiteralType, path: Path) -> Any:
        if not isinstance(value, str):
            return self._bad(path, f"found {shown(value)}", _choices(kind))
        choices = [str(choice) for choice in kind.values]
        return value if value in choices else self._bad(path, f"found {shown(value)}", suggest(value, choices))

    def _string(self, value: Any, kind: inspect.StrType, path: Path) -> Any:
        if not isinstance(value, str):
            quotes = "; put it in quotes" if isinstance(value, bool) or _is_number(value) else ""
            return self._unexpected(value, f"a string{quotes}", path)
        if kind.min_length and not value:
            return self._bad(path, "is empty", "expected a value")
        if kind.max_length is not None and len(value) > kind.max_length:
            return self._bad(path, f"has {len(value)} characters", f"expected at most {kind.max_length}")
        return value

    def _number(self, value: Any, kind: inspect.IntType | inspect.FloatType, path: Path) -> Any:
        whole = isinstance(kind, inspect.IntType)
        if not _is_number(value) or (whole and isinstance(value, float)):
            return self._bad(path, f"found {shown(value)}", _expectation(kind))
        if (kind.ge is not None and value < kind.ge) or (kind.le is not None and value > kind.le):
            return self._bad(path, f"found {shown(value)}", _expectation(kind))
        return value if whole else float(value)

    def _list(self, value: Any, kind: inspect.VarTupleType, path: Path) -> Any:
        if not isinstance(value, list):
            return self._bad(path, f"found {shown(value)}", "expected a list")
        if kind.min_length and len(value) < kind.min_length:
            return self._bad(path, "is empty", "expected at least one entry")
        if kind.max_length is not None and len(value) > kind.max_length:
            return self._bad(path, f"has {len(value)} entries", f"expected at most {kind.max_length}")
        items = tuple(self.value(item, kind.item_type, (*path, index)) for index, item in enumerate(value))
        return _INVALID if _INVALID in items else items

    def _dict(self, value: Any, kind: inspect.DictType, path: Path) -> Any:
        if not isinstance(value, dict):
            return self._bad(path, f"found {shown(value)}", "expected a mapping")
        result = {key: self.value(item, kind.value_type, (*path, key)) for key, item in value.items()}
        return _INVALID if any(item is _INVALID for item in result.values()) else result

    def _struct(self, value: Any, kind: inspect.StructType, path: Path) -> Any:
        if not isinstance(value, dict):
            return self._bad(path, f"found {shown(value)}", "expected a mapping")
        struct = kind.cls
        assert issubclass(struct, Fields)
        known = {f.encode_name: f for f in kind.fields}
        good = True
        for key in value:
            if key in struct.not_yet:
                good = False
                self._bad((*path, key), "not supported yet", "remove it")
            elif key not in known:
                good = False
                self._bad((*path, key), "unknown field", suggest(key, known.keys() | struct.not_yet))
        found: dict[str, Any] = {}
        for name, field in known.items():
            given = value.get(name)
            if given is not None:
                found[field.name] = self.value(given, field.type, (*path, name))
                good = good and found[field.name] is not _INVALID
            elif field.required:
                good = False
                self._bad((*path, name), "is missing", _expectation(field.type))
        if not good:
            return _INVALID
        result = struct(**found)
        for below, what, mend in result.complaints():
            good = False
            self._bad(path + below, what, mend)
        return result if good else _INVALID


def _choices(kind: inspect.Type) -> str:
    values = [str(value) for value in kind.values if value] if isinstance(kind, inspect.LiteralType) else []
    return f"expected {'one of ' if len(values) > 1 else ''}{', '.join(values)}" if values else ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if low is not None:
        return f" of at least {low}"
    return f" of at most {high}" if high is not None else ""


def _expectation(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata(type=inner):
            return _expectation(inner)
        case inspect.LiteralType():
            return _choices(kind)
        case inspect.IntType(ge=low, le=high):
            return f"expected a whole number{_bounds(low, high)}"
        case inspect.FloatType(ge=low, le=high):
            return f"expected a number{_bounds(low, high)}"
        case _:
            shapes = {inspect.VarTupleType: "a list", inspect.StructType: "a mapping", inspect.DictType: "a mapping"}
            return f"expected {shapes.get(type(kind), 'a value')}"
