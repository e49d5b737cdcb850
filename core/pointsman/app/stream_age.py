"""Ends streams that never end by themselves, so that gateways choose their control plane again now and then.

A gateway that moved to the second control plane stays there for as long as its stream lives; Envoy leaves a good stream
for nothing, not even when its first choice is back. The same holds for a connection whose certificate was replaced. So
the xDS and access log streams are ended when they are old, and gRPC retires connections of the same age (running
streams end in peace). A gateway that comes back is sent nothing: versions are hashes of the content.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable
from random import SystemRandom
from typing import Any, Final

import grpc

from pointsman.app.identity import Context, Handler, same_shape

STREAM_AGE_S: Final = 300.0
"""A thousand gateways open three streams a second, which costs next to nothing; and five minutes are a short time to
be on the second control plane."""

JITTER: Final = 0.1
"""Streams that were opened together are not ended together."""

ENDLESS: Final = frozenset(
    {
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs",
        "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats",
    }
)


def connection_options(age_s: float) -> tuple[tuple[str, int], ...]:
    """Server options that retire connections; gRPC adds a jitter of its own, and waits for their streams."""
    return (("grpc.max_connection_age_ms", int(age_s * 1000)),)


class StreamAge(grpc.aio.ServerInterceptor):
    """Ends the streams of `ENDLESS` with UNAVAILABLE after `age_s`, upon which Envoy opens another at once."""

    def __init__(self, age_s: float) -> None:
        self._age_s = age_s
        self._random = SystemRandom()
        self._aged: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler | None]], handler_call_details: Any
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or method not in ENDLESS:
            return handler
        known = self._aged.get(method)
        if known is None or known[0] is not handler:
            known = self._aged[method] = (handler, self._limit(handler))
        return known[1]

    def _limit(self, handler: Handler) -> Handler:
        behaviour: Any = handler.stream_stream or handler.stream_unary
        generates = inspect.isasyncgenfunction(behaviour)

        async def answers(request: Any, context: Context) -> None:
            async with contextlib.aclosing(behaviour(request, context)) as generated:
                async for answer in generated:
                    await context.write(answer)

        async def limited(request: Any, context: Context) -> Any:
            limit = asyncio.timeout(self._age_s * self._random.uniform(1 - JITTER, 1 + JITTER))
            try:
                async with limit:
                    return await (answers if generates else behaviour)(request, context)
            except TimeoutError:
                if not limit.expired():
                    raise
            return await context.abort(grpc.StatusCode.UNAVAILABLE, "this stream is old: open another")

        return same_shape(handler, limited)
