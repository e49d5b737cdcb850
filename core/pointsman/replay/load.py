"""The open-loop load generator: every request leaves at its time, whatever became of those before it.

Latencies count from the time at which the trace says a request arrives, not from the moment this program got round to
sending it, so a late generator makes figures worse, never better; how late it was is kept for each request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import aiohttp
import msgspec

from pointsman.core.clock import Clock
from pointsman.core.wire import REASON_HEADER
from pointsman.replay.chat_stream import ChatStream, StreamError
from pointsman.replay.prompts import PromptWriter
from pointsman.replay.trace import TraceRequest

MAX_DETAIL_CHARS: Final = 200
CONNECT_TIMEOUT_S: Final = 10.0
"""A gateway that doesn't accept within this is counted as not there."""


class Failure(Enum):
    """Why a request failed."""

    CONNECT = "connect"  # no connection: refused, unreachable, name not found
    RESET = "reset"  # connected, but closed before the response's headers
    STATUS = "status"  # answered with another status than 200
    TRUNCATED = "truncated"  # the stream ended or broke before [DONE]
    MALFORMED = "malformed"  # no HTTP, or an event that is no chat completion chunk
    SERVER_ERROR = "server error"  # an error object in the stream
    TIMEOUT = "timeout"  # not done in time
    TOO_LARGE = "too large"  # more response bytes than allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """What became of one request. All times are wall time in ms; `index` is its place in the trace.

    `due_ms` counts from the start of the replay, `late_ms` from `due_ms` to the moment of sending, `ttft_ms` (first
    chunk with content) and `e2e_ms` (`[DONE]`, or the failure) from `due_ms`. `status` is 0 when there was none.
    Tokens are the server's own counts; `cached_tokens` is None where it doesn't tell.
    """

    index: int
    due_ms: float
    late_ms: float
    e2e_ms: float
    ttft_ms: float | None = None
    status: int = 0
    failure: Failure | None = None
    detail: str = ""
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    output_tokens: int = 0
    replica: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """`gateway` is a base URL without a trailing slash, `speed` divides the trace's arrival times, `timeout_s` is the
    time limit of a whole request."""

    gateway: str
    model: str
    speed: float = 1.0
    timeout_s: float = 600.0
    max_response_bytes: int = 16 * 1024 * 1024


@dataclass(slots=True, kw_only=True)
class Tally:
    """Live counts of a replay for whoever shows progress, and its records in the order of their ends."""

    planned: int
    sent: int = 0
    failed: int = 0
    records: list[RequestRecord] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Requests that ended, failed ones included."""
        return len(self.records)

    @property
    def running(self) -> int:
        """Requests that were sent and have not ended."""
        return self.sent - self.done


async def run_load(
    requests: Sequence[TraceRequest],
    options: LoadOptions,
    *,
    session: aiohttp.ClientSession,
    clock: Clock,
    tally: Tally,
    stop: asyncio.Event,
) -> None:
    """Send all requests at their times and wait for their ends; records go to `tally`.

    When `stop` is set nothing more is sent and running requests are cancelled: those have no record.
    """
    prompts = PromptWriter()
    start_s = clock.monotonic_s()

    async def schedule() -> None:
        async with asyncio.TaskGroup() as group:
            for index, request in enumerate(requests):
                due_s = start_s + request.arrival_ms / 1000 / options.speed
                await asyncio.sleep(max(0.0, due_s - clock.monotonic_s()))
                tally.sent += 1
                group.create_task(one(index, request, due_s))

    async def one(index: int, request: TraceRequest, due_s: float) -> None:
        body = _body(prompts, request, options.model)
        record = await _send(session, options, clock, body, _Timing(index=index, start_s=start_s, due_s=due_s))
        tally.records.append(record)
        tally.failed += record.failure is not None

    work = asyncio.create_task(schedule())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        work.cancel()
        await asyncio.wait({work, stopping})
    if not work.cancelled():
        work.result()


