"""Spans as plain values, and the trace context that requests carry (W3C Trace Context, level 1).

Our own and not OpenTelemetry's SDK: see docs/adr/0004-dependencies.md. Whoever makes a span hands it to a `SpanSink`,
which returns at once.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Protocol

TRACEPARENT: Final = "traceparent"
"""Name of the header, and of the gRPC metadata, that carries the trace context."""

MAX_TEXT: Final = 128
"""Characters that a span keeps of a text that a client chose: its request id, the name of its model."""

_TRACEPARENT: Final = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 0x01

Attribute = str | bool | int | float


class SpanKind(IntEnum):
    """What a span is to its parent; the numbers are OTLP's."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3


@dataclass(frozen=True, slots=True)
class TraceParent:
    """The span that a new one belongs below: 16 and 8 bytes. `sampled`: somebody wants to see the trace."""

    trace_id: bytes
    span_id: bytes
    sampled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A piece of work that is over. `parent_id` is empty for the first span of a trace; times are nanoseconds since the
    epoch; `error` says what went wrong, empty when nothing did."""

    name: str
    trace_id: bytes
    span_id: bytes
    parent_id: bytes = b""
    kind: SpanKind = SpanKind.INTERNAL
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    error: str = ""


class SpanSink(Protocol):
    """Takes spans that are over; never waits and never fails."""

    def add(self, span: Span) -> None: ...


def parse_traceparent(text: str) -> TraceParent | None:
    """The context of a `traceparent`, None for one that must be ignored: of no known form, or with an id of zeros."""
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if (rest and version == "00") or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return TraceParent(bytes.fromhex(trace_id), bytes.fromhex(span_id), bool(int(flags, 16) & _SAMPLED))


def new_trace_id() -> bytes:
    """16 random bytes."""
    return secrets.token_bytes(16)


def new_span_id() -> bytes:
    """8 random bytes."""
    return secrets.token_bytes(8)
