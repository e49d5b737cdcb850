"""Between a rollout and the rest: access log entries to evidence, a canary's share to the weights of a rule."""

from __future__ import annotations

from typing import Any, Final

from pointsman.app.gateway_acks import GatewayAcks
from pointsman.core.change import Signature, WeightChange
from pointsman.core.model import TOTAL_WEIGHT, Mirror, Split
from pointsman.extproc.feedback import Feedback
from pointsman.rollout.analysis import CheckResult
from pointsman.rollout.evidence import Sample
from pointsman.rollout.spec import RolloutSpec, Strategy
from pointsman.rollout.state import State, Verb
from pointsman.xds import BuildOptions

Json = dict[str, Any]


FIRST_REPORT_MS: Final = float(BuildOptions().access_log_flush_interval_ms)
"""A request that runs is reported each time this has passed: at its first report it is as old."""


def sample_of(entry: Feedback, now_s: float) -> Sample:
    """An access log entry that came at `now_s` (monotonic) as evidence."""
    return Sample(
        key=entry.pick_id,
        ended=entry.ended,
        status=entry.status,
        grpc_status=entry.grpc_status,
        failed=entry.failed,
        ttft_ms=entry.ttft_ms,
        duration_ms=entry.duration_ms if entry.ended else max(entry.duration_ms, FIRST_REPORT_MS),
        response_bytes=entry.response_bytes,
        attempts=entry.attempts,
        heard_s=now_s,
    )


def weights_of(split: Split, spec: RolloutSpec, weight: int) -> dict[str, int]:
    """All arms of a rule when the canary has `weight` of what the manifest gives the two pools together.

    Other arms keep what the manifest gives them. With Shadow the canary gets nothing but copies.
    """
    weights: dict[str, int] = {}
    for arm in split.arms:
        weights[arm.pool] = weights.get(arm.pool, 0) + arm.declared
    both = weights[spec.stable] + weights[spec.canary]
    share = 0 if spec.strategy is Strategy.SHADOW else weight
    canary = (both * share + TOTAL_WEIGHT // 2) // TOTAL_WEIGHT
    return {**weights, spec.canary: canary, spec.stable: both - canary}


def weight_change(split: Split, state: State) -> WeightChange:
    """The change that puts a rollout's weights in force for a rule."""
    spec = state.spec
    mirror = Mirror(pool=spec.canary, share=state.weight) if spec.strategy is Strategy.SHADOW else None
    # Gateways at sites that nobody ordered go with the last one, so the last one needs no entry of its own.
    rest, *ordered = (*spec.sites[-1:], *spec.sites[:-1]) or ("",)
    return WeightChange(
        rule=split.rule,
        weights=weights_of(split, spec, state.weight_at(rest)),
        sites={site: weights_of(split, spec, state.weight_at(site)) for site in ordered},
        owner=owner_of(spec),
        signature=signature(state, state.why),
        mirror=mirror,
    )


def verb_of(name: str, *, full: bool) -> Verb | None:
    """The verb of the command line and the API; `full` goes with promote."""
    if name == "promote":
        return Verb.PROMOTE_FULL if full else Verb.PROMOTE
    return next((verb for verb in Verb if verb.value == name and verb is not Verb.PROMOTE_FULL), None)


def owner_of(spec: RolloutSpec) -> str:
    """How a rollout signs what it sets."""
    return f"RolloutPolicy/{spec.name}"


def missing(acks: GatewayAcks) -> str:
    """Which proxies of a gateway have not got a change, for a human."""
    who = [*acks.pending, *(f"{node} refused" for node in acks.rejected), *acks.problems]
    return f"{acks.gateway} ({', '.join(who)})"


def signature(state: State, reason: str, by: str = "") -> Signature:
    """Who decided, and what it rests on: a person through the API, or the rollout itself."""
    return Signature(
        actor=by or owner_of(state.spec),
        via="admin API" if by else "controller",
        reason=reason,
        evidence=[_evidence(result) for result in state.results] or None,
    )


def _evidence(result: CheckResult) -> Json:
    return {"check": result.name, "verdict": result.verdict.value, "why": result.why, "samples": result.samples}
