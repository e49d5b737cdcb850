"""Whatever the files hold: Manifests or a ConfigError, and always the same for the same content."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.config_fixtures import EXAMPLE, FLEET
from pointsman.core.compile import compile_plan
from pointsman.core.config import load
from pointsman.core.config.load import validate
from pointsman.core.config.source import Source, read_text
from pointsman.core.errors import ConfigError
from pointsman.core.model import Plan

TEXTS = [FLEET, *(path.read_text() for path in sorted(EXAMPLE.glob("*.yaml")))]
TOKENS = st.sampled_from(
    [
        *[
            "",
            "null",
            "~",
            "[]",
            "{}",
            "''",
            "-1",
            "0",
            "1e9",
            "9" * 21,
            "true",
            "*",
            "&a",
            "*a",
            "!!str",
            "0x",
            "..",
            "/",
        ],
        *[
            "a: b",
            ": ",
            "- ",
            "\t",
            "---",
            "...",
            "|",
            ">",
            "#",
            "%",
            "'",
            '"',
            "[",
            "{",
            "?",
            "<<: ",
            "\x00",
            "\u2028",
        ],
        *["é", "🚀", "(?=a)", "..", "\u2028", "//", "kind: List", "items:", "x" * 300, "spec:", "namespace: other"],
    ]
)


def outcome(source: Source) -> Plan | None:
    """The plan of what was read, or None if it was refused with at least one problem."""
    try:
        return compile_plan(validate(source))
    except ConfigError as error:
        assert error.problems
        assert all(problem.what and "\n" not in str(problem) for problem in error.problems)
        return None


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A text of the examples after a few edits of lines, words and characters."""
    lines = draw(st.sampled_from(TEXTS)).split("\n")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.integers(0, 6)):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[draw(st.integers(0, len(lines) - 1))])
            case 2:
                lines[at] = draw(st.sampled_from(["", " ", "  ", "- "])) + lines[at]
            case 3:
                key, colon, _ = lines[at].partition(": ")
                lines[at] = key + colon + draw(TOKENS)
            case 4:
                cut = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:cut] + draw(TOKENS) + lines[at][cut:]
            case 5:
                cut = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:cut] + draw(st.characters()) + lines[at][cut + 1 :]
            case _:
                other = draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], lines[at]
        if not lines:
            lines = [""]
    return "\n".join(lines)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_spoiled_manifests_are_refused_or_compile(text: str) -> None:
    assert outcome(read_text("f.yaml", text)) == outcome(read_text("f.yaml", text))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), at=st.integers(0, len(FLEET)), cut=st.integers(0, 50))
def test_spoiled_bytes_are_refused_or_load(tmp_path: Path, data: bytes, at: int, cut: int) -> None:
    text = FLEET.encode()
    (tmp_path / "f.yaml").write_bytes(text[:at] + data + text[at + cut :])
    try:
        load(tmp_path)
    except ConfigError as error:
        assert error.problems


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_values_of_any_type_in_any_place_are_refused_or_compile(data: st.DataObject) -> None:
    source = read_text("f.yaml", FLEET)
    document = data.draw(st.sampled_from(source.documents))
    value: object = document.data
    while True:
        if isinstance(value, dict):
            key: object = data.draw(st.sampled_from(sorted(value)))
        elif isinstance(value, list) and value:
            key = data.draw(st.integers(0, len(value) - 1))
        else:
            return
        inner = value[key]  # type: ignore[index]
        if not isinstance(inner, (dict, list)) or data.draw(st.integers(0, 3)) == 0:
            value[key] = data.draw(JSON_VALUES)  # type: ignore[index]
            break
        value = inner
    outcome(source)


@pytest.mark.parametrize("seed", range(5))
def test_the_plan_does_not_depend_on_the_order_of_files(seed: int) -> None:
    text = "---\n".join(path.read_text() for path in sorted(EXAMPLE.glob("*.yaml")))
    expected = compile_plan(load(EXAMPLE))
    documents = text.split("---\n")
    random.Random(seed).shuffle(documents)
    assert outcome(read_text("f.yaml", "---\n".join(documents))) == expected


def test_the_same_folder_gives_the_same_manifests_and_plan() -> None:
    assert load(EXAMPLE) == load(EXAMPLE)
    assert repr(compile_plan(load(EXAMPLE))) == repr(compile_plan(load(EXAMPLE)))
