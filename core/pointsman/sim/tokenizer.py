"""A toy tokenizer and chat template, and the chained hashes of prompt blocks. Pure.

One token is four bytes of UTF-8, the usual size of a token of English text: 2,048 ASCII characters are 512 tokens.
It is prefix-stable: a longer text with the same beginning begins with the same full tokens, so a conversation's next
turn shares every full block of the last one, its answer included.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import xxhash

TOKEN_BYTES = 4

ASSISTANT_HEADER = "<|im_start|>assistant\n"


def render_chat(messages: Iterable[tuple[str, str]]) -> bytes:
    """The prompt of (role, text) messages in ChatML, ending where the assistant begins to speak."""
    turns = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages)
    return (turns + ASSISTANT_HEADER).encode("utf-8", "surrogatepass")


def from_token_ids(tokens: Sequence[int]) -> bytes:
    """The bytes that stand for a prompt given as token ids."""
    return struct.pack(f"<{len(tokens)}I", *(token & 0xFFFF_FFFF for token in tokens))


def count_tokens(text: bytes) -> int:
    """Number of tokens; the last one may be shorter than four bytes."""
    return -(-len(text) // TOKEN_BYTES)


def token_ids(text: bytes) -> list[int]:
    """The tokens: each is its bytes read as a little-endian number."""
    full = len(text) // TOKEN_BYTES
    ids = list(struct.unpack_from(f"<{full}I", text))
    if rest := text[full * TOKEN_BYTES :]:
        ids.append(int.from_bytes(rest, "little"))
    return ids


def block_hashes(text: bytes, block_size: int, salt: str = "") -> list[int]:
    """Chained 64-bit hashes of the full blocks of `block_size` tokens; `salt` keeps tenants and adapters apart.

    Each hash is seeded with the one before, so equal hashes mean equal text from the very start.
    """
    size = block_size * TOKEN_BYTES
    view = memoryview(text)
    seed = xxhash.xxh3_64_intdigest(salt.encode("utf-8", "surrogatepass"))
    digest = xxhash.xxh3_64_intdigest
    hashes = []
    for start in range(0, len(text) - size + 1, size):
        seed = digest(view[start : start + size], seed)
        hashes.append(seed)
    return hashes
