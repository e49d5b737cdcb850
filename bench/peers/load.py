"""The load: requests at a trace's times, with the id of their session, and requests at a steady pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from pointsman.replay.chat_stream import ChatStream, StreamError
from pointsman.replay.load import client_session
from pointsman.replay.prompts import PromptWriter
from pointsman.replay.trace import TraceRequest

SESSION_HEADER = "x-session-id"
"""Where vllm-router's consistent hash looks for the session; the others do not use it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request. Times in ms from the time at which it was due; `failure` is empty when all of it came."""

    due_s: float  # after the start of the load
    ttft_ms: float | None
    e2e_ms: float
    failure: str
    began: bool  # a byte of the response had come when it failed


def sessions(requests: Sequence[TraceRequest]) -> list[str]:
    """A session for each request, as a chat front end sends it: the first block behind the last one that goes on in
    several ways. What comes before is shared between sessions (system prompts); a session itself goes on in one way."""
    followers: dict[int, set[int]] = {}
    for request in requests:
        for block, following in zip(request.hash_ids, request.hash_ids[1:], strict=False):
            followers.setdefault(block, set()).add(following)
    names = []
    for request in requests:
        shared = [i for i, block in enumerate(request.hash_ids) if len(followers.get(block, ())) > 1]
        own = request.hash_ids[shared[-1] + 1 :] if shared else request.hash_ids
        names.append(f"s{own[0] if own else request.hash_ids[-1]}")
    return names


async def replay(url: str, model: str, requests: Sequence[TraceRequest], *, timeout_s: float) -> list[Outcome]:
    """Every request at its time, whatever became of those before."""
    prompts = PromptWriter()
    names = sessions(requests)
    outcomes: list[Outcome] = []
    began_s = time.monotonic()

    async def one(index: int, request: TraceRequest, due_s: float) -> None:
        text = prompts.prompt(request.hash_ids, request.input_tokens)
        outcomes.append(
            await send(
                session, url, _body(model, text, max(1, request.output_tokens)), names[index], began_s, due_s, timeout_s
            )
        )

    async with client_session() as session, asyncio.TaskGroup() as group:
        for index, request in enumerate(requests):
            due_s = request.arrival_ms / 1000
            await asyncio.sleep(max(0.0, began_s + due_s - time.monotonic()))
            group.create_task(one(index, request, due_s))
    return outcomes


async def steady(url: str, model: str, *, rate: float, duration_s: float, timeout_s: float) -> list[Outcome]:
    """`rate` short requests a second, each of a session of its own, every second of them a stream with 24 tokens."""
    outcomes: list[Outcome] = []
    began_s = time.monotonic()

    async def one(number: int, due_s: float) -> None:
        body = _body(model, f"{number}: which line is free now? " * 40, 24)
        outcomes.append(await send(session, url, body, f"steady-{number}", began_s, due_s, timeout_s))

    async with client_session() as session, asyncio.TaskGroup() as group:
        for number in range(int(rate * duration_s)):
            await asyncio.sleep(max(0.0, began_s + number / rate - time.monotonic()))
            group.create_task(one(number, number / rate))
    return outcomes


def _body(model: str, text: str, tokens: int) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def send(
    session: aiohttp.ClientSession,
    url: str,
    body: dict[str, object],
    name: str,
    began_s: float,
    due_s: float,
    timeout_s: float,
) -> Outcome:
    """One request from its first to its last byte; raises nothing but on cancellation."""
    stream = ChatStream()
    first_s: float | None = None
    failure = ""
    began = False
    try:
        async with (
            asyncio.timeout(timeout_s),
            session.post(f"{url}/v1/chat/completions", json=body, headers={SESSION_HEADER: name}) as response,
        ):
            began = response.status == 200
            if response.status != 200:
                failure = f"status {response.status}"
            else:
                async for data in response.content.iter_any():
                    stream.feed(data)
                    if first_s is None and stream.started:
                        first_s = time.monotonic()
    except TimeoutError:
        failure = "timeout"
    except (aiohttp.ClientError, OSError, StreamError, ValueError) as error:
        failure = type(error).__name__
    end_s = time.monotonic()
    if stream.done:
        failure = ""
    elif not failure:
        failure = "cut"
    return Outcome(
        due_s=due_s,
        ttft_ms=None if first_s is None else (first_s - began_s - due_s) * 1000,
        e2e_ms=(end_s - began_s - due_s) * 1000,
        failure=failure,
        began=began,
    )
