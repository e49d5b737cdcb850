"""Regular expressions as RE2 reads them: against Python's where both mean the same, by hand where they differ."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.core.config.regex import re2_complaint
from pointsman.core.re2 import MAX_TEXT_BYTES, UnreadableError, full_match

ATOMS = st.sampled_from(
    ["a", "b", "B", ".", "[ab]", "[^a]", "[a-c]", "(a|b)", "(?:ab|a)", r"\d", r"\w", r"\W", r"\b", "^", "$", r"\."]
)
REPEATS = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "{0}"])
PIECES = st.lists(st.tuples(ATOMS, REPEATS), max_size=5).map(lambda parts: "".join(a + r for a, r in parts))
PATTERNS = st.lists(PIECES, min_size=1, max_size=3).map("|".join)
TEXTS = st.text("abB1 .-", max_size=6)


@settings(max_examples=200, deadline=None)
@given(PATTERNS, st.lists(TEXTS, min_size=1, max_size=5))
def test_it_agrees_with_python_where_both_mean_the_same(pattern: str, texts: list[str]) -> None:
    try:
        python = re.compile(pattern.encode())
    except re.error:
        return
    for text in texts:
        assert full_match(pattern, text) == bool(python.fullmatch(text.encode())), (pattern, text)


@settings(max_examples=150, deadline=None)
@given(st.text("ab(|)*+?{}[]^$\\.-:PQEdzpiu1,02x ", max_size=12), TEXTS)
def test_what_it_does_not_read_it_says(pattern: str, text: str) -> None:
    """Any text is judged or refused; what Envoy takes is judged, but for Unicode classes."""
    try:
        full_match(pattern, text)
    except UnreadableError as problem:
        assert re2_complaint(pattern) or "\\p" in str(problem) or "\\P" in str(problem) or "quoted" in str(problem)


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (r"a(?i)b", "aB", True),
        (r"a(?i)b", "AB", False),
        (r"(?i:a)b", "Ab", True),
        (r"(?i)[a-c]+", "aBC", True),
        (r"(?i-i:a)", "A", False),
        (r"(?U)a+", "aaa", True),
        (r"(?s).", "\n", True),
        (r".", "\n", False),
        (r"(?m)^a$\n^b$", "a\nb", True),
        (r"a\z", "a", True),
        (r"\Aa", "a", True),
        (r"\Qa.b\E+", "a.b", None),
        (r"\Qa.b\E", "a.b", True),
        (r"\Qa.b\E", "axb", False),
        (r"[[:alpha:]]+", "abC", True),
        (r"[[:^digit:]]", "5", False),
        (r"[^[:space:]]", " ", False),
        (r"\x41\x{42}\103", "ABC", True),
        (r"a{,3}", "a{,3}", True),
        (r"a{2", "a{2", True),
        (r"[]a]", "]", True),
        (r"[a\-z]", "-", True),
        (r"(?P<name>a)(?<other>b)", "ab", True),
        (r"..", "é", True),  # bytes, not characters
        (r"\pL", "a", None),
        (r"(?=a)a", "a", None),
        (r"a{3000}", "a", False),
        (r"(a{1000}){5}", "a", None),
    ],
)
def test_it_reads_re2(pattern: str, text: str, matches: bool | None) -> None:
    """None: it says that it cannot tell."""
    if matches is None:
        with pytest.raises(UnreadableError):
            full_match(pattern, text)
    else:
        assert full_match(pattern, text) is matches


@pytest.mark.parametrize("pattern", ["(a*)*b", "(a|a)*b", "(a|aa)+b", "(.*a){20}", "(x+x+)+y|a*b"])
def test_nothing_is_tried_twice(pattern: str) -> None:
    """A machine that backtracks would not end in this universe."""
    assert full_match(pattern, "a" * 5_000 + "c") is False


def test_texts_have_a_limit() -> None:
    with pytest.raises(UnreadableError, match="more than"):
        full_match("a*", "a" * (MAX_TEXT_BYTES + 1))
