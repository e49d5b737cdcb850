"""Which endpoints hold the KV blocks of a prompt: our own record of where prompts went.

A prompt is cut into blocks of `BLOCK_BYTES`; each block's hash covers all blocks before it, so equal hashes mean equal
prefixes. For each hash the index keeps a set of rows as the bits of one integer: a lookup walks the prompt's hashes,
intersects the sets and so answers for all endpoints at once. Each row forgets its least recently used blocks when it
holds more than its engine can.
"""

from __future__ import annotations

import functools
import struct
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import xxhash

BYTES_PER_TOKEN = 4
"""English and code have about four bytes of UTF-8 for each token of today's vocabularies."""

BLOCK_TOKENS = 64
"""Tokens for each block. Engines cache by 16 (vLLM on GPUs) to 128; at 64 a hit is understated by 32 tokens on average,
2 ms of prefill, at a quarter of the hashing and memory of 16."""

BLOCK_BYTES = BLOCK_TOKENS * BYTES_PER_TOKEN
_BLOCK = struct.Struct(f"{BLOCK_BYTES}s")

MAX_PROMPT_BLOCKS = 32_768
"""Blocks of a prompt that are hashed: 2 M tokens, more than any engine's context window. Bounds the work for a 60 MB
body; it is no cap on prompts that can be served."""

DEFAULT_ROW_BLOCKS = 6_250
"""Blocks a row holds until its engine has told its capacity: 400 k tokens, four H100 with a 70B model (facts 3.1)."""

MAX_TOTAL_BLOCKS = 4_000_000
"""Entries of all rows together; at about 190 bytes each the index stays under 800 MB, and 100 endpoints may have 2.5 M
tokens each."""

FEW_ROWS = 8
"""Rows that are written one by one, 0.2 µs each, and not through an array of their positions."""


