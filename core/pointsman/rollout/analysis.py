"""Evidence to verdicts: is the canary good, bad, or is it too early to tell?"""

from __future__ import annotations

import math
from enum import Enum
from functools import cache

import msgspec
import numpy as np

from pointsman.rollout import buckets, statistics
from pointsman.rollout.buckets import Counts, Floats
from pointsman.rollout.evidence import Arm, Evidence
from pointsman.rollout.spec import RATES, Check, Comparison, Limit, Metric, RolloutSpec

_NO_EVIDENCE = 0.0


class Verdict(Enum):
    GOOD = "Good"  # as bad as must be caught is refuted
    BAD = "Bad"  # within its limit is refuted
    TOO_FEW = "TooFew"  # neither yet
    NO_DATA = "NoData"  # nothing was seen, or the source did not answer


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one check says now. `canary` and `stable` are the measured values (fractions or ms), None for unknown.

    `samples` are those of the canary. `against` and `in_favour` are log e-values as a share of what a verdict needs:
    at 1 the canary is bad, or good.
    """

    name: str
    verdict: Verdict
    why: str = ""
    canary: float | None = None
    stable: float | None = None
    samples: int = 0
    against: float = 0.0
    in_favour: float = 0.0


def analyse(spec: RolloutSpec, evidence: Evidence, *, stable_serves: bool) -> tuple[CheckResult, ...]:
    """The verdicts of all checks that are judged from requests, in the spec's order."""
    checks = spec.request_checks
    stable = evidence.stable_arm(serves=stable_serves)
    bad = statistics.threshold(spec.false_alarm_odds / max(1, len(checks)), evidence.look)
    good = statistics.threshold(spec.missed_odds, evidence.step_look)
    return tuple(_judge(check, evidence.canary, stable, bad, good) for check in checks)


def due_for_restart(spec: RolloutSpec, evidence: Evidence, results: tuple[CheckResult, ...], observed_s: float) -> bool:
    """Whether the evidence is old and was enough for a verdict, so that new evidence shall be judged for itself."""
    judged = {check.name for check in spec.request_checks}
    ours = [result for result in results if result.name in judged]
    return (
        bool(ours)
        and observed_s - evidence.began_s >= spec.window_s
        and all(result.verdict is Verdict.GOOD for result in ours)
    )


def _judge(check: Check, canary: Arm, stable: Arm, bad: float, good: float) -> CheckResult:
    assert check.limit is not None and check.must_catch is not None
    compared = check.limit.comparison is not Comparison.ABSOLUTE
    if check.metric in RATES:
        samples, enough, shown, against, in_favour = _rates(check, canary, stable)
    else:
        samples, enough, shown, against, in_favour = _times(check, canary, stable)
    if not samples or not enough:
        missing = "the canary" if not samples else "the stable pool"
        return CheckResult(
            name=check.name,
            verdict=Verdict.NO_DATA,
            why=f"no requests to {missing}",
            canary=shown[0],
            stable=shown[1] if compared else None,
            samples=samples,
        )
    verdict = Verdict.BAD if against >= bad else Verdict.GOOD if in_favour >= good else Verdict.TOO_FEW
    return CheckResult(
        name=check.name,
        verdict=verdict,
        why=_why(check, verdict, shown, samples),
        canary=shown[0],
        stable=shown[1] if compared else None,
        samples=samples,
        against=_share(against, bad),
        in_favour=_share(in_favour, good),
    )


_Judged = tuple[int, bool, tuple[float | None, float | None], float, float]
"""Samples of the canary, whether the stable arm has some where it must, both values, the two log e-values."""


def _rates(check: Check, canary: Arm, stable: Arm) -> _Judged:
    assert check.limit is not None and check.must_catch is not None
    ours, theirs = canary.rate(check.metric), stable.rate(check.metric)
    values = (ours[0] / ours[1] if ours[1] else None, theirs[0] / theirs[1] if theirs[1] else None)
    limit, worst = check.limit.value, check.must_catch.value
    rare = statistics.rarity(worst)
    if check.limit.comparison is Comparison.ABSOLUTE:
        if not ours[1]:
            return 0, True, values, _NO_EVIDENCE, _NO_EVIDENCE
        hits = np.array([float(ours[0])])
        against = float(statistics.refute_at_most(hits, ours[1], limit, rare)[0])
        in_favour = float(statistics.refute_at_least(hits, ours[1], worst, rare)[0])
        return ours[1], True, values, against, in_favour
    against = statistics.refute_difference_at_most(ours, theirs, limit, rare)
    in_favour = statistics.refute_difference_at_least(ours, theirs, worst, rare)
    return ours[1], theirs[1] > 0, values, against, in_favour


