"""The client status discovery service (CSDS): every connected proxy's configuration, read-only, over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import groupby
from typing import Any, Final

import grpc
import structlog
from envoy.service.status.v3 import csds_pb2

from pointsman.core.errors import PeerError
from pointsman.xds.services.client_config import client_config
from pointsman.xds.services.node_matcher import matches_any
from pointsman.xds.stream import Stream

log = structlog.get_logger()

CSDS_SERVICE: Final = "envoy.service.status.v3.ClientStatusDiscoveryService"

ANSWER_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""Largest answer. It is made in memory; a fleet of a thousand gateways with all contents would be gigabytes."""

Context = grpc.aio.ServicerContext[Any, Any]


class _TooLargeError(Exception):
    pass


class ClientStatus:
    """Answers from the streams that `streams` gives, sorted by node id (`XdsServer.streams`)."""

    def __init__(self, streams: Callable[[], Iterable[Stream]], *, limit_bytes: int = ANSWER_LIMIT_BYTES) -> None:
        self._streams = streams
        self._limit_bytes = limit_bytes

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service, before the server starts."""
        decode = csds_pb2.ClientStatusRequest.FromString
        encode = csds_pb2.ClientStatusResponse.SerializeToString
        methods = {
            "StreamClientStatus": grpc.stream_stream_rpc_method_handler(
                self._stream, request_deserializer=decode, response_serializer=encode
            ),
            "FetchClientStatus": grpc.unary_unary_rpc_method_handler(
                self._fetch, request_deserializer=decode, response_serializer=encode
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(CSDS_SERVICE, methods),))

    async def answer(self, request: csds_pb2.ClientStatusRequest) -> csds_pb2.ClientStatusResponse:
        """The clients that the request asks about, sorted by node id.

        Gateways go on being served in between: each client is read at one moment, not all at the same.

        Raises:
            PeerError: a matcher that is not supported.
        """
        response = csds_pb2.ClientStatusResponse()
        size_bytes = 0
        chosen = [stream for stream in self._streams() if matches_any(stream.node, request.node_matchers)]
        for _, streams in groupby(chosen, key=lambda stream: stream.identity.id):
            config = client_config(streams, contents=not request.exclude_resource_contents)
            size_bytes += config.ByteSize()
            if size_bytes > self._limit_bytes:
                raise _TooLargeError
            response.config.append(config)
            await asyncio.sleep(0)
        return response

    async def _fetch(self, request: csds_pb2.ClientStatusRequest, context: Context) -> csds_pb2.ClientStatusResponse:
        try:
            return await self.answer(request)
        except PeerError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except _TooLargeError:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the answer is larger than {self._limit_bytes} bytes: ask with node_matchers, "
                "or with exclude_resource_contents",
            )

    async def _stream(
        self, requests: AsyncIterator[csds_pb2.ClientStatusRequest], context: Context
    ) -> AsyncIterator[csds_pb2.ClientStatusResponse]:
        async for request in requests:
            yield await self._fetch(request, context)
