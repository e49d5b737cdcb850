"""Numbers for humans."""

from __future__ import annotations

from pointsman.core.model import TOTAL_WEIGHT


def percent(weight: int) -> str:
    """A share of 1/10,000 for a human."""
    return f"{weight * 100 / TOTAL_WEIGHT:g} %"


def seconds(number: float) -> str:
    """A time for a human, at least one second."""
    whole = max(1, round(number))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{count}{unit}" for count, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if count]
    return "".join(parts)
