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
        self._c = (1.0, 1.0, 1.0)
        self._gram = (0.0,) * 6  # 00, 01, 02, 11, 12, 22: it is symmetric
        self._moment = (0.0,) * 3

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
        ahead_ms, own_ms = sample.ahead_ms, sample.own_ms
        if not (
            0.0 < sample.took_ms <= MAX_TTFT_MS and 0.0 <= ahead_ms <= MAX_TTFT_MS and 0.0 <= own_ms <= MAX_TTFT_MS
        ):
            return False  # NaN compares false
        scale = ahead_ms + own_ms + FIXED_MS
        x0, x1, x2, y = ahead_ms / scale, own_ms / scale, FIXED_MS / scale, sample.took_ms / scale
        c0, c1, c2 = self._c
        error = abs(y - (x0 * c0 + x1 * c1 + x2 * c2))
        weight = 1.0 if error <= OUTLIER else OUTLIER / error
        w0, w1, w2, kept = weight * x0, weight * x1, weight * x2, FORGETTING
        g00, g01, g02, g11, g12, g22 = self._gram
        m0, m1, m2 = self._moment
        self._gram = (
            kept * g00 + w0 * x0,
            kept * g01 + w0 * x1,
            kept * g02 + w0 * x2,
            kept * g11 + w1 * x1,
            kept * g12 + w1 * x2,
            kept * g22 + w2 * x2,
        )
        self._moment = (kept * m0 + w0 * y, kept * m1 + w1 * y, kept * m2 + w2 * y)
        self._solve()
        return True

    def _solve(self) -> None:
        """Least squares within the bounds, by coordinates: exact in the limit, and each round stays within."""
        (c0, c1, c2), (m0, m1, m2) = self._c, self._moment
        g00, g01, g02, g11, g12, g22 = self._gram
        (low0, high0), (low1, high1), (low2, high2) = BOUNDS
        for _ in range(_SWEEPS):
            c0 = min(high0, max(low0, (m0 + PRIOR_WEIGHT - g01 * c1 - g02 * c2) / (g00 + PRIOR_WEIGHT)))
            c1 = min(high1, max(low1, (m1 + PRIOR_WEIGHT - g01 * c0 - g12 * c2) / (g11 + PRIOR_WEIGHT)))
            c2 = min(high2, max(low2, (m2 + PRIOR_WEIGHT - g02 * c0 - g12 * c1) / (g22 + PRIOR_WEIGHT)))
        self._c = (c0, c1, c2)


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
