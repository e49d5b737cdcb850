"""Times in fixed logarithmic buckets: bounded memory, exact counts, a resolution of 2.2 %.

Bucket 0 holds everything below `LOWEST_MS`; bucket i ≥ 1 begins at `LOWEST_MS` * 2^((i - 1) / 32), the last one has no
end. Counting is all that the quantile tests need, so no sketch with an error bound of its own is used.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

LOWEST_MS: Final = 0.1
"""Below the time of one hop on loopback."""
PER_DOUBLING: Final = 32
DOUBLINGS: Final = 24
"""0.1 ms * 2^24 is 28 minutes: past every request timeout in use."""

LOWER_MS: Final[Floats] = np.concatenate(
    ([0.0], LOWEST_MS * 2.0 ** (np.arange(PER_DOUBLING * DOUBLINGS, dtype=np.float64) / PER_DOUBLING))
)
UPPER_MS: Final[Floats] = np.append(LOWER_MS[1:], np.inf)
SIZE: Final = len(LOWER_MS)


def bucket(value_ms: float) -> int:
    """The bucket of a time ≥ 0."""
    if not value_ms >= LOWEST_MS:  # also NaN
        return 0
    index = min(SIZE - 1, 1 + int(PER_DOUBLING * math.log2(value_ms / LOWEST_MS)))
    # The logarithm rounds: an edge belongs to the bucket that begins there.
    while index + 1 < SIZE and LOWER_MS[index + 1] <= value_ms:
        index += 1
    while LOWER_MS[index] > value_ms:
        index -= 1
    return index


def counts() -> Counts:
    """An empty histogram."""
    return np.zeros(SIZE, dtype=np.int64)


def from_bucket(histogram: Counts) -> Floats:
    """How many samples lie in bucket i or above; one entry more than there are buckets, the last is 0."""
    result: Floats = np.append(np.cumsum(histogram[::-1])[::-1], 0).astype(np.float64)
    return result


def quantile_ms(histogram: Counts, quantile: float) -> float | None:
    """The middle of the bucket that holds the quantile, None without samples."""
    total = int(histogram.sum())
    if not total:
        return None
    index = int(np.searchsorted(np.cumsum(histogram), quantile * total, side="left"))
    upper = UPPER_MS[index] if index + 1 < SIZE else LOWER_MS[index]
    return float(LOWER_MS[index] + upper) / 2
