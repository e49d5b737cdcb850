"""Renaming the model of a body: only its value changes, whatever else is in there."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.fleet import POOL, make_plan
from pointsman.core.arm_names import target_arm
from pointsman.core.model import ModelRewrite
from pointsman.extproc import rename
from pointsman.extproc.model_rules import ModelRules, Renaming
from pointsman.extproc.rename import MAX_BRACKETS, MAX_LOOKED_AT_BYTES, MAX_MEMBERS, NO_MODEL, find_model, renamed

SPACE = st.sampled_from(["", " ", "\n\t", "\r\n  "])
NAMES = st.text(max_size=8)
LEAVES = st.sampled_from([None, True, -1.5e300, 10**30, "", '}"]', "\\", '\\\\"\\', '"model":"x"', "\u20ac\x7f"])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "a", '"}', "]"]), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(["messages", "prompt", "models", "Model", "mode", "model ", 'model"', "\\model", ""])


@st.composite
def bodies(draw: st.DrawFn) -> list[tuple[bool, bytes]]:
    """A body in pieces; True marks a value of the outermost `model`."""
    members: list[tuple[str, Any]] = draw(st.lists(st.tuples(KEYS, VALUES), max_size=3))
    for name in draw(st.lists(NAMES, min_size=1, max_size=2)):
        members.insert(draw(st.integers(0, len(members))), ("model", name))
    space, how = draw(SPACE), draw(st.integers(0, 2))
    pieces: list[tuple[bool, str]] = [(False, space + "{")]
    for number, (key, value) in enumerate(members):
        pieces.append((False, ("," if number else "") + space + spelled(key, how) + space + ":" + space))
        text = spelled(value, how) if isinstance(value, str) else json.dumps(value, ensure_ascii=how == 1)
        pieces += [(key == "model", text), (False, space)]
    pieces.append((False, "}" + space))
    return [(marked, text.encode()) for marked, text in pieces]


def spelled(text: str, how: int) -> str:
    """A JSON string in one of its spellings."""
    if how < 2:
        return json.dumps(text, ensure_ascii=how == 1)
    pairs = text.encode("utf-16-be").hex()
    return '"' + "".join(f"\\u{pairs[at : at + 4]}" for at in range(0, len(pairs), 4)) + '"'


@settings(max_examples=60)
@given(bodies(), NAMES)
def test_only_the_value_of_the_outermost_model_changes(pieces: list[tuple[bool, bytes]], to: str) -> None:
    body = b"".join(text for _, text in pieces)
    found = find_model(body)
    assert found.whole
    assert found.model == json.loads(body)["model"]
    assert [body[start:end] for start, end in found.places] == [text for marked, text in pieces if marked]
    value = msgspec.json.encode(to)
    after = renamed(body, found.places, to)
    assert after == b"".join(value if marked else text for marked, text in pieces)
    assert json.loads(after) == {**json.loads(body), "model": to}


@settings(max_examples=200)
@given(bodies(), st.integers(2, 9))
def test_pieces_of_any_length_find_the_same(pieces: list[tuple[bool, bytes]], length: int) -> None:
    body = b"".join(text for _, text in pieces)
    found = find_model(body)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("PIECE_BYTES", length), ("_JUMPS", 1), ("_BACKSLASHES", 2)):
            patch.setattr(rename, name, value)
        assert find_model(body) == found
        assert find_model(body[: len(body) // 2]) == NO_MODEL


@settings(max_examples=60)
@given(bodies(), st.floats(0, 1, exclude_max=True))
def test_a_body_that_was_cut_tells_what_it_can(pieces: list[tuple[bool, bytes]], share: float) -> None:
    body = b"".join(text for _, text in pieces)
    cut = body[: int(share * len(body))]
    part, all_of_it = find_model(cut, partial=True), find_model(body)
    assert part.places == all_of_it.places[: len(part.places)]
    assert part.unread == (not part.places and not part.whole)
    if cut.rstrip() != body.rstrip():
        assert part.unread or part.places
        assert find_model(cut) == NO_MODEL, "a body that ends too early is no JSON"


@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,\\modelabc0 ', max_size=80).map(str.encode), st.booleans())
def test_whatever_comes_is_borne(body: bytes, partial: bool) -> None:
    found = find_model(body, partial=partial)
    assert all(body[start:end] for start, end in found.places)


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model": null}', ""),
        (b'{"model": "a", "model": 5}', ""),
        (b'{"model": 5, "model": "a"}', "a"),
        (b'{"\\u006dodel": "a"}', "a"),
        (b'\xef\xbb\xbf{"model": "a"}', "a"),
        (b'{"model": "\\ud800"}', ""),
        (b'{"model": "\xff"}', ""),
        (b'[{"model": "a"}]', ""),
        (b'{"x": {"model": "a"}}', ""),
        (b'{"model" "a"}', ""),
        (b'{"model": "a" "b": 1}', ""),
        (b"model=a", ""),
        (b"", ""),
    ],
)
def test_what_engines_take_for_the_model(body: bytes, model: str) -> None:
    found = find_model(body)
    assert (found.model, found.unread) == (model, False)


def test_the_work_is_bounded() -> None:
    deep = b'{"x":' + b"[" * (2 * MAX_BRACKETS)
    assert find_model(deep).unread
    wide = b'{"x":[' + b"{}," * MAX_BRACKETS + b'{}],"model":"a"}'
    assert find_model(wide).unread
    assert find_model(b'{"model":"a",' + wide[1:]).model == "a"
    quotes = b'{"x":"' + b'\\"' * MAX_LOOKED_AT_BYTES + b'","model":"a"}'
    assert find_model(quotes).unread
    assert find_model(b'{"x":' + b" " * MAX_LOOKED_AT_BYTES + b'1,"model":"a"}').unread
    assert find_model(b'{"x":' + b"1" * MAX_LOOKED_AT_BYTES + b',"model":"a"}').unread
    many = b'{"model":"a"' + b',"model":"a"' * (MAX_MEMBERS - 1)
    assert len(find_model(many + b"}").places) == MAX_MEMBERS
    assert find_model(many + b',"model":"b"}').unread, "the last one holds, and it may be anywhere"


def test_the_model_behind_large_images_is_found() -> None:
    image = b'{"type":"image_url","image_url":{"url":"data:image/png;base64,' + b"iVBORw0KGgo\\/" * 300_000 + b'"}},'
    body = b'{"messages":[{"role":"user","content":[' + image * 15 + b'{"type":"text","text":"what?"}]}],"model":"a"}'
    assert len(body) > 55_000_000
    found = find_model(body)
    assert (found.model, found.whole) == ("a", True)


@pytest.mark.parametrize("backslashes", [0, 2, 62, 64, 66, 1_000_000])
def test_backslashes_before_a_quote_are_counted_whatever_their_number(backslashes: int) -> None:
    """Also behind a text that is too long to be looked at: the end of it is found at once, and not sought again."""
    text = b"a" * MAX_LOOKED_AT_BYTES + b"\\" * backslashes
    assert find_model(b'{"x":"' + text + b'","model":"a"}').model == "a"
    assert find_model(b'{"x":"' + text + b'\\" and","model":"b"}').model == "b"


def rules(*rewrites: ModelRewrite) -> ModelRules:
    found = ModelRules()
    found.apply(make_plan({"near": ["10.0.0.1:80"]}, rewrites=rewrites))
    return found


class TestRules:
    ALIAS = ModelRewrite(model="gpt", targets=(("llama", 10_000),))
    ANY = ModelRewrite(model="", targets=(("other", 10_000),))
    SPLIT = ModelRewrite(model="review", targets=(("v2", 1_000), ("v1", 9_000)))

    def test_named_models_come_before_all_others(self) -> None:
        found = rules(self.ALIAS, self.ANY)
        assert found.rename(POOL, b'{"model":"gpt"}') == Renaming(asked="gpt", model="llama", body=b'{"model":"llama"}')
        assert found.rename(POOL, b'{"model":"x"}') == Renaming(asked="x", model="other", body=b'{"model":"other"}')
        assert found.rename(POOL, b'{"prompt":"x"}') is None, "a request that names none is the engine's to answer"

    def test_what_has_its_name_already_stays(self) -> None:
        assert rules(self.ALIAS).rename(POOL, b'{"model":"llama"}') is None
        assert rules(self.ANY).rename(POOL, b'{"model":"other"}') is None
        assert rules(self.ANY).rename("default/another", b'{"model":"x"}') is None

    def test_where_no_gateway_chose_users_stay_and_shares_hold(self) -> None:
        found = rules(self.SPLIT)

        def model(user: str) -> str:
            renaming = found.rename(POOL, b'{"model":"review"}', identity=user)
            assert renaming is not None
            return renaming.model

        drawn = [model(f"user-{number}") for number in range(2_000)]
        assert drawn == [model(f"user-{number}") for number in range(2_000)]
        assert 150 < drawn.count("v2") < 250  # 200, with a standard deviation of 13
        assert drawn.count("v1") == 2_000 - drawn.count("v2")
        assert found.rename(POOL, b'{"model":"review"}') == found.rename(POOL, b'{"model":"review"}')

    def test_an_arm_that_the_plan_does_not_have_is_known_by_its_name(self) -> None:
        found = rules(self.SPLIT, self.ALIAS)
        arm = target_arm(POOL, "org/v3@beta")
        for name in (arm, f"{arm}@EU"):
            assert found.rename(name, b'{"model":"review"}') == Renaming(
                asked="review", model="org/v3@beta", body=b'{"model":"org/v3@beta"}'
            )
            renaming = found.rename(name, b'{"model":"gpt"}')
            assert renaming is not None
            assert renaming.model == "llama"
            assert found.rename(name, b'{"model":"x"}') is None
        assert found.rename("default/another~v3", b'{"model":"review"}') is None

    def test_a_model_that_nobody_saw_is_told(self) -> None:
        assert rules(self.SPLIT).rename(POOL, b'{"prompt":"x', partial=True) == Renaming(unread=True)
        assert ModelRules().rename(POOL, b'{"prompt":"x', partial=True) is None
