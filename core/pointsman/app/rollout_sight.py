"""What a rollout sees at a tick: its checks' verdicts, its requests, room for the next step and for an outage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from pointsman.core.model import TOTAL_WEIGHT, Plan
from pointsman.rollout.analysis import CheckResult, analyse, due_for_restart
from pointsman.rollout.capacity import PoolLoad, ceiling, room, share_with
from pointsman.rollout.evidence import Evidence
from pointsman.rollout.spec import Source, Strategy
from pointsman.rollout.state import State, Tick

Loads = Callable[[str], PoolLoad]
"""What a pool carries now, by its name."""


def sight(state: State, evidence: Evidence, outside: Mapping[str, CheckResult], loads: Loads) -> Tick:
    """The tick. `outside` are the answers of webhooks and queries; old evidence that was judged is dropped."""
    spec = state.spec
    results: list[CheckResult] = []
    if state.active and state.weight and spec.strategy is not Strategy.SHADOW:
        judged = {r.name: r for r in analyse(spec, evidence, stable_serves=state.stable_serves)}
        if due_for_restart(spec, evidence, tuple(judged.values()), state.observed_s):
            evidence.restart(state.observed_s, new_step=False)
    else:
        judged = {}
    for check in spec.checks:
        found = judged.get(check.name) if check.source is Source.REQUESTS else outside.get(check.name)
        if found is not None:
            results.append(found)
    return Tick(results=tuple(results), requests=evidence.step_requests, room=_room(state, loads))


def _room(state: State, loads: Loads) -> CheckResult | None:
    spec = state.spec
    if spec.capacity is None or state.last_step:
        return None
    stable, canary = loads(spec.stable), loads(spec.canary)
    following = spec.steps[state.step + 1].weight
    return room(spec.capacity, stable, canary, share_with(stable, canary, following) if spec.sites else following)


def counts(state: State, site: str) -> bool:
    """Whether the requests of a gateway at `site` are evidence: with sites those of the site that is in turn."""
    sites = state.spec.sites
    return not sites or (site if site in sites else sites[-1]) == state.current.site


CEILING_STEP: Final = TOTAL_WEIGHT // 20
"""Ceilings are told in steps of 5 %: every other value would be another Plan."""

Ceilings = dict[tuple[str, str], int]
"""(rule, pool) → the most that it gets of what other arms hand over, in 1/10,000."""


def ceilings(state: State, plan: Plan, loads: Loads, before: Ceilings) -> Ceilings:
    """What the canary may inherit while the stable pool is down: what the capacity gate says that it can carry.

    Without a gate, or where all fits, there is no limit. `before` are the ceilings in force. In an outage they rise by
    one step a tick: what the canary carries follows its share by as long as requests take, so that just after the
    outage began it looks as if there were hardly any, and all of them would come at once.
    """
    spec = state.spec
    if spec.capacity is None or not state.active or spec.strategy is Strategy.SHADOW:
        return {}
    stable, canary = loads(spec.stable), loads(spec.canary)
    found: Ceilings = {}
    for rule in spec.rules:
        split = plan.split(rule)
        if split is None:
            continue
        down = any(arm.unavailable for arm in split.arms if arm.pool == spec.stable)
        gets = sum(arm.effective for arm in split.arms if arm.pool == spec.canary) / TOTAL_WEIGHT
        share = ceiling(spec.capacity, stable, canary, canary_alone=gets if down and gets else None)
        if down:
            share = min(share, before.get((rule, spec.canary), TOTAL_WEIGHT) + CEILING_STEP)
        if share < TOTAL_WEIGHT:
            found[rule, spec.canary] = share // CEILING_STEP * CEILING_STEP
    return found
