"""Models that requests are renamed to: what holds for a pool, and the arms that several targets make (ADR 0009).

A rule of an HTTPRoute that names a pool with several targets gets one arm for each instead, a cluster "POOL~TARGET"
with the same endpoints. From there on they are arms like others; only the picker, asked for such a cluster, renames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from pointsman.core.arm_names import target_arm
from pointsman.core.compile.weights import normalise
from pointsman.core.config.check_rewrites import pinned
from pointsman.core.config.rewrite_kinds import ANY_MODEL, InferenceModelRewrite, RewriteRule, precedence
from pointsman.core.config.route_kinds import BackendRef, RouteRule
from pointsman.core.model import TOTAL_WEIGHT, FailureMode, ModelRewrite, Note, Pool, WeightedPool

Targets = tuple[tuple[str, int], ...]
"""(model, share in 1/10,000), in the order of their arms."""


def rewrites_of(manifests: Iterable[InferenceModelRewrite]) -> Mapping[str, tuple[ModelRewrite, ...]]:
    """What requests of each pool ("namespace/name") are renamed to.

    The specification's order: an exact match before none at all, then the older manifest, then the first rule.
    """
    found: dict[str, dict[str, Targets]] = {}
    for manifest in sorted(manifests, key=precedence):
        known = found.setdefault(manifest.pool, {})
        for rule in manifest.spec.rules:
            for model in rule.models:
                known.setdefault(model, _targets(rule))
    return {
        pool: tuple(ModelRewrite(model=model, targets=targets) for model, targets in sorted(known.items()))
        for pool, known in found.items()
    }


def arms_of(pool: Pool) -> Targets:
    """The targets that are arms of the rules that name the pool; none where every model has one name at most."""
    return next((one.targets for one in pool.rewrites if len(one.targets) > 1), ())


def as_arm(pool: Pool, target: str) -> Pool:
    """The pool as the arm of one of its targets."""
    ours: Targets = ((target, TOTAL_WEIGHT),)
    rewrites = tuple(replace(one, targets=ours) if len(one.targets) > 1 else one for one in pool.rewrites)
    return replace(pool, name=target_arm(pool.name, target), rewrites=rewrites)


def spread(rule: RouteRule, arms: Sequence[WeightedPool], pools: Mapping[str, Pool]) -> tuple[WeightedPool, ...]:
    """The arms of a rule, those of `pools` with several targets as one for each target.

    `arms` are the rule's backendRefs in their order. One whose filters choose a target is the arm of that.
    """
    parts = [
        (arm, ref.weight, _of_arm(rule, ref, arms_of(pools[arm.pool]) if arm.pool in pools else ()))
        for arm, ref in zip(arms, rule.backend_refs, strict=True)
    ]
    if not any(targets for _, _, targets in parts):
        return tuple(arms)
    found = [
        (replace(arm, pool=target_arm(arm.pool, target)), weight * share)
        for arm, weight, targets in parts
        for target, share in targets or ((ANY_MODEL, TOTAL_WEIGHT),)
    ]
    shares = normalise([weight for _, weight in found])
    return tuple(replace(arm, weight=share) for (arm, _), share in zip(found, shares, strict=True))


def also_unavailable(unavailable: Mapping[str, str], pools: Mapping[str, Pool]) -> dict[str, str]:
    """The reasons why pools cannot serve, and those of the arms that are made of them."""
    arms = {
        target_arm(name, target): unavailable[name]
        for name, pool in pools.items()
        if name in unavailable
        for target, _ in arms_of(pool)
    }
    return {**unavailable, **arms}


def rewrite_notes(rule_id: str, arms: Iterable[WeightedPool], pools: Mapping[str, Pool]) -> Iterator[Note]:
    """What an operator should know of a rule that names a pool whose requests are renamed."""
    for name in dict.fromkeys(arm.pool for arm in arms):
        pool = pools.get(name)
        if pool is None:
            continue
        if rule_id.startswith("GRPCRoute/"):
            message = f"models of {name} are not renamed in gRPC calls, whose bodies are not read"
            yield Note(rule=rule_id, reason="ModelsNotRenamed", message=message)
        elif pool.failure_mode is FailureMode.FAIL_OPEN:
            message = (
                f"{name} fails open: while the picker is away, requests reach it with the models that clients wrote; "
                f"with endpointPickerRef.failureMode: FailClose they get 503 then"
            )
            yield Note(rule=rule_id, reason="ModelsNotRenamedWithoutPicker", message=message)


def _targets(rule: RewriteRule) -> Targets:
    names = [target.model_rewrite for target in rule.targets]
    return tuple(zip(names, normalise([target.weight or 1 for target in rule.targets]), strict=True))


def _of_arm(rule: RouteRule, ref: BackendRef, targets: Targets) -> Targets:
    chosen = pinned(ref.filters) or pinned(rule.filters)
    if not targets or chosen is None:
        return targets
    return ((chosen[1], TOTAL_WEIGHT),)
