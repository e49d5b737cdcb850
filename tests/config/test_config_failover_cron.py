"""Cron expressions, against days that a calendar gives."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.core.cron import Cron, last_match, parse_cron


def at(text: str) -> float:
    return datetime.fromisoformat(f"{text}+00:00").timestamp()


@pytest.mark.parametrize(
    ("cron", "now", "expected"),
    [
        ("* * * * *", "2026-01-06 10:00:59", "2026-01-06 10:00"),
        ("0 10 * * 2", "2026-01-06 10:00:00", "2026-01-06 10:00"),
        ("0 10 * * 2", "2026-01-06 09:59:59", "2025-12-30 10:00"),
        ("0 10 * * TUE", "2026-01-08 00:00:00", "2026-01-06 10:00"),
        ("30 22 31 12 *", "2026-01-05 00:00:00", "2025-12-31 22:30"),
        ("*/15 8-9 * * *", "2026-01-06 09:50:00", "2026-01-06 09:45"),
        ("5-50/20 * * * *", "2026-01-06 09:44:00", "2026-01-06 09:25"),
        ("0 0 1,15 * *", "2026-01-20 12:00:00", "2026-01-15 00:00"),
        ("0 0 * JAN-MAR SUN", "2026-01-06 12:00:00", "2026-01-04 00:00"),
        ("0 0 * * 7", "2026-01-06 12:00:00", "2026-01-04 00:00"),
        ("0 0 13 * FRI", "2026-01-14 00:00:00", "2026-01-13 00:00"),  # either day, as in every cron
        ("0 0 13 * FRI", "2026-01-10 00:00:00", "2026-01-09 00:00"),
    ],
)
def test_the_last_match(cron: str, now: str, expected: str) -> None:
    assert last_match(parse_cron(cron), at(now), 31 * 86_400) == at(expected)


def test_what_was_too_long_ago_or_never_is_none() -> None:
    assert last_match(parse_cron("0 10 * * *"), at("2026-01-06 11:00"), 3_599.0) is None
    assert last_match(parse_cron("0 10 * * *"), at("2026-01-06 11:00"), 3_600.0) == at("2026-01-06 10:00")
    assert last_match(parse_cron("0 0 30 2 *"), at("2026-01-06 11:00"), 400 * 86_400) is None


@pytest.mark.parametrize(
    ("cron", "problem"),
    [
        ("* * * *", "it has 4 fields"),
        ("60 * * * *", "minute: 60 is not within 0-59"),
        ("* * 0 * *", "day of month: 0 is not within 1-31"),
        ("* * * FOO *", "month: FOO is not a number"),
        ("5-1 * * * *", "minute: 5-1 is not within 0-59"),
        ("*/0 * * * *", "minute: a step is at least 1"),
        ("1,, * * * *", "minute: nothing is not a number"),
        ("-1 * * * *", "minute: nothing is not a number"),
        ("\u0661 * * * *", "is not a number"),
    ],
)
def test_what_is_no_expression(cron: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_cron(cron)


fields = st.tuples(
    st.sampled_from(["*", "0", "30", "*/20", "10-40/15"]),
    st.sampled_from(["*", "0", "23", "*/7", "3,17"]),
    st.sampled_from(["*", "1", "31", "10-12"]),
    st.sampled_from(["*", "2", "1-6", "DEC"]),
    st.sampled_from(["*", "0", "MON-WED", "5,6"]),
)


@settings(max_examples=60, deadline=None)
@given(parts=fields, offset_min=st.integers(0, 400 * 1_440))
def test_it_agrees_with_looking_at_every_minute(parts: tuple[str, ...], offset_min: int) -> None:
    cron = parse_cron(" ".join(parts))
    now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=offset_min, seconds=30)
    within_min = 3 * 1_440
    expected = next(
        (
            moment.timestamp()
            for ago in range(within_min)
            if matches(cron, moment := now.replace(second=0) - timedelta(minutes=ago))
        ),
        None,
    )
    found = last_match(cron, now.timestamp(), (within_min - 1) * 60.0 + 30.0)
    assert found == expected


def matches(cron: Cron, moment: datetime) -> bool:
    return moment.minute in cron.minutes and moment.hour in cron.hours and cron.matches_day(moment)