def client_session() -> aiohttp.ClientSession:
    """A session that never queues (no limit on connections) and asks for plain text, so that bytes can be bounded."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        headers={
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": "pointsman-replay",
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timing:
    index: int
    start_s: float
    due_s: float


def _body(prompts: PromptWriter, request: TraceRequest, model: str) -> bytes:
    return msgspec.json.encode(
        {
            "model": model,
            "messages": [{"role": "user", "content": prompts.prompt(request.hash_ids, request.input_tokens)}],
            # A trace may hold answers of 0 tokens; the API takes no fewer than 1.
            "max_tokens": max(1, request.output_tokens),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )


async def _send(
    session: aiohttp.ClientSession, options: LoadOptions, clock: Clock, body: bytes, timing: _Timing
) -> RequestRecord:
    """One request from its first to its last byte. Never raises but on cancellation."""
    stream = ChatStream()
    status = 0
    failure: Failure | None = None
    detail = ""
    first_s: float | None = None
    end_s: float | None = None
    received_bytes = 0
    sent_s = clock.monotonic_s()
    try:
        async with (
            asyncio.timeout(options.timeout_s),
            session.post(f"{options.gateway}/v1/chat/completions", data=body, allow_redirects=False) as response,
        ):
            status = response.status
            if status != 200:
                failure, detail = Failure.STATUS, await _refusal(response)
            else:
                async for data in response.content.iter_any():
                    received_bytes += len(data)
                    if received_bytes > options.max_response_bytes:
                        failure, detail = Failure.TOO_LARGE, f"more than {options.max_response_bytes:,} bytes"
                        break
                    stream.feed(data)
                    if first_s is None and stream.started:
                        first_s = clock.monotonic_s()
                    if end_s is None and stream.done:
                        end_s = clock.monotonic_s()
    except StreamError as error:
        failure, detail = Failure.SERVER_ERROR if error.by_server else Failure.MALFORMED, str(error)
    except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
        failure, detail = _failure_of(error, status), f"{type(error).__name__}: {error}".strip(": ")
    if stream.done and failure is not Failure.TOO_LARGE:
        failure, detail = None, ""  # the answer was whole; what went wrong after it is not the client's loss
    elif status == 200 and failure is None:
        failure, detail = Failure.TRUNCATED, "the stream ended without [DONE]"
    return RequestRecord(
        index=timing.index,
        due_ms=(timing.due_s - timing.start_s) * 1000,
        late_ms=(sent_s - timing.due_s) * 1000,
        ttft_ms=(first_s - timing.due_s) * 1000 if first_s is not None else None,
        e2e_ms=((clock.monotonic_s() if end_s is None else end_s) - timing.due_s) * 1000,
        status=status,
        failure=failure,
        detail=_plain(detail),
        prompt_tokens=stream.prompt_tokens,
        cached_tokens=stream.cached_tokens,
        output_tokens=stream.output_tokens,
        replica=_plain(stream.replica),
    )


def _failure_of(error: Exception, status: int) -> Failure:
    """The class of a failure outside the stream's own text; `status` is 0 before the response's headers."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Failure.CONNECT
    if isinstance(error, TimeoutError):
        return Failure.TIMEOUT
    if status == 200:
        return Failure.TRUNCATED
    if status:
        return Failure.STATUS
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return Failure.RESET
    return Failure.MALFORMED


async def _refusal(response: aiohttp.ClientResponse) -> str:
    """The beginning of an error answer after the reason header of Pointsman's own answers."""
    text = (await response.content.read(2 * MAX_DETAIL_CHARS)).decode(errors="replace")
    return f"{response.headers.get(REASON_HEADER, '')} {text}"


def _plain(text: str) -> str:
    """What a peer wrote, as one short line that a terminal can show: nothing in it that moves a cursor."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_DETAIL_CHARS]
