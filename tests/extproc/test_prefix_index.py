"""The prefix index against a plain model of it, and the properties of chained hashes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.extproc.prefix import (
    BLOCK_BYTES,
    BLOCK_TOKENS,
    DEFAULT_ROW_BLOCKS,
    MAX_PROMPT_BLOCKS,
    PrefixIndex,
    block_hashes,
    chain_seed,
)


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def test_only_whole_blocks_are_hashed() -> None:
    prompt = bytes(range(256)) * 4
    assert len(block_hashes(prompt[: BLOCK_BYTES - 1], 0)) == 0
    assert len(block_hashes(prompt[:BLOCK_BYTES], 0)) == 1
    assert len(block_hashes(prompt[: 3 * BLOCK_BYTES + 9], 0)) == 3


@given(st.binary(max_size=5 * BLOCK_BYTES), st.binary(max_size=2 * BLOCK_BYTES), st.integers(0, 2**64 - 1))
def test_hashes_of_a_longer_prompt_begin_with_those_of_the_shorter(first: bytes, more: bytes, seed: int) -> None:
    hashes = block_hashes(first, seed)
    assert block_hashes(first + more, seed)[: len(hashes)] == hashes


def test_a_change_in_a_block_changes_it_and_all_after_it() -> None:
    prompt = bytearray(b"x" * (4 * BLOCK_BYTES))
    before = block_hashes(bytes(prompt), 1)
    prompt[BLOCK_BYTES + 3] = 0
    after = block_hashes(bytes(prompt), 1)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False, False]


def test_models_and_tenants_share_nothing() -> None:
    seeds = [chain_seed("m", ""), chain_seed("m", "tenant"), chain_seed("mt", "enant"), chain_seed("", "m")]
    assert len({tuple(block_hashes(b"x" * 600, seed)) for seed in seeds}) == 4


def test_there_is_no_cap_at_4096_tokens_but_one_beyond_every_context_window() -> None:
    prompt = b"x" * (40_000 * 4)
    index = PrefixIndex()
    index.insert(0, block_hashes(prompt, 0))
    assert index.match(block_hashes(prompt, 0), rows(0))[0] * BLOCK_TOKENS == 40_000
    assert len(block_hashes(b"x" * (MAX_PROMPT_BLOCKS + 10) * BLOCK_BYTES, 0)) == MAX_PROMPT_BLOCKS


def test_match_counts_leading_blocks_only() -> None:
    index = PrefixIndex()
    index.insert(0, [1, 2, 3])
    index.insert(2, [1])
    index.insert(3, [2, 3])
    index.insert(70, [1, 2, 3, 4])
    assert list(index.match([1, 2, 3, 4], rows(0, 1, 2, 3, 70, 200))) == [3, 0, 1, 0, 4, 0]
    assert list(index.match([], rows(0))) == [0]
    assert list(index.match([1], rows())) == []


def test_the_tail_of_an_old_prompt_goes_first() -> None:
    index = PrefixIndex()
    index.set_capacity(0, 4 * BLOCK_TOKENS)
    index.insert(0, [1, 2, 3])
    index.insert(0, [7, 8])
    assert list(index.match([1, 2, 3], rows(0))) == [2]
    assert list(index.match([7, 8], rows(0))) == [2]


def test_capacity_shrinks_at_once_and_forget_leaves_nothing() -> None:
    index = PrefixIndex()
    index.insert(0, list(range(100)))
    index.insert(1, list(range(100)))
    index.set_capacity(0, 10 * BLOCK_TOKENS)
    assert index.blocks(0) == 10
    assert list(index.match(list(range(100)), rows(0, 1))) == [10, 100]
    index.forget(1)
    index.forget(0)
    assert index.total_blocks == 0
    assert not index._rows_of  # no hash is left behind


def test_shares_that_are_less_than_a_block_add_up() -> None:
    index = PrefixIndex()
    index.insert(0, list(range(10)))
    for _ in range(4):
        index.age(0, 0.03)
    assert index.blocks(0) == 9
    assert list(index.match(list(range(10)), rows(0))) == [9]
    index.age(0, 1.0)
    assert index.total_blocks == 0


def test_all_rows_together_are_bounded() -> None:
    index = PrefixIndex(max_blocks=1_000)
    for row in range(20):
        index.insert(row, [row * 10_000 + n for n in range(800)])
        assert index.total_blocks <= 1_000
    assert all(index.blocks(row) == 50 for row in range(20))


def test_a_prompt_longer_than_the_engine_holds_keeps_its_head() -> None:
    index = PrefixIndex()
    index.insert(0, list(range(DEFAULT_ROW_BLOCKS + 50)))
    assert index.match(list(range(DEFAULT_ROW_BLOCKS + 50)), rows(0))[0] == DEFAULT_ROW_BLOCKS


class PlainModel:
    """What the index should do, written without any cleverness."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}
        self.limit: dict[int, int] = {}
        self.owed: dict[int, float] = {}

    def insert(self, row: int, hashes: list[int]) -> None:
        held = self.held.setdefault(row, [])
        for block in reversed(hashes[: self.limit.get(row, 10**9)]):
            if block in held:
                held.remove(block)
            held.append(block)
        self.trim(row)

    def trim(self, row: int) -> None:
        held = self.held.get(row, [])
        del held[: max(0, len(held) - self.limit.get(row, 10**9))]

    def clear(self, row: int) -> None:
        self.held.pop(row, None)
        self.owed.pop(row, None)

    def forget(self, row: int) -> None:
        self.clear(row)
        self.limit.pop(row, None)

    def remove(self, row: int, hashes: list[int]) -> int:
        held = self.held.get(row, [])
        gone = [block for block in hashes if block in held]
        for block in gone:
            held.remove(block)
        return len(gone)

    def age(self, row: int, share: float) -> None:
        held = self.held.get(row, [])
        if held:
            due = self.owed.get(row, 0.0) + share * len(held)
            self.owed[row] = due - int(due)
            del held[: int(due)]

    def match(self, row: int, hashes: list[int]) -> int:
        count = 0
        while count < len(hashes) and hashes[count] in self.held.get(row, []):
            count += 1
        return count


