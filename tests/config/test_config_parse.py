"""YAML to values and lines: what words mean, what is refused, what is bounded."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman.core.config.document import Document, show_path, shown
from pointsman.core.config.parse import MAX_DEPTH, parse


def value(text: str) -> Any:
    trees, problems = parse(text, "f")
    assert not problems, problems
    return trees[0].value


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("1", 1),
        ("-7", -7),
        ("0x1F", 31),
        ("010", 8),
        ("0o10", 8),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("1_000", "1_000"),
        ("1e999", "1e999"),
        ("9" * 5000, "9" * 5000),
        (".inf", ".inf"),
        ("yes", True),
        ("Off", False),
        ("y", "y"),
        ("True", True),
        ("'yes'", "yes"),
        ("null", None),
        ("~", None),
        ("", None),
        ("2026-05-01", "2026-05-01"),
        ("12:30:00", "12:30:00"),
        ("=", "="),
        ("!!str 5", "5"),
        ("!!int '5'", 5),
        ("! 5", "5"),
        ("5m", "5m"),
    ],
)
def test_words_mean_what_kubernetes_makes_of_them(word: str, expected: object) -> None:
    found = value(f"a: {word}")["a"]
    assert found == expected
    assert type(found) is type(expected)


def test_keys_are_text_whatever_they_look_like() -> None:
    assert value("1: a\ntrue: b\nnull: c\n'x y': d") == {"1": "a", "true": "b", "null": "c", "x y": "d"}


def test_json_is_read_with_tabs_and_escapes() -> None:
    assert value('{\n\t"a": "\\u00e9\\/",\n\t"b": [1, true, null]\n}') == {"a": "é/", "b": [1, True, None]}


def test_aliases_stand_for_what_they_name() -> None:
    assert value("a: &x {b: 1}\nc: *x\nd: [*x, *x]") == {"a": {"b": 1}, "c": {"b": 1}, "d": [{"b": 1}, {"b": 1}]}


def test_empty_documents_are_left_out() -> None:
    trees, problems = parse("---\n# nothing\n---\na: 1\n---\n---\nb: 2\n", "f")
    assert [tree.value for tree in trees] == [{"a": 1}, {"b": 2}]
    assert not problems


def test_every_field_has_its_line() -> None:
    text = "# a comment\na:\n  b:\n    - c: 1\n\n    -\n      d: 2\n      e:\n        f: [1,\n          2]\n"
    tree = parse(text, "f")[0][0]
    document = Document(file="f", data=tree.value, mark=tree.mark)
    lines = {
        ("a",): 2,
        ("a", "b"): 3,
        ("a", "b", 0): 4,
        ("a", "b", 0, "c"): 4,
        ("a", "b", 1): 7,
        ("a", "b", 1, "d"): 7,
        ("a", "b", 1, "e", "f"): 9,
        ("a", "b", 1, "e", "f", 1): 10,
        ("a", "b", 1, "missing", "deeper"): 7,
        ("z",): 2,
    }
    assert {path: document.line(path) for path in lines} == lines


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2\n", 'f:2: "a" is written twice in one mapping (first on line 1; remove one)'),
        ("b:\n  <<: {a: 1}", "f:2: merge keys (<<) are not supported (write the fields out)"),
        ("? [a]\n: b", "f:1: a collection can't be a field name (expected a word; put braces in quotes)"),
        ("a: {{x}}", "f:1: a collection can't be a field name (expected a word; put braces in quotes)"),
        ("a: &x b\n*x : c", "f:2: an alias can't be a field name (expected a word; put braces in quotes)"),
        ("a: &x [*x]", "f:1: the alias *x stands inside what it names"),
        ("a: *x", "f:1: the alias *x names no anchor"),
        (
            "a: !!python/object:os.system {}",
            'f:1: the tag "tag:yaml.org,2002:python/object:os.system" is not supported (remove it)',
        ),
        ("a: !Ref b", 'f:1: the tag "!Ref" is not supported (remove it)'),
        ("a: !!binary aGk=", 'f:1: the tag "tag:yaml.org,2002:binary" is not supported (remove it)'),
        ("a: !!int b", 'f:1: "b" does not fit its tag "tag:yaml.org,2002:int" (remove the tag)'),
        ("a: b\n\x07", "f:2: control character U+0007 in the text"),
        ("a: 'b", "f:1: not valid YAML: while scanning a quoted scalar found unexpected end of stream"),
        (
            "a: 1\n\tb: 2",
            "f:2: not valid YAML: while scanning a plain scalar found a tab character that violates indentation",
        ),
        ("[" * 100_000, f"f:1: nested more than {MAX_DEPTH} deep"),
        ("- " * 100_000, f"f:1: nested more than {MAX_DEPTH} deep"),
    ],
)
def test_what_surprises_is_refused(text: str, problem: str) -> None:
    assert [str(found) for found in parse(text, "f")[1]] == [problem]


def test_an_alias_bomb_is_cheap() -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    _, problems = parse("\n".join(["a0: &a0 [x, x]", *levels]), "f")
    assert [str(found) for found in problems] == ["f:7: more than 500000 values in one file (split the file)"]


def test_anchors_end_with_their_document() -> None:
    assert [str(p) for p in parse("a: &x 1\n---\nb: *x\n", "f")[1]] == ["f:3: the alias *x names no anchor"]


def test_paths_and_values_are_written_on_one_line() -> None:
    assert show_path(("spec", "rules", 0, "a.b/c", "d")) == 'spec.rules[0]["a.b/c"].d'
    assert shown("x" * 100) == '"' + "x" * 59 + '…"'
    assert shown("a\nb") == '"a\\u000ab"'
    assert [shown(v) for v in (None, True, 1.5, [], {})] == ["null", "true", "1.5", "a list", "a mapping"]
