"""Who gets which arm of a sticky split: the same arithmetic as Envoy's, so that it can be told in advance.

Envoy takes xxHash64 (seed 0) of what the hash policy gives, modulo the sum of the weights, and walks the arms in their
order until the running sum of weights is larger (`envoy/source/common/router`). Weights of a rule add up to
`TOTAL_WEIGHT`, so a user's bucket never changes, and while the arm listed first grows users only move towards it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import xxhash

from pointsman.core.model import TOTAL_WEIGHT


def bucket(user: str, salt: str = "") -> int:
    """Bucket of a user, 0 to 9,999: the value of the sticky header or cookie, with the salt of the split."""
    key = f"{salt}:{user}" if salt else user
    return xxhash.xxh64_intdigest(key.encode()) % TOTAL_WEIGHT


def arm_of(place: int, weights: Sequence[int]) -> int | None:
    """Index of the arm that a bucket falls to; None if the weights do not reach so far."""
    end = 0
    for index, weight in enumerate(weights):
        end += weight
        if place < end:
            return index
    return None


def moved(before: Sequence[tuple[str, int]], after: Sequence[tuple[str, int]]) -> int:
    """How many of the 10,000 buckets change their pool between two splits, given as (pool, weight) in their order.

    For a sticky split this is the share of users that move, in 1/10,000. A bucket that goes from or to no arm at all
    (503) moves, too.
    """
    bounds = sorted({0, TOTAL_WEIGHT, *_bounds(before), *_bounds(after)})
    return sum(high - low for low, high in pairwise(bounds) if _pool_at(low, before) != _pool_at(low, after))


def shifted(before: Sequence[tuple[str, int]], after: Sequence[tuple[str, int]]) -> int:
    """How much of the traffic goes to another pool after a change, in 1/10,000: what a random split moves at least."""
    old, new = _totals(before), _totals(after)
    more = sum(max(0, new.get(pool, 0) - old.get(pool, 0)) for pool in new)
    less = sum(max(0, old.get(pool, 0) - new.get(pool, 0)) for pool in old)
    return max(more, less)


def redrawn(before: Sequence[tuple[str, int]], after: Sequence[tuple[str, int]]) -> int:
    """How many users, in 1/10,000, are to be expected on another pool when buckets are drawn anew (another salt)."""
    old, new = _totals(before), _totals(after)
    stay = sum(weight * new.get(pool, 0) for pool, weight in old.items())
    return TOTAL_WEIGHT - stay // TOTAL_WEIGHT


def _totals(arms: Sequence[tuple[str, int]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for pool, weight in arms:
        totals[pool] = totals.get(pool, 0) + weight
    return totals


def _bounds(arms: Sequence[tuple[str, int]]) -> list[int]:
    return [sum(weight for _, weight in arms[: index + 1]) for index in range(len(arms))]


def _pool_at(place: int, arms: Sequence[tuple[str, int]]) -> str | None:
    index = arm_of(place, [weight for _, weight in arms])
    return None if index is None else arms[index][0]
