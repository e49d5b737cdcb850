"""The gRPC shell: Envoy's ExternalProcessor and AccessLogService on a server that someone else owns."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from prometheus_client import CollectorRegistry

from pointsman.core.errors import PeerError
from pointsman.extproc.exchange import Exchange
from pointsman.extproc.feedback import entries
from pointsman.extproc.metrics import PickerMetrics
from pointsman.extproc.picker import Picker

EXT_PROC_SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
ALS_SERVICE = "envoy.service.accesslog.v3.AccessLogService"

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]


def add_services(
    server: grpc.aio.Server, picker: Picker, registry: CollectorRegistry, *, default_pool: str = ""
) -> None:
    """Register both services on `server`, before it starts, and their metrics on `registry`.

    `default_pool` is for gateways of others that do not say which pool a request is for.
    """
    shell = _Shell(picker, PickerMetrics(registry, picker), default_pool)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                EXT_PROC_SERVICE,
                {
                    "Process": grpc.stream_stream_rpc_method_handler(
                        shell.process,
                        request_deserializer=ext_proc.ProcessingRequest.FromString,
                        response_serializer=ext_proc.ProcessingResponse.SerializeToString,
                    )
                },
            ),
            grpc.method_handlers_generic_handler(
                ALS_SERVICE,
                {
                    "StreamAccessLogs": grpc.stream_unary_rpc_method_handler(
                        shell.access_logs,
                        request_deserializer=als_pb2.StreamAccessLogsMessage.FromString,
                        response_serializer=als_pb2.StreamAccessLogsResponse.SerializeToString,
                    )
                },
            ),
        )
    )


class _Shell:
    def __init__(self, picker: Picker, metrics: PickerMetrics, default_pool: str) -> None:
        self._picker = picker
        self._metrics = metrics
        self._default_pool = default_pool

    async def process(self, messages: AsyncIterator[ext_proc.ProcessingRequest], context: Context) -> None:
        """One ext_proc stream: one HTTP request. Returning ends it with OK, which lets Envoy go on."""
        exchange = Exchange(self._picker, default_pool=self._default_pool)
        try:
            while not exchange.finished:
                message = await context.read()
                if message is grpc.aio.EOF:
                    break
                before, began_s = exchange.decision, time.perf_counter()
                answers = exchange.receive(message)
                if exchange.decision is not None and exchange.decision is not before:
                    self._metrics.picked(exchange.decision, time.perf_counter() - began_s)
                for answer in answers:
                    await context.write(answer)
        except PeerError as error:
            self._metrics.stream_error()
            log.warning("ext_proc stream ended", error=str(error), peer=context.peer())
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            exchange.closed()

    async def access_logs(
        self, messages: AsyncIterator[als_pb2.StreamAccessLogsMessage], context: Context
    ) -> als_pb2.StreamAccessLogsResponse:
        """The access log of one Envoy worker, for as long as it lives."""
        while (message := await context.read()) is not grpc.aio.EOF:
            for entry in entries(message):
                account = self._picker.feedback(entry)
                self._metrics.heard(entry, matched=account is not None)
        return als_pb2.StreamAccessLogsResponse()
