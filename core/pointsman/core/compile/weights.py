"""Weights of any size to shares of 1/10,000 (design D8)."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman.core.model import TOTAL_WEIGHT


def normalise(weights: Sequence[int]) -> tuple[int, ...]:
    """Shares that add up to `TOTAL_WEIGHT`, by largest remainder; all 0 where all weights are 0.

    Each share is less than 1 away from its exact value, 0 stays 0, equal remainders favour what is listed first.
    Integers only, so every control plane gets the same shares.
    """
    total = sum(weights)
    if total == 0:
        return (0,) * len(weights)
    shares = [weight * TOTAL_WEIGHT // total for weight in weights]
    remainders = [weight * TOTAL_WEIGHT % total for weight in weights]
    missing = TOTAL_WEIGHT - sum(shares)
    for index in sorted(range(len(weights)), key=lambda i: (-remainders[i], i))[:missing]:
        shares[index] += 1
    return tuple(shares)