def block_hashes(prompt: bytes, seed: int) -> list[int]:
    """Chained 64-bit hashes of the whole blocks of a prompt; a partial last block has none."""
    digest = xxhash.xxh3_64_intdigest
    blocks = min(len(prompt) // BLOCK_BYTES, MAX_PROMPT_BLOCKS)
    return [seed := digest(block, seed) for (block,) in _BLOCK.iter_unpack(memoryview(prompt)[: blocks * BLOCK_BYTES])]


def chain_seed(model: str, salt: str) -> int:
    """Where a chain begins: prompts to different models, adapters or tenants (`cache_salt`) share nothing."""
    return xxhash.xxh3_64_intdigest(f"{len(model)}:{model}:{salt}".encode("utf-8", "surrogatepass"))


class PrefixIndex:
    """Blocks by row. `max_blocks` bounds the entries of all rows together."""

    def __init__(self, max_blocks: int = MAX_TOTAL_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._rows_of: dict[int, int] = {}  # hash → set of rows as bits
        self._blocks: dict[int, OrderedDict[int, None]] = {}  # row → its hashes, least recently used first
        self._limit: dict[int, int] = {}  # row → blocks its engine holds
        self._step: dict[int, int] = {}  # row → blocks of ours in one of its engine's, where that is more than one
        self._owed: dict[int, float] = {}  # row → part of a block that `age` has yet to drop
        self._total = 0

    @property
    def total_blocks(self) -> int:
        """Entries of all rows."""
        return self._total

    def blocks(self, row: int) -> int:
        """Entries of one row."""
        return len(self._blocks.get(row, ()))

    def set_capacity(self, row: int, tokens: int) -> None:
        """What the engine of a row can hold; takes effect at once."""
        self._limit[row] = max(1, tokens // BLOCK_TOKENS)
        held = self._blocks.get(row)
        if held is not None:
            self._trim(row, held)

    def set_block(self, row: int, tokens: int) -> None:
        """How large the blocks of a row's engine are."""
        self._step[row] = max(1, tokens // BLOCK_TOKENS)

    def whole(self, row: int, hashes: Sequence[int]) -> Sequence[int]:
        """The blocks of a prompt that the row's engine keeps: those that fill whole blocks of its own.

        The rest would take room in our record and none in the engine, and we would forget prompts that it still has.
        """
        step = self._step.get(row, 1)
        return hashes if step == 1 else hashes[: len(hashes) // step * step]

    def match(self, hashes: Sequence[int], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """For each of `rows`, how many leading blocks of the prompt it holds."""
        counts = np.zeros(len(rows), dtype=np.int64)
        if not hashes or not len(rows):
            return counts
        get = self._rows_of.get
        holding = get(hashes[0], 0)
        if not holding:
            return counts
        levels: list[tuple[int, int]] = []  # rows that hold exactly this many leading blocks
        matched = len(hashes)
        before = holding
        for i, held_by in enumerate(map(get, hashes)):
            if held_by == before:  # the rows of the block before; the usual case, so no more work than this
                continue
            before = held_by or 0
            both = holding & before
            if both != holding:
                levels.append((i, holding ^ both))
                holding = both
                if not both:
                    matched = i
                    break
        if holding:
            levels.append((matched, holding))
        last = max(int(np.maximum.reduce(rows)) + 1, *(bits.bit_length() for _, bits in levels))
        by_row = np.zeros(last, dtype=np.int64)
        for count, bits in levels:
            if bits.bit_count() > FEW_ROWS:
                by_row[_positions(bits)] = count
                continue
            left = bits
            while left:
                row = left.bit_length() - 1
                by_row[row] = count
                left ^= 1 << row
        return by_row[rows]

    def insert(self, row: int, hashes: Sequence[int], *, known: int = 0) -> None:
        """Note that the row's engine computes this prompt. Later blocks age first, as engines free tails first.

        `known`: how many leading blocks the row holds, as `match` has just told.
        """
        held = self._blocks.setdefault(row, OrderedDict())
        rows_of, bit = self._rows_of, 1 << row
        before = len(held)
        limit = self._limit_of(row)
        known = min(known, limit)
        for block in reversed(hashes[known:limit]):
            if block in held:
                held.move_to_end(block)
            else:
                held[block] = None
                rows_of[block] = rows_of.get(block, 0) | bit
        deque(map(held.move_to_end, reversed(hashes[:known])), maxlen=0)  # a loop in C
        self._total += len(held) - before
        self._trim(row, held)
        if self._total > self._max_blocks:  # other rows still hold the share of a smaller fleet
            for other, blocks in self._blocks.items():
                self._trim(other, blocks)

    def remove(self, row: int, hashes: Iterable[int]) -> int:
        """Drop these blocks of a row, those that it holds; returns how many."""
        held = self._blocks.get(row)
        if held is None:
            return 0
        before = len(held)
        for block in hashes:
            if block in held:
                del held[block]
                self._unset(block, 1 << row)
        self._total -= before - len(held)
        return before - len(held)

    def age(self, row: int, share: float) -> None:
        """Drop this share (0..1) of a row's blocks, the least recently used first.

        Parts of a block are kept until they are a whole one.
        """
        held = self._blocks.get(row)
        if not held:
            return
        due = self._owed.get(row, 0.0) + share * len(held)
        count = min(int(due), len(held))
        self._owed[row] = due - count
        self._drop_oldest(row, held, count)

    def clear(self, row: int) -> None:
        """Drop all blocks of a row whose engine goes on."""
        held = self._blocks.pop(row, None)
        self._owed.pop(row, None)
        if held is not None:
            self._total -= len(held)
            for block in held:
                self._unset(block, 1 << row)

    def forget(self, row: int) -> None:
        """Drop all of a row: its engine restarted, or the row is free."""
        self._limit.pop(row, None)
        self._step.pop(row, None)
        self.clear(row)

    def _limit_of(self, row: int) -> int:
        share = max(1, self._max_blocks // max(1, len(self._blocks)))
        return min(self._limit.get(row, DEFAULT_ROW_BLOCKS), share)

    def _trim(self, row: int, held: OrderedDict[int, None]) -> None:
        self._drop_oldest(row, held, len(held) - self._limit_of(row))

    def _drop_oldest(self, row: int, held: OrderedDict[int, None], count: int) -> None:
        for _ in range(count):
            block, _none = held.popitem(last=False)
            self._unset(block, 1 << row)
            self._total -= 1

    def _unset(self, block: int, bit: int) -> None:
        left = self._rows_of[block] & ~bit
        if left:
            self._rows_of[block] = left
        else:
            del self._rows_of[block]


@functools.lru_cache(maxsize=256)  # the rows that hold a system prompt are the same for many prompts
def _positions(bits: int) -> npt.NDArray[np.int64]:
    """Positions of the set bits; to be read only."""
    raw = np.frombuffer(bits.to_bytes((bits.bit_length() + 7) // 8, "little"), dtype=np.uint8)
    return np.flatnonzero(np.unpackbits(raw, bitorder="little"))
