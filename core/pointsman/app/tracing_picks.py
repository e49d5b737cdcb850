"""A picker's spans and their exporter; without a collector nothing but a counter that stays 0."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from prometheus_client import CollectorRegistry

from pointsman.app.tracing_export import SpanCounts, SpanExporter
from pointsman.app.tracing_options import TracingOptions
from pointsman.app.version import VERSION
from pointsman.extproc import PickTracer


class PickTracing:
    """`tracer` is for `add_services`, None without a collector."""

    def __init__(self, options: TracingOptions | None, registry: CollectorRegistry, instance: str) -> None:
        counts = SpanCounts(registry, "pointsman_picker_trace_spans", "Spans of picks by what became of them.")
        self._exporter = exporter(options, "picker", instance, counts)
        self.tracer = None if self._exporter is None else PickTracer(self._exporter)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Export while the block runs."""
        async with AsyncExitStack() as stack:
            if self._exporter is not None:
                await stack.enter_async_context(self._exporter.running())
            yield


def exporter(options: TracingOptions | None, part: str, instance: str, counts: SpanCounts) -> SpanExporter | None:
    """What sends the spans of a part of this process; None without a collector."""
    if options is None:
        return None
    resource = {
        "service.name": f"{options.service_name}-{part}",
        "service.instance.id": instance,
        "service.version": VERSION,
        "telemetry.sdk.name": "pointsman",
        "telemetry.sdk.language": "python",
    }
    return SpanExporter(options.target, resource, counts)