def _times(check: Check, canary: Arm, stable: Arm) -> _Judged:
    assert check.limit is not None and check.must_catch is not None
    ours, theirs = canary.times(check.metric), stable.times(check.metric)
    values = (buckets.quantile_ms(ours, check.quantile), buckets.quantile_ms(theirs, check.quantile))
    samples, base = int(ours.sum()), int(theirs.sum())
    if check.limit.comparison is Comparison.ABSOLUTE:
        against, in_favour = _absolute(check, ours, samples) if samples else (_NO_EVIDENCE, _NO_EVIDENCE)
        return samples, True, values, against, in_favour
    if not samples or not base:
        return samples, base > 0, values, _NO_EVIDENCE, _NO_EVIDENCE
    of_stable, of_canary = buckets.from_bucket(theirs), buckets.from_bucket(ours)
    beyond, _ = _images(check.limit)
    _, begin = _images(check.must_catch)
    against = statistics.refute_quantile_at_most(of_stable[:-1], base, of_canary[beyond], samples, check.quantile)
    in_favour = statistics.refute_quantile_at_least(of_stable[1:], base, of_canary[begin], samples, check.quantile)
    return samples, True, values, against, in_favour


def _absolute(check: Check, histogram: Counts, samples: int) -> tuple[float, float]:
    """The quantile is above a bound when more than 1 - quantile of the samples are."""
    assert check.limit is not None and check.must_catch is not None
    counted = buckets.from_bucket(histogram)
    tail = 1.0 - check.quantile
    rare = statistics.rarity(tail)
    above = int(np.searchsorted(buckets.LOWER_MS, check.limit.value, side="left"))
    near = buckets.bucket(check.must_catch.value)
    against = statistics.refute_at_most(np.array([counted[above]]), samples, tail, rare)
    in_favour = statistics.refute_at_least(np.array([counted[near]]), samples, tail, rare)
    return float(against[0]), float(in_favour[0])


@cache
def _images(limit: Limit) -> tuple[Floats, Floats]:
    """For each bucket of the stable arm: the first bucket wholly above its image, and the one its image begins in."""

    def image(edges: Floats) -> Floats:
        return edges * limit.value if limit.comparison is Comparison.RATIO else edges + limit.value

    beyond = np.searchsorted(buckets.LOWER_MS, image(buckets.UPPER_MS), side="left")
    begin = np.maximum(np.searchsorted(buckets.LOWER_MS, image(buckets.LOWER_MS), side="right") - 1, 0)
    return beyond, begin  # type: ignore[return-value]


def _share(log_e: float, needed: float) -> float:
    return round(min(max(log_e / needed, 0.0), 1.0), 3) if math.isfinite(log_e) else 1.0


def _why(check: Check, verdict: Verdict, shown: tuple[float | None, float | None], samples: int) -> str:
    assert check.limit is not None
    measured = show(check.metric, shown[0])
    if check.limit.comparison is not Comparison.ABSOLUTE:
        measured += f" against {show(check.metric, shown[1])}"
    text = f"{measured}, allowed {show_limit(check.metric, check.limit)}, {samples} samples"
    return f"{text} are too few to tell" if verdict is Verdict.TOO_FEW else text


def show(metric: Metric, value: float | None) -> str:
    """A measured value for a human."""
    if value is None:
        return "unknown"
    if metric in RATES:
        return f"{value * 100:.2f} %"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.2g} ms"


def show_limit(metric: Metric, limit: Limit) -> str:
    """A limit as it is written in a manifest."""
    if limit.comparison is Comparison.RATIO:
        return f"+{(limit.value - 1) * 100:.4g}%"
    plus = "+" if limit.comparison is Comparison.DIFFERENCE else ""
    if metric in RATES:
        return f"{plus}{limit.value * 100:.4g}{'pp' if plus else '%'}"
    return f"{plus}{limit.value:.4g}ms"
