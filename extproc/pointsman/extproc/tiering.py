"""What failover decided of the sites of a pool, as columns over its rows. See `tiers` for what is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pointsman.core.model import TOTAL_WEIGHT, Pool

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tiering:
    """Per row of a pool, in its order. `group` numbers the sites, `cap` is that of each group (0: none)."""

    tier: Ints
    share: Ints
    spill: Ints
    group: Ints
    cap: Ints


def tiering_of(pool: Pool) -> Tiering | None:
    """The decisions for a pool whose endpoints have unique keys; None when nothing special holds for any."""
    groups = pool.groups
    plain = all(g.share == TOTAL_WEIGHT and not g.max_concurrent for g in groups)
    if plain and len({g.tier for g in groups}) <= 1:
        return None
    number: dict[str, int] = {}
    for index, group in enumerate(groups):
        for endpoint in group.endpoints:
            number.setdefault(endpoint.key, index)
    group_of = np.fromiter(number.values(), dtype=np.int64, count=len(number))

    def column(values: Sequence[int]) -> Ints:
        return np.array(values, dtype=np.int64)[group_of]

    return Tiering(
        tier=column([g.tier for g in groups]),
        share=column([g.share for g in groups]),
        spill=column([g.spill for g in groups]),
        group=group_of,
        cap=np.array([g.max_concurrent for g in groups], dtype=np.int64),
    )
