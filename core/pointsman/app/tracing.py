"""What a control plane traces: changes of its configuration, and its own picker's picks.

Without a collector nothing of it runs; there are two counters that stay 0.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import ParamSpec, TypeVar

from prometheus_client import CollectorRegistry

from pointsman.app.tracing_changes import ChangeTracer
from pointsman.app.tracing_export import SpanCounts
from pointsman.app.tracing_options import TracingOptions
from pointsman.app.tracing_picks import PickTracing, exporter
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc import PickTracer
from pointsman.xds import GatewayTracing, XdsServer

P = ParamSpec("P")
T = TypeVar("T")


class Tracing:
    """`picks`: this process picks, so it has spans of picks; else its workers have them."""

    def __init__(
        self, options: TracingOptions | None, registry: CollectorRegistry, instance: str, *, picks: bool
    ) -> None:
        self._options = options
        self._picks = PickTracing(options, registry, instance) if picks else None
        counts = SpanCounts(registry, "pointsman_change_trace_spans", "Spans of changes by what became of them.")
        self._exporter = exporter(options, "control-plane", instance, counts)
        self._changes = None if self._exporter is None else ChangeTracer(self._exporter)

    @property
    def picks(self) -> PickTracer | None:
        """For the picker of this process."""
        return None if self._picks is None else self._picks.tracer

    def gateways(self) -> GatewayTracing | None:
        """For gateways."""
        options = self._options
        if options is None:
            return None
        return GatewayTracing(
            collector_address=options.host,
            collector_port=options.port,
            service_name=f"{options.service_name}-gateway",
            ratio=options.ratio,
            follow_parent=options.follow_parent,
        )

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
        """Follow changes and export while the block runs; `xds` hears of each Plan before."""
        async with AsyncExitStack() as stack:
            if self._picks is not None:
                await stack.enter_async_context(self._picks.running())
            if self._exporter is not None and self._changes is not None:
                await stack.enter_async_context(self._exporter.running())
                await stack.enter_async_context(self._changes.following(holder, xds))
            yield
