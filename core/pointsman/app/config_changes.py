"""What a new configuration changed, in the words of the audit log. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from pointsman.core.model import Plan

Json = dict[str, Any]

MOST: Final = 50
"""Names of one kind that are told; past it only how many."""


def config_changes(before: Plan, after: Plan) -> Json:
    """What is different, by subject; empty when nothing that operators decide is. Weights are those of manifests."""
    found: Json = {}
    pools = ({pool.name for pool in before.pools}, {pool.name for pool in after.pools})
    gateways = ({one.name for one in before.gateways}, {one.name for one in after.gateways})
    for what, (old, new) in (("gateways", gateways), ("pools", pools)):
        found |= _named(f"{what} added", new - old) | _named(f"{what} removed", old - new)
    weights = ({s.rule: _declared(s.arms) for s in before.splits}, {s.rule: _declared(s.arms) for s in after.splits})
    changed = {
        rule: {"before": weights[0].get(rule), "after": weights[1].get(rule)}
        for rule in sorted(weights[0].keys() | weights[1].keys())
        if weights[0].get(rule) != weights[1].get(rule)
    }
    if changed:
        found["weights"] = dict(list(changed.items())[:MOST])
    drains = ({site.name for site in before.sites if site.draining}, {s.name for s in after.sites if s.draining})
    found |= _named("sites drained", drains[1] - drains[0]) | _named("sites active again", drains[0] - drains[1])
    endpoints = tuple(
        {(pool.name, endpoint.key) for pool in plan.pools for endpoint in pool.endpoints()} for plan in (before, after)
    )
    for what, count in (("added", len(endpoints[1] - endpoints[0])), ("removed", len(endpoints[0] - endpoints[1]))):
        if count:
            found[f"endpoints {what}"] = count
    return found


def _declared(arms: Collection[Any]) -> dict[str, int]:
    return {arm.pool: arm.declared for arm in arms}


def _named(what: str, names: Collection[str]) -> Json:
    if not names:
        return {}
    return {what: sorted(names)[:MOST] if len(names) <= MOST else len(names)}
