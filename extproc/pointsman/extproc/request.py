"""A request body as the picker sees it: one typed JSON scan of what is needed, the rest skipped.

The client's bytes are never changed or encoded again. A body that can't be read gives a request without affinity and
says why in `problem`: the model server answers it in its own words, and the pick still counts its size. Known shapes:
OpenAI chat completions, completions, embeddings and responses, with vLLM's `cache_salt` and `priority`.

The prompt is rendered to bytes that are equal for equal prompts and that grow only at the end when a conversation
grows: tools, then each message as `role`, content and calls between control characters. It is no chat template, but two
renderings share a prefix whenever the templates of the same two requests do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from pointsman.extproc.cut import close_json
from pointsman.extproc.token_ids import ID_BYTES, render_id_text, render_ids

MAX_SCAN_BYTES = 8 * 1024 * 1024
"""Bytes of a body that are read: two million tokens, more than any context window. A body of 64 MB costs 20 ms then and
does not hold up the others; what lies behind is counted but not matched."""

MAX_OBJECTS = 40_000
MAX_ITEMS = 250_000
"""Braces and commas of a body that are read. Each object costs 1.6 µs and each item of a list 0.3 µs, so a body of
nothing else takes 70 ms, and 8 MiB of it would take 4 s. The longest prose has 200,000 commas, and 1 MB of JSON inside
of a prompt has 30,000 braces; past them the prompt is matched in part, as it is past `MAX_SCAN_BYTES`."""

HEAVY_BYTES = 1024 * 1024
HEAVY_OBJECTS = 4_000
HEAVY_ITEMS = 20_000
"""From here on a body takes more than some 5 ms to read, and a shell should not read it between two other requests."""

MANY_ITEMS = 4_000
"""Commas from which it is worth a look whether the prompt is a list of token ids: 1 µs each when they are read one by
one, 0.02 µs all at once."""

_PIECE_BYTES = 64 * 1024
_SMALL_BYTES = 16 * 1024
_UNCOUNTED_BYTES = 64 * 1024
"""Bodies up to here are read without a look at what they hold: 20 ms at the worst. Up to the first they need no reader
of their own either."""

MAX_NAME_CHARS = 1_024
"""Of a model's name; a longer one is cut. The longest are paths of files. Decisions are remembered by the hundred, each
with its model, and a client may make up names of 8 MiB."""

MEDIA_BYTES = 1024
"""Prompt bytes that stand for one image, sound or file: 256 tokens, the least an image costs in common models. Its
base64 text would count a hundred times that."""

Crowd = tuple[int, int]
"""Braces and commas of a body."""

_NONE = msgspec.Raw()
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
    tool_calls: msgspec.Raw = _NONE
    tool_call_id: str | None = None
    arguments: msgspec.Raw = _NONE
    output: msgspec.Raw = _NONE


class _Fields(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    cache_salt: str | None = None
    priority: int | None = None


class _Body(_Fields):
    messages: list[_Message] | None = None
    prompt: str | list[str | int | list[int]] | None = None
    input: str | list[str | int | list[int] | _Message] | None = None
    instructions: str | None = None
    tools: msgspec.Raw = msgspec.Raw()


class _Lean(_Fields):
    """A body whose prompt stays as it came. With messages or tools it is no plain prompt."""

    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What a request body asks for. `prompt` is the rendering, empty when nothing could be rendered; `prompt_bytes` is
    its length, or that of the body where the rendering is cut or missing. `max_tokens` is 0 when it is not said.
    `token_ids`: the prompt is nothing but token ids. `problem` is empty when the body was read. `asked_model`: what the
    client called the model, where that is renamed to `model`."""

    model: str = ""
    asked_model: str = ""
    prompt: bytes = b""
    prompt_bytes: int = 0
    stream: bool = False
    max_tokens: int = 0
    cache_salt: str = ""
    priority: int = 0
    token_ids: bool = False
    problem: str = ""


_DECODER = msgspec.json.Decoder(_Body)
_LEAN_DECODER = msgspec.json.Decoder(_Lean)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_body(body: bytes, *, partial: bool = False, crowd: Crowd | None = None) -> Body:
    """Read a request body. `partial`: the proxy cut it at its buffer limit, so its end is missing. Never raises.

    `crowd`: what `crowd_of` has told of it, if it was asked. The work is bounded whatever the body holds: what lies
    behind the bounds is counted but not matched.
    """
    size_bytes = len(body)
    problem = ""
    readable_bytes = min(size_bytes, MAX_SCAN_BYTES)
    if size_bytes > _UNCOUNTED_BYTES:
        objects, items = crowd or crowd_of(body)
        if items > MANY_ITEMS and not partial and size_bytes <= MAX_SCAN_BYTES:
            ids = _read_ids(body)
            if ids is not None:
                return ids
        if objects > MAX_OBJECTS:
            readable_bytes = _position(body, ord("{"), MAX_OBJECTS)
        if items > MAX_ITEMS:
            readable_bytes = min(readable_bytes, _position(body, ord(","), MAX_ITEMS))
    if readable_bytes == size_bytes:
        try:
            return _rendered(_DECODER.decode(body), 0)
        except _UNREADABLE as error:
            problem = str(error)
    if partial or readable_bytes < size_bytes:
        mended = close_json(body[:readable_bytes])
        problem = problem or "the part that was read is no JSON object"
        if mended is not None:
            try:
                return _rendered(_DECODER.decode(mended), size_bytes)
            except _UNREADABLE as error:
                problem = str(error)
    return Body(prompt_bytes=size_bytes, problem=problem)


