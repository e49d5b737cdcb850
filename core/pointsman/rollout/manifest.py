"""RolloutPolicy manifests to what the machine understands."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pointsman.core.config.policy_kinds import (
    MANUAL,
    BlueGreenPlan,
    RolloutCheck,
    RolloutPolicy,
    RolloutStep,
    limit_parts,
)
from pointsman.core.config.rollout_parts import SiteOrder, share_of
from pointsman.core.config.syntax import duration_ms
from pointsman.core.model import TOTAL_WEIGHT, Plan
from pointsman.rollout.spec import (
    RATES,
    CapacityGate,
    Check,
    Comparison,
    Limit,
    Metric,
    Mode,
    OnNoData,
    RolloutSpec,
    Source,
    Step,
    Strategy,
)

RATE_GAP: Final = 0.03
"""How much worse than its limit a rate is when it must be caught: with `+1pp`, 4 points more errors than stable. A step
then takes about 300 requests of the canary."""
TIME_GAP: Final = 1.25
"""The same for times and for ratios of times: with `+20%`, half as slow again. About 500 requests."""
DELAY_GAP: Final = 2.0
"""The same for delays over stable: with `+200ms`, 400 ms more."""


def spec_of(policy: RolloutPolicy, plan: Plan) -> RolloutSpec:
    """The policy with its rules found in the Plan."""
    spec = policy.spec
    stable, canary = policy.pool_key(spec.stable), policy.pool_key(spec.canary)
    if spec.strategy == "BlueGreen":
        steps = _blue_green(spec.blue_green or BlueGreenPlan())
    else:
        steps = tuple(_step(one) for one in spec.steps)
    capacity = spec.gates.capacity
    return RolloutSpec(
        name=policy.key,
        rules=_rules(policy, plan, {stable, canary}),
        stable=stable,
        canary=canary,
        strategy=Strategy(spec.strategy),
        steps=_at_sites(steps, spec.sites),
        checks=tuple(_check(one) for one in spec.analysis.checks),
        interval_s=duration_ms(spec.analysis.interval) / 1000,
        window_s=duration_ms(spec.analysis.window) / 1000,
        on_no_data=OnNoData(spec.analysis.on_no_data),
        capacity=None
        if capacity is None
        else CapacityGate(
            min_free=share_of(capacity.canary_min_free) / TOTAL_WEIGHT, slots_per_endpoint=capacity.slots_per_endpoint
        ),
        mode=Mode(spec.mode),
        paused=spec.paused,
        revision=spec.revision,
        sites=spec.sites.order if spec.sites else (),
        abort_weight=share_of(spec.on_abort.weight),
        abort_within_s=duration_ms(spec.on_abort.within) / 1000,
        false_alarm_odds=share_of(spec.analysis.false_alarms) / TOTAL_WEIGHT,
        missed_odds=share_of(spec.analysis.missed) / TOTAL_WEIGHT,
    )


def _rules(policy: RolloutPolicy, plan: Plan, pools: set[str]) -> tuple[str, ...]:
    wanted = {(policy.route_name(ref), ref.section_name) for ref in policy.spec.target_refs}
    found = set()
    for split in plan.splits:
        route, _, rule = split.rule.rpartition("/")
        if ((route, rule) in wanted or (route, "") in wanted) and pools <= {arm.pool for arm in split.arms}:
            found.add(split.rule)
    return tuple(sorted(found))


def _step(manifest: RolloutStep) -> Step:
    manual = manifest.pause == MANUAL
    return Step(
        weight=share_of(manifest.weight),
        pause_s=0.0 if manual else duration_ms(manifest.pause) / 1000,
        manual=manual,
        min_requests=manifest.min_requests,
    )


def _at_sites(steps: tuple[Step, ...], sites: SiteOrder | None) -> tuple[Step, ...]:
    """All steps for each site, one after the other; before the next site begins the canary bakes at the last step."""
    if sites is None:
        return steps
    bake_s = duration_ms(sites.bake) / 1000
    found: list[Step] = []
    for site in sites.order:
        ours = [replace(step, site=site) for step in steps]
        if site != sites.order[-1]:
            ours[-1] = replace(ours[-1], pause_s=max(ours[-1].pause_s, bake_s))
        found += ours
    return tuple(found)


def _blue_green(plan: BlueGreenPlan) -> tuple[Step, ...]:
    """Blue-green is a plan of two steps: everything on the old pool, then everything on the new one."""
    return (
        _step(RolloutStep(weight="0%", pause=plan.preview)),
        _step(RolloutStep(weight="100%", pause=plan.keep_warm)),
    )


def _check(manifest: RolloutCheck) -> Check:
    if manifest.webhook is not None:
        return Check(
            name=manifest.name,
            source=Source.WEBHOOK,
            url=manifest.webhook.url,
            timeout_s=duration_ms(manifest.webhook.timeout) / 1000,
            failure_limit=manifest.failure_limit,
        )
    if manifest.prometheus is not None:
        asked = manifest.prometheus
        bound = asked.max if asked.max is not None else asked.min
        return Check(
            name=manifest.name,
            source=Source.PROMETHEUS,
            url=asked.url,
            query=asked.query,
            limit=Limit(comparison=Comparison.ABSOLUTE, value=bound or 0.0),
            at_least=asked.max is None,
            timeout_s=duration_ms(asked.timeout) / 1000,
            failure_limit=manifest.failure_limit,
        )
    assert manifest.metric is not None
    name, _, percentile = manifest.metric.partition(".p")
    metric = Metric(name)
    allowed = _limit(manifest.max)
    return Check(
        name=manifest.name,
        metric=metric,
        quantile=float(percentile) / 100 if percentile else 0.0,
        limit=allowed,
        must_catch=_limit(manifest.must_catch) if manifest.must_catch else _worse(metric, allowed),
        failure_limit=manifest.failure_limit,
    )


def _limit(text: str) -> Limit:
    relative, number, unit = limit_parts(text)
    if unit == "ms":
        return Limit(comparison=Comparison.DIFFERENCE if relative else Comparison.ABSOLUTE, value=number)
    if unit == "pp":
        return Limit(comparison=Comparison.DIFFERENCE, value=number / 100)
    if relative:
        return Limit(comparison=Comparison.RATIO, value=1 + number / 100)
    return Limit(comparison=Comparison.ABSOLUTE, value=number / 100)


def _worse(metric: Metric, allowed: Limit) -> Limit:
    """What must be caught where the manifest does not say."""
    if metric in RATES:
        value = min(allowed.value + RATE_GAP, (1.0 + allowed.value) / 2)
    elif allowed.comparison is Comparison.DIFFERENCE:
        value = max(allowed.value * DELAY_GAP, allowed.value + 10.0)
    else:
        value = allowed.value * TIME_GAP
    return Limit(comparison=allowed.comparison, value=value)
