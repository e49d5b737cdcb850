"""Evidence that may be looked at as often as one likes.

A canary is judged at every interval, hundreds of times in a rollout. A test made for one look would cry wolf ever more
often, so these are e-processes: products of likelihood ratios that are non-negative supermartingales while their null
hypothesis holds. By Ville's inequality the chance that one *ever* passes 1/odds is at most the odds, however often it
is looked at and whenever one stops. Two directions are tested: "the canary is within its limit" (passing refutes it:
bad) and "the canary is as bad as must be caught" (passing refutes it: good). While neither is refuted there are too few
samples, and nobody guesses.

All functions return natural logarithms of e-values; compare them with `threshold`. Requests are taken to be independent
given their arm; a burst that hits only one arm at once breaks that assumption (`failureLimit` is for it).

Sources: Ville 1939; Robbins 1970, Beta-Bernoulli mixtures; Howard, Ramdas et al. 2021, quantiles by counting; the
composite null by its least favourable point (universal inference, Wasserman et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_TABLE: Final[Floats] = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, 1 << 15, dtype=np.float64)))))
"""256 KiB: the requests of most steps are looked up."""
_GOLDEN: Final = (math.sqrt(5.0) - 1.0) / 2.0
_SEARCH_STEPS: Final = 40
"""Golden section: 4e-9 of the range, and the likelihood is flat where it is largest."""


def threshold(odds: float, look: int = 1) -> float:
    """Log e-value that refutes with `odds` of being wrong, for the `look`-th separate body of evidence (from 1).

    The shares odds / (look * (look + 1)) of all looks add up to the odds.
    """
    return math.log(look * (look + 1) / odds)


def log_factorial(n: Floats) -> Floats:
    """ln n! for whole n ≥ 0; beyond the table Stirling's series, exact to 1e-13."""
    places = n.astype(np.intp)
    if places.max(initial=0) < len(_TABLE):
        return _TABLE[places]
    large = np.maximum(n, 1.0)
    series = large * np.log(large) - large + 0.5 * np.log(2 * math.pi * large) + 1 / (12 * large) - 1 / (360 * large**3)
    result: Floats = np.where(n < len(_TABLE), _TABLE[np.minimum(places, len(_TABLE) - 1)], series)
    return result


def _log_mixture(hits: Floats, trials: float, rare: int) -> Floats:
    """Log likelihood of `hits` mixed over Beta(1, rare): mean 1 / (1 + rare), so that a rare event costs little."""
    # B(1 + k, rare + n - k) / B(1, rare), and B(1, rare) = 1 / rare
    constant = math.log(rare) - math.lgamma(trials + rare + 1)
    return log_factorial(hits) + log_factorial(trials - hits + (rare - 1)) + constant


def _log_likelihood(hits: Floats, trials: float, rate: Floats) -> Floats:
    misses = trials - hits
    with np.errstate(divide="ignore", invalid="ignore"):
        yes = np.where(hits > 0, hits * np.log(rate), 0.0)
        no = np.where(misses > 0, misses * np.log1p(-rate), 0.0)
    result: Floats = yes + no
    return result


def refute_at_most(hits: Floats, trials: float, rate: float, rare: int) -> Floats:
    """Evidence of each number of hits in `trials` ≥ 1 against "the chance of a hit is at most `rate`"."""
    return _log_mixture(hits, trials, rare) - _log_likelihood(hits, trials, np.minimum(hits / trials, rate))


def refute_at_least(hits: Floats, trials: float, rate: float, rare: int) -> Floats:
    """Evidence against "the chance of a hit is at least `rate`"."""
    return _log_mixture(hits, trials, rare) - _log_likelihood(hits, trials, np.maximum(hits / trials, rate))


def refute_difference_at_most(canary: tuple[int, int], stable: tuple[int, int], margin: float, rare: int) -> float:
    """Evidence against "canary rate ≤ stable rate + margin"; arms are (hits, trials)."""
    return _difference(canary, stable, margin, rare, inside=lambda difference: difference <= margin)


