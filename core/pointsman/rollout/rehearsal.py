"""A rollout in virtual time against arms that are only described: how long would it take, and how often would it err?

Requests come as a Poisson process, errors are independent, times to the first byte are log-normal. Gateways acknowledge
at once. Reality is less tidy; what the rehearsal shows is what the statistics promise when their assumptions hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pointsman.core.model import TOTAL_WEIGHT
from pointsman.rollout import buckets, machine
from pointsman.rollout.analysis import analyse, due_for_restart
from pointsman.rollout.evidence import Arm, Evidence, Outcome
from pointsman.rollout.spec import Metric, RolloutSpec
from pointsman.rollout.state import Effect, NewEvidence, Phase, Programmed, SetWeight, State, Tick

E2E_FACTOR: Final = 4.0
"""A whole answer takes that many times the first byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmModel:
    """How a pool behaves: share of failed requests, median of TTFT, and its spread (sigma of the logarithm)."""

    error_rate: float = 0.005
    ttft_ms: float = 300.0
    sigma: float = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """`requests_per_s` come to both arms. From `worse_from` (a weight) on the canary is `worse`, if that is given."""

    requests_per_s: float
    stable: ArmModel = ArmModel()
    canary: ArmModel = ArmModel()
    worse_from: int = 0
    worse: ArmModel | None = None

    def canary_at(self, weight: int) -> ArmModel:
        """The canary under that weight."""
        return self.worse if self.worse is not None and weight >= self.worse_from else self.canary


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """What became of it. `seconds` of virtual time, `weight` the largest that the canary had (1/10,000).

    `canary_requests` of `requests` went to the canary, `failed` of those failed.
    """

    phase: Phase
    step: int
    why: str
    seconds: float
    weight: int
    requests: int
    canary_requests: int
    failed: int


def rehearse(spec: RolloutSpec, world: World, seed: int, *, limit_s: float = 86_400.0) -> Rehearsed:
    """Run a rollout to its end, or for `limit_s` of virtual time. Manual steps are promoted once they wait."""
    return _Rehearsal(spec, world, seed).run(limit_s)


class _Rehearsal:
    def __init__(self, spec: RolloutSpec, world: World, seed: int) -> None:
        self._spec = spec
        self._world = world
        self._random = np.random.default_rng(seed)
        self._evidence = Evidence()
        self._requests = self._canary_requests = self._failed = self._largest = 0
        self._now_s = 0.0
        judged = {check.metric for check in spec.request_checks}
        self._measured = [(m, f) for m, f in ((Metric.TTFT, 1.0), (Metric.E2E, E2E_FACTOR)) if m in judged]
        state, effects = machine.begin(spec, 0.0)
        self._state = state
        self._act(effects)

    def run(self, limit_s: float) -> Rehearsed:
        while self._state.active and self._now_s < limit_s:
            self._traffic(self._spec.interval_s)
            self._now_s += self._spec.interval_s
            self._step(self._tick())
        return Rehearsed(
            phase=self._state.phase,
            step=self._state.step,
            why=self._state.why,
            seconds=self._now_s,
            weight=self._largest,
            requests=self._requests,
            canary_requests=self._canary_requests,
            failed=self._failed,
        )

    def _step(self, event: Tick | Programmed) -> None:
        self._state, effects = machine.step(self._state, event, self._now_s)
        self._act(effects)

    def _act(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, NewEvidence):
                self._evidence.restart(0.0, new_step=True)
            elif isinstance(effect, SetWeight):
                self._largest = max(self._largest, effect.weight)
                self._step(Programmed(weight=effect.weight))

    def _tick(self) -> Tick:
        state, evidence = self._state, self._evidence
        results = analyse(self._spec, evidence, stable_serves=state.stable_serves) if state.weight else ()
        if due_for_restart(self._spec, evidence, results, state.observed_s):
            evidence.restart(state.observed_s, new_step=False)
        return Tick(results=results, requests=evidence.step_requests)

    def _traffic(self, seconds: float) -> None:
        """Requests of an interval."""
        state: State = self._state
        arrived = self._world.requests_per_s * seconds
        share = state.weight / TOTAL_WEIGHT
        canary = int(self._random.poisson(arrived * share))
        stable = int(self._random.poisson(arrived * (1 - share)))
        self._failed += self._served(self._evidence.canary, self._world.canary_at(state.weight), canary)
        self._served(self._evidence.stable, self._world.stable, stable)
        self._evidence.step_requests += canary
        self._canary_requests += canary
        self._requests += canary + stable

    def _served(self, arm: Arm, model: ArmModel, requests: int) -> int:
        failed = int(self._random.binomial(requests, model.error_rate))
        arm.outcomes[Outcome.SERVER_ERROR] += failed
        arm.outcomes[Outcome.OK] += requests - failed
        times = model.ttft_ms * np.exp(model.sigma * self._random.standard_normal(requests - failed))
        for metric, factor in self._measured:
            places = np.searchsorted(buckets.LOWER_MS, times * factor, side="right") - 1
            arm.histograms[metric] += np.bincount(places, minlength=buckets.SIZE)
        return failed
