"""Reads a streamed chat completion: bytes in, what a client learns from them out. Pure.

The format is OpenAI's: server-sent events `data: {json}` and a last `data: [DONE]`, without which the answer is cut.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

MAX_NAME_CHARS: Final = 128
"""A `system_fingerprint` is kept for each request; longer ones are cut."""

_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count = 0
    completion_tokens: _Count | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    system_fingerprint: str | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_DECODER: Final = msgspec.json.Decoder(_Chunk)


class StreamError(Exception):
    """The stream holds something that is no chat completion chunk, or an error object of the server."""

    def __init__(self, text: str, *, by_server: bool) -> None:
        super().__init__(text)
        self.by_server = by_server


class ChatStream:
    """State of one answer.

    - `started`: a chunk with generated content was seen (the time it came is the TTFT); role-only chunks don't count.
    - `done`: `[DONE]` was seen.
    - `output_tokens`: by the server's usage, else the number of chunks with content.
    - `prompt_tokens`, `cached_tokens`: by usage; `cached_tokens` is None where the server doesn't say.
    - `replica`: the last `system_fingerprint`; simulated replicas put their name there.
    """

    __slots__ = ("_chunks", "_rest", "_usage", "done", "replica", "started")

    def __init__(self) -> None:
        self._rest = b""
        self._chunks = 0
        self._usage: _Usage | None = None
        self.started = False
        self.done = False
        self.replica = ""

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere. Raises `StreamError`; what was learnt before stays."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            # Other fields (event, id, retry), comments and the blank lines between events say nothing here.
            if line.startswith(b"data:"):
                self._event(line[5:].strip())

    @property
    def output_tokens(self) -> int:
        if self._usage is not None and self._usage.completion_tokens is not None:
            return self._usage.completion_tokens
        return self._chunks

    @property
    def prompt_tokens(self) -> int:
        return self._usage.prompt_tokens if self._usage is not None else 0

    @property
    def cached_tokens(self) -> int | None:
        details = self._usage.prompt_tokens_details if self._usage is not None else None
        return details.cached_tokens if details is not None else None

    def _event(self, payload: bytes) -> None:
        if payload == b"[DONE]":
            self.done = True
            return
        try:
            chunk = _DECODER.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            text = f"{error}: {payload[:80].decode(errors='replace')}"
            raise StreamError(text, by_server=False) from error
        if bytes(chunk.error) != b"null":
            raise StreamError(bytes(chunk.error)[:200].decode(errors="replace"), by_server=True)
        if chunk.system_fingerprint:
            self.replica = chunk.system_fingerprint[:MAX_NAME_CHARS]
        if chunk.usage is not None:
            self._usage = chunk.usage
        if any(_has_content(choice.delta) for choice in chunk.choices):
            self._chunks += 1
            self.started = True


def _has_content(delta: _Delta | None) -> bool:
    return delta is not None and bool(delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls)
