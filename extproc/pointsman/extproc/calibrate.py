"""How fast each endpoint prefills, learnt from the TTFT of the requests it served; never by trying things on them.

    TTFT - RTT  ≈  c0*ahead + c1*(p*uncached + a*uncached*(L - uncached/2)) + c2*FIXED_MS

`p` and `a` are the rates that the endpoint began with, `ahead` the backlog that the pick saw, and the c are 1 for an
endpoint as they have it. c1 scales both rates: a slower GPU is slower in both, and two coefficients are traded against
each other (on twelve equal replicas the second one came out between 1.0 and 2.0). c0 and c2 are not used: they take up
what is not prefill (work of others, steps of the engine, the API server), which would else be taken for a slow GPU.
Least squares in relative terms, so that long prompts do not outvote short ones; old samples are forgotten; an unlucky
TTFT counts less the further off it is.

The rates are left alone while c1 is within `TOLERANCE` of 1, and follow it from there: endpoints that are equal stay
equal in our eyes, and calibration costs nothing where the rates are right (docs/performance.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pointsman.extproc.inflight import Account
from pointsman.extproc.table import EndpointTable

FIXED_MS = 20.0
"""What a request costs before and beside its prefill: 15.6 ms in the API server (facts 3.1) and part of a step."""

FORGETTING = 0.98
"""Weight of a sample after the next one: the last fifty count, seconds of a busy endpoint."""

PRIOR_WEIGHT = 0.2
"""Samples that the prior is worth: it decides where the samples say nothing, as when all prompts have one length, and
is hardly felt elsewhere (at 2.0 an engine 2.5 times slower looked 2.3 times slower for ever)."""

OUTLIER = 0.5
"""Error, as a part of the expectation, past which a sample loses weight: the noise of a mixed step is below."""

TOLERANCE = 1.25
"""Factor by which c1 may differ from 1 before anything is done. Right rates look 1.07 to 1.2 times too fast, because a
prefill shares its steps with the decodes of others; rates off by so much change nothing that can be measured."""

BOUNDS = ((1 / 3, 3.0), (1 / 3, 3.0), (0.0, 5.0))
"""Limits of the coefficients. Engines for one model differ by less than three times; more is a fault, not a rate."""

MAX_TTFT_MS = 600_000.0
"""No TTFT is longer than ten minutes; Envoy's stream timeout would have ended it."""

_SWEEPS = 2
"""Rounds of coordinate descent for each sample; it goes on from where the last sample left it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request, in ms: what it took without the round trip, and what is expected of each part."""

    took_ms: float
    ahead_ms: float
    own_ms: float


class Rates:
    """The coefficients of one endpoint; `factor` multiplies its rates."""

    def __init__(self) -> None:
        self._c = [1.0, 1.0, 1.0]
        self._gram = [[0.0] * 3 for _ in range(3)]
        self._moment = [0.0] * 3

    @property
    def measured(self) -> float:
        """c1: how many times slower than expected the samples look."""
        return self._c[1]

    @property
    def factor(self) -> float:
        """What to multiply the rates by: 1 within the tolerance, continuous at its ends."""
        return max(1.0, self._c[1] / TOLERANCE) if self._c[1] >= 1.0 else min(1.0, self._c[1] * TOLERANCE)

    def learn(self, sample: Sample) -> bool:
        """Take in one request; False when it can't be one."""
        parts = (sample.ahead_ms, sample.own_ms, FIXED_MS)
        if not (0.0 < sample.took_ms <= MAX_TTFT_MS and all(0.0 <= part <= MAX_TTFT_MS for part in parts)):
            return False  # NaN compares false
        scale = math.fsum(parts)
        x = [part / scale for part in parts]
        y = sample.took_ms / scale
        error = abs(y - sum(a * b for a, b in zip(x, self._c, strict=True)))
        weight = 1.0 if error <= OUTLIER else OUTLIER / error
        for i, xi in enumerate(x):
            row = self._gram[i]
            for j, xj in enumerate(x):
                row[j] = FORGETTING * row[j] + weight * xi * xj
            self._moment[i] = FORGETTING * self._moment[i] + weight * xi * y
        self._solve()
        return True

    def _solve(self) -> None:
        """Least squares within the bounds, by coordinates: exact in the limit, and each round stays within."""
        c = self._c
        for _ in range(_SWEEPS):
            for i, (low, high) in enumerate(BOUNDS):
                row = self._gram[i]
                others = sum(row[j] * c[j] for j in range(3) if j != i)
                c[i] = min(high, max(low, (self._moment[i] + PRIOR_WEIGHT - others) / (row[i] + PRIOR_WEIGHT)))


class Calibration:
    """The rates of all endpoints, by row, written into the table's columns as they are learnt."""

    def __init__(self, table: EndpointTable) -> None:
        self._table = table
        self._rates: dict[int, Rates] = {}
        self._first: dict[int, tuple[float, float]] = {}  # row → its rates before anything was learnt

    def learn(self, account: Account, ttft_ms: float) -> None:
        """The first body byte of a request that its first endpoint served came `ttft_ms` after the request.

        Only an answer in pieces tells when its prefill was done: the first byte of another comes with its last token.
        """
        uncached, row, table = account.uncached_tokens, account.row, self._table
        if not uncached or account.ahead_ms is None or not account.streaming:
            return
        rates = self._rates.setdefault(row, Rates())
        prefill_ms, attention_ms = self._first.setdefault(
            row, (float(table.prefill_ms[row]), float(table.attention_ms[row]))
        )
        reach = max(0.0, account.context_tokens - uncached / 2.0)
        sample = Sample(
            took_ms=ttft_ms - account.rtt_ms,
            ahead_ms=account.ahead_ms,
            own_ms=uncached * (prefill_ms + attention_ms * reach),
        )
        if rates.learn(sample):
            table.prefill_ms[row] = prefill_ms * rates.factor
            table.attention_ms[row] = attention_ms * rates.factor

    def forget(self, row: int) -> None:
        """The row is free; the next endpoint in it begins with the prior."""
        self._rates.pop(row, None)
        self._first.pop(row, None)
