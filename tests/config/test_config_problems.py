"""Every way to spoil a manifest has an exact text: `problems.txt` holds the edits of a valid fleet and what they get.

A case is a title after `==`, blocks of lines to take out (`-`) and to put in their place (`+`), `gives:`, and the
problems.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from config.config_fixtures import FLEET, manifests, problems


def cases() -> list[tuple[str, str, list[str]]]:
    """(title, spoiled text, expected problems)"""
    found = []
    text = (Path(__file__).parent / "problems.txt").read_text()
    for case in text.split("\n== ")[1:]:
        title, _, body = case.partition("\n")
        edits, _, expected = body.partition("gives:\n")
        found.append((title, _edited(edits.splitlines()), [line for line in expected.splitlines() if line]))
    return found


def _edited(lines: list[str]) -> str:
    text, old, new = FLEET, "", ""
    for line in lines:
        if line.startswith("-") and new:
            text, old, new = _replaced(text, old, new), "", ""
        if line.startswith("-"):
            old += line[1:] + "\n"
        elif line.startswith("+"):
            new += line[1:] + "\n"
    return _replaced(text, old, new)


def _replaced(text: str, old: str, new: str) -> str:
    assert old in text, old
    return text.replace(old, new, 1)


CASES = cases()


@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_is_named_with_place_and_mend(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def test_the_fleet_itself_is_valid() -> None:
    assert problems(FLEET) == []
    assert [route.key for route in manifests(FLEET).routes()] == ["default/chat", "default/generate"]


def test_all_problems_of_all_manifests_are_told_at_once() -> None:
    text = FLEET.replace("port: 8080", "port: 80800").replace("weight: 95", "weight: many").replace("10.0.0.2", "ten")
    assert [line.split(":")[1] for line in problems(text)] == ["10", "42", "96"]
