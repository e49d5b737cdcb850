"""The HTTP face of a replica: vLLM's endpoints on aiohttp."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from aiohttp import web

from pointsman.sim import answers, openai
from pointsman.sim.answers import Answer
from pointsman.sim.faults import Luck
from pointsman.sim.listener import ReservedPort, TcpListener, reset
from pointsman.sim.metrics import CONTENT_TYPE
from pointsman.sim.openai import ApiError, Call
from pointsman.sim.replica import Generation, Replica, ResetNowError

MAX_BODY_BYTES = 64 * 1024 * 1024
SLOW_METRICS_S = 10.0
"""Longer than any scraper waits (Prometheus gives up after 10 s, ours after 1 s)."""
HUGE_METRICS_BYTES = 64 * 1024 * 1024
VERSION = "0.32.0"
"""The vLLM whose behaviour is simulated."""

_GARBAGE = (
    b'<html>\xff\xfe{{{\nvllm:num_requests_waiting{engine="0" NaNope\nvllm:kv_cache_usage_perc{}}} \x00 1e\n' * 20
)
_REQUEST_ID = re.compile(r"[!#-\[\]-~]{1,128}")
"""Client's ids are put into answers when they are printable ASCII that JSON need not escape."""

_JSON = "application/json"
_SSE_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpShell:
    """Listener, connections and routes of one replica."""

    def __init__(self, replica: Replica, reserved: ReservedPort) -> None:
        self._replica = replica
        self._reserved = reserved
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._middleware])
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completion)
        app.router.add_post("/v1/embeddings", self._embedding)
        # A client that goes away cancels its handler, and that its sequence.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0)
        self._listener: TcpListener | None = None
        self._busy: set[asyncio.BaseTransport | None] = set()
        """Connections with a request in work."""

    @property
    def port(self) -> int:
        """The bound port."""
        return self._reserved.port

    async def open(self) -> None:
        """Listen; raises ConfigError when the port is taken."""
        if self._listener is None:
            await self._runner.setup()
            self._listener = TcpListener(self._reserved, self._web_server)
        await self._listener.open()

    async def refuse(self) -> None:
        """Close the listener; running requests finish, idle connections end."""
        if self._listener is not None:
            self._listener.close()
        for connection in self._web_server.connections:
            if connection.transport in self._busy:
                connection.close()  # after the request that it works on
            elif connection.transport is not None:
                connection.transport.close()

    async def kill(self) -> None:
        """Close the listener and reset every connection."""
        if self._listener is not None:
            self._listener.close()
        for connection in self._web_server.connections:
            reset(connection.transport)

    async def close(self) -> None:
        """As `kill`, and give the port back."""
        if self._listener is not None:
            await self.kill()
            await self._runner.cleanup()
        self._reserved.close()

    @property
    def _web_server(self) -> web.Server:
        server = self._runner.server
        assert server is not None, "set up by open()"
        return server

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        self._busy.add(transport)
        try:
            while self._replica.faults.blackhole:
                await self._replica.fault_change()
            await self._replica.cross_network()
            return await handler(request)
        except ApiError as error:
            return _error(error)
        except web.HTTPRequestEntityTooLarge:
            return _error(ApiError(413, f"The request body is larger than {MAX_BODY_BYTES} bytes."))
        except web.RequestPayloadError:
            return _error(ApiError(400, "The request body does not fit its content-encoding or transfer-encoding."))
        except web.HTTPException as error:
            return web.json_response({"detail": error.reason}, status=error.status, headers=_allow(error))
        except ConnectionError:
            return web.Response()  # the client left while it was written to; this goes nowhere and nobody logs it
        except ResetNowError:
            reset(transport)
            await asyncio.get_running_loop().create_future()  # cancelled by the loss of the connection
            raise
        finally:
            self._busy.discard(transport)

    async def _health(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(status=503 if self._replica.faults.health == "failing" else 200)

    async def _version(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"version": VERSION})

    async def _models(self, _request: web.Request) -> web.StreamResponse:
        replica = self._replica
        body = answers.models(
            replica.spec.model,
            replica.spec.loras,
            created_s=int(replica.started_s),
            max_model_len=replica.context_limit,
            loaded=not replica.faults.model_unloaded,
        )
        return web.Response(body=body, content_type=_JSON)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        fault = self._replica.faults.metrics
        headers = {"Content-Type": CONTENT_TYPE}
        if fault == "missing":
            raise web.HTTPNotFound
        if fault == "garbage":
            return web.Response(body=_GARBAGE, headers=headers)
        if fault == "huge":
            return await _huge(request, headers)
        if fault == "slow":
            await self._replica.fault_change(SLOW_METRICS_S)
        return web.Response(body=self._replica.metrics_page(), headers=headers)

    async def _tokenize(self, request: web.Request) -> web.StreamResponse:
        call = openai.parse_tokenize(await request.read())
        self._replica.check_model(call.model)
        return web.Response(body=answers.tokenized(call.prompts[0], self._replica.context_limit), content_type=_JSON)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._infer(request, openai.parse_chat, self._generate)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._infer(request, openai.parse_completion, self._generate)

    async def _embedding(self, request: web.Request) -> web.StreamResponse:
        return await self._infer(request, openai.parse_embedding, self._embed)

    async def _infer(
        self,
        request: web.Request,
        parse: Callable[[bytes], Call],
        answer: Callable[[web.Request, Call, Luck], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        replica = self._replica
        with replica.account():
            luck = replica.draw()
            body = await request.read()
            call = parse(body)
            replica.check_refusal(luck, call.model)
            replica.check_model(call.model)
            return await answer(request, call, luck)

    async def _generate(self, request: web.Request, call: Call, luck: Luck) -> web.StreamResponse:
        replica, prompt = self._replica, call.prompts[0]
        answer = Answer(
            call,
            request_id=self._request_id(request),
            created_s=int(replica.clock.wall_s()),
            model=call.model or replica.spec.model,
            voice=replica.voice,
            replica=replica.spec.name,
        )
        with replica.start(call, prompt, luck) as generation:
            if call.stream:
                return await _stream(request, answer, generation)
            batch = None
            while (more := await generation.next_batch()) is not None:
                batch = more
            assert batch is not None and batch.finish_reason is not None, "a generation ends with a reason"
            use = _usage(generation)
            return web.Response(body=answer.whole(batch.stop, batch.finish_reason, use), content_type=_JSON)

    async def _embed(self, request: web.Request, call: Call, luck: Luck) -> web.StreamResponse:
        for prompt in call.prompts:
            with self._replica.start(call, prompt, luck) as generation:
                while await generation.next_batch() is not None:
                    pass
        replica = self._replica
        body = answers.embeddings(
            call,
            request_id=self._request_id(request),
            created_s=int(replica.clock.wall_s()),
            model=call.model or replica.spec.model,
        )
        return web.Response(body=body, content_type=_JSON)

    def _request_id(self, request: web.Request) -> str:
        given = request.headers.get("X-Request-Id", "")
        return given if _REQUEST_ID.fullmatch(given) else self._replica.request_id()


async def _stream(request: web.Request, answer: Answer, generation: Generation) -> web.StreamResponse:
    response = web.StreamResponse(headers=_SSE_HEADERS)
    await response.prepare(request)  # headers at once, as vLLM does; the first token comes when it is made
    malformed = False
    while (batch := await generation.next_batch()) is not None:
        malformed = malformed or batch.malformed
        data = answer.events(batch.start, batch.stop, batch.finish_reason, malformed=malformed)
        if batch.finish_reason is not None and not malformed:
            data += answer.closing(_usage(generation))
        await response.write(data)
    await response.write_eof()
    return response


def _usage(generation: Generation) -> dict[str, object]:
    sequence = generation.sequence
    return answers.usage(sequence.prompt_tokens, sequence.output_tokens, sequence.cached_tokens)


def _error(error: ApiError) -> web.Response:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return web.Response(body=error.body(), status=error.status, content_type=_JSON, headers=headers)


def _allow(error: web.HTTPException) -> dict[str, str]:
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}


async def _huge(request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    lines = b"".join(b'vllm:filler{n="%06d"} 1.0\n' % n for n in range(4096))
    for _ in range(-(-HUGE_METRICS_BYTES // len(lines))):
        await response.write(lines)
    await response.write_eof()
    return response
