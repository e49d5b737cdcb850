"""What FailoverPolicies say of Envoy itself: probes, ejection and retries, laid on pools and rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pointsman.core.compile.options_failover import leading_policies, rule_policies
from pointsman.core.compile.rules import CompiledRoute
from pointsman.core.config.failover_kinds import FailoverPolicy, OutlierSettings, ProbeSettings, RetrySettings
from pointsman.core.config.manifests import Manifests
from pointsman.core.config.rollout_parts import share_of
from pointsman.core.config.syntax import duration_ms
from pointsman.core.model import HealthPolicy, RetryPolicy

Retries = Mapping[tuple[str, int], RetryPolicy]
"""Retry policies of rules, by ("HTTPRoute/namespace/name", number of the rule in its route)."""


def health_policy(policy: FailoverPolicy | None) -> HealthPolicy | None:
    """How gateways watch the endpoints of a pool; None where its policy says nothing of it."""
    if policy is None or (policy.spec.probe, policy.spec.outlier, policy.spec.retry) == (None, None, None):
        return None
    probe = policy.spec.probe or ProbeSettings()
    outlier = policy.spec.outlier or OutlierSettings()
    retry = policy.spec.retry or RetrySettings()
    return HealthPolicy(
        interval_ms=duration_ms(probe.interval),
        timeout_ms=duration_ms(probe.timeout),
        edge_interval_ms=duration_ms(probe.edge_interval),
        unhealthy_threshold=probe.unhealthy_threshold,
        healthy_threshold=probe.healthy_threshold,
        consecutive_5xx=outlier.consecutive_5xx,
        consecutive_gateway_errors=outlier.consecutive_gateway_errors,
        consecutive_connect_errors=outlier.consecutive_connect_errors,
        failure_percent=share_of(outlier.failure_rate) // 100,
        ejection_interval_ms=duration_ms(outlier.interval),
        base_ejection_ms=duration_ms(outlier.base_ejection),
        max_ejection_ms=duration_ms(outlier.max_ejection),
        retry_budget_percent=share_of(retry.max_ratio) / 100,
        retry_min_concurrency=retry.min_concurrent,
    )


def probe_path(policy: FailoverPolicy | None) -> str:
    """The path of the probe that the policy names, "" if it names none."""
    return policy.spec.probe.path or "" if policy is not None and policy.spec.probe is not None else ""


def retry_policies(manifests: Manifests) -> Retries:
    """The rules with retries of their own: by a policy on the rule, its route or its Gateway; else by the one policy
    that leads all pools of the rule."""
    if not manifests.failover_policies:
        return {}
    direct = rule_policies(manifests)
    led = leading_policies(manifests)
    found: dict[tuple[str, int], RetryPolicy] = {}
    for route in manifests.routes():
        for number, rule in enumerate(route.spec.rules):
            place = (f"{route.kind}/{route.key}", number)
            leaders = [led.get(ref.pool_of(route.namespace)) for ref in rule.backend_refs]
            shared = leaders[0] if leaders and all(one is leaders[0] for one in leaders) else None
            policy = direct.get(place) or shared
            if policy is not None and policy.spec.retry is not None:
                found[place] = _retry(policy.spec.retry)
    return found


def with_retries(compiled: CompiledRoute, retries: Retries) -> CompiledRoute:
    """The route with the retry policies laid on its rules."""
    if not retries:
        return compiled
    ranked = tuple(
        replace(one, rule=replace(one.rule, retry=terms))
        if (terms := retries.get((one.rule.route, one.origin.rule))) is not None
        else one
        for one in compiled.ranked
    )
    return replace(compiled, ranked=ranked)


def _retry(settings: RetrySettings) -> RetryPolicy:
    return RetryPolicy(
        num_retries=settings.retries,
        on_reset=settings.on_reset,
        first_byte_timeout_ms=duration_ms(settings.first_byte_timeout) if settings.first_byte_timeout else 0,
        stall_timeout_ms=duration_ms(settings.stall_timeout) if settings.stall_timeout else 0,
    )
