"""A chat client that knows at which stage a request failed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import aiohttp
from real_vllm.workload import Conversation, Shape

TIMEOUT_S = 60.0
Messages = list[dict[str, str]]


class Lost(Enum):
    """How far a request came that failed. A gateway can retry only what has no byte of a response yet; vLLM sends the
    headers of a stream at once and the first token later."""

    BEFORE_FIRST_BYTE = "before the first byte"
    BEFORE_FIRST_TOKEN = "after the headers, before the first token"
    MID_STREAM = "mid stream"


@dataclass(slots=True, kw_only=True)
class Answer:
    """One request and what came of it. Times in ms from sending; counts by the server's usage, `repeated_tokens` are
    the prompt tokens of the turn before, which this one repeats."""

    began_s: float
    stream: bool
    status: int = 0
    lost: Lost | None = None
    error: str = ""
    ttft_ms: float | None = None
    e2e_ms: float = 0.0
    prompt_tokens: int = 0
    repeated_tokens: int = 0
    cached_tokens: int | None = None
    output_tokens: int = 0
    reads: int = 0
    text: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)


def body_of(model: str, messages: Messages, *, tokens: int, stream: bool) -> dict[str, Any]:
    """A request with an answer of exactly `tokens` tokens, the most likely ones."""
    body = {
        "model": model,
        "messages": messages,
        "max_tokens": tokens,
        "min_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": stream,
    }
    return {**body, "stream_options": {"include_usage": True}} if stream else body


async def ask(session: aiohttp.ClientSession, base: str, body: dict[str, Any]) -> Answer:
    """Send one chat completion and read its whole answer; raises nothing but on cancellation."""
    began_s = time.perf_counter()
    answer = Answer(began_s=began_s, stream=bool(body["stream"]))
    finished = False
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            session.post(f"{base}/v1/chat/completions", json=body) as response,
        ):
            answer.status = response.status
            if response.status != 200:
                answer.lost, answer.error = Lost.BEFORE_FIRST_BYTE, (await response.text())[:200]
            elif answer.stream:
                finished = await _read_stream(response, answer)
            else:
                _take(answer, json.loads(await response.read()), began_s)
                finished = True
    except (aiohttp.ClientError, OSError, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.e2e_ms = (time.perf_counter() - began_s) * 1000
    if not finished and answer.lost is None:
        if answer.ttft_ms is not None:
            answer.lost = Lost.MID_STREAM
        else:
            answer.lost = Lost.BEFORE_FIRST_TOKEN if answer.status else Lost.BEFORE_FIRST_BYTE
    return answer


async def _read_stream(response: aiohttp.ClientResponse, answer: Answer) -> bool:
    """Read server-sent events to their end; whether `[DONE]` came."""
    rest = b""
    async for data in response.content.iter_any():
        answer.reads += 1
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line == b"data: [DONE]":
                return True
            if line.startswith(b"data: "):
                _take(answer, json.loads(line[6:]), answer.began_s)
    return False


def _take(answer: Answer, event: dict[str, Any], began_s: float) -> None:
    answer.events.append(event)
    for choice in event.get("choices", []):
        text = (choice.get("delta") or choice.get("message") or {}).get("content")
        if text:
            if answer.ttft_ms is None:
                answer.ttft_ms = (time.perf_counter() - began_s) * 1000
            answer.text += text
    if usage := event.get("usage"):
        answer.prompt_tokens = usage["prompt_tokens"]
        answer.output_tokens = usage["completion_tokens"]
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")


async def converse(base: str, model: str, shape: Shape, planned: Sequence[Conversation]) -> list[Answer]:
    """Let the users have all conversations; the next turn holds the answer that came. A failed turn ends its
    conversation."""
    answers: list[Answer] = []
    waiting = iter(planned)

    async def user() -> None:
        for conversation in waiting:
            history: Messages = []
            before = 0
            for turn, message in enumerate(conversation.messages):
                if turn:
                    await asyncio.sleep(conversation.think_s[turn])
                history.append({"role": "user", "content": message})
                answer = await ask(session, base, body_of(model, history, tokens=shape.answer_tokens, stream=True))
                answer.events.clear()
                answer.repeated_tokens, before = before, answer.prompt_tokens
                answers.append(answer)
                if answer.lost is not None:
                    break
                history.append({"role": "assistant", "content": answer.text})

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(shape.users):
            group.create_task(user())
    return answers
