"""Time as a dependency: shells pass a clock in, pure code never asks for the time."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time. `monotonic_s` never goes back; `wall_s` is seconds since the epoch."""

    def monotonic_s(self) -> float: ...

    def wall_s(self) -> float: ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()


class ManualClock:
    """A clock that stands still until it is told to move; for tests and virtual time."""

    def __init__(self, monotonic_s: float = 0.0, wall_s: float = 1_700_000_000.0) -> None:
        self._monotonic_s = monotonic_s
        self._offset_s = wall_s - monotonic_s

    def advance(self, seconds: float) -> None:
        """Move on by `seconds` ≥ 0."""
        if seconds < 0:
            raise ValueError("a clock does not go back")
        self._monotonic_s += seconds

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def wall_s(self) -> float:
        return self._monotonic_s + self._offset_s
