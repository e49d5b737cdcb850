"""Which model a request of a pool gets instead of the one that it names (InferenceModelRewrite)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import xxhash

from pointsman.core.arm_names import target_of, whole_pool
from pointsman.core.buckets import arm_of, bucket
from pointsman.core.model import TOTAL_WEIGHT, Plan
from pointsman.extproc.rename import find_model, renamed

_ANY = ""
Targets = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Renaming:
    """The model `asked` becomes `model`, and the request's body becomes `body`.

    `unread`: nobody can tell, the model stands behind what was read of the body.
    """

    asked: str = ""
    model: str = ""
    body: bytes = b""
    unread: bool = False


class ModelRules:
    """What holds for the pools of a Plan, by the names of their clusters."""

    def __init__(self) -> None:
        self._rules: Mapping[str, Mapping[str, Targets]] = {}

    def apply(self, plan: Plan) -> None:
        """Follow a new Plan."""
        self._rules = {
            pool.name: {one.model: one.targets for one in pool.rewrites} for pool in plan.pool_views() if pool.rewrites
        }

    def rename(self, pool: str, body: bytes, *, partial: bool = False, identity: str = "") -> Renaming | None:
        """What a request to a cluster becomes; None where it stays as it is.

        Where no gateway has chosen among several models, `identity` (a user, else a request) does, as Envoy would:
        each has its place among 10,000.
        """
        rules = self._rules_of(pool)
        if rules is None:
            return None
        found = find_model(body, partial=partial)
        if found.unread:
            return Renaming(unread=True)
        targets = rules.get(found.model) or rules.get(_ANY)
        if not found.places or targets is None:
            return None
        target = targets[0][0] if len(targets) == 1 else _drawn(targets, identity or xxhash.xxh3_64_hexdigest(body))
        if target == found.model:
            return None
        return Renaming(asked=found.model, model=target, body=renamed(body, found.places, target))

    def _rules_of(self, pool: str) -> Mapping[str, Targets] | None:
        """An arm that this Plan has not yet, or no more, is still asked for by gateways that are ahead or behind: its
        name tells the model, and its pool which requests get it."""
        rules = self._rules.get(pool)
        target = "" if rules is not None else target_of(pool)
        whole = self._rules.get(whole_pool(pool)) if target else None
        if whole is None:
            return rules
        ours: Targets = ((target, TOTAL_WEIGHT),)
        return {model: ours if len(targets) > 1 else targets for model, targets in whole.items()}


def _drawn(targets: Targets, identity: str) -> str:
    index = arm_of(bucket(identity), [share for _, share in targets])
    return targets[index or 0][0]
