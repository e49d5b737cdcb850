"""What the first byte usually takes at a member, as a line over what the picker expected of the request.

The picker's expectation has the tokens, the queue and the network in it, but its rates are of some GPU and its queues
are guesses. So the usual time is `intercept + slope * expected`, fitted to medians (a resistant line through the outer
thirds), which a few wild samples do not move. It is slow: a sample is taken in only after a while without
suspicion, so a fault does not become the baseline, and without samples it stays what it was.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np

KEPT: Final = 256
"""Samples the line is fitted to: the error of a median of as many is a twelfth of their spread."""

ENOUGH: Final = 20
"""Samples before there is a baseline."""

EVERY_S: Final = 0.5
"""One sample of so many seconds is taken, once there are enough: then those that are kept cover two minutes at least,
and the baseline follows the time of day but not an incident."""

QUARANTINE_S: Final = 3.0
"""How long a sample waits for a suspicion: longer than detection takes at 5 requests a second, with the report."""

REFIT: Final = 16
"""New samples between two fits, of 0.1 ms each."""

SLOPES: Final = (0.25, 4.0)
"""Limits of the slope: the picker's rates are of one GPU, and others are up to four times as fast or slow."""

SPREAD_MS: Final = 50.0
SPREAD: Final = 1.5
"""How far the expectations must lie apart, in ms and as a ratio, to tell a slope."""

_WAITING: Final = 64


class Baseline:
    """The line of one member. `normalised` False: the same time for every request."""

    def __init__(self, *, normalised: bool = True) -> None:
        self._normalised = normalised
        self._quarantine: deque[tuple[float, float, float]] = deque(maxlen=_WAITING)
        self._kept: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self._taken_s = float("-inf")
        self._unfitted = 0
        self._slope = 1.0 if normalised else 0.0
        self._intercept_ms = 0.0
        self._known = False

    @property
    def known(self) -> bool:
        """There have been enough samples."""
        return self._known

    def add(self, at_s: float, expected_ms: float, ttft_ms: float) -> None:
        """Offer a sample; most are thinned out."""
        if len(self._kept) + len(self._quarantine) >= _WAITING and at_s - self._taken_s < EVERY_S:
            return
        self._taken_s = at_s
        self._quarantine.append((at_s, expected_ms, ttft_ms))

    def settle(self, now_s: float, *, suspicious: bool) -> None:
        """Take in what has waited long enough; a suspicion voids all that waits."""
        waiting = self._quarantine
        if suspicious:
            waiting.clear()
            return
        while waiting and now_s - waiting[0][0] >= QUARANTINE_S:
            _, expected_ms, ttft_ms = waiting.popleft()
            self._kept.append((expected_ms, ttft_ms))
            self._unfitted += 1
        if len(self._kept) >= ENOUGH and (not self._known or self._unfitted >= REFIT):
            self._fit()

    def usual_ms(self, expected_ms: float) -> float:
        """When the first byte usually comes of a request of which so much was expected; without a baseline, that."""
        return max(0.0, self._intercept_ms + self._slope * expected_ms)

    def _fit(self) -> None:
        self._unfitted, self._known = 0, True
        pairs = np.array(self._kept)
        expected, took = pairs[:, 0], pairs[:, 1]
        if self._normalised:
            order = np.argsort(expected)
            third = len(order) // 3
            low, high = order[:third], order[-third:]
            near, far = float(np.median(expected[low])), float(np.median(expected[high]))
            if far - near > SPREAD_MS and far > SPREAD * near:
                rise = (float(np.median(took[high])) - float(np.median(took[low]))) / (far - near)
                self._slope = min(SLOPES[1], max(SLOPES[0], rise))
        self._intercept_ms = float(np.median(took - self._slope * expected))