ROW = st.integers(0, 5).map(lambda n: n * 17)
CHAIN = st.lists(st.integers(0, 12), max_size=8, unique=True)
STEP = st.one_of(
    st.tuples(st.just("insert"), ROW, CHAIN),
    st.tuples(st.just("forget"), ROW, st.just([])),
    st.tuples(st.just("capacity"), ROW, st.lists(st.integers(0, 9), min_size=1, max_size=1)),
    st.tuples(st.just("match"), ROW, CHAIN),
    st.tuples(st.just("remove"), ROW, CHAIN),
    st.tuples(st.just("clear"), ROW, st.just([])),
    st.tuples(st.just("age"), ROW, st.lists(st.integers(0, 8), min_size=1, max_size=1)),
)


@given(st.lists(STEP, max_size=60))
def test_the_index_behaves_as_the_plain_model(steps: list[tuple[str, int, list[int]]]) -> None:
    index, model = PrefixIndex(), PlainModel()
    every = rows(*(n * 17 for n in range(6)))
    for verb, row, chain in steps:
        match verb:
            case "insert":
                index.insert(row, chain)
                model.insert(row, chain)
            case "forget":
                index.forget(row)
                model.forget(row)
            case "clear":
                index.clear(row)
                model.clear(row)
            case "remove":
                assert index.remove(row, chain) == model.remove(row, chain)
            case "age":
                index.age(row, chain[0] / 8)
                model.age(row, chain[0] / 8)
            case "capacity":
                index.set_capacity(row, chain[0] * BLOCK_TOKENS)
                model.limit[row] = max(1, chain[0])
                model.trim(row)
            case _:
                assert list(index.match(chain, every)) == [model.match(int(r), chain) for r in every]
        assert index.total_blocks == sum(len(held) for held in model.held.values())
    for row in every:
        index.forget(int(row))
    assert index.total_blocks == 0
    assert not index._rows_of


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_many_rows(count: int) -> None:
    index = PrefixIndex()
    for row in range(count):
        index.insert(row, list(range(row % 7)))
    assert list(index.match(list(range(7)), np.arange(count))) == [row % 7 for row in range(count)]
