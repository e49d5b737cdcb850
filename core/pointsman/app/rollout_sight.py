"""What a rollout sees at a tick: the verdicts of its checks, its requests, and room for the next step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pointsman.rollout.analysis import CheckResult, analyse, due_for_restart
from pointsman.rollout.capacity import PoolLoad, room, share_with
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
