"""A request body as the picker sees it: one typed JSON scan of what is needed, the rest skipped.

The client's bytes are never changed or encoded again. A body that can't be read gives a request without affinity and
says why in `problem`: the model server answers it in its own words, and the pick still counts its size. Known shapes:
OpenAI chat completions, completions, embeddings and responses, with vLLM's `cache_salt` and `priority`.

The prompt is rendered to bytes that are equal for equal prompts and that grow only at the end when a conversation
grows: tools, then each message as `role`, content and calls between control characters. It is no chat template, but two
renderings share a prefix whenever the templates of the same two requests do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

import msgspec
import numpy as np
import xxhash

MAX_DEPTH = 64
"""Open brackets that a cut body may have to be read; real requests have fewer than ten."""

MAX_SCAN_BYTES = 8 * 1024 * 1024
"""Bytes of a body that are read: two million tokens, more than any context window. A body of 64 MB costs 20 ms then and
does not hold up the others; what lies behind is counted but not matched."""

MAX_CUT_TOKENS = 100_000
"""Strings, brackets, commas and colons of a cut body that are looked at: 20 ms of work. A megabyte of chat has a few
thousand."""

MEDIA_BYTES = 1024
"""Prompt bytes that stand for one image, sound or file: 256 tokens, the least an image costs in common models. Its
base64 text would count a hundred times that."""

_START = "\x1e"
_FIELD = "\x1f"


class _Part(msgspec.Struct):
    """A part of a message's content. Anything but text is media and only told apart from other media."""

    type: str = ""
    text: str | None = None
    refusal: str | None = None
    image_url: msgspec.Raw = msgspec.Raw()
    video_url: msgspec.Raw = msgspec.Raw()
    audio_url: msgspec.Raw = msgspec.Raw()
    input_audio: msgspec.Raw = msgspec.Raw()
    file: msgspec.Raw = msgspec.Raw()
    file_id: msgspec.Raw = msgspec.Raw()


class _Message(msgspec.Struct):
    """A chat message, or an item of a responses request (`arguments` and `output` of its tool calls)."""

    role: str = ""
    type: str = ""
    name: str | None = None
    content: str | list[str | _Part] | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()
    tool_call_id: str | None = None
    arguments: msgspec.Raw = msgspec.Raw()
    output: msgspec.Raw = msgspec.Raw()


