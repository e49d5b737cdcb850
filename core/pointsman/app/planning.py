"""What a configuration would change, before it does: two Plans side by side, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pointsman.core import defaults
from pointsman.core.arm_names import whole_pool
from pointsman.core.buckets import moved, redrawn, shifted
from pointsman.core.model import TOTAL_WEIGHT, Gateway, Health, Plan, Pool, Rule
from pointsman.xds import BuildOptions, build_resources
from pointsman.xds.resources import SHORT_NAMES

Json = dict[str, Any]
Arms = list[tuple[str, int]]

CROWDED: Final = 1.25
"""An arm is told as crowded when each of its endpoints would get this many times what those of its rule get on
average: a fifth of the capacity is the least that people keep free."""

_READY: Final = frozenset({Health.UNKNOWN, Health.HEALTHY, Health.DEGRADED})


def compare(old: Plan, new: Plan, *, concurrent: int = 0) -> Json:
    """Everything that differs. `concurrent`: requests in flight in the whole fleet, 0: not known.

    Keys: `gateways` (each with `added` or `removed`, its `rules` whose weights change and its `resources`), `pools`,
    `notes` (of the new Plan), `warnings` (arms that could not carry their share).
    """
    names = sorted({g.name for g in (*old.gateways, *new.gateways)})
    gateways = [_gateway(name, old, new, concurrent) for name in names]
    return {
        "changes": old != new,
        "gateways": [one for one in gateways if _differs(one)],
        "pools": [one for one in _pools(old, new) if one],
        "notes": [{"rule": n.rule, "reason": n.reason, "message": n.message} for n in new.notes],
        "warnings": sorted({warning for one in gateways for rule in one["rules"] for warning in rule["warnings"]}),
    }


def _differs(gateway: Json) -> bool:
    return bool(gateway["state"] != "kept" or gateway["rules"] or gateway["resources"])


def _gateway(name: str, old: Plan, new: Plan, concurrent: int) -> Json:
    before, after = old.gateway(name), new.gateway(name)
    state = "kept" if before and after else "added" if after else "removed"
    return {
        "gateway": name,
        "state": state,
        "rules": [] if state == "removed" else list(_rules(before, after, new, concurrent)),
        "resources": _resources(before, old, after, new),
    }


def _rules(before: Gateway | None, after: Gateway | None, plan: Plan, concurrent: int) -> Iterator[Json]:
    old, new = _by_id(before), _by_id(after)
    for rule_id in sorted({*old, *new}):
        rule, was = new.get(rule_id), old.get(rule_id)
        arms, had = _arms(rule), _arms(was)
        sticky, redraws = any(_hash(rule)), _hash(rule) != _hash(was)
        if arms == had and not (sticky and redraws):
            continue
        share = shifted(had, arms) if not sticky else redrawn(had, arms) if redraws else moved(had, arms)
        load = _Load(_totals(arms), plan, concurrent)
        yield {
            "rule": rule_id,
            "before": _totals(had),
            "after": _totals(arms),
            "sticky": sticky,
            "moved_percent": share * 100 / TOTAL_WEIGHT,
            "arms": list(load.arms()),
            "warnings": [f"{rule_id}: {warning}" for warning in load.warnings()],
        }


def _by_id(gateway: Gateway | None) -> dict[str, Rule]:
    """The rules of a gateway by rule id: the matches of a rule have the same arms."""
    if gateway is None:
        return {}
    rules = (rule for listener in gateway.listeners for host in listener.hosts for rule in host.rules)
    return {rule.name.rpartition("/")[0]: rule for rule in rules if rule.arms}


def _arms(rule: Rule | None) -> Arms:
    return [(arm.pool, arm.weight) for arm in rule.arms] if rule else []


def _hash(rule: Rule | None) -> tuple[str, str, str]:
    return (rule.hash_header, rule.hash_cookie, rule.hash_salt) if rule else ("", "", "")


def _totals(arms: Arms) -> dict[str, int]:
    totals: dict[str, int] = {}
    for pool, weight in arms:
        totals[pool] = totals.get(pool, 0) + weight
    return totals


@dataclass(frozen=True, slots=True)
class _Load:
    """What the arms of one rule have to carry, and with what."""

    totals: Mapping[str, int]
    plan: Plan
    concurrent: int

    def arms(self) -> Iterator[Json]:
        """Each arm's share, endpoints and capacity, as far as they are known."""
        for name, weight in self.totals.items():
            yield {
                "pool": name,
                "share_percent": weight * 100 / TOTAL_WEIGHT,
                "ready_endpoints": self._ready(name),
                "load_per_endpoint": round(self._crowding(name), 3),
                "concurrent": round(self.concurrent * weight / TOTAL_WEIGHT) if self.concurrent else None,
                "capacity": self._room(name) or None,
            }

    def warnings(self) -> Iterator[str]:
        """Why pools could not carry the share of their arms."""
        for name, weight in self._carried().items():
            if not weight:
                continue
            share = f"{weight / 100:g} %"
            if not self._ready(name):
                yield f"{name} has no ready endpoint for its {share}"
                continue
            if (crowding := self._crowding(name)) > CROWDED:
                yield f"each endpoint of {name} would get {crowding:.1f} times the average ({share} for all)"
            if (room := self._room(name)) and self._needed(name) > room:
                what = f"{self._needed(name):.0f} requests at once"
                yield f"{name} would get {what}, while its sites have room for {room}"

    def _needed(self, name: str) -> float:
        return self.concurrent * self._carried()[whole_pool(name)] / TOTAL_WEIGHT

    def _carried(self) -> dict[str, int]:
        """Shares by whole pool: arms that are models of one pool have the same endpoints."""
        found: dict[str, int] = {}
        for name, weight in self.totals.items():
            found[whole_pool(name)] = found.get(whole_pool(name), 0) + weight
        return found

    def _pool(self, name: str) -> Pool:
        return next((pool for pool in self.plan.pools if pool.name == whole_pool(name)), Pool(name=name))

    def _ready(self, name: str) -> int:
        return sum(endpoint.health in _READY for endpoint in self._pool(name).endpoints())

    def _crowding(self, name: str) -> float:
        """Load of an endpoint of the pool in relation to the mean over all endpoints whose arms get anything."""
        carried, pool = self._carried(), whole_pool(name)
        ready = {other: self._ready(other) for other, weight in carried.items() if weight}
        if not ready.get(pool):
            return 0.0
        return carried[pool] / ready[pool] * sum(ready.values()) / sum(carried.values())

    def _room(self, name: str) -> int:
        """Requests at once that a pool may get: its part of what its sites carry, 0 where a site does not say."""
        total = 0.0
        for group in self._pool(name).groups:
            site = self.plan.site(group.site)
            if site is None or not site.max_concurrent:
                return 0
            everyone = sum(_ready_at(other, group.site) for other in self.plan.pools)
            total += site.max_concurrent * _ready_at(self._pool(name), group.site) / everyone if everyone else 0.0
        return int(total)


