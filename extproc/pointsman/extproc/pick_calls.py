"""ExternalProcessor, AccessLogService and gRPC health as methods for calls without I/O (`http2.calls`).

The counterpart of `server.py`: the same exchange, picker and metrics behind another shell.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

import structlog
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from pointsman.core.errors import PeerError
from pointsman.core.grpc_health import HEALTH_SERVICE, GrpcHealth
from pointsman.core.wire import PROFILE_HEADER, PROFILE_SINGLE
from pointsman.extproc.decision import Decision
from pointsman.extproc.exchange import Exchange, ReadBody
from pointsman.extproc.feedback import Feedback, entries
from pointsman.extproc.http2 import calls
from pointsman.extproc.http2.calls import Call, Method
from pointsman.extproc.metrics import PickerMetrics
from pointsman.extproc.picker import Picker
from pointsman.extproc.replies import wait_reply
from pointsman.extproc.request import HEAVY_BYTES, crowd_of, is_heavy
from pointsman.extproc.server import ALS_SERVICE, EXT_PROC_SERVICE
from pointsman.extproc.tracing import PickTracer

_SINGLE: Final = (PROFILE_HEADER.encode(), PROFILE_SINGLE.encode())

MAX_BEHIND: Final = 64
"""Messages that may wait while a thread reads a body. After the body of a request come trailers, so one does."""

_Heavy = tuple[ext_proc.ProcessingRequest, ReadBody | None]
"""A message and its body, as a thread has read them."""

log = structlog.get_logger()


class PickCalls:
    """The services of one picker. `readers` read the bodies that take long; `on_feedback` and `tracer` as in
    `add_services`. Made and used on one event loop."""

    def __init__(
        self,
        picker: Picker,
        metrics: PickerMetrics,
        health: GrpcHealth,
        *,
        readers: Executor,
        default_pool: str = "",
        on_feedback: Callable[[Feedback], None] | None = None,
        tracer: PickTracer | None = None,
    ) -> None:
        self.picker = picker
        self.metrics = metrics
        self.health = health
        self.readers = readers
        self.default_pool = default_pool
        self.on_feedback = on_feedback
        self.tracer = tracer

    def methods(self) -> dict[bytes, Method]:
        """By path."""
        return {
            f"/{EXT_PROC_SERVICE}/Process".encode(): functools.partial(_Process, self),
            f"/{ALS_SERVICE}/StreamAccessLogs".encode(): functools.partial(_AccessLogs, self),
            f"/{HEALTH_SERVICE}/Check".encode(): functools.partial(_Check, self.health),
            f"/{HEALTH_SERVICE}/Watch".encode(): functools.partial(_Watch, self.health),
        }


class _Process:
    """One ext_proc stream: one HTTP request. Finishing it with OK lets Envoy go on."""

    __slots__ = ("_began_s", "_behind", "_call", "_ended", "_exchange", "_reading", "_service", "_single")

    def __init__(self, service: PickCalls, call: Call) -> None:
        self._service = service
        self._call = call
        self._single = _SINGLE in call.metadata
        self._exchange = Exchange(service.picker, default_pool=service.default_pool, reported=self._single)
        self._behind: deque[bytes] = deque()
        self._reading: asyncio.Future[_Heavy] | None = None
        self._ended = False
        self._began_s = 0.0
        if self._single:
            call.on_coming = self._coming

    def message(self, data: bytes) -> None:
        if self._reading is not None:
            if len(self._behind) >= MAX_BEHIND:
                self._fail("messages behind a body that is still read")
            else:
                self._behind.append(data)
            return
        self._began_s = time.perf_counter()
        if len(data) > HEAVY_BYTES:
            self._apart(functools.partial(self._whole, data))
            return
        try:
            message = ext_proc.ProcessingRequest.FromString(data)
        except DecodeError as error:
            self._fail(f"no ProcessingRequest: {error}")
            return
        due = self._exchange.body_due(message)
        if due is None:
            self._answer(message, None)
            return
        crowd = crowd_of(due.raw)
        if is_heavy(due.raw, crowd):
            self._apart(lambda: (message, self._exchange.read(due, crowd)))
        else:
            self._answer(message, self._exchange.read(due, crowd))

    def _apart(self, work: Callable[[], _Heavy]) -> None:
        """In a thread. Nothing else is done for this stream meanwhile."""
        self._reading = asyncio.get_running_loop().run_in_executor(self._service.readers, work)
        self._reading.add_done_callback(self._read)

    def _whole(self, data: bytes) -> _Heavy:
        message = ext_proc.ProcessingRequest.FromString(data)
        due = self._exchange.body_due(message)
        return message, None if due is None else self._exchange.read(due)

    def _coming(self, length_bytes: int) -> None:
        """A message has begun. A picker that is alive asks for time before the usual wait is over; one that is frozen
        holds up nobody for longer."""
        if length_bytes > HEAVY_BYTES:
            self._call.send(wait_reply(length_bytes).SerializeToString())

    def ended(self) -> None:
        self._ended = True
        if self._reading is None:
            self._call.finish()

    def closed(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._behind.clear()
        self._exchange.closed()

    def _read(self, reading: asyncio.Future[_Heavy]) -> None:
        """A thread has read a body; what came meanwhile is next."""
        self._reading = None
        if reading.cancelled() or not self._call.open:
            return
        with self._call.contained():
            try:
                message, read = reading.result()
            except DecodeError as error:
                self._fail(f"no ProcessingRequest: {error}")
            else:
                self._answer(message, read)
            while self._behind and self._reading is None and self._call.open:
                self.message(self._behind.popleft())
            if self._ended and self._reading is None:
                self._call.finish()
        self._call.wake()

    def _answer(self, message: ext_proc.ProcessingRequest, read: ReadBody | None) -> None:
        exchange = self._exchange
        before = exchange.decision
        try:
            answers = exchange.receive(message, read)
        except PeerError as error:
            self._fail(str(error))
            return
        if exchange.decision is not None and exchange.decision is not before:
            self._picked(exchange.decision, time.perf_counter() - self._began_s)
        if self._single and not exchange.finished:
            self._fail(f"a {message.WhichOneof('request')} that needs further messages, in the single profile")
            return
        for answer in answers:
            self._call.send(answer.SerializeToString())
        if exchange.finished:
            self._call.finish()

    def _picked(self, decision: Decision, took_s: float) -> None:
        self._service.metrics.picked(decision, took_s)
        tracer = self._service.tracer
        if tracer is not None:
            texts = (
                (name.decode("ascii", "replace"), value.decode("ascii", "replace"))
                for name, value in self._call.metadata
            )
            parent = tracer.parent(texts)
            if parent is not None:
                tracer.picked(parent, decision, took_s)

    def _fail(self, why: str) -> None:
        self._service.metrics.stream_error()
        log.warning("ext_proc stream ended", error=why)
        self._call.finish(calls.INVALID_ARGUMENT, why)


class _AccessLogs:
    """The access log of one Envoy worker, for as long as it lives. Only its first message says whose it is."""

    def __init__(self, service: PickCalls, call: Call) -> None:
        self._service = service
        self._call = call
        self._gateway = ""

    def message(self, data: bytes) -> None:
        try:
            message = als_pb2.StreamAccessLogsMessage.FromString(data)
        except DecodeError as error:
            self._call.finish(calls.INVALID_ARGUMENT, f"no StreamAccessLogsMessage: {error}")
            return
        self._gateway = message.identifier.node.cluster or self._gateway
        service = self._service
        for entry in entries(message, self._gateway):
            if entry.attempt:
                service.picker.attempt_failed(entry)
                continue
            account = service.picker.feedback(entry)
            service.metrics.heard(entry, matched=account is not None)
            if service.on_feedback is not None:
                service.on_feedback(service.picker.inflight.told(entry, account))

    def ended(self) -> None:
        self._call.send(als_pb2.StreamAccessLogsResponse().SerializeToString())
        self._call.finish()

    def closed(self) -> None:
        pass


class _Check:
    """One question for the health of a service."""

    def __init__(self, health: GrpcHealth, call: Call) -> None:
        self._health = health
        self._call = call

    def message(self, data: bytes) -> None:
        service = _service_in(data, self._call)
        if service is None:
            return
        status = self._health.status(service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            self._call.finish(calls.NOT_FOUND, f"no service {service!r}")
            return
        self._call.send(health_pb2.HealthCheckResponse(status=status).SerializeToString())
        self._call.finish()

    def ended(self) -> None:
        self._call.finish(calls.INVALID_ARGUMENT, "a call without a message")

    def closed(self) -> None:
        pass


class _Watch:
    """The health of a service now and after each change, until the caller leaves."""

    def __init__(self, health: GrpcHealth, call: Call) -> None:
        self._health = health
        self._call = call
        self._service = ""
        self._told: int | None = None
        self._stop: Callable[[], None] | None = None

    def message(self, data: bytes) -> None:
        service = _service_in(data, self._call)
        if service is not None and self._stop is None:
            self._service = service
            self._stop = self._health.on_change(self._tell)
            self._tell()

    def _tell(self) -> None:
        status = self._health.status(self._service)
        if status != self._told:
            self._told = status
            self._call.send(health_pb2.HealthCheckResponse(status=status).SerializeToString())
            self._call.wake()

    def ended(self) -> None:
        pass

    def closed(self) -> None:
        if self._stop is not None:
            self._stop()
            self._stop = None


def _service_in(data: bytes, call: Call) -> str | None:
    try:
        return str(health_pb2.HealthCheckRequest.FromString(data).service)
    except DecodeError as error:
        call.finish(calls.INVALID_ARGUMENT, f"no HealthCheckRequest: {error}")
        return None
