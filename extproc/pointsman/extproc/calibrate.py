"""Prefill rates of each endpoint, learnt from the TTFT of the requests it served; never by trying things on them.

    TTFT - RTT  ≈  c0*ahead + c1*p*uncached + c2*a*uncached*(L - uncached/2) + c3*FIXED_MS

`p` and `a` are the prior rates, `ahead` the backlog that the pick saw, and the c are 1 for an endpoint as the prior has
it. c1 and c2 scale the endpoint's rates. c0 and c3 are not used: they take up what is not prefill (work of others,
steps of the engine, the API server), which would else be taken for a slow GPU. Least squares in relative terms, so that
long prompts do not outvote short ones; old samples are forgotten; an unlucky TTFT counts less the further off it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pointsman.extproc.inflight import Account
from pointsman.extproc.table import PREFILL_MS_PER_TOKEN, PREFILL_MS_PER_TOKEN_SQUARED, EndpointTable

FIXED_MS = 20.0
"""What a request costs before and beside its prefill: 15.6 ms in the API server (facts 3.1) and part of a step."""

FORGETTING = 0.98
"""Weight of a sample after the next one: the last fifty count, seconds of a busy endpoint."""

PRIOR_WEIGHT = 0.2
"""Samples that the prior is worth: it decides where the samples say nothing, as when all prompts have one length, and
is hardly felt elsewhere (at 2.0 an engine 2.5 times slower looked 2.3 times slower for ever)."""

OUTLIER = 0.5
"""Error, as a part of the expectation, past which a sample loses weight: the noise of a mixed step is below."""

BOUNDS = ((1 / 3, 3.0), (1 / 3, 3.0), (1 / 3, 3.0), (0.0, 5.0))
"""Limits of the coefficients. Engines for one model differ by less than three times; more is a fault, not a rate."""

MAX_TTFT_MS = 600_000.0
"""No TTFT is longer than ten minutes; Envoy's stream timeout would have ended it."""

_SWEEPS = 2
"""Rounds of coordinate descent for each sample; it goes on from where the last sample left it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request, in ms: what it took without the round trip, and what the prior expects of each part."""

    took_ms: float
    ahead_ms: float
    linear_ms: float
    quadratic_ms: float


class Rates:
    """The coefficients of one endpoint; `linear` and `quadratic` multiply its prior rates."""

    def __init__(self) -> None:
        self._c = [1.0, 1.0, 1.0, 1.0]
        self._gram = [[0.0] * 4 for _ in range(4)]
        self._moment = [0.0] * 4

    @property
    def linear(self) -> float:
        return self._c[1]

    @property
    def quadratic(self) -> float:
        return self._c[2]

    def learn(self, sample: Sample) -> bool:
        """Take in one request; False when it can't be one."""
        parts = (sample.ahead_ms, sample.linear_ms, sample.quadratic_ms, FIXED_MS)
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
                others = sum(row[j] * c[j] for j in range(4) if j != i)
                c[i] = min(high, max(low, (self._moment[i] + PRIOR_WEIGHT - others) / (row[i] + PRIOR_WEIGHT)))


class Calibration:
    """The rates of all endpoints, by row, written into the table's columns as they are learnt."""

    def __init__(self, table: EndpointTable) -> None:
        self._table = table
        self._rates: dict[int, Rates] = {}

    def learn(self, account: Account, ttft_ms: float) -> None:
        """The first body byte of a request that its first endpoint served came `ttft_ms` after the request."""
        uncached = account.uncached_tokens
        if not uncached or account.ahead_ms is None:
            return
        rates = self._rates.setdefault(account.row, Rates())
        reach = max(0.0, account.context_tokens - uncached / 2.0)
        sample = Sample(
            took_ms=ttft_ms - account.rtt_ms,
            ahead_ms=account.ahead_ms,
            linear_ms=PREFILL_MS_PER_TOKEN * uncached,
            quadratic_ms=PREFILL_MS_PER_TOKEN_SQUARED * uncached * reach,
        )
        if rates.learn(sample):
            self._table.prefill_ms[account.row] = PREFILL_MS_PER_TOKEN * rates.linear
            self._table.attention_ms[account.row] = PREFILL_MS_PER_TOKEN_SQUARED * rates.quadratic

    def forget(self, row: int) -> None:
        """The row is free; the next endpoint in it begins with the prior."""
        self._rates.pop(row, None)
