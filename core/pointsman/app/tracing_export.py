"""Sends spans to a collector: in batches, beside all other work, and never at its cost.

Whoever makes a span only appends it to a bounded queue. A collector that is away, slow or hostile costs that queue and
one call at a time; what finds no room is counted and gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import grpc
import structlog
from prometheus_client import CollectorRegistry, Counter

from pointsman.app.tracing_otlp import EXPORT_METHOD, export_request
from pointsman.core.tracing import Span

QUEUE_SPANS: Final = 4_096
"""Spans that wait: some 4 MB, and at 1,000 sampled picks a second four seconds without a collector."""

BATCH_SPANS: Final = 512
INTERVAL_S: Final = 1.0
"""A call when so many spans wait, or after this time: at 1 % of 1,000 picks a second one call with ten."""

CHUNK_SPANS: Final = 32
"""Spans that are encoded in one go, some 0.4 ms; then picks have their turn."""

CALL_TIMEOUT_S: Final = 10.0
"""OTLP's own default."""

BACK_OFF_S: Final = (1.0, 30.0)
"""First and longest wait after a call that failed; each further one doubles it."""

STOP_S: Final = 1.0
"""What the last spans may cost at the end of the process."""

TRY_AGAIN: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
"""What OTLP calls retryable. After any other answer the batch would be refused again."""

log = structlog.get_logger()


class SpanCounts:
    """Counts spans by what became of them; there before the first one, and where nothing is traced."""

    def __init__(self, registry: CollectorRegistry, name: str, words: str) -> None:
        spans = Counter(name, words, ["outcome"], registry=registry)
        self.sent = spans.labels("sent")
        self.dropped = spans.labels("dropped")


class SpanExporter:
    """A `SpanSink`. `target` is the collector's address for gRPC, `resource` what is told of this process."""

    def __init__(self, target: str, resource: Mapping[str, str], counts: SpanCounts) -> None:
        self._target = target
        self._resource = dict(resource)
        self._counts = counts
        self._waiting: deque[Span] = deque()
        self._enough = asyncio.Event()
        self._closing = asyncio.Event()
        self._export: Any = None
        self._failures = 0

    def add(self, span: Span) -> None:
        """Queue a span that is over."""
        if len(self._waiting) >= QUEUE_SPANS:
            self._counts.dropped.inc()
            return
        self._waiting.append(span)
        if len(self._waiting) == BATCH_SPANS:
            self._enough.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Export while the block runs, once; at its end what waits is sent, if the collector takes it at once."""
        async with grpc.aio.insecure_channel(self._target) as channel:
            self._export = channel.unary_unary(EXPORT_METHOD)  # bytes in, and the answer says nothing that we need
            task = asyncio.create_task(self._run(), name=f"spans to {self._target}")
            try:
                yield
            finally:
                self._closing.set()
                self._enough.set()
                await asyncio.wait({task}, timeout=STOP_S)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while not self._closing.is_set() or (self._waiting and not self._failures):
            self._enough.clear()
            if len(self._waiting) < BATCH_SPANS and not self._closing.is_set():
                await _set_within(self._enough, INTERVAL_S)
            if self._waiting and not await self._send(CALL_TIMEOUT_S):
                first_s, longest_s = BACK_OFF_S
                await _set_within(self._closing, min(longest_s, first_s * 2 ** min(self._failures - 1, 10)))

    async def _send(self, timeout_s: float) -> bool:
        """Send the oldest spans; False when they wait on, because the collector was not there."""
        count = min(BATCH_SPANS, len(self._waiting))
        spans = [self._waiting[position] for position in range(count)]
        chunks = []
        for start in range(0, count, CHUNK_SPANS):
            chunks.append(export_request(spans[start : start + CHUNK_SPANS], self._resource))
            await asyncio.sleep(0)
        outcome = self._counts.sent
        try:
            await self._export(b"".join(chunks), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            self._failures += 1
            if self._failures == 1:
                log.warning("the collector takes no spans", collector=self._target, status=error.code().name)
            if error.code() in TRY_AGAIN:
                return False
            outcome = self._counts.dropped
        else:
            if self._failures:
                log.info("the collector takes spans again", collector=self._target)
            self._failures = 0
        for _ in range(count):
            self._waiting.popleft()
        outcome.inc(count)
        return True


async def _set_within(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for the event, at most so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
