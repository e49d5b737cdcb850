"""Tokens and block hashes: sizes, prefix stability, chaining."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pointsman.sim.answers import Voice
from pointsman.sim.tokenizer import block_hashes, count_tokens, from_token_ids, render_chat, token_ids


def test_a_token_is_four_bytes() -> None:
    assert count_tokens(b"x" * 2048) == 512
    assert count_tokens(b"x" * 2049) == 513
    assert count_tokens(b"") == 0
    assert count_tokens("é".encode() * 4) == 2


def test_token_ids_come_back() -> None:
    assert token_ids(b"abcdefghi") == [0x64636261, 0x68676665, 0x69]
    assert from_token_ids([0x64636261, 0x68676665]) == b"abcdefgh"
    assert len(from_token_ids([-1, 2**40])) == 8


@given(st.binary(max_size=400), st.binary(max_size=400), st.integers(1, 16))
def test_a_longer_text_keeps_the_tokens_and_blocks_of_its_beginning(head: bytes, tail: bytes, block: int) -> None:
    full = len(head) // 4
    assert token_ids(head + tail)[:full] == token_ids(head)[:full]
    hashes = block_hashes(head, block)
    assert len(hashes) == len(head) // (4 * block)
    assert block_hashes(head + tail, block)[: len(hashes)] == hashes


@given(st.binary(min_size=64, max_size=400), st.integers(0, 399), st.sampled_from([1, 4, 16]))
def test_a_change_changes_every_block_from_there_on(text: bytes, place: int, block: int) -> None:
    place %= len(text)
    other = text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]
    before = place // (4 * block)
    for i, (a, b) in enumerate(zip(block_hashes(text, block), block_hashes(other, block), strict=True)):
        assert (a == b) is (i < before)


def test_a_salt_keeps_apart() -> None:
    text = b"x" * 640
    assert not set(block_hashes(text, 16)) & set(block_hashes(text, 16, "tenant"))


def test_the_next_turn_begins_with_the_last_prompt_and_its_answer() -> None:
    question = [("user", "why?")]
    answer = Voice("one").text(0, 20)
    turn = render_chat([*question, ("assistant", answer), ("user", "and then?")])
    assert turn.startswith(render_chat(question) + answer.encode())


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_the_answer_is_the_same_in_any_pieces(a: int, b: int, c: int) -> None:
    voice = Voice("us-east-0")
    first, second, third = sorted((a, b, c))
    assert voice.text(first, second) + voice.text(second, third) == voice.text(first, third)
    assert len(voice.text(first, third)) == 4 * (third - first)
    assert "us-east-0" in voice.text(first, first + 40)
