"""Spans in OTLP, OpenTelemetry's wire format, with the messages that `xds-protos` brings.

Those are of OTLP 0.9, in which a scope is an "instrumentation library"; numbers and types of all fields that are used
here are those of OTLP 1. What got another name is found by its number, because a later `xds-protos`, or an
`opentelemetry-proto` that is installed over it, has the new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from pointsman.core.tracing import Attribute, Span

EXPORT_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

_SCOPES: Final = trace_pb2.ResourceSpans.DESCRIPTOR.fields_by_number[2].name
_SCOPE: Final = getattr(trace_pb2.ResourceSpans(), _SCOPES).add().DESCRIPTOR.fields_by_number[1].name
_ERROR: Final = 2
"""`Status.StatusCode.STATUS_CODE_ERROR`."""


def export_request(spans: Iterable[Span], resource: Mapping[str, str], scope: str = "pointsman") -> bytes:
    """A serialised `ExportTraceServiceRequest`. Several of them one after the other are one with all their spans."""
    request = trace_service_pb2.ExportTraceServiceRequest()
    group = request.resource_spans.add()
    _fill(group.resource.attributes, resource)
    scoped: Any = getattr(group, _SCOPES).add()
    getattr(scoped, _SCOPE).name = scope
    for span in spans:
        message = scoped.spans.add(
            trace_id=span.trace_id,
            span_id=span.span_id,
            parent_span_id=span.parent_id,
            name=span.name,
            kind=int(span.kind),
            start_time_unix_nano=span.start_ns,
            end_time_unix_nano=span.end_ns,
        )
        _fill(message.attributes, span.attributes)
        if span.error:
            message.status.code = _ERROR
            message.status.message = span.error
    data: bytes = request.SerializeToString()
    return data


def _fill(target: Any, attributes: Mapping[str, Attribute] | Mapping[str, str]) -> None:
    for key, value in attributes.items():
        pair = target.add()
        pair.key = key
        match value:
            case str():
                pair.value.string_value = value
            case bool():  # before int, which it is, too
                pair.value.bool_value = value
            case int():
                pair.value.int_value = value
            case float():
                pair.value.double_value = value
