"""Which sites a request may use now: tiers, shares and caps that failover decided (`pointsman.core.model.SiteGroup`).

The failover controller decides, every picker obeys on its own: what a request may do depends on a draw from its user
(else its id), so pickers agree and a user who came back with a ramp stays. Without such decisions nothing here runs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from pointsman.core.model import TOTAL_WEIGHT
from pointsman.extproc.filters import Codes, Filtered
from pointsman.extproc.pick import HOME_ATTEMPTS, MAX_LIST, Hashes
from pointsman.extproc.suspicion import last
from pointsman.extproc.table import Mask
from pointsman.extproc.tiering import Ints, Tiering

FULL_RETRY_AFTER_S: Final = 1
"""When to come again where a site is full: in-flight requests end all the time, and a later try finds a gap."""

_SEED: Final = 0x7469_6572
"""Makes the draw independent of the rendezvous hash and of the buckets of a split."""


def draw(identity: str) -> int:
    """Where a user or request stands among all: 0 to 9,999, the same for every picker."""
    return xxhash.xxh3_64_intdigest(identity.encode("utf-8", "surrogatepass"), seed=_SEED) % TOTAL_WEIGHT


def hold_back(
    codes: Codes,
    tiering: Tiering,
    requests: Ints,
    at: int,
    *,
    suspects: Mask | None = None,
    confirmed: Mask | None = None,
) -> None:
    """Filter, in place, what a request with the draw `at` may not use; `requests` are in flight, per row.

    A failed site (share 0) is better than none: where nothing else is left, and not for want of room, it is used. A
    tier of which all endpoints seem to be gone (`suspects`, None: none does) opens the next one. Where that is full,
    what is `confirmed` to be gone is no way out: a request would come back from there and overrun those that live.
    """
    full = tiering.cap > 0
    if full.any():
        running = np.bincount(tiering.group, weights=requests, minlength=len(tiering.cap))
        full &= running >= tiering.cap
        codes[(codes == 0) & full[tiering.group]] = Filtered.FULL
    codes[(codes == 0) & (tiering.share <= at)] = Filtered.HELD_BACK
    free = codes == 0
    live = free if suspects is None else free & ~suspects
    some_full = bool((codes == Filtered.FULL).any())
    if some_full and confirmed is not None and not live.any() and confirmed[free].all():
        codes[free] = Filtered.GONE
    elif free.any():
        active = tiering.tier[live if live.any() else free].min()
        codes[free & (tiering.tier > active) & (tiering.spill <= at)] = Filtered.HIGHER_TIER
    if not live.any() and not some_full:
        held = codes == Filtered.HELD_BACK
        ramping = held & (tiering.share > 0)
        codes[ramping if ramping.any() or free.any() else held] = Filtered.NO


def reserve(codes: Codes, tiering: Tiering, requests: Ints, ties: Hashes, suspects: Mask | None = None) -> Ints:
    """Positions of what only its tier holds back, best first: the next tier, there the fewest requests, then `ties`;
    what seems to be gone (`suspects`) is last.

    A site that dies sends all that it had at once: it must not meet the same endpoint. All columns are per row.
    """
    found = np.flatnonzero(codes == Filtered.HIGHER_TIER)
    order = last(
        np.lexsort((ties[found], requests[found], tiering.tier[found])), None if suspects is None else suspects[found]
    )
    return np.asarray(found[order[:MAX_LIST]], dtype=np.int64)


def with_reserve(
    listed: list[int], sites: npt.NDArray[np.int32], reserve: list[int], gone: Collection[int] = ()
) -> list[int]:
    """Rows of a pick with one of another tier behind the first home attempts: a retry must reach it in time.

    `sites` is the site of any row. The reserve is what only its tier held back, best first (`reserve`). What seems to
    be `gone` comes behind all of it; where all of the pick does, so does the reserve, and the order stays.
    """
    live = [row for row in listed if row not in gone] or listed
    last_resort = [row for row in listed if row not in live]
    if not reserve or len({int(sites[row]) for row in live[: HOME_ATTEMPTS + 1]}) > 1:
        return [*live, *reserve, *last_resort][:MAX_LIST]
    return [*live[:HOME_ATTEMPTS], reserve[0], *live[HOME_ATTEMPTS:], *reserve[1:], *last_resort][:MAX_LIST]