class _Body(msgspec.Struct):
    model: str | None = None
    messages: list[_Message] | None = None
    prompt: str | list[str | int | list[int]] | None = None
    input: str | list[str | int | list[int] | _Message] | None = None
    instructions: str | None = None
    tools: msgspec.Raw = msgspec.Raw()
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    cache_salt: str | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What a request body asks for. `prompt` is the rendering, empty when nothing could be rendered; `prompt_bytes` is
    its length, or that of the body where the rendering is cut or missing. `max_tokens` is 0 when it is not said.
    `problem` is empty when the body was read."""

    model: str = ""
    prompt: bytes = b""
    prompt_bytes: int = 0
    stream: bool = False
    max_tokens: int = 0
    cache_salt: str = ""
    priority: int = 0
    problem: str = ""


_DECODER = msgspec.json.Decoder(_Body)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_body(body: bytes, *, partial: bool = False) -> Body:
    """Read a request body. `partial`: the proxy cut it at its buffer limit, so its end is missing. Never raises."""
    size_bytes = len(body)
    problem = ""
    if size_bytes <= MAX_SCAN_BYTES:
        try:
            return _rendered(_DECODER.decode(body), 0)
        except _UNREADABLE as error:
            problem = str(error)
    if partial or size_bytes > MAX_SCAN_BYTES:
        mended = close_json(body[:MAX_SCAN_BYTES])
        problem = problem or "the part that was read is no JSON object"
        if mended is not None:
            try:
                return _rendered(_DECODER.decode(mended), size_bytes)
            except _UNREADABLE as error:
                problem = str(error)
    return Body(prompt_bytes=size_bytes, problem=problem)


def _rendered(found: _Body, least_bytes: int) -> Body:
    prompt = _prompt(found)
    return Body(
        model=found.model or "",
        prompt=prompt,
        prompt_bytes=max(len(prompt), least_bytes),
        stream=bool(found.stream),
        max_tokens=max(0, found.max_completion_tokens or found.max_tokens or found.max_output_tokens or 0),
        cache_salt=found.cache_salt or "",
        priority=found.priority or 0,
    )


def _prompt(body: _Body) -> bytes:
    if body.messages is not None:
        text = _text_of_raw(body.tools) + "".join(_message(message) for message in body.messages)
    elif body.prompt is not None:
        return _items(body.prompt)
    elif body.input is not None:
        head = _text_of_raw(body.tools) + (_START + body.instructions if body.instructions else "")
        return head.encode("utf-8", "surrogatepass") + _items(body.input)
    else:
        return b""
    return text.encode("utf-8", "surrogatepass")


def _items(items: str | list[str | int | list[int] | _Message] | list[str | int | list[int]]) -> bytes:
    """A prompt or input: one text, many texts, token ids (four bytes each, as a token's text has), or messages."""
    if isinstance(items, str):
        return items.encode("utf-8", "surrogatepass")
    if set(map(type, items)) == {int}:
        return _token_ids(cast("list[int]", items))
    parts: list[bytes] = []
    ids: list[int] = []
    for item in items:
        if isinstance(item, int):
            ids.append(item)
        elif isinstance(item, str):
            parts.append(item.encode("utf-8", "surrogatepass"))
        elif isinstance(item, list):
            parts.append(_token_ids(item))
        else:
            parts.append(_message(item).encode("utf-8", "surrogatepass"))
    return b"".join([_token_ids(ids), *parts])


def _token_ids(ids: list[int]) -> bytes:
    """Four bytes for each id; ids that no vocabulary has are folded into 32 bits."""
    try:
        return np.array(ids, dtype=np.int64).astype("<u4").tobytes()
    except OverflowError:
        return np.array([i & 0xFFFFFFFF for i in ids], dtype="<u4").tobytes()


def _message(message: _Message) -> str:
    content = message.content
    if content is None:
        content = ""
    elif not isinstance(content, str):
        content = _FIELD.join(part if isinstance(part, str) else _part(part) for part in content)
    extra = [
        _FIELD + text
        for text in (
            message.name or "",
            _text_of_raw(message.tool_calls),
            message.tool_call_id or "",
            _text_of_raw(message.arguments),
            _text_of_raw(message.output),
        )
        if text
    ]
    return f"{_START}{message.role or message.type}{_FIELD}{content}{''.join(extra)}"


def _part(part: _Part) -> str:
    if part.text is not None:
        return part.text
    if part.refusal is not None:
        return part.refusal
    media = (part.image_url, part.video_url, part.audio_url, part.input_audio, part.file, part.file_id)
    digest = xxhash.xxh3_128_hexdigest(b"".join(bytes(raw) for raw in media))
    return (digest * (MEDIA_BYTES // len(digest)))[:MEDIA_BYTES]


def _text_of_raw(raw: msgspec.Raw) -> str:
    return bytes(raw).decode("utf-8", "replace")


_STRUCTURE = re.compile(rb"[\"{}\[\],:]")
_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_ASCII = bytes(range(0x80))
_CLOSING = {b"{": b"}", b"[": b"]"}


def close_json(cut: bytes) -> bytes | None:
    """The beginning of a JSON object made whole: an open string value ends at the cut, a half member is dropped.

    None when it nests deeper than `MAX_DEPTH`, has more than `MAX_CUT_TOKENS`, or its brackets do not match.
    """
    open_brackets: list[bytes] = []
    last = b""  # the structural token before this one
    end = 0  # where all before is whole
    position = 0
    for _ in range(MAX_CUT_TOKENS):
        match = _STRUCTURE.search(cut, position)
        if match is None:
            # Every bracket, comma and text has moved `end`, so what is open now was open there.
            return cut[:end] + _closers(open_brackets) if end else None
        token, position = match[0], match.end()
        if token == b'"':
            start = position
            is_value = last == b":" or (open_brackets[-1:] == [b"["] and last in (b"[", b","))
            position = _after_string(cut, start)
            if position:
                end = position if is_value else end
                continue
            if is_value:
                return cut[:start] + _whole_text(cut[start:]) + b'"' + _closers(open_brackets)
            return cut[:end] + _closers(open_brackets) if end else None
        if token in (b"{", b"["):
            open_brackets.append(token)
            end = position
        elif token in (b"}", b"]"):
            if not open_brackets or _CLOSING[open_brackets.pop()] != token:
                return None
            end = position
        elif token == b",":
            end = match.start()
        if len(open_brackets) > MAX_DEPTH:
            return None
        last = token
    return None


def _closers(open_brackets: list[bytes]) -> bytes:
    return b"".join(_CLOSING[bracket] for bracket in reversed(open_brackets))


def _after_string(text: bytes, start: int) -> int:
    """Where the string whose inside begins at `start` has ended, 0 when it does not end or takes too long to tell."""
    quote = start - 1
    for _ in range(MAX_CUT_TOKENS):
        quote = text.find(b'"', quote + 1)
        if quote < 0:
            return 0
        if not _is_escaped(text, start, quote):
            return quote + 1
    return 0


def _is_escaped(text: bytes, start: int, position: int) -> bool:
    """True when an odd number of backslashes stands between `start` and `position`, right before the latter."""
    window = text[max(start, position - 32) : position]
    kept = len(window.rstrip(b"\\"))
    if kept == 0 and position - start > len(window):
        window = text[start:position]
        kept = len(window.rstrip(b"\\"))
    return (len(window) - kept) % 2 == 1


def _whole_text(text: bytes) -> bytes:
    """The inside of a JSON string up to a cut, without a half escape, surrogate pair or UTF-8 sequence at its end."""
    slash = text.rfind(b"\\", max(0, len(text) - 5))
    if slash >= 0 and not _is_escaped(text, 0, slash) and (text[slash + 1 :][:1] in (b"", b"u")):
        text = text[:slash]  # `\` or `\u12` without its end
    high = _HIGH_SURROGATE.search(text, max(0, len(text) - 6))
    if high is not None and not _is_escaped(text, 0, high.start()):
        text = text[: high.start()]
    return text.decode("utf-8", "ignore").encode() if text[-4:].translate(None, _ASCII) else text