def refute_difference_at_least(canary: tuple[int, int], stable: tuple[int, int], margin: float, rare: int) -> float:
    """Evidence against "canary rate ≥ stable rate + margin"."""
    return _difference(canary, stable, margin, rare, inside=lambda difference: difference >= margin)


def _difference(
    canary: tuple[int, int], stable: tuple[int, int], margin: float, rare: int, *, inside: Callable[[float], bool]
) -> float:
    if not canary[1] or not stable[1]:
        return 0.0
    best = canary[0] / canary[1], stable[0] / stable[1]
    mixed = _mixture_of(canary, rare) + _mixture_of(stable, rare)
    if inside(best[0] - best[1]):
        return mixed - _likelihood_of(canary, best[0]) - _likelihood_of(stable, best[1])
    # The likeliest pair that fits the hypothesis lies on its edge, and the likelihood is concave along it.
    low, high = max(0.0, -margin), min(1.0, 1.0 - margin)

    def on_edge(rate: float) -> float:
        return _likelihood_of(stable, rate) + _likelihood_of(canary, rate + margin)

    return mixed - _maximum(on_edge, low, high)


def _mixture_of(arm: tuple[int, int], rare: int) -> float:
    hits, trials = arm
    beta = math.lgamma(hits + 1) + math.lgamma(trials - hits + rare) - math.lgamma(trials + rare + 1)
    return beta + math.log(rare)


def _likelihood_of(arm: tuple[int, int], rate: float) -> float:
    hits, misses = arm[0], arm[1] - arm[0]
    rate = min(max(rate, 0.0), 1.0)
    if (hits and rate == 0.0) or (misses and rate == 1.0):
        return -math.inf
    return (hits * math.log(rate) if hits else 0.0) + (misses * math.log1p(-rate) if misses else 0.0)


def _maximum(function: Callable[[float], float], low: float, high: float) -> float:
    """The largest value of a concave function on an interval, its ends included."""
    best = max(function(low), function(high))
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_a, at_b = function(a), function(b)
    for _ in range(_SEARCH_STEPS):
        if at_a < at_b:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = function(b)
        else:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = function(a)
    return max(best, at_a, at_b)


def refute_quantile_at_most(
    stable_from: Floats, stable_trials: int, canary_beyond: Floats, canary_trials: int, quantile: float
) -> float:
    """Evidence against "the canary's quantile is at most f(the stable one's)", without any assumption of shape.

    Where the stable quantile lies is not known, so every bucket is tried, and the one that speaks best for the canary
    counts: there `stable_from[b]` stable samples lie in bucket b or above, `canary_beyond[b]` canary samples above
    the image under f of the whole bucket.
    """
    return _quantile(stable_from, stable_trials, canary_beyond, canary_trials, quantile, too_slow=True)


def refute_quantile_at_least(
    stable_beyond: Floats, stable_trials: int, canary_from: Floats, canary_trials: int, quantile: float
) -> float:
    """Evidence against "the canary's quantile is at least f(the stable one's)".

    `stable_beyond[b]` stable samples lie above bucket b, `canary_from[b]` canary samples in the bucket that holds the
    image of bucket b's lower edge, or above.
    """
    return _quantile(stable_beyond, stable_trials, canary_from, canary_trials, quantile, too_slow=False)


def _quantile(
    stable: Floats, stable_trials: int, canary: Floats, canary_trials: int, quantile: float, *, too_slow: bool
) -> float:
    if not stable_trials or not canary_trials:
        return 0.0
    tail, rare = 1.0 - quantile, rarity(1.0 - quantile)
    # Most buckets are empty: neighbours with the same counts have the same evidence.
    differs = np.append((np.diff(stable) != 0) | (np.diff(canary) != 0), True)
    stable, canary = stable[differs], canary[differs]
    if too_slow:
        total = refute_at_least(stable, stable_trials, tail, rare) + refute_at_most(canary, canary_trials, tail, rare)
    else:
        total = refute_at_most(stable, stable_trials, tail, rare) + refute_at_least(canary, canary_trials, tail, rare)
    return float(total.min())


def rarity(rate: float) -> int:
    """The parameter of the mixture that suits events of about this rate."""
    return max(1, round(1.0 / max(rate, 1e-4)) - 1)
