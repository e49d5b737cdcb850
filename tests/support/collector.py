"""A collector of traces for a test: OTLP over gRPC on a free port, everything kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2


@dataclass(frozen=True)
class Received:
    """A span as it came; ids are in hexadecimal, as in a traceparent."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    kind: int
    start_ns: int
    end_ns: int
    error: str
    attributes: dict[str, Any]


@dataclass
class Collector:
    """`raw` are the requests as bytes; `refuse` is what it answers instead of taking them, `hangs`: nothing at all."""

    target: str = ""
    raw: list[bytes] = field(default_factory=list)
    refuse: grpc.StatusCode | None = None
    hangs: bool = False
    calls: int = 0

    async def export(self, request: bytes, context: Any) -> bytes:
        self.calls += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.refuse is not None:
            await context.abort(self.refuse, "not now")
        self.raw.append(request)
        return b""

    def spans(self, trace: str | None = None) -> list[Received]:
        """All spans, or those of a trace, in the order of their arrival."""
        found = [span for data in self.raw for span in decode(data)]
        return [span for span in found if trace is None or span.trace == trace]


@asynccontextmanager
async def running_collector(address: str = "127.0.0.1:0") -> AsyncIterator[Collector]:
    """Take spans while the block runs."""
    collector = Collector()
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    method = grpc.unary_unary_rpc_method_handler(collector.export)
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": method}),))
    port = server.add_insecure_port(address)
    collector.target = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(None)


def decode(data: bytes) -> list[Received]:
    """The spans of an export request."""
    found: list[Received] = []
    for group in trace_service_pb2.ExportTraceServiceRequest.FromString(data).resource_spans:
        service = _attributes(group.resource.attributes)["service.name"]
        scopes = next(value for field, value in group.ListFields() if field.number == 2)  # it has had two names
        found += [_received(service, span) for scope in scopes for span in scope.spans]
    return found


def _received(service: str, span: Any) -> Received:
    return Received(
        service=service,
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=span.kind,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        error=span.status.message or ("error" if span.status.code == 2 else ""),
        attributes=_attributes(span.attributes),
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
