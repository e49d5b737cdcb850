"""Prompt text from hash ids: equal ids give equal text, so prompts share prefixes exactly where the trace says so."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from pointsman.replay.trace import BLOCK_TOKENS, BYTES_PER_TOKEN

BLOCK_CHARS: Final = BLOCK_TOKENS * BYTES_PER_TOKEN
"""2,048 ASCII characters stand for the 512 tokens of a block."""

CACHE_BYTES: Final = 32 * 1024 * 1024
"""Bound of the kept text: 16,384 blocks, more than the shared blocks of an hour of Mooncake."""


def _syllables() -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """256 pieces of four characters, one for each byte: three in four end a word, the others go on."""
    consonants, vowels, endings = "bdfgklmnprstvz", "aeiou", "lmnrst"
    heads = [c + v for c in consonants for v in vowels]
    ends = [head + ending + " " for head in heads for ending in endings]
    middles = [head + other for head in heads for other in heads]
    # Steps that are coprime to the lengths (420 and 4,900) spread the choice over all sounds.
    pieces = [ends[i * 11 % len(ends)] for i in range(192)] + [middles[i * 73 % len(middles)] for i in range(64)]
    return np.frombuffer("".join(pieces).encode("ascii"), dtype=np.uint32)


_PIECES: Final = _syllables()


def block_text(hash_id: int) -> str:
    """The text of one block: 2,048 ASCII letters and spaces that depend on nothing but the id (0 ≤ id < 2^63)."""
    digest = hashlib.shake_128(hash_id.to_bytes(8, "big")).digest(BLOCK_TOKENS)
    return _PIECES[np.frombuffer(digest, dtype=np.uint8)].tobytes().decode("ascii")


class PromptWriter:
    """Writes prompts and keeps the blocks used last, at most `cache_bytes` of text.

    A prompt has 48 KB on average in Mooncake's conversation trace and 500 KB at most; only blocks are kept, never
    prompts.
    """

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self._block = lru_cache(maxsize=max(1, cache_bytes // BLOCK_CHARS))(block_text)

    def prompt(self, hash_ids: Sequence[int], input_tokens: int) -> str:
        """The text of `input_tokens` tokens: the blocks in order, the last one cut. Needs enough ids for the tokens."""
        if input_tokens > len(hash_ids) * BLOCK_TOKENS:
            raise ValueError(f"{len(hash_ids)} blocks do not hold {input_tokens} tokens")
        text = "".join(map(self._block, hash_ids))
        return text[: input_tokens * BYTES_PER_TOKEN]

    @property
    def kept_blocks(self) -> int:
        """Number of blocks in the cache."""
        return self._block.cache_info().currsize