def bounded_name(model: str) -> str:
    """The name of a model; one that is too long is cut and marked, so that it is no other model's."""
    return model if len(model) <= MAX_NAME_CHARS else model[:MAX_NAME_CHARS] + "…"


def crowd_of(body: bytes) -> Crowd:
    """Braces and commas in what may be read of a body: bounds of its objects and items. 0 for a small one."""
    if len(body) <= _SMALL_BYTES:
        return 0, 0
    return _count(body, ord("{")), _count(body, ord(","))


def is_heavy(body: bytes, crowd: Crowd) -> bool:
    """True when `read_body` may take so long that other requests should not wait for it."""
    return len(body) > HEAVY_BYTES or crowd[0] > HEAVY_OBJECTS or crowd[1] > HEAVY_ITEMS


def _bytes_read(body: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(body, dtype=np.uint8, count=min(len(body), MAX_SCAN_BYTES))


def _count(body: bytes, character: int) -> int:
    """How often a character stands in what may be read; in pieces that fit the cache, faster than `bytes.count`."""
    read = _bytes_read(body)
    pieces = range(0, len(read), _PIECE_BYTES)
    return sum(int(np.count_nonzero(read[start : start + _PIECE_BYTES] == character)) for start in pieces)


def _position(body: bytes, character: int, number: int) -> int:
    """Where it stands for that time, counted from 0."""
    return int(np.flatnonzero(_bytes_read(body) == character)[number])


def _read_ids(body: bytes) -> Body | None:
    """A body whose prompt or input is nothing but token ids; None for all others."""
    try:
        found = _LEAN_DECODER.decode(body)
    except _UNREADABLE:
        return None
    rendered = render_id_text(bytes(found.prompt) or bytes(found.input))
    if rendered is None:
        return None
    prompt, count = rendered
    return _typed(found, prompt, count * ID_BYTES, token_ids=True)


def _rendered(found: _Body, least_bytes: int) -> Body:
    prompt = _prompt(found)
    items = None if found.messages is not None else found.prompt if found.prompt is not None else found.input
    token_ids = isinstance(items, list) and bool(items) and isinstance(items[0], int)
    return _typed(found, prompt, max(len(prompt), least_bytes), token_ids=token_ids)


def _typed(found: _Fields, prompt: bytes, prompt_bytes: int, *, token_ids: bool) -> Body:
    return Body(
        model=bounded_name(found.model or ""),
        prompt=prompt,
        prompt_bytes=prompt_bytes,
        stream=bool(found.stream),
        max_tokens=max(0, found.max_completion_tokens or found.max_tokens or found.max_output_tokens or 0),
        cache_salt=found.cache_salt or "",
        priority=found.priority or 0,
        token_ids=token_ids,
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
        return render_ids(cast("list[int]", items))
    parts: list[bytes] = []
    ids: list[int] = []
    for item in items:
        if isinstance(item, int):
            ids.append(item)
        elif isinstance(item, str):
            parts.append(item.encode("utf-8", "surrogatepass"))
        elif isinstance(item, list):
            parts.append(render_ids(item))
        else:
            parts.append(_message(item).encode("utf-8", "surrogatepass"))
    return b"".join([render_ids(ids), *parts])


def _message(message: _Message) -> str:
    content = message.content
    if content is None:
        content = ""
    elif not isinstance(content, str):
        content = _FIELD.join(part if isinstance(part, str) else _part(part) for part in content)
    head = f"{_START}{message.role or message.type}{_FIELD}{content}"
    if message.tool_calls is message.arguments is message.output is _NONE and not (
        message.name or message.tool_call_id
    ):
        return head
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
    return head + "".join(extra)


def _part(part: _Part) -> str:
    if part.text is not None:
        return part.text
    if part.refusal is not None:
        return part.refusal
    kinds = (part.image_url, part.video_url, part.audio_url, part.input_audio, part.file, part.file_id)
    media = b"".join(bytes(raw) for raw in kinds)
    if not media:
        return ""
    digest = xxhash.xxh3_128_hexdigest(media)
    return (digest * (MEDIA_BYTES // len(digest)))[:MEDIA_BYTES]


def _text_of_raw(raw: msgspec.Raw) -> str:
    return bytes(raw).decode("utf-8", "replace")
