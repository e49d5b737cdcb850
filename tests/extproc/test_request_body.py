"""Reading request bodies: the shapes of the OpenAI API, hostile bodies, and bodies that the proxy cut."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.extproc.cut import close_json
from pointsman.extproc.request import MAX_SCAN_BYTES, MEDIA_BYTES, read_body


def encode(value: Any) -> bytes:
    return msgspec.json.encode(value)


def chat(*turns: tuple[str, Any], **fields: Any) -> bytes:
    return encode({"model": "m", "messages": [{"role": r, "content": c} for r, c in turns], **fields})


def test_typed_fields_of_a_chat_request() -> None:
    found = read_body(
        chat(
            ("user", "hi"),
            stream=True,
            max_tokens=7,
            cache_salt="tenant",
            priority=-2,
            temperature=0.1,
            logit_bias={"1": 2},
        )
    )
    assert (found.model, found.stream, found.max_tokens, found.cache_salt, found.priority) == (
        "m",
        True,
        7,
        "tenant",
        -2,
    )
    assert found.prompt == b"\x1euser\x1fhi"
    assert found.problem == ""


def test_a_longer_conversation_begins_with_the_shorter_one() -> None:
    first = read_body(chat(("system", "be kind"), ("user", "one")))
    second = read_body(chat(("system", "be kind"), ("user", "one"), ("assistant", "two"), ("user", "three")))
    assert second.prompt.startswith(first.prompt)


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system", "tool"]), st.text()), min_size=1))
def test_rendering_is_prefix_stable_for_any_conversation(turns: list[tuple[str, str]]) -> None:
    prompts = [read_body(chat(*turns[: n + 1])).prompt for n in range(len(turns))]
    for shorter, longer in itertools.pairwise(prompts):
        assert longer.startswith(shorter)


def test_key_order_white_space_and_escapes_do_not_change_the_rendering() -> None:
    value = {"messages": [{"content": "grüße \U0001f682", "role": "user"}], "model": "m"}
    plain = json.dumps(value, ensure_ascii=False).encode()
    escaped = json.dumps(dict(reversed(value.items())), indent=4, ensure_ascii=True).encode()
    assert read_body(plain).prompt == read_body(escaped).prompt


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({"prompt": "abc"}, b"abc"),
        ({"prompt": ["abc", "def"]}, b"abcdef"),
        ({"prompt": [1, 258]}, b"\x01\0\0\0\x02\x01\0\0"),
        ({"prompt": [[1], [2]]}, b"\x01\0\0\0\x02\0\0\0"),
        ({"prompt": [-1, 2**70]}, b"\xff\xff\xff\xff\0\0\0\0"),
        ({"input": "embed me"}, b"embed me"),
        ({"input": [7]}, b"\x07\0\0\0"),
        ({"input": "hi", "instructions": "be kind"}, b"\x1ebe kindhi"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]}, b"\x1euser\x1fhi"),
        (
            {"input": [{"type": "function_call_output", "call_id": "1", "output": "42"}]},
            b'\x1efunction_call_output\x1f\x1f"42"',
        ),
        ({"messages": []}, b""),
        ({"model": "m"}, b""),
    ],
)
def test_other_shapes(body: dict[str, Any], prompt: bytes) -> None:
    found = read_body(encode(body))
    assert found.problem == ""
    assert found.prompt == prompt


def test_tools_and_tool_calls_are_part_of_the_prompt() -> None:
    plain = read_body(chat(("user", "hi"))).prompt
    assert read_body(chat(("user", "hi"), tools=[{"type": "function"}])).prompt != plain
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}
    assert b'[{"id":"a"}]' in read_body(encode({"messages": [call]})).prompt


def test_media_counts_as_a_fixed_size_and_is_told_apart() -> None:
    def image(url: str) -> bytes:
        parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url}}]
        return read_body(chat(("user", parts))).prompt

    first, again, other = image("data:" + "A" * 90_000), image("data:" + "A" * 90_000), image("data:" + "B" * 90_000)
    assert first == again != other
    assert len(first) == len(b"\x1euser\x1fwhat?\x1f") + MEDIA_BYTES


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"42",
        b'"text"',
        b"null",
        b"{",
        b'{"model": "m"} trailing',
        b'{"model": 7}',
        b'{"messages": [{"role": "user", "content": 3}]}',
        b'{"messages": "hello"}',
        b'{"prompt": {"a": 1}}',
        b'{"model": "\xff\xfe"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"max_tokens": "many"}',
        b"[" * 100_000,
        b'{"x":' + b"[" * 100_000,
        b'{"x":' * 100_000,
        b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\xef\xbb\xbf{}",
        b"\x1f\x8b\x08" + b"\0" * 100,
    ],
    ids=lambda body: repr(body[:24]),
)
@pytest.mark.parametrize("partial", [False, True])
def test_unreadable_bodies_have_no_affinity_and_a_reason(body: bytes, partial: bool) -> None:
    found = read_body(body, partial=partial)
    assert found.prompt == b""
    assert found.prompt_bytes == len(body)
    assert found.problem or partial


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_survived(body: bytes, partial: bool) -> None:
    found = read_body(body, partial=partial)
    assert len(found.prompt) <= max(found.prompt_bytes, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, width=32) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.booleans(), st.data())
def test_a_json_object_cut_anywhere_is_closed(value: dict[str, Any], escaped: bool, data: st.DataObject) -> None:
    whole = json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    cut = whole[: data.draw(st.integers(1, len(whole)))]
    closed = close_json(cut)
    assert closed is not None
    assert isinstance(json.loads(closed.decode("utf-8", "surrogatepass")), dict)


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=200, max_size=600), st.booleans(), st.data())
def test_a_cut_chat_body_keeps_the_prefix_of_its_prompt(text: str, escaped: bool, data: st.DataObject) -> None:
    value = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": True}
    whole = json.dumps(value, ensure_ascii=escaped).encode()
    start = whole.index(b'"content": "') + 12
    cut = whole[: data.draw(st.integers(start, len(whole)))]
    full, part = read_body(whole), read_body(cut, partial=True)
    assert part.problem == ""
    assert part.model == "m"
    assert full.prompt.startswith(part.prompt)
    assert len(part.prompt) >= (len(cut) - start) // 12  # an escaped character takes up to 12 bytes of JSON


def test_of_a_huge_body_only_the_beginning_is_read() -> None:
    text = "a b c " * (MAX_SCAN_BYTES // 5)
    found = read_body(encode({"model": "m", "messages": [{"role": "user", "content": text}], "stream": True}))
    assert found.problem == ""
    assert found.model == "m"
    assert MAX_SCAN_BYTES * 0.99 < len(found.prompt) < MAX_SCAN_BYTES
    assert found.prompt_bytes > len(text)
    assert read_body(b"[" * (MAX_SCAN_BYTES + 1)).problem


@pytest.mark.parametrize(
    ("cut", "prompt"),
    [
        (rb'{"prompt": "a\"b', b'a"b'),
        (rb'{"prompt": "a\\', b"a\\"),
        (b'{"prompt": "a\\\\\\', b"a\\"),
        (rb'{"prompt": "a\u00e', b"a"),
        (rb'{"prompt": "a\u00e9', "aé".encode()),
        (rb'{"prompt": "a\ud83d', b"a"),
        (rb'{"prompt": "a\ud83d\ude8', b"a"),
        (rb'{"prompt": "a\ud83d\ude82', "a🚂".encode()),
        (rb'{"prompt": "a\\ud83d', b"a\\ud83d"),
        ('{"prompt": "a🚂'.encode()[:-1], b"a"),
        (rb'{"prompt": "a", "mod', b"a"),
        (rb'{"prompt": "a"', b"a"),
        (rb'{"prompt": ["a", "b"', b"ab"),
        (rb'{"prompt": "a", "model"', b"a"),
        (rb'{"prompt": "a", "model": ', b"a"),
        (rb'{"prompt": ["a", "b', b"ab"),
        (rb'{"prompt": [1, 2, 3', b"\x01\0\0\0\x02\0\0\0"),
        (b'{"prompt": "' + b'\\"' * 150_000, b'"' * 150_000),
    ],
)
def test_where_a_cut_leaves_off(cut: bytes, prompt: bytes) -> None:
    assert read_body(cut, partial=True).prompt == prompt


def test_depth_of_a_cut_body_is_bounded() -> None:
    assert close_json(b'{"a":' * 64) is not None
    assert close_json(b'{"a":' * 65) is None
    assert close_json(b'["a"') is not None  # closed, but refused as no object by the decoder
    assert read_body(b'["a"', partial=True).problem
