"""When a client acknowledged what it holds: one time per generation, not per resource.

A gateway may hold thousands of resources and most of them arrive together, so the time of each is found through the
generation that it was sent with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

FEWEST_KEPT: Final = 64
"""Times kept before anything is forgotten: a weight change per second for a minute costs no cleaning."""


class AckTimes:
    """Times of one resource type on one stream, in seconds since the epoch."""

    __slots__ = ("_at_s", "_limit")

    def __init__(self) -> None:
        self._at_s: dict[int, float] = {}
        self._limit = FEWEST_KEPT

    def note(self, generation: int, held: Mapping[str, int], at_s: float) -> None:
        """Something of `generation` was acknowledged; `held` are the generations of all that the client holds."""
        self._at_s[generation] = at_s
        if len(self._at_s) > self._limit:
            used = set(held.values())
            self._at_s = {kept: time_s for kept, time_s in self._at_s.items() if kept in used}
            self._limit = max(FEWEST_KEPT, 2 * len(self._at_s))

    def of(self, generation: int | None) -> float | None:
        """When what was sent with `generation` was acknowledged, None if that was not on this stream."""
        return None if generation is None else self._at_s.get(generation)
