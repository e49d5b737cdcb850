"""Can the canary carry the next step? Judged from what both pools carry now."""

from __future__ import annotations

from dataclasses import dataclass

from pointsman.core.model import TOTAL_WEIGHT
from pointsman.rollout.analysis import CheckResult, Verdict
from pointsman.rollout.spec import CapacityGate

NAME = "capacity"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLoad:
    """What a pool carries. `endpoints` are those that take requests; `in_flight` requests run or wait, None: not known.

    `kv_used_tokens` of `kv_tokens` hold the endpoints' KV caches; None where no scrape told.
    """

    endpoints: int
    in_flight: int | None
    kv_used_tokens: float | None = None
    kv_tokens: float | None = None


def room(gate: CapacityGate, stable: PoolLoad, canary: PoolLoad, next_weight: int) -> CheckResult:
    """Whether the canary keeps the gate's free share when it gets `next_weight` of what both pools carry now.

    Requests in flight and tokens in caches are taken to follow the weight. The fullest of what is known counts; with
    nothing known there is no verdict, and the rollout holds.
    """
    if not canary.endpoints:
        return _result(Verdict.BAD, "the canary has no ready endpoint")
    share = next_weight / TOTAL_WEIGHT
    uses: list[tuple[float, str]] = []
    if gate.slots_per_endpoint and stable.in_flight is not None and canary.in_flight is not None:
        slots = canary.endpoints * gate.slots_per_endpoint
        wanted = (stable.in_flight + canary.in_flight) * share
        uses.append((wanted / slots, f"{wanted:.0f} of {slots} requests at once"))
    if canary.kv_tokens and canary.kv_used_tokens is not None and stable.kv_used_tokens is not None:
        wanted = (stable.kv_used_tokens + canary.kv_used_tokens) * share
        uses.append((wanted / canary.kv_tokens, f"{wanted:.0f} of {canary.kv_tokens:.0f} tokens of KV cache"))
    if not uses:
        return _result(Verdict.NO_DATA, "neither requests and slotsPerEndpoint nor the size of the KV caches is known")
    use, text = max(uses)
    verdict = Verdict.GOOD if use <= 1.0 - gate.min_free else Verdict.BAD
    return _result(verdict, f"it would use {use * 100:.0f} % ({text}), {gate.min_free * 100:.0f} % must stay free", use)


def ceiling(gate: CapacityGate, stable: PoolLoad, canary: PoolLoad, *, canary_alone: float | None = None) -> int:
    """The largest share (1/10,000) of all requests with which the canary keeps the gate's free share; all of them where
    nothing is known.

    `canary_alone`: while stable serves nothing, the part (0 to 1) of all requests that the canary gets; what it carries
    tells what all would be.
    """

    def share(carries: float | None, others: float | None, room_for: float) -> float:
        if carries is None or others is None or not room_for:
            return 1.0
        everything = carries + others if canary_alone is None else carries / canary_alone
        return room_for * (1.0 - gate.min_free) / everything if everything else 1.0

    slots = canary.endpoints * gate.slots_per_endpoint
    by_requests = share(canary.in_flight, stable.in_flight, slots)
    by_tokens = share(canary.kv_used_tokens, stable.kv_used_tokens, canary.kv_tokens or 0.0)
    return min(TOTAL_WEIGHT, int(TOTAL_WEIGHT * min(by_requests, by_tokens)))


def share_with(stable: PoolLoad, canary: PoolLoad, weight: int) -> int:
    """The canary's share of all requests, at most, when `weight` of what a site sends to stable now comes to it."""
    if stable.in_flight is not None and canary.in_flight is not None:
        has, rest = float(canary.in_flight), float(stable.in_flight)
    else:
        has, rest = canary.kv_used_tokens or 0.0, stable.kv_used_tokens or 0.0
    share = has / (has + rest) if has + rest else 0.0
    return round(TOTAL_WEIGHT * share + weight * (1.0 - share))


def _result(verdict: Verdict, why: str, use: float | None = None) -> CheckResult:
    return CheckResult(name=NAME, verdict=verdict, why=why, canary=use)
