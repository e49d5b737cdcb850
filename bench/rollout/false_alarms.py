"""How often is a good canary taken back, how often does a bad one pass? Whole rollouts in virtual time.

    python bench/rollout/false_alarms.py [--rollouts 1000] [--requests-per-s 50] [--only TEXT] [--limit-s 300]

Every rollout is judged every 5 s from its first step to its end, which is hundreds of looks; the promise is for the
rollout, not for one look. Seeds are 0, 1, 2, …, so the table can be made again. `--limit-s` cuts a row short: it has
as many rollouts as there was time for.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass

from pointsman.core.model import TOTAL_WEIGHT
from pointsman.rollout.rehearsal import ArmModel, Rehearsed, World, rehearse
from pointsman.rollout.spec import Check, Comparison, Limit, Metric, RolloutSpec, Step
from pointsman.rollout.state import Phase

ERRORS = Check(
    name="errors",
    limit=Limit(comparison=Comparison.DIFFERENCE, value=0.01),
    must_catch=Limit(comparison=Comparison.DIFFERENCE, value=0.04),
)
TTFT = Check(
    name="ttft",
    metric=Metric.TTFT,
    quantile=0.95,
    limit=Limit(comparison=Comparison.RATIO, value=1.2),
    must_catch=Limit(comparison=Comparison.RATIO, value=1.5),
)
STEPS = tuple(
    Step(weight=weight, pause_s=pause_s) for weight, pause_s in ((100, 300), (500, 300), (2000, 120), (5000, 120))
)
SPEC = RolloutSpec(
    name="bench/chat",
    rules=("HTTPRoute/bench/chat/main",),
    stable="bench/v1",
    canary="bench/v2",
    steps=(*STEPS, Step(weight=TOTAL_WEIGHT)),
    checks=(ERRORS, TTFT),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A canary, and what is expected of the rollout: to arrive, to be taken back, or either."""

    name: str
    canary: ArmModel
    expected: Phase | None
    worse_from: int = 0


def cases() -> list[Case]:
    """Good ones up to exactly their limits, bad ones from what must be caught on, and what lies between."""
    base = ArmModel()
    good, bad = Phase.COMPLETED, Phase.ABORTED
    half = TOTAL_WEIGHT // 2
    return [
        Case(name="the same as stable", canary=base, expected=good),
        Case(name="at both limits: +1pp errors, +20 % TTFT", canary=_arm(0.015, 1.2), expected=good),
        Case(name="better: -20 % TTFT, no errors", canary=_arm(0.0, 0.8), expected=good),
        Case(name="between: 3 % errors", canary=_arm(0.03, 1.0), expected=None),
        Case(name="between: +35 % TTFT", canary=_arm(0.005, 1.35), expected=None),
        Case(name="5 % errors", canary=_arm(0.05, 1.0), expected=bad),
        Case(name="10 % errors", canary=_arm(0.1, 1.0), expected=bad),
        Case(name="100 % errors", canary=_arm(1.0, 1.0), expected=bad),
        Case(name="+50 % TTFT", canary=_arm(0.005, 1.5), expected=bad),
        Case(name="+100 % TTFT", canary=_arm(0.005, 2.0), expected=bad),
        Case(name="+800 ms TTFT", canary=_arm(0.005, 1100 / 300), expected=bad),
        Case(name="5 % errors from 50 % of the traffic on", canary=_arm(0.05, 1.0), expected=bad, worse_from=half),
        Case(name="+50 % TTFT from 50 % on", canary=_arm(0.005, 1.5), expected=bad, worse_from=half),
    ]


def _arm(errors: float, slower: float) -> ArmModel:
    return ArmModel(error_rate=errors, ttft_ms=ArmModel().ttft_ms * slower)


def run_case(case: Case, rollouts: int, requests_per_s: float, limit_s: float) -> list[Rehearsed]:
    """All rollouts of a case, or those that there is time for."""
    if case.worse_from:
        world = World(requests_per_s=requests_per_s, worse_from=case.worse_from, worse=case.canary)
    else:
        world = World(requests_per_s=requests_per_s, canary=case.canary)
    until_s = time.monotonic() + limit_s
    found = []
    for seed in range(rollouts):
        found.append(rehearse(SPEC, world, seed))
        if time.monotonic() >= until_s:
            break
    return found


def row(case: Case, found: list[Rehearsed]) -> str:
    """One line of the table."""
    taken_back = [one for one in found if one.phase in {Phase.ABORTING, Phase.ABORTED}]
    arrived = sum(one.phase is Phase.COMPLETED for one in found)
    wrong = {Phase.COMPLETED: len(taken_back), Phase.ABORTED: len(found) - len(taken_back)}
    share = f"{100 * wrong[case.expected] / len(found):.1f} %" if case.expected else "-"
    ended = taken_back if case.expected is Phase.ABORTED else found
    seconds = statistics.median(one.seconds for one in ended) if ended else float("nan")
    to_canary = statistics.median(one.canary_requests for one in ended) if ended else float("nan")
    hit = 100 * statistics.median(one.canary_requests / one.requests for one in ended) if ended else float("nan")
    counts = f"{len(found)} | {arrived} | {len(taken_back)}"
    return f"| {case.name} | {counts} | {share} | {seconds:.0f} | {to_canary:.0f} | {hit:.1f} % |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--requests-per-s", type=float, default=50.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--limit-s", type=float, default=math.inf, help="for each row (default: none)")
    asked = parser.parse_args()
    print(f"{asked.rollouts} rollouts each, {asked.requests_per_s:g} requests/s, checks every {SPEC.interval_s:g} s")
    print("| canary | rollouts | arrived | taken back | wrong | median s | canary requests | of all requests |")
    print("|---|---|---|---|---|---|---|---|")
    for case in cases():
        if asked.only in case.name:
            began_s = time.monotonic()
            print(row(case, run_case(case, asked.rollouts, asked.requests_per_s, asked.limit_s)), flush=True)
            if asked.only:
                print(f"{time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main()
