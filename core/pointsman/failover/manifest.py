"""FailoverPolicy manifests to what the machine and the detector understand."""

from __future__ import annotations

from pointsman.core.compile.fleets import expand
from pointsman.core.compile.options_failover import forbidden, leading_policies, tier_sites
from pointsman.core.config import Manifests
from pointsman.core.config.check_pools import pool_key
from pointsman.core.config.failover_kinds import FailoverPolicy, FailoverTriggers
from pointsman.core.config.meta import FAILOVER
from pointsman.core.config.pool_kinds import InferencePool
from pointsman.core.config.rollout_parts import share_of
from pointsman.core.config.syntax import duration_ms
from pointsman.core.model import TOTAL_WEIGHT, Plan
from pointsman.failover import detect_triggers as detect
from pointsman.failover.model import Trigger
from pointsman.failover.spec import (
    DECISIVE,
    Combine,
    Failback,
    FailoverSpec,
    Freeze,
    Mode,
    Role,
    Rto,
    Safety,
    Spill,
    Tier,
)


def policies_of(manifests: Manifests, plan: Plan) -> tuple[tuple[FailoverSpec, detect.Triggers], ...]:
    """All policies, sorted by name, each with the pools that it leads; and for each pool at several sites that none
    leads, the default, unless its annotation `pointsman.dev/failover` is `Off`. A site whose EndpointSlice is empty
    counts: what was decided of it must outlive its pods."""
    manifests = expand(manifests).manifests
    led = leading_policies(manifests)
    found = [
        (spec_of(policy, tuple(pool for pool, by in led.items() if by is policy), manifests, plan), triggers_of(policy))
        for policy in manifests.failover_policies
    ]
    sites: dict[str, set[str]] = {}
    for one in manifests.endpoint_slices:
        sites.setdefault(pool_key(one), set()).add(one.site)
    defaults = [
        default_spec(pool, plan) for pool in manifests.pools if pool.key not in led and len(sites.get(pool.key, ())) > 1
    ]
    found += [(spec, detect.Triggers()) for spec in defaults if spec is not None]
    return tuple(sorted(found, key=lambda pair: pair[0].name))


def leadable(manifests: Manifests, plan: Plan) -> dict[str, tuple[str, ...]]:
    """The pools that want failover, and the sites where they have endpoints."""
    unwanted = {
        pool.key for pool in expand(manifests).manifests.pools if pool.metadata.annotations.get(FAILOVER) == "Off"
    }
    pools = tuple(pool.name for pool in plan.pools if pool.name not in unwanted)
    return _places(pools, plan)


def closed_sites(manifests: Manifests) -> dict[str, str]:
    """Sites that their manifests take out of service, and the state that they say."""
    return {site.name: site.spec.state for site in manifests.sites if site.spec.state != "Active"}


def spec_of(policy: FailoverPolicy, pools: tuple[str, ...], manifests: Manifests, plan: Plan) -> FailoverSpec:
    """The policy for the pools that it leads, with its sites found in the Plan."""
    spec = policy.spec
    required, decisive = _judged_by(spec.triggers)
    return FailoverSpec(
        name=f"{policy.kind}/{policy.key}",
        pools=pools,
        tiers=tuple(
            Tier(
                sites=names,
                role=Role(tier.role),
                warm_up_s=_s(tier.warm_up),
                require_ready=tier.require_ready,
            )
            for tier, names in tier_sites(policy, manifests.sites)
        ),
        sites=_places(pools, plan),
        capacity=_capacity(plan),
        outside=tuple(site.name for site in manifests.sites if forbidden(policy, site)),
        mode=Mode(spec.mode),
        combine=Combine(spec.triggers.combine),
        required=required,
        decisive=decisive,
        failback=Failback(
            auto=spec.failback.mode == "Auto",
            hold_down_s=_s(spec.failback.hold_down),
            healthy_for_s=_s(spec.failback.healthy_for),
            ramp=tuple(share_of(text) for text in spec.failback.ramp),
            ramp_interval_s=_s(spec.failback.ramp_interval),
            max_flaps_per_hour=spec.failback.max_flaps_per_hour,
        ),
        safety=Safety(
            min_active_sites=spec.safety.min_active_sites,
            min_free=share_of(spec.safety.min_free_capacity) / TOTAL_WEIGHT,
            max_concurrent_drains=spec.safety.max_concurrent_drains,
            freeze=tuple(Freeze(cron=one.cron, for_s=_s(one.for_)) for one in spec.safety.freeze),
        ),
        spill=Spill(
            start=share_of(spec.spill.start_at) / TOTAL_WEIGHT,
            stop=share_of(spec.spill.stop_at) / TOTAL_WEIGHT,
            max_share=share_of(spec.spill.max_share),
        )
        if share_of(spec.spill.max_share)
        else None,
        rto=Rto(objective_s=_s(spec.rto.objective), alert_above_s=_s(spec.rto.alert_above)),
    )


