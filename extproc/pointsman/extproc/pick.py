"""From scores to an ordered list of endpoints, for the cost policy and for the plain ones it is compared with."""

from __future__ import annotations

from enum import Enum

import numpy as np
import numpy.typing as npt

from pointsman.extproc.table import Floats, Mask

MAX_LIST = 8
"""Endpoints in a pick: more than any retry policy tries, and the list stays under 200 bytes."""

TIE_MS = 2.0
"""Scores within the same 2 ms are equal: a cached block of 64 tokens is worth 4 ms, a local round trip varies by 1."""

HOME_ATTEMPTS = 1
"""Endpoints of one site in a row at the head of a list. What a request knows when its first attempt has failed is that
something is wrong there; when the whole site is gone, the second one is to be the last, not a second loss of time."""

_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))

Order = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


class PickPolicy(Enum):
    """How candidates are ordered. All but `JOINT` ignore the cost; they are there to be compared with."""

    JOINT = "joint"
    ROUND_ROBIN = "round-robin"
    LEAST_OUTSTANDING = "least-outstanding"
    RANDOM = "random"


def rendezvous(key_hash: Hashes, request_hash: int) -> Hashes:
    """A hash of (endpoint, request) for each endpoint: every picker orders equal endpoints alike (splitmix64 mixer)."""
    mixed = key_hash ^ np.uint64(request_hash & 0xFFFFFFFFFFFFFFFF)
    mixed = (mixed ^ (mixed >> _SHIFTS[0])) * _MULTIPLIERS[0]
    mixed = (mixed ^ (mixed >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return np.asarray(mixed ^ (mixed >> _SHIFTS[2]), dtype=np.uint64)


def by_cost(scores: Floats, running: Floats, ties: Hashes) -> Order:
    """Positions from the best to the worst: by score, in one tie by fewer running requests, then by rendezvous hash."""
    return np.lexsort((ties, running, np.floor(scores / TIE_MS)))


def by_outstanding(requests: npt.NDArray[np.int64], turn: int) -> Order:
    """Fewest requests in flight first; among equals the turn goes round."""
    count = len(requests)
    return np.lexsort(((np.arange(count) - turn) % count, requests))


def by_turn(count: int, turn: int) -> Order:
    """Each candidate in turn."""
    return (np.arange(count) + turn) % count


def top(
    order: Order, sites: npt.NDArray[np.int32], limit: int = MAX_LIST, *, suspects: Mask | None = None
) -> list[int]:
    """The first `limit` positions; the best of another site is moved up behind the first `HOME_ATTEMPTS`.

    A retry walks this list, so it must leave a site that is failing before the retries run out. What seems to be gone
    (`suspects`, per position) stays where it is.
    """
    positions: list[int] = order[:limit].tolist()
    if len(order) > HOME_ATTEMPTS:
        ordered_sites = sites[order]
        away = int(np.argmax(ordered_sites != ordered_sites[0]))  # 0: all are of one site
        if away > HOME_ATTEMPTS and (suspects is None or not suspects[order[away]]):
            if away < limit:
                positions.pop(away)
            positions.insert(HOME_ATTEMPTS, int(order[away]))
    return positions[:limit]
