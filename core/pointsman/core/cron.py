"""Cron expressions: when a freeze window opened, and when a scheduled operation was due. In UTC.

Five fields: minute, hour, day of month, month, day of week (0 and 7: Sunday; names as in `MON`, `JAN`). Each is `*`, a
number, a range `a-b`, either with a step `/n`, or a list of these. As in every cron, a day must fit both day fields,
but when neither of the two is `*` it need only fit one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

FIELDS: Final = (("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 7))
_MONTHS: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_NAMES: Final = {3: {name: i for i, name in enumerate(_MONTHS, 1)}, 4: {name: i for i, name in enumerate(_DAYS)}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """When a clock's minute matches. `either_day`: both day fields are restricted, and one of them is enough."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    def matches_day(self, day: datetime) -> bool:
        """Whether some minute of that day may match."""
        if day.month not in self.months:
            return False
        in_month = day.day in self.days
        in_week = day.isoweekday() % 7 in self.weekdays
        return in_month or in_week if self.either_day else in_month and in_week


@lru_cache(maxsize=256)
def parse_cron(text: str) -> Cron:
    """The expression.

    Raises:
        ValueError: it is none; the message says which field and why.
    """
    parts = text.split()
    if len(parts) != len(FIELDS):
        raise ValueError(f"it has {len(parts)} fields, not 5 (minute, hour, day of month, month, day of week)")
    minutes, hours, days, months, weekdays = (_field(number, part) for number, part in enumerate(parts))
    return Cron(
        minutes=minutes,
        hours=hours,
        days=days,
        months=months,
        weekdays=frozenset(day % 7 for day in weekdays),
        either_day=not parts[2].startswith("*") and not parts[4].startswith("*"),
    )


def last_match(cron: Cron, now_s: float, within_s: float) -> float | None:
    """The latest matching minute in [now - within, now] as seconds of the epoch, None if there was none."""
    now = datetime.fromtimestamp(now_s, UTC)
    earliest = now_s - within_s
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    while day.timestamp() + 86_400 > earliest:
        if cron.matches_day(day) and (found := _last_of_day(cron, day, now)) is not None:
            return found if found >= earliest else None
        day -= timedelta(days=1)
    return None


def _last_of_day(cron: Cron, day: datetime, now: datetime) -> float | None:
    today = day.date() == now.date()
    for hour in sorted(cron.hours, reverse=True):
        last = 59 if not today or hour < now.hour else now.minute if hour == now.hour else -1
        if minutes := [minute for minute in cron.minutes if minute <= last]:
            return (day + timedelta(hours=hour, minutes=max(minutes))).timestamp()
    return None


def _field(number: int, text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        found |= _part(number, part)
    return frozenset(found)


def _part(number: int, text: str) -> set[int]:
    name, low, high = FIELDS[number]
    span, slash, step_text = text.partition("/")
    step = _number(name, step_text) if slash else 1
    if step < 1:
        raise ValueError(f"{name}: a step is at least 1, not {step_text}")
    if span == "*":
        first, last = low, high - (number == 4)
    else:
        begin, dash, end = span.partition("-")
        first = _value(number, begin)
        last = _value(number, end) if dash else high if slash else first
    if not low <= first <= last <= high:
        raise ValueError(f"{name}: {text} is not within {low}-{high}")
    return set(range(first, last + 1, step))


def _value(number: int, text: str) -> int:
    names = _NAMES.get(number, {})
    return names[text.upper()] if text.upper() in names else _number(FIELDS[number][0], text)


def _number(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise ValueError(f"{name}: {text or 'nothing'} is not a number")
    return int(text)
