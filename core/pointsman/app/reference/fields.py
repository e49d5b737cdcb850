"""Which fields a kind has, of which type and with which default, read from the types that read manifests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import inspect

from pointsman.core.config.meta import Resource
from pointsman.core.config.schema import Fields

HEAD: Final = frozenset({"apiVersion", "kind", "metadata"})
"""What all manifests have; it is told once."""

RULES: Final[Mapping[str, str]] = {
    "condition": "condition, such as `errorRate>1%` or `ttft.p95>3s`",
    "cron": "cron expression (five fields, UTC)",
    "dns_label": "DNS label",
    "dns_subdomain": "name (DNS subdomain)",
    "duration": "duration, such as `90s` or `1m30s`",
    "file_path": "absolute path",
    "gateway_address": "IP address",
    "glob": "label value with `*` and `?`",
    "header_name": "header name",
    "header_value": "header value",
    "hostname": "host name, may begin with `*.`",
    "http_url": "URL (http or https)",
    "ip_address": "IP address",
    "label_value": "label value",
    "limit": "limit, such as `2%`, `+1pp`, `800ms`, `+20%`",
    "metrics_url": "URL (http or https)",
    "path": "path, begins with `/`",
    "pause": "duration or `Manual`",
    "percent": "share from `0%` to `100%`",
    "timestamp": "time (RFC 3339)",
}
"""Rule of a string (the name of its function) → what is expected, in words."""


class UndocumentedError(Exception):
    """Something that operators meet has no text in the reference; the message says where to write it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A field. `path` is as in a manifest (`spec.listeners[].port`), `owner` and `field` are where its text stands
    (`gateway_kinds.GatewayListener`, `port`)."""

    path: str
    kind: str
    default: str
    owner: str
    field: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Fields or values of the API that are refused so far, and where."""

    path: str
    what: tuple[str, ...]


def rows(kind: type[Resource]) -> tuple[list[Row], list[Refusal]]:
    """All fields of a kind but those that every manifest has, and what is refused so far."""
    walk = _Walk()
    root = _struct(kind)
    for field in root.fields:
        if field.encode_name not in HEAD:
            walk.field(root.cls, field, field.encode_name)
    return walk.rows, walk.refused


def owner_of(struct: type) -> str:
    """The name under which the texts of a struct stand."""
    return f"{struct.__module__.rpartition('.')[2]}.{struct.__name__}"


def structs(kind: type[Resource]) -> Iterator[type[Fields]]:
    """The struct of a kind and all below it, each once."""
    seen: set[type] = set()
    waiting: list[inspect.Type] = [_struct(kind)]
    while waiting:
        one = _bare(waiting.pop())[0]
        if isinstance(one, inspect.StructType) and one.cls not in seen:
            seen.add(one.cls)
            assert issubclass(one.cls, Fields)
            yield one.cls
            waiting += [field.type for field in one.fields]
        elif isinstance(one, inspect.DictType):
            waiting.append(one.value_type)


def _struct(struct: type) -> inspect.StructType:
    found = inspect.type_info(struct)
    assert isinstance(found, inspect.StructType)
    return found


class _Walk:
    """One pass over a kind, in the order in which fields are declared. A struct that comes again is only named."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.refused: list[Refusal] = []
        self._known: dict[type, str] = {}

    def field(self, owner: type, field: inspect.Field, path: str) -> None:
        """A field and all below it; those of type Any are accepted and not read."""
        if isinstance(field.type, inspect.AnyType):
            return
        inner, listed, words = _bare(field.type)
        here = f"{path}[]" if listed else path
        is_struct = isinstance(inner, inspect.StructType)
        repeated = self._known.get(inner.cls) if isinstance(inner, inspect.StructType) else None
        if is_struct:
            words = "list of objects" if listed else "object"
            words += f", as `{repeated}`" if repeated else ""
        name = field.encode_name
        self.rows.append(Row(path=path, kind=words, default=_default(field), owner=owner_of(owner), field=name))
        if values := _not_yet(field.type):
            self.refused.append(Refusal(path=path, what=values))
        if not isinstance(inner, inspect.StructType) or repeated is not None:
            return
        self._known[inner.cls] = here
        assert issubclass(inner.cls, Fields)
        if inner.cls.not_yet:
            self.refused.append(Refusal(path=here, what=tuple(sorted(inner.cls.not_yet))))
        for below in inner.fields:
            self.field(inner.cls, below, f"{here}.{below.encode_name}")


def _bare(kind: inspect.Type) -> tuple[inspect.Type, bool, str]:
    """A type without what is around it, whether it is that of a list's items, and how to say the whole."""
    extra: dict[str, Any] = {}
    if isinstance(kind, inspect.Metadata):
        extra, kind = kind.extra or {}, kind.type
    if isinstance(kind, inspect.UnionType):
        return _bare(next(one for one in kind.types if not isinstance(one, inspect.NoneType)))
    if isinstance(kind, inspect.VarTupleType):
        inner, _, words = _bare(kind.item_type)
        return inner, True, f"list: {words}"
    return kind, False, _words(kind, extra)


def _words(kind: inspect.Type, extra: Mapping[str, Any]) -> str:
    match kind:
        case inspect.LiteralType(values=values):
            words = " or ".join(f"`{value}`" if value != "" else "nothing" for value in values)
        case inspect.StrType():
            check = extra.get("check")
            if check is not None and check.__name__ not in RULES:
                raise UndocumentedError(f"the rule {check.__name__} of a string has no words in reference/fields.py")
            words = "string" if check is None else RULES[check.__name__]
        case inspect.IntType(ge=low, le=high):
            words = "integer" if low is None or high is None else f"integer, {low} to {high}"
        case inspect.FloatType(ge=low, le=high):
            words = "number" if low is None or high is None else f"number, {_plain(low)} to {_plain(high)}"
        case inspect.BoolType():
            words = "`true` or `false`"
        case inspect.DictType(value_type=value):
            words = f"map to: {_bare(value)[2]}"
        case _:
            words = "anything"
    return words


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


def _default(field: inspect.Field) -> str:
    if field.required:
        return "required"
    value = field.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        plain = [f"`{one}`" for one in value if not isinstance(one, msgspec.Struct)]
        return ", ".join(plain) or ("one, of defaults" if value else "")
    absent = value is msgspec.NODEFAULT or value is None or value == "" or isinstance(value, msgspec.Struct)
    return "" if absent else f"`{_plain(value) if isinstance(value, float) else value}`"


def _not_yet(kind: inspect.Type) -> tuple[str, ...]:
    if isinstance(kind, inspect.Metadata):
        found = (kind.extra or {}).get("not_yet", frozenset())
        return tuple(sorted(found)) or _not_yet(kind.type)
    if isinstance(kind, inspect.VarTupleType):
        return _not_yet(kind.item_type)
    return ()