def default_spec(pool: InferencePool, plan: Plan) -> FailoverSpec | None:
    """What holds without a policy: sites in the tiers that a fleet says, else all in one; everything automatic. None
    for a pool that wants none."""
    sites = _places((pool.key,), plan).get(pool.key, ())
    if pool.metadata.annotations.get(FAILOVER) == "Off":
        return None
    return FailoverSpec(
        name=f"{pool.kind}/{pool.key}",
        pools=(pool.key,),
        tiers=_tiers_of(pool.key, plan),
        sites={pool.key: sites},
        capacity=_capacity(plan),
        decisive=_judged_by(FailoverTriggers())[1],
        policy=False,
    )


def triggers_of(policy: FailoverPolicy) -> detect.Triggers:
    """What the detector looks for."""
    found = policy.spec.triggers
    off = set(found.off)
    return detect.Triggers(
        error_rate=None
        if "errorRate" in off
        else detect.ErrorRate(
            threshold=share_of(found.error_rate.threshold) / TOTAL_WEIGHT,
            window_s=_s(found.error_rate.window),
            min_requests=found.error_rate.min_requests,
        ),
        latency=None
        if "latency" in off
        else detect.Latency(
            delta_ms=float(duration_ms(found.latency.delta_above_baseline)),
            quantile=found.latency.quantile,
            window_s=_s(found.latency.window),
            normalised=found.latency.normalize_by_tokens,
            in_flight=found.latency.count_in_flight,
        ),
        stall=None if "stall" in off else detect.Stall(late_ms=float(duration_ms(found.stall.late_by))),
        saturation=None
        if "saturation" in off
        else detect.Saturation(
            queue=found.saturation.queue,
            kv=share_of(found.saturation.kv) / TOTAL_WEIGHT,
            for_s=_s(found.saturation.for_),
        ),
        probe=None if "probe" in off else detect.Probe(failing=share_of(found.probe.failing) / TOTAL_WEIGHT),
        metrics_absent=None
        if "metricsAbsent" in off
        else detect.MetricsAbsent(
            after_s=_s(found.metrics_absent.after), action=detect.AbsentAction(found.metrics_absent.action)
        ),
        combine=detect.Combine(found.combine),
    )


def _judged_by(triggers: FailoverTriggers) -> tuple[tuple[Trigger, ...], tuple[Trigger, ...]]:
    """The triggers that `combine: All` wants together, and all that a site is left for."""
    on = {trigger for trigger in DECISIVE if trigger.value not in triggers.off}
    if triggers.metrics_absent.action != "Failover":
        on.discard(Trigger.METRICS_ABSENT)
    required = on - {Trigger.METRICS_ABSENT}
    return _sorted(required) if triggers.combine == "All" else (), _sorted(on)


def _sorted(triggers: set[Trigger]) -> tuple[Trigger, ...]:
    return tuple(sorted(triggers, key=lambda trigger: trigger.value))


def _tiers_of(pool: str, plan: Plan) -> tuple[Tier, ...]:
    """The tiers as the Plan has them."""
    found: dict[int, list[str]] = {}
    for group in (group for one in plan.pools if one.name == pool for group in one.groups):
        found.setdefault(group.tier, []).append(group.site)
    return tuple(Tier(sites=tuple(sorted(names))) for _, names in sorted(found.items()))


def _places(pools: tuple[str, ...], plan: Plan) -> dict[str, tuple[str, ...]]:
    return {pool.name: tuple(sorted(group.site for group in pool.groups)) for pool in plan.pools if pool.name in pools}


def _capacity(plan: Plan) -> dict[str, int]:
    return {site.name: site.max_concurrent for site in plan.sites if site.max_concurrent}


def _s(text: str) -> float:
    return duration_ms(text) / 1000
