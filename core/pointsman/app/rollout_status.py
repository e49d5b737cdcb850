"""Rollouts for humans, scripts and Prometheus."""

from __future__ import annotations

import math
import time
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from pointsman.core.model import TOTAL_WEIGHT, Plan
from pointsman.rollout.analysis import CheckResult, Verdict, show_limit
from pointsman.rollout.evidence import Evidence, counted
from pointsman.rollout.spec import Check, Comparison, Limit, Source
from pointsman.rollout.state import Phase, State

Json = dict[str, Any]

CONDITIONS: Final = {
    "Progressing": frozenset({Phase.PROGRESSING, Phase.PROMOTING}),
    "Paused": frozenset({Phase.PAUSED, Phase.HOLDING}),
    "Aborted": frozenset({Phase.ABORTING, Phase.ABORTED}),
    "Completed": frozenset({Phase.COMPLETED}),
}
"""Status conditions of a RolloutPolicy, and the phases in which they are true."""


def rollout_json(state: State, evidence: Evidence, plan: Plan, *, problem: str = "") -> Json:
    """A rollout as the API tells it. Weights are shares from 0 to 1; `checks` say what they measured and need."""
    spec = state.spec
    said = {result.name: result for result in state.results}
    return {
        "name": spec.name,
        "strategy": spec.strategy.value,
        "mode": spec.mode.value,
        "phase": state.phase.value,
        "why": problem or state.why,
        "step": state.step + 1,
        "steps": [
            {
                "weight": step.weight / TOTAL_WEIGHT,
                "pause_s": step.pause_s,
                "manual": step.manual,
                "min_requests": step.min_requests,
                "site": step.site,
            }
            for step in spec.steps
        ],
        "weight": state.weight / TOTAL_WEIGHT,
        "site": state.current.site,
        "sites": [{"site": site, "weight": state.weight_at(site) / TOTAL_WEIGHT} for site in spec.sites],
        "programmed": state.programmed,
        "observed_s": round(state.observed_s, 3),
        "requests": state.requests,
        "attempt": state.attempt,
        "revision": spec.revision,
        "stable": spec.stable,
        "canary": spec.canary,
        "rules": [_rule(rule, plan) for rule in spec.rules],
        "checks": [_check(check, said.get(check.name), check.name in state.passed) for check in spec.checks],
        "outcomes": {"canary": counted(evidence.canary), "stable": counted(evidence.stable)},
        "waiting": {"canary": evidence.canary.waiting, "stable": evidence.stable.waiting},
        "conditions": [
            {"type": name, "status": "True" if state.phase in phases else "False"}
            for name, phases in CONDITIONS.items()
        ],
        "started_at": _timestamp(state.started_s),
        "changed_at": _timestamp(state.changed_s),
    }


def _rule(rule: str, plan: Plan) -> Json:
    split = plan.split(rule)
    if split is None:
        return {"rule": rule, "arms": []}
    return {
        "rule": rule,
        "arms": [
            {
                "pool": arm.pool,
                "declared": arm.declared / TOTAL_WEIGHT,
                "effective": arm.effective / TOTAL_WEIGHT,
                "unavailable": arm.unavailable,
            }
            for arm in split.arms
        ],
    }


def _check(check: Check, result: CheckResult | None, passed: bool) -> Json:
    found = result or CheckResult(name=check.name, verdict=Verdict.NO_DATA, why="not asked yet")
    return {
        "name": check.name,
        "kind": check.source.value,
        "metric": _metric(check),
        "limit": _limit(check, check.limit),
        "verdict": found.verdict.value,
        "passed": passed,
        "why": found.why,
        "canary": found.canary,
        "stable": found.stable,
        "samples": found.samples,
        "against": found.against,
        "in_favour": found.in_favour,
    }


def _metric(check: Check) -> str:
    if check.source is not Source.REQUESTS:
        return ""
    return check.metric.value + (f".p{check.quantile * 100:g}" if check.quantile else "")


def _limit(check: Check, limit: Limit | None) -> str:
    if limit is None:
        return ""
    if check.source is Source.PROMETHEUS and limit.comparison is Comparison.ABSOLUTE:
        return f"{'>=' if check.at_least else '<='} {limit.value:g}"
    return show_limit(check.metric, limit)


def _timestamp(wall_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_s))


class RolloutMetrics:
    """What Prometheus sees."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._weight = Gauge(
            "pointsman_rollout_weight_ratio",
            "Share of the canary (with Shadow: of mirrored requests) that is wanted.",
            ["policy"],
            registry=registry,
        )
        self._phase = Gauge(
            "pointsman_rollout_phase", "1 for the present phase.", ["policy", "phase"], registry=registry
        )
        self._step = Gauge("pointsman_rollout_step", "Number of the step, from 1.", ["policy"], registry=registry)
        self._check = Gauge(
            "pointsman_rollout_check",
            "Verdict of a check: 1 good, 0 too early or no data, -1 bad.",
            ["policy", "check"],
            registry=registry,
        )
        self._events = Counter(
            "pointsman_rollout_events", "What happened to rollouts.", ["policy", "event"], registry=registry
        )

    def show(self, state: State) -> None:
        """Take over a state."""
        name = state.spec.name
        at_sites = {state.weight_at(site) for site in state.spec.sites}
        # While sites differ no single share is wanted that all gateways together could be held against.
        self._weight.labels(name).set(math.nan if len(at_sites) > 1 else state.weight / TOTAL_WEIGHT)
        self._step.labels(name).set(state.step + 1)
        for phase in Phase:
            self._phase.labels(name, phase.value).set(phase is state.phase)
        values = {Verdict.GOOD: 1, Verdict.BAD: -1}
        for result in state.results:
            self._check.labels(name, result.name).set(values.get(result.verdict, 0))

    def count(self, name: str, event: str) -> None:
        """Count an event; steps are one kind."""
        self._events.labels(name, "step" if event.startswith("step ") else event).inc()