def _ready_at(pool: Pool, site: str) -> int:
    return sum(e.health in _READY for group in pool.groups if group.site == site for e in group.endpoints)


def _pools(old: Plan, new: Plan) -> Iterator[Json]:
    before, after = ({pool.name: pool for pool in plan.pools} for plan in (old, new))
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if was == now:
            continue
        had = {endpoint.key: endpoint for endpoint in was.endpoints()} if was else {}
        has = {endpoint.key: endpoint for endpoint in now.endpoints()} if now else {}
        yield {
            "pool": name,
            "state": "kept" if was and now else "added" if now else "removed",
            "endpoints_added": [f"{has[key].name} {key}" for key in sorted(has.keys() - had.keys())],
            "endpoints_removed": [f"{had[key].name} {key}" for key in sorted(had.keys() - has.keys())],
            "endpoints_changed": [
                f"{has[key].name} {key}: {had[key].health.value} → {has[key].health.value}"
                for key in sorted(had.keys() & has.keys())
                if had[key].health is not has[key].health
            ],
        }


def _resources(before: Gateway | None, old: Plan, after: Gateway | None, new: Plan) -> dict[str, dict[str, list[str]]]:
    """Type → what is sent (added, changed) and taken away (removed), by name."""
    had, has = _versions(before, old), _versions(after, new)
    found: dict[str, dict[str, list[str]]] = {}
    for type_url, short in SHORT_NAMES.items():
        was, now = had.get(type_url, {}), has.get(type_url, {})
        entry = {
            "added": sorted(now.keys() - was.keys()),
            "changed": sorted(name for name in now.keys() & was.keys() if now[name] != was[name]),
            "removed": sorted(was.keys() - now.keys()),
        }
        if any(entry.values()):
            found[short] = {what: names for what, names in entry.items() if names}
    return found


def _versions(gateway: Gateway | None, plan: Plan) -> dict[str, dict[str, str]]:
    if gateway is None:
        return {}
    options = BuildOptions(picker_address=defaults.LOOPBACK, picker_port=defaults.GRPC_PORT)
    resources = build_resources(gateway, options, sites=plan.sites)
    return {type_url: {r.name: r.version for r in members.values()} for type_url, members in resources.items()}
