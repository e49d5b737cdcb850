"""What a simulated replica says: its text, and the JSON and SSE around it in vLLM's format. Pure."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any, Literal

import msgspec
import xxhash

from pointsman.sim.openai import Call
from pointsman.sim.tokenizer import TOKEN_BYTES, count_tokens, token_ids

EMBEDDING_SIZE = 16
DONE = b"data: [DONE]\n\n"

_json = msgspec.json.encode


class Voice:
    """The endless text of one replica, which names it; each token is four ASCII characters of it."""

    def __init__(self, name: str) -> None:
        sentence = f"{name} says that all is well on the line. "
        sentence += " " * (-len(sentence) % TOKEN_BYTES)
        self._text = sentence
        self._tokens = len(sentence) // TOKEN_BYTES

    def text(self, start: int, stop: int) -> str:
        """Output tokens `start` to `stop`."""
        first = start % self._tokens
        rounds = -(-(first + stop - start) // self._tokens)
        return (self._text * rounds)[first * TOKEN_BYTES : (first + stop - start) * TOKEN_BYTES]


def usage(prompt_tokens: int, output_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """The `usage` object, with how many prompt tokens came from the prefix cache."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + output_tokens,
        "completion_tokens": output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


class Answer:
    """One answer to a chat or completion request: whole, or as a stream of events."""

    def __init__(self, call: Call, *, request_id: str, created_s: int, model: str, voice: Voice, replica: str) -> None:
        self._chat = call.kind == "chat"
        self._include_usage = call.include_usage
        self._voice = voice
        self._head: dict[str, Any] = {
            "id": ("chatcmpl-" if self._chat else "cmpl-") + request_id,
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": created_s,
            "model": model,
            "system_fingerprint": replica,
        }
        # Everything of an event before its text and after it never changes: JSON is made once and not for each token.
        head = b"data: " + _json(self._head)[:-1]
        if self._chat:
            self._before = head + b',"choices":[{"index":0,"delta":{"content":"'
            self._after = b'"},"logprobs":null,"finish_reason":null}]}\n\n'
            self._role = head + (
                b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
                b'"finish_reason":null}]}\n\n'
            )
        else:
            self._before = head + b',"choices":[{"index":0,"text":"'
            self._after = b'","logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n'
            self._role = b""

    def whole(self, output_tokens: int, finish_reason: str, use: dict[str, Any]) -> bytes:
        """The body of an answer that is not streamed."""
        text = self._voice.text(0, output_tokens)
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason, "stop_reason": None}
        kind = {"object": "chat.completion"} if self._chat else {}
        return _json({**self._head, **kind, "choices": [choice], "usage": use})

    def events(self, start: int, stop: int, finish_reason: str | None, *, malformed: bool = False) -> bytes:
        """The event for output tokens `start` to `stop`, led by the role event at the start of a chat."""
        text = self._voice.text(start, stop).encode()
        if finish_reason is None:
            event = self._before + text + self._after
        else:
            ending = self._after.replace(b'"finish_reason":null', b'"finish_reason":' + _json(finish_reason))
            if self._chat:
                ending = ending.replace(b"}]}\n\n", b',"stop_reason":null}]}\n\n')
            event = self._before + text + ending
        if malformed and start > 0:
            event = event[: len(event) // 2] + b"\n\n"
        return self._role + event if start == 0 else event

    def closing(self, use: dict[str, Any]) -> bytes:
        """What comes after the last token: usage where it was asked for, and the end mark."""
        if not self._include_usage:
            return DONE
        return b"data: " + _json({**self._head, "choices": [], "usage": use}) + b"\n\n" + DONE


def embeddings(call: Call, *, request_id: str, created_s: int, model: str) -> bytes:
    """The body of an answer to an embeddings request."""
    data = [
        {"index": i, "object": "embedding", "embedding": _embedding(prompt, call.base64)}
        for i, prompt in enumerate(call.prompts)
    ]
    tokens = sum(count_tokens(prompt) for prompt in call.prompts)
    use = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    head = {"id": f"embd-{request_id}", "object": "list", "created": created_s, "model": model}
    return _json({**head, "data": data, "usage": use})


def _embedding(prompt: bytes, as_base64: bool) -> list[float] | str:
    """A unit vector that depends on the text alone, so that every replica says the same."""
    raw = [xxhash.xxh3_64_intdigest(prompt, seed=i) / 2**63 - 1 for i in range(EMBEDDING_SIZE)]
    norm = math.sqrt(sum(x * x for x in raw)) or 1.0
    vector = [x / norm for x in raw]
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if as_base64 else vector


def tokenized(prompt: bytes, max_model_len: int) -> bytes:
    """The body of an answer to `/tokenize`."""
    ids = token_ids(prompt)
    return _json({"count": len(ids), "max_model_len": max_model_len, "tokens": ids, "token_strs": None})


def models(base: str, loras: tuple[str, ...], *, created_s: int, max_model_len: int, loaded: bool) -> bytes:
    """The body of `/v1/models`: the base model, then its adapters; nothing when the model is unloaded."""

    def card(name: str, parent: str | None) -> dict[str, Any]:
        kind: Literal["model"] = "model"
        return {
            "id": name,
            "object": kind,
            "created": created_s,
            "owned_by": "vllm",
            "root": name,
            "parent": parent,
            "max_model_len": max_model_len if parent is None else None,
            "permission": [],
        }

    cards = [card(base, None), *(card(name, base) for name in loras)] if loaded else []
    return _json({"object": "list", "data": cards})
