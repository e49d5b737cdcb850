"""Prompt text: exact lengths, equal for equal ids, and prefixes where ids are equal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.replay.prompts import BLOCK_CHARS, PromptWriter, block_text

IDS = st.integers(0, 2**63 - 1)


@given(IDS)
def test_a_block_is_2048_letters_and_spaces(hash_id: int) -> None:
    text = block_text(hash_id)
    assert len(text.encode()) == BLOCK_CHARS == 2048
    assert text.replace(" ", "").isalpha()
    assert text.isascii()
    assert text.islower()


@given(IDS, IDS)
def test_blocks_are_equal_exactly_when_ids_are(one: int, other: int) -> None:
    assert (block_text(one) == block_text(other)) == (one == other)


def test_text_stays_the_same_from_release_to_release() -> None:
    assert block_text(0)[:48] == "fos zel sos ril lidolan los zos bodukas bal mes "
    assert block_text(2**63 - 1) != block_text(0)


@given(st.data(), st.lists(IDS, min_size=1, max_size=6), st.lists(IDS, max_size=6))
def test_prompts_share_the_text_of_their_equal_first_blocks(
    data: st.DataObject, first: list[int], rest: list[int]
) -> None:
    other = first + rest
    writer = PromptWriter()
    length = data.draw(st.integers(1, len(first) * 512))
    other_length = data.draw(st.integers(1, len(other) * 512))
    one, two = writer.prompt(first, length), writer.prompt(other, other_length)
    assert len(one) == length * 4
    assert len(two) == other_length * 4
    shared_chars = min(length, other_length) * 4
    assert one[:shared_chars] == two[:shared_chars]


@given(st.lists(IDS, min_size=1, max_size=20))
def test_a_small_cache_changes_nothing(ids: list[int]) -> None:
    small, large = PromptWriter(cache_bytes=2 * BLOCK_CHARS), PromptWriter()
    for _ in range(2):
        assert small.prompt(ids, len(ids) * 512) == large.prompt(ids, len(ids) * 512)
    assert small.kept_blocks <= 2


def test_the_cache_is_bounded() -> None:
    writer = PromptWriter(cache_bytes=10 * BLOCK_CHARS)
    writer.prompt(range(100), 100 * 512)
    assert writer.kept_blocks == 10


def test_too_few_ids_are_an_error() -> None:
    with pytest.raises(ValueError, match="1 blocks do not hold 513 tokens"):
        PromptWriter().prompt([1], 513)
