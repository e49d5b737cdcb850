"""OpenAI requests as vLLM takes them: JSON bytes to what the engine needs, errors in OpenAI's shape. Pure.

Only the fields that change something are read; what is unknown is ignored, as vLLM does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from pointsman.sim.tokenizer import count_tokens, from_token_ids, render_chat

Kind = Literal["chat", "completion", "embedding", "tokenize"]

_TYPES = {400: "BadRequestError", 404: "NotFoundError", 413: "RequestEntityTooLarge", 429: "TooManyRequestsError"}


class ApiError(Exception):
    """A request that is answered with `status` and the error shape of OpenAI; `param` names the field at fault."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The JSON body."""
        kind = _TYPES.get(self.status, "InternalServerError")
        return msgspec.json.encode(
            {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.status}}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A checked request. `prompts` has one entry except for embeddings; `model` None is the base model.

    `max_tokens` None: the server decides. `salt` keeps the prefix cache of a tenant apart (`cache_salt`).
    """

    kind: Kind
    model: str | None
    prompts: tuple[bytes, ...]
    max_tokens: int | None = None
    stream: bool = False
    include_usage: bool = False
    salt: str = ""
    base64: bool = False


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()


class _Common(msgspec.Struct):
    model: str | None = None
    cache_salt: str | None = None


class _Generate(_Common):
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None


class _Chat(_Generate, kw_only=True):
    messages: list[_Message]
    max_completion_tokens: int | None = None


class _Completion(_Generate, kw_only=True):
    prompt: str | list[str | int | list[int]]


class _Embedding(_Common, kw_only=True):
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None


class _Tokenize(_Common, kw_only=True):
    prompt: str | None = None
    messages: list[_Message] | None = None


T = TypeVar("T")


def parse_chat(body: bytes) -> Call:
    """`POST /v1/chat/completions`. Raises ApiError 400."""
    request = _decode(body, _Chat)
    if request.max_completion_tokens is not None:
        request.max_tokens = request.max_completion_tokens
    return _generate("chat", request, _render(request.messages))


def parse_completion(body: bytes) -> Call:
    """`POST /v1/completions` with one prompt, as text or token ids. Raises ApiError 400."""
    request = _decode(body, _Completion)
    prompts = _prompts(request.prompt, "prompt")
    if len(prompts) != 1:
        raise ApiError(400, "Only one prompt a request is simulated.", param="prompt")
    return _generate("completion", request, prompts[0])


def parse_embedding(body: bytes) -> Call:
    """`POST /v1/embeddings`. Raises ApiError 400."""
    request = _decode(body, _Embedding)
    return Call(
        kind="embedding",
        model=request.model,
        prompts=_prompts(request.input, "input"),
        salt=request.cache_salt or "",
        base64=request.encoding_format == "base64",
    )


def parse_tokenize(body: bytes) -> Call:
    """`POST /tokenize` with a prompt or messages. Raises ApiError 400."""
    request = _decode(body, _Tokenize)
    if request.messages is not None:
        prompt = _render(request.messages)
    elif request.prompt is not None:
        prompt = request.prompt.encode("utf-8", "surrogatepass")
    else:
        raise ApiError(400, "Field required: prompt or messages", param="prompt")
    return Call(kind="tokenize", model=request.model, prompts=(prompt,))


def output_length(call: Call, prompt: bytes, *, limit: int, default: int) -> tuple[int, str]:
    """How many tokens the answer to `prompt` has, and why it ends there (`stop` or `length`).

    With `max_tokens` the answer has just that length, so that a trace's output lengths are kept; without, `default` or
    what fits. `limit` is the model's context length. Raises ApiError 400 when the request does not fit, as vLLM does.
    """
    tokens = count_tokens(prompt)
    wanted = 0 if call.kind == "embedding" else (call.max_tokens or 1)
    if tokens + wanted > limit:
        raise ApiError(
            400,
            f"This model's maximum context length is {limit} tokens. However, you requested {wanted} output tokens "
            f"and your prompt contains {tokens} input tokens, for a total of {tokens + wanted} tokens. Please reduce "
            "the length of the input prompt or the number of requested output tokens.",
            param="input_tokens",
        )
    if call.kind == "embedding":
        return 0, "stop"
    if call.max_tokens is not None:
        return call.max_tokens, "length"
    return min(default, limit - tokens), "stop"


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `")
        field = path.rstrip("`").removeprefix("$").lstrip(".")
        if not field and (missing := what.removeprefix("Object missing required field `")) != what:
            field = missing.rstrip("`")
        raise ApiError(400, f"{field}: {what}" if field else what, param=field or None) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ApiError(400, f"JSON decode error: {error}") from error


def _generate(kind: Kind, request: _Generate, prompt: bytes) -> Call:
    if request.n not in (None, 1):
        raise ApiError(400, "Only n=1 is simulated.", param="n")
    if request.max_tokens is not None and request.max_tokens < 1:
        raise ApiError(400, f"max_tokens must be at least 1, got {request.max_tokens}.", param="max_tokens")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "Stream options can only be defined when `stream=True`.", param="stream_options")
    return Call(
        kind=kind,
        model=request.model,
        prompts=(prompt,),
        max_tokens=request.max_tokens,
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        salt=request.cache_salt or "",
    )


def _render(messages: list[_Message]) -> bytes:
    if not messages:
        raise ApiError(400, "messages must not be empty", param="messages")
    return render_chat((message.role, _text(i, message)) for i, message in enumerate(messages))


def _text(i: int, message: _Message) -> str:
    calls = bytes(message.tool_calls).decode("utf-8", "replace") if message.tool_calls else ""
    if message.content is None or isinstance(message.content, str):
        return (message.content or "") + calls
    texts = []
    for j, part in enumerate(message.content):
        if part.type != "text" or part.text is None:
            field = f"messages[{i}].content[{j}]"
            raise ApiError(400, f"{field}: only text parts are simulated, got {part.type!r}", param=field)
        texts.append(part.text)
    return "\n".join(texts) + calls


def _prompts(given: str | list[Any], field: str) -> tuple[bytes, ...]:
    """Text, token ids, or a list of either, as the bytes of each prompt."""
    if isinstance(given, list) and given and all(isinstance(item, int) for item in given):
        given = [given]
    items = given if isinstance(given, list) else [given]
    prompts = []
    for item in items:
        if isinstance(item, int):
            raise ApiError(400, f"{field}: token ids and texts cannot be mixed", param=field)
        prompts.append(item.encode("utf-8", "surrogatepass") if isinstance(item, str) else from_token_ids(item))
    if not prompts or not all(prompts):
        raise ApiError(400, f"{field} must not be empty", param=field)
    return tuple(prompts)
