"""The promise of the e-values: under the null hypothesis their expectation is at most 1, whatever the sample size.

Ville's inequality makes of it that they ever pass 1/odds with at most the odds; small cases are summed up exactly here,
and long sequences of looks are simulated.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.rollout import statistics

SLACK = 1e-9


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=20))
def test_log_factorial(numbers: list[int]) -> None:
    found = statistics.log_factorial(np.array(numbers, dtype=np.float64))
    assert np.allclose(found, [math.lgamma(n + 1) for n in numbers], rtol=1e-12, atol=1e-9)


def binomial(hits: int, trials: int, rate: float) -> float:
    return math.comb(trials, hits) * rate**hits * (1 - rate) ** (trials - hits)


@pytest.mark.parametrize("trials", [1, 2, 5, 20, 60])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("rare", [1, 19])
def test_one_rate(trials: int, rate: float, rare: int) -> None:
    hits = np.arange(trials + 1, dtype=np.float64)
    for share in (1.0, 0.7, 0.2):
        lower, higher = rate * share, 1 - (1 - rate) * share
        too_high = np.exp(statistics.refute_at_most(hits, trials, rate, rare))
        too_low = np.exp(statistics.refute_at_least(hits, trials, rate, rare))
        assert sum(binomial(k, trials, lower) * too_high[k] for k in range(trials + 1)) <= 1 + SLACK
        assert sum(binomial(k, trials, higher) * too_low[k] for k in range(trials + 1)) <= 1 + SLACK


@pytest.mark.parametrize("sizes", [(1, 1), (6, 9), (12, 3)])
@pytest.mark.parametrize("margin", [0.0, 0.01, 0.2])
def test_two_rates(sizes: tuple[int, int], margin: float) -> None:
    ours, theirs = sizes
    pairs = list(itertools.product(range(ours + 1), range(theirs + 1)))
    for stable in (0.0, 0.01, 0.3, 0.79):
        for canary in (stable + margin, max(0.0, stable + margin - 0.1)):
            expected = sum(
                binomial(k, ours, canary)
                * binomial(m, theirs, stable)
                * math.exp(statistics.refute_difference_at_most((k, ours), (m, theirs), margin, 19))
                for k, m in pairs
            )
            assert expected <= 1 + SLACK, (stable, canary)
        for canary in (stable + margin, min(1.0, stable + margin + 0.1)):
            expected = sum(
                binomial(k, ours, canary)
                * binomial(m, theirs, stable)
                * math.exp(statistics.refute_difference_at_least((k, ours), (m, theirs), margin, 19))
                for k, m in pairs
            )
            assert expected <= 1 + SLACK, (stable, canary)


def multinomial(counts: tuple[int, ...], rates: tuple[float, ...]) -> float:
    ways = math.factorial(sum(counts))
    for count in counts:
        ways //= math.factorial(count)
    return ways * math.prod(rate**count for rate, count in zip(rates, counts, strict=True))


@pytest.mark.parametrize("quantile", [0.5, 0.9])
def test_quantiles_over_all_samples_of_three_buckets(quantile: float) -> None:
    """The canary's quantile is at most (at least) the stable one's: buckets are their own images."""
    samples = 5
    splits = [c for c in itertools.product(range(samples + 1), repeat=3) if sum(c) == samples]
    tables = [(0.5, 0.4, 0.1), (0.2, 0.7, 0.1), (0.9, 0.05, 0.05), (0.0, 0.9, 0.1)]
    for stable_rates, canary_rates in itertools.product(tables, repeat=2):
        at_stable, at_canary = (_quantile_bucket(rates, quantile) for rates in (stable_rates, canary_rates))
        no_slower = no_faster = 0.0
        for stable, canary in itertools.product(splits, repeat=2):
            chance = multinomial(stable, stable_rates) * multinomial(canary, canary_rates)
            ours, theirs = _from(canary), _from(stable)
            no_slower += chance * math.exp(
                statistics.refute_quantile_at_most(theirs[:-1], samples, ours[1:], samples, quantile)
            )
            no_faster += chance * math.exp(
                statistics.refute_quantile_at_least(theirs[1:], samples, ours[:-1], samples, quantile)
            )
        if at_canary <= at_stable:
            assert no_slower <= 1 + SLACK
        if at_canary >= at_stable:
            assert no_faster <= 1 + SLACK


def _quantile_bucket(rates: tuple[float, ...], quantile: float) -> int:
    return next(index for index in range(3) if sum(rates[: index + 1]) >= quantile - SLACK)


def _from(counts: tuple[int, ...]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([sum(counts[index:]) for index in range(4)], dtype=np.float64)


def test_looking_all_the_time_does_not_cry_wolf() -> None:
    """200 sequences at the very edge of the null, looked at again and again: at most 5 % ever refute it.

    A one-sided test at 5 % that is looked at as often cries wolf in more than a fifth of them.
    """
    random, odds, looks, sequences = np.random.default_rng(7), 0.05, 2_000, 200
    trials = np.arange(1.0, looks + 1)
    refuted = naive = 0
    for _ in range(sequences):
        hits = np.cumsum(random.random(looks) < 0.05).astype(np.float64)
        seen = range(100, looks, 20)
        refuted += any(
            statistics.refute_at_most(hits[i : i + 1], trials[i], 0.05, 19)[0] >= math.log(1 / odds) for i in seen
        )
        deviation = (hits - 0.05 * trials) / np.sqrt(trials * 0.05 * 0.95)
        naive += bool((deviation[seen] > 1.645).any())
    assert refuted <= sequences * odds
    assert naive > sequences * 4 * odds, "this is what the e-value is for"


def test_evidence_grows_with_what_is_seen() -> None:
    few = statistics.refute_difference_at_most((5, 50), (1, 1_000), 0.01, 24)
    many = statistics.refute_difference_at_most((50, 500), (10, 10_000), 0.01, 24)
    assert 0 < few < many
    assert statistics.refute_difference_at_most((0, 500), (10, 10_000), 0.01, 24) < 0
    assert statistics.refute_difference_at_least((0, 500), (10, 10_000), 0.04, 24) > math.log(100)


def test_nothing_seen_says_nothing() -> None:
    empty = np.zeros(3)
    assert statistics.refute_difference_at_most((0, 0), (3, 10), 0.01, 24) == 0
    assert statistics.refute_difference_at_least((1, 1), (0, 0), 0.01, 24) == 0
    assert statistics.refute_quantile_at_most(empty, 0, empty, 0, 0.95) == 0


def test_the_odds_of_all_looks_add_up() -> None:
    shares = [math.exp(-statistics.threshold(0.01, look)) for look in range(1, 10_000)]
    assert sum(shares) == pytest.approx(0.01, rel=1e-3)
    assert sum(shares) <= 0.01
