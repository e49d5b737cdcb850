"""The client's side of a streamed answer."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.replay.chat_stream import MAX_NAME_CHARS, ChatStream, StreamError
from replay.fake_gateway import DONE, event, token

ANSWER = (
    event(choices=[{"delta": {"role": "assistant", "content": ""}}])
    + token("a", "r0")
    + token("b", "r0")
    + event(choices=[{"delta": {}, "finish_reason": "stop"}])
    + event(
        choices=[], usage={"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    )
    + DONE
)


def fed(data: bytes) -> ChatStream:
    stream = ChatStream()
    stream.feed(data)
    return stream


def learnt(stream: ChatStream) -> tuple[object, ...]:
    return (
        stream.started,
        stream.done,
        stream.replica,
        stream.output_tokens,
        stream.prompt_tokens,
        stream.cached_tokens,
    )


def test_a_whole_answer() -> None:
    assert learnt(fed(ANSWER)) == (True, True, "r0", 5, 9, 4)


@given(st.lists(st.integers(0, len(ANSWER)), max_size=8))
def test_it_does_not_matter_where_the_bytes_are_cut(cuts: list[int]) -> None:
    stream = ChatStream()
    edges = [0, *sorted(cuts), len(ANSWER)]
    for begin, end in pairwise(edges):
        stream.feed(ANSWER[begin:end])
    assert learnt(stream) == learnt(fed(ANSWER))


@given(st.integers(0, len(ANSWER) - len(b"data: [DONE]\n\n") + len(b"data: [DONE]")))
def test_a_cut_answer_is_not_done(length: int) -> None:
    assert not fed(ANSWER[:length]).done


def test_carriage_returns_comments_and_other_fields_are_allowed() -> None:
    data = b": ping\r\nevent: chunk\r\nid: 1\r\n" + token("a").replace(b"\n", b"\r\n") + b"data:[DONE]\r\n\r\n"
    assert learnt(fed(data)) == (True, True, "", 1, 0, None)


def test_a_role_is_no_token() -> None:
    stream = fed(event(choices=[{"delta": {"role": "assistant", "content": ""}}]))
    assert not stream.started
    stream.feed(token("x"))
    assert stream.started


@pytest.mark.parametrize("delta", [{"reasoning_content": "hm"}, {"reasoning": "hm"}, {"tool_calls": [{"index": 0}]}])
def test_reasoning_and_tool_calls_are_tokens(delta: dict[str, object]) -> None:
    assert fed(event(choices=[{"delta": delta}])).started


def test_without_usage_chunks_are_counted() -> None:
    assert learnt(fed(token("a") + token("b") + DONE)) == (True, True, "", 2, 0, None)


def test_usage_without_details_tells_nothing_of_the_cache() -> None:
    stream = fed(event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": None}))
    assert stream.cached_tokens is None
    assert stream.prompt_tokens == 9


@pytest.mark.parametrize(
    "bad",
    [b"data: {oops\n", b"data: 12\n", b'data: {"choices": 3}\n', b"data: \xff\n", b"data: " + b"[" * 9999 + b"\n"],
)
def test_what_is_no_chunk_is_an_error(bad: bytes) -> None:
    with pytest.raises(StreamError) as raised:
        fed(bad)
    assert not raised.value.by_server
    assert len(str(raised.value)) < 300


def test_an_error_object_is_the_servers_error() -> None:
    with pytest.raises(StreamError, match="engine is dead") as raised:
        fed(event(error={"message": "engine is dead", "code": 500}))
    assert raised.value.by_server
    assert not fed(event(error=None, choices=[])).started


def test_long_names_are_cut() -> None:
    assert len(fed(token("a", "r" * 10_000)).replica) == MAX_NAME_CHARS
