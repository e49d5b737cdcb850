"""The gRPC face of a replica: `pointsman.sim.v1.Generator` and `grpc.health.v1.Health` over h2c.

Faults: an error is UNAVAILABLE (RESOURCE_EXHAUSTED for 429), a reset ends its stream with UNAVAILABLE, `exit` and
`refuse` close the port. gRPC gives no hold on its sockets, so connections end with GOAWAY or FIN and not with RST.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from pointsman.sim.http_api import MAX_BODY_BYTES
from pointsman.sim.listener import ReservedPort, port_error
from pointsman.sim.openai import ApiError, Call
from pointsman.sim.replica import Batch, Generation, Replica, ResetNowError, host_port
from pointsman.sim.tokenizer import render_chat
from pointsman.sim.v1.generate_pb2 import ChatRequest, GenerateRequest, GenerateResponse

SERVICE = "pointsman.sim.v1.Generator"
HEALTH_SERVICE = "grpc.health.v1.Health"
DRAIN_S = 3600.0
"""How long running calls may take once the port is closed by the fault `refuse`."""

CLOSE_TIMEOUT_S = 5.0
CLOSE_POLL_S = 0.005
"""How long gRPC may take to close its listener (a few milliseconds when the machine is idle), and how often we look."""

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
}

_Generate = grpc.aio.ServicerContext[GenerateRequest, GenerateResponse]
_Chat = grpc.aio.ServicerContext[ChatRequest, GenerateResponse]
_Context = _Generate | _Chat


class GrpcShell:
    """Listener and services of one replica."""

    def __init__(self, replica: Replica, reserved: ReservedPort) -> None:
        self._reserved = reserved
        self._address = host_port(reserved.address, reserved.port)
        self._handlers = (_generator(_Service(replica)), _health(_Health(replica)))
        self._server: grpc.aio.Server | None = None
        self._draining: set[asyncio.Task[None]] = set()
        self._all: list[grpc.aio.Server] = []

    @property
    def port(self) -> int:
        """The bound port."""
        return self._reserved.port

    async def open(self) -> None:
        """Listen; raises ConfigError when the port is taken."""
        # A gRPC server cannot be started again once it was stopped. Without SO_REUSEPORT a taken port is an error.
        options = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_BODY_BYTES))
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers(self._handlers)
        try:
            server.add_insecure_port(self._address)
        except RuntimeError as error:
            place = self._reserved
            raise port_error(place.address, place.port, place.what, error) from error
        await server.start()
        self._server = server
        self._all.append(server)

    async def refuse(self) -> None:
        """Close the listener; running calls finish."""
        if self._server is None:
            return
        task = asyncio.create_task(self._server.stop(DRAIN_S))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)
        self._server = None
        await self._closed()

    async def _closed(self) -> None:
        """Return when the port refuses connections: gRPC closes its listener on a thread of its own and does not say
        when."""
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection(self._reserved.address, self._reserved.port)
                except ConnectionError:
                    return
                writer.close()
                await asyncio.sleep(CLOSE_POLL_S)

    async def kill(self) -> None:
        """Close the listener and end every call."""
        self._server = None
        servers, self._all = self._all, []
        await asyncio.gather(*(server.stop(None) for server in servers), *self._draining)

    async def close(self) -> None:
        """As `kill`, and give the port back."""
        await self.kill()
        self._reserved.close()


class _Service:
    """Handlers of `pointsman.sim.v1.Generator`."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def generate(self, request: GenerateRequest, context: _Generate) -> GenerateResponse:
        """Unary: the whole answer."""
        async for response in self._answered(_call(request, stream=False), request.prompt.encode(), context):
            return response
        raise AssertionError("an answer has at least one message")

    async def generate_stream(self, request: GenerateRequest, context: _Generate) -> AsyncIterator[GenerateResponse]:
        """Server streaming: tokens as they are made."""
        await self._hold()
        await context.send_initial_metadata(())
        async for response in self._answered(_call(request, stream=True), request.prompt.encode(), context):
            yield response

    async def chat(self, requests: AsyncIterator[ChatRequest], context: _Chat) -> AsyncIterator[GenerateResponse]:
        """Bidirectional: each message of the client is answered; the conversation ends when the client half-closes."""
        await self._hold()
        await context.send_initial_metadata(())
        said: list[tuple[str, str]] = []
        tokens = 0
        self._trailers(context, tokens)
        async for request in requests:
            said.append(("user", request.text))
            heard = ""
            call = Call(
                kind="chat",
                model=request.model or None,
                prompts=(),
                max_tokens=request.max_tokens or None,
                stream=True,
            )
            async for response in self._answered(call, render_chat(said), context, before_tokens=tokens):
                heard += response.text
                tokens += response.tokens
                yield response
            said.append(("assistant", heard))

    async def _answered(
        self, call: Call, prompt: bytes, context: _Context, *, before_tokens: int = 0
    ) -> AsyncIterator[GenerateResponse]:
        """Responses to one prompt; errors and resets end the call with their status."""
        replica = self._replica
        await self._hold()
        try:
            with replica.account():
                luck = replica.draw()
                replica.check_refusal(luck, call.model)
                if not prompt:
                    raise ApiError(400, "prompt must not be empty", param="prompt")
                replica.check_model(call.model)
                with replica.start(call, prompt, luck) as generation:
                    self._trailers(context, before_tokens)
                    start = 0
                    while (batch := await generation.next_batch()) is not None:
                        if call.stream or batch.finish_reason is not None:
                            self._trailers(context, before_tokens + batch.stop)
                            yield self._response(generation, batch, start)
                            start = batch.stop
        except ApiError as error:
            trailers: tuple[tuple[str, str], ...] = (
                ("x-sim-replica", replica.spec.name),
                ("x-tokens", str(before_tokens)),
            )
            if error.retry_after_s is not None:
                trailers += (("retry-after", str(error.retry_after_s)),)
            await context.abort(_CODES.get(error.status, grpc.StatusCode.UNAVAILABLE), error.message, trailers)
        except ResetNowError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Simulated reset.")

    def _response(self, generation: Generation, batch: Batch, start: int) -> GenerateResponse:
        response = GenerateResponse(
            text=self._replica.voice.text(start, batch.stop),
            tokens=batch.stop - start,
            replica=self._replica.spec.name,
        )
        if batch.finish_reason is not None:
            response.finish_reason = batch.finish_reason
            response.prompt_tokens = generation.sequence.prompt_tokens
            response.cached_tokens = generation.sequence.cached_tokens
        return response

    def _trailers(self, context: _Context, tokens: int) -> None:
        context.set_trailing_metadata((("x-sim-replica", self._replica.spec.name), ("x-tokens", str(tokens))))

    async def _hold(self) -> None:
        while self._replica.faults.blackhole:
            await self._replica.fault_change()
        await self._replica.cross_network()


