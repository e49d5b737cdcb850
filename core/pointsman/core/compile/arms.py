"""The arms of a rule: what the manifest declares, what the overlay decided, what is in force. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from pointsman.core.compile.assignments import Assigned
from pointsman.core.compile.rewrites import also_unavailable
from pointsman.core.compile.weights import normalise
from pointsman.core.config.route_annotations import OnUnavailable
from pointsman.core.model import TOTAL_WEIGHT, Health, Mirror, Note, Pool, Split, SplitArm, WeightedPool
from pointsman.core.overlay import EMPTY, OPERATOR, Overlay, RuleOverlay

NO_ENDPOINT: Final = "no endpoint"
NOT_READY: Final = "no ready endpoint"
FOUND_DOWN: Final = "found unable to serve"

_READY = frozenset({Health.UNKNOWN, Health.HEALTHY, Health.DEGRADED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What lies over the manifests of routes: the overlay, the pools there are, those that cannot serve and why, whom
    policies assign, and the pools whose requests are renamed."""

    overlay: Overlay = EMPTY
    pools: frozenset[str] = frozenset()
    unavailable: Mapping[str, str] = field(default_factory=dict)
    assignments: tuple[Assigned, ...] = ()
    rewritten: Mapping[str, Pool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The arms of a rule with their effective weights, how they came about, and what is remarkable about it."""

    arms: tuple[WeightedPool, ...]
    mirror: Mirror | None
    split: Split
    notes: tuple[Note, ...]


def layer_of(pools: Iterable[Pool], overlay: Overlay, assignments: tuple[Assigned, ...] = ()) -> Layer:
    """The layer for these pools."""
    all_pools = {pool.name: pool for pool in pools}
    found = {name: reason for name, pool in all_pools.items() if (reason := _unavailable(pool))}
    rewritten = {name: pool for name, pool in all_pools.items() if pool.rewrites}
    return Layer(
        overlay=overlay,
        pools=frozenset(all_pools),
        unavailable=also_unavailable({**dict.fromkeys(overlay.unavailable, FOUND_DOWN), **found}, rewritten),
        assignments=assignments,
        rewritten=rewritten,
    )


def settle(rule_id: str, declared: Sequence[WeightedPool], layer: Layer, on_unavailable: OnUnavailable) -> Settled:
    """The effective weights of the `declared` arms; neither the arms nor their order change."""
    entry = layer.overlay.rule(rule_id)
    notes: list[Note] = []
    decided = [arm.weight for arm in declared]
    overlaid = False
    if entry is not None and entry.weights:
        over = _lay_over(rule_id, declared, entry, notes)
        overlaid = over is not None
        decided = decided if over is None else over
    reasons = [layer.unavailable.get(arm.pool, "") for arm in declared]
    effective = decided
    if on_unavailable is not OnUnavailable.FAIL:
        ceilings = dict(layer.overlay.ceilings)
        most = [ceilings.get((rule_id, arm.pool), TOTAL_WEIGHT) for arm in declared]
        effective = hand_over(decided, reasons, most)
    notes += _outages(rule_id, declared, decided, effective, reasons)
    split = Split(
        rule=rule_id,
        arms=tuple(
            SplitArm(pool=arm.pool, declared=arm.weight, decided=d, effective=e, unavailable=reason)
            for arm, d, e, reason in zip(declared, decided, effective, reasons, strict=True)
        ),
        overlaid=overlaid,
        owner=entry.owner if overlaid and entry else OPERATOR,
        version=layer.overlay.version(rule_id),
    )
    arms = tuple(replace(arm, weight=weight) for arm, weight in zip(declared, effective, strict=True))
    mirror = entry.mirror if entry else None
    if mirror and mirror.pool not in layer.pools:
        notes.append(
            Note(rule=rule_id, reason="MirrorVanished", message=f"there is no pool {mirror.pool} to mirror to")
        )
        mirror = None
    return Settled(arms=arms, mirror=mirror, split=split, notes=tuple(notes))


def hand_over(weights: Sequence[int], unavailable: Sequence[str], most: Sequence[int] = ()) -> list[int]:
    """Weights with the shares of unavailable arms given to the others, in the ratio of those.

    Where no other arm has a weight all stay as they are: an arm at 0 is not to be used. An arm that would get more than
    its `most` (1/10,000, empty: no limits) keeps to that, or to what it has; what nobody can take stays where it is.
    """
    left = [0 if reason else weight for weight, reason in zip(weights, unavailable, strict=True)]
    if not any(left):
        return list(weights)
    result = list(normalise(left))
    limits = [max(limit, weight) for limit, weight in zip(most, weights, strict=True)] if most else result
    if all(share <= limit for share, limit in zip(result, limits, strict=True)):
        return result
    return _up_to(weights, left, limits)


def _up_to(weights: Sequence[int], left: Sequence[int], limits: Sequence[int]) -> list[int]:
    """The shares of arms that are `left`, in their ratio and up to their limits; the rest stays with the others."""
    result = [0] * len(weights)
    rest, takers = TOTAL_WEIGHT, [index for index, weight in enumerate(left) if weight]
    while takers:
        parts = dict(zip(takers, _portions(rest, [left[index] for index in takers]), strict=True))
        full = [index for index in takers if parts[index] > limits[index]]
        for index in full or takers:
            result[index] = limits[index] if full else parts[index]
            rest -= result[index]
        takers = [index for index in takers if index not in full] if full else []
    kept = [weight if not open_ else 0 for weight, open_ in zip(weights, left, strict=True)]
    return [share + part for share, part in zip(result, _portions(rest, kept), strict=True)]


def vanished_rules(overlay: Overlay, known: Iterable[str]) -> tuple[Note, ...]:
    """Notes for entries whose rule is not there. They are kept, and hold again when the rule comes back: a route that
    is gone for a moment, while a folder is rewritten, must not lose a roll-back."""
    there = frozenset(known)
    return tuple(
        Note(
            rule=rule_id,
            reason="RuleVanished",
            message="weights are set for this rule, which no route has; `pointsman weights clear` forgets them",
        )
        for rule_id, _ in overlay
        if rule_id not in there
    )


def _unavailable(pool: Pool) -> str:
    endpoints = pool.endpoints()
    if not endpoints:
        return NO_ENDPOINT
    return "" if any(endpoint.health in _READY for endpoint in endpoints) else NOT_READY


def _lay_over(
    rule_id: str, declared: Sequence[WeightedPool], entry: RuleOverlay, notes: list[Note]
) -> list[int] | None:
    """The weights of an entry for these arms; None if it says nothing about them."""
    shares = entry.shares()
    pools = [arm.pool for arm in declared]
    gone = sorted(pool for pool in shares if pool not in pools)
    notes += [
        Note(rule=rule_id, reason="PoolVanished", message=f"a weight is set for {pool}, which is no arm any more")
        for pool in gone
    ]
    known = {pool: shares[pool] for pool in dict.fromkeys(pools) if pool in shares}
    if not known or (any(shares.values()) and not any(known.values())):
        message = "the weights that were set fit no arm any more: those of the manifest hold"
        notes.append(Note(rule=rule_id, reason="OverlayDropped", message=message))
        return None
    for pool in dict.fromkeys(pools):
        if pool not in shares:
            message = f"{pool} is a new arm and gets nothing: the weights that were set do not name it"
            notes.append(Note(rule=rule_id, reason="ArmWithoutWeight", message=message))
    weights = [0] * len(pools)
    for pool, share in zip(known, normalise(list(known.values())), strict=True):
        places = [index for index, name in enumerate(pools) if name == pool]
        parts = [declared[index].weight for index in places]
        if not any(parts):
            parts[0] = 1
        for index, part in zip(places, _portions(share, parts), strict=True):
            weights[index] = part
    return weights


def _portions(share: int, ratio: Sequence[int]) -> list[int]:
    """A share divided in a ratio, without a rest: a pool may be two arms of a rule, with different filters."""
    total = sum(ratio)
    bounds = [share * sum(ratio[: index + 1]) // total for index in range(len(ratio))]
    return [high - low for low, high in zip([0, *bounds], bounds, strict=False)]


def _outages(
    rule_id: str,
    declared: Sequence[WeightedPool],
    decided: Sequence[int],
    effective: Sequence[int],
    reasons: Sequence[str],
) -> Iterable[Note]:
    for arm, wanted, given, reason in zip(declared, decided, effective, reasons, strict=True):
        if reason and wanted:
            share = f"its {100 * wanted / TOTAL_WEIGHT:g} %"
            what = f"{share} get 503" if given else f"the other arms get {share}"
            yield Note(rule=rule_id, reason="ArmUnavailable", message=f"{arm.pool}: {reason}; {what}")
