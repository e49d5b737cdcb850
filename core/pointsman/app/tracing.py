"""What traces in a process: the spans of picks and those of changes, each with an exporter of its own.

Without a collector there is nothing but two counters that stay 0.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import ParamSpec, TypeVar

from prometheus_client import CollectorRegistry

from pointsman.app.tracing_changes import ChangeTracer
from pointsman.app.tracing_export import SpanCounts, SpanExporter
from pointsman.app.tracing_options import TracingOptions
from pointsman.app.version import VERSION
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc import PickTracer
from pointsman.xds import GatewayTracing, XdsServer

P = ParamSpec("P")
T = TypeVar("T")


class PickTracing:
    """A picker's spans; `tracer` is for `add_services`, None without a collector."""

    def __init__(self, options: TracingOptions | None, registry: CollectorRegistry, instance: str) -> None:
        counts = SpanCounts(registry, "pointsman_picker_trace_spans", "Spans of picks by what became of them.")
        self._exporter = None if options is None else _exporter(options, "picker", instance, counts)
        self.tracer = None if self._exporter is None else PickTracer(self._exporter)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Export while the block runs."""
        async with AsyncExitStack() as stack:
            if self._exporter is not None:
                await stack.enter_async_context(self._exporter.running())
            yield


class Tracing:
    """A control plane's spans. With `picks` those of its own picker, too; else other processes pick."""

    def __init__(
        self, options: TracingOptions | None, registry: CollectorRegistry, instance: str, *, picks: bool
    ) -> None:
        self._options = options
        self._picks = PickTracing(options, registry, instance) if picks else None
        counts = SpanCounts(registry, "pointsman_change_trace_spans", "Spans of changes by what became of them.")
        self._exporter = None if options is None else _exporter(options, "control-plane", instance, counts)
        self._changes = None if self._exporter is None else ChangeTracer(self._exporter)

    @property
    def picks(self) -> PickTracer | None:
        """For the picker of this process."""
        return None if self._picks is None else self._picks.tracer

    def gateways(self) -> GatewayTracing | None:
        """For gateways."""
        return None if self._options is None else self._options.gateways()

    def noticed(self) -> None:
        """The configuration folder changed."""
        if self._changes is not None:
            self._changes.noticed()

    def reload(self, react: Callable[P, None]) -> Callable[P, None]:
        """See `ChangeTracer.reload`."""
        return react if self._changes is None else self._changes.reload(react)

    def timed(self, name: str, work: Callable[P, T]) -> Callable[P, T]:
        """See `ChangeTracer.timed`."""
        return work if self._changes is None else self._changes.timed(name, work)

    @asynccontextmanager
    async def running(self, holder: PlanHolder, xds: XdsServer) -> AsyncIterator[None]:
        """Follow changes and export while the block runs; `xds` heard of the Plan before."""
        async with AsyncExitStack() as stack:
            if self._picks is not None:
                await stack.enter_async_context(self._picks.running())
            if self._exporter is not None and self._changes is not None:
                await stack.enter_async_context(self._exporter.running())
                await stack.enter_async_context(self._changes.following(holder, xds))
            yield


def _exporter(options: TracingOptions, part: str, instance: str, counts: SpanCounts) -> SpanExporter:
    resource = {
        "service.name": f"{options.service_name}-{part}",
        "service.instance.id": instance,
        "service.version": VERSION,
        "telemetry.sdk.name": "pointsman",
        "telemetry.sdk.language": "python",
    }
    return SpanExporter(options.target, resource, counts)