class _Health:
    """Handlers of `grpc.health.v1.Health`; the replica as a whole and the Generator have one health."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:
        """The health now; NOT_FOUND for services that are not here."""
        while self._replica.faults.blackhole:
            await self._replica.fault_change()
        if not self._knows(request.service):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def watch(
        self, request: health_pb2.HealthCheckRequest, _context: _Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The health now and whenever it changes."""
        last: int | None = None
        while True:
            status = self._status(request.service)
            if status != last and not self._replica.faults.blackhole:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            await self._replica.fault_change()

    def _knows(self, service: str) -> bool:
        return service in ("", SERVICE)

    def _status(self, service: str) -> int:
        if not self._knows(service):
            return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        failing = self._replica.faults.health == "failing"
        return int(health_pb2.HealthCheckResponse.NOT_SERVING if failing else health_pb2.HealthCheckResponse.SERVING)


def _call(request: GenerateRequest, *, stream: bool) -> Call:
    return Call(
        kind="completion",
        model=request.model or None,
        prompts=(),
        max_tokens=request.max_tokens or None,
        stream=stream,
        salt=request.cache_salt,
    )


def _generator(service: _Service) -> grpc.GenericRpcHandler:
    encode = GenerateResponse.SerializeToString
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Generate": grpc.unary_unary_rpc_method_handler(service.generate, GenerateRequest.FromString, encode),
            "GenerateStream": grpc.unary_stream_rpc_method_handler(
                service.generate_stream, GenerateRequest.FromString, encode
            ),
            "Chat": grpc.stream_stream_rpc_method_handler(service.chat, ChatRequest.FromString, encode),
        },
    )


def _health(service: _Health) -> grpc.GenericRpcHandler:
    decode = health_pb2.HealthCheckRequest.FromString
    encode = health_pb2.HealthCheckResponse.SerializeToString
    return grpc.method_handlers_generic_handler(
        HEALTH_SERVICE,
        {
            "Check": grpc.unary_unary_rpc_method_handler(service.check, decode, encode),
            "Watch": grpc.unary_stream_rpc_method_handler(service.watch, decode, encode),
        },
    )
