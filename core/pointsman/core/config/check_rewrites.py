"""Rules between InferenceModelRewrites, their pools, and routes that choose one of their targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pointsman.core import wire
from pointsman.core.arm_names import target_arm
from pointsman.core.config.document import Path, shown
from pointsman.core.config.index import Index, Item, suggest_key
from pointsman.core.config.rewrite_kinds import InferenceModelRewrite, precedence
from pointsman.core.config.route_kinds import Filter, HTTPRoute, Route, RouteRule
from pointsman.core.config.schema import suggest
from pointsman.core.errors import Problem


def check_rewrites(index: Index) -> Iterator[Problem]:
    """Everything that is wrong with what rewrites refer to, and with what refers to their targets."""
    first: dict[str, str] = {}
    for item in index.rewrites.values():
        yield from _pool(index, item)
        for position, rule in enumerate(item.object.spec.rules):
            pool, place = item.object.pool, item.place(("spec", "rules", position, "targets"))
            if len(rule.targets) > 1 and first.setdefault(pool, place) != place:
                what = f"a second rule of pool {pool} has several targets, and which arm a request gets is drawn once"
                mend = f"the other is at {first[pool]}; keep one target here"
                yield item.problem(("spec", "rules", position, "targets"), what, mend)
    yield from _overruled(index)
    targets = split_targets(index)
    for route in index.http_routes.values():
        yield from _chosen(route, targets)


def split_targets(index: Index) -> Mapping[str, frozenset[str]]:
    """The models that are arms, by pool ("namespace/name")."""
    found: dict[str, frozenset[str]] = {}
    for item in index.rewrites.values():
        for rule in item.object.spec.rules:
            if len(rule.targets) > 1:
                found.setdefault(item.object.pool, frozenset(one.model_rewrite for one in rule.targets))
    return found


def arms_of_rule(route: Route, rule: RouteRule, targets: Mapping[str, frozenset[str]]) -> set[str]:
    """The arms that the rule of a route has, by the names that they have in the Plan."""
    found: set[str] = set()
    for ref in rule.backend_refs:
        pool = ref.pool_of(route.namespace)
        chosen = pinned(ref.filters) or pinned(rule.filters)
        models = targets.get(pool, frozenset()) if route.kind == "HTTPRoute" else frozenset()
        if not models:
            found.add(pool)
        else:
            found |= {target_arm(pool, model) for model in ({chosen[1]} if chosen else models)}
    return found


def pinned(filters: tuple[Filter, ...]) -> tuple[Path, str] | None:
    """The target that filters choose, with the place of its name below them; None where they choose none."""
    for number, one in enumerate(filters):
        modifier = one.request_header_modifier
        for index, header in enumerate(modifier.set if modifier is not None else ()):
            if header.name.lower() in wire.MODEL_REWRITE_HEADERS:
                return (number, "requestHeaderModifier", "set", index, "value"), header.value
    return None


def _pool(index: Index, item: Item[InferenceModelRewrite]) -> Iterator[Problem]:
    ref, key = item.object.spec.pool_ref, item.object.pool
    known = index.fleets.keys() if ref.kind == "InferenceFleet" else index.pools.keys()
    if key not in known and not index.is_broken(ref.kind, key):
        mend = suggest_key(key, known, ref.kind)
        yield item.problem(("spec", "poolRef", "name"), f"no {ref.kind} {shown(key)}", mend)


def _overruled(index: Index) -> Iterator[Problem]:
    """Rules with several targets whose models all belong to rules before them: there would be no arms, and who asks
    for one of them would get something else."""
    taken: dict[tuple[str, str], tuple[bool, str]] = {}
    for item in sorted(index.rewrites.values(), key=lambda one: precedence(one.object)):
        for position, rule in enumerate(item.object.spec.rules):
            path: Path = ("spec", "rules", position)
            several = len(rule.targets) > 1
            ours = several, item.place(path)
            owners = [taken.setdefault((item.object.pool, model), ours) for model in rule.models]
            if several and not any(others for others, _ in owners):  # a second one is told of anyway
                what = f"none of its models is left to it, and so its {len(rule.targets)} targets get no requests"
                yield item.problem(path, what, f"{owners[0][1]} comes first: remove one of them")


def _chosen(item: Item[HTTPRoute], targets: Mapping[str, frozenset[str]]) -> Iterator[Problem]:
    """A filter that chooses a target names one that the pool has."""
    for number, rule in enumerate(item.object.spec.rules):
        for arm, ref in enumerate(rule.backend_refs):
            known = targets.get(ref.pool_of(item.object.namespace))
            base: Path = ("spec", "rules", number, "backendRefs", arm, "filters")
            found = pinned(ref.filters)
            if found is None:
                base, found = ("spec", "rules", number, "filters"), pinned(rule.filters)
            if known is None or found is None:
                continue
            path, name = found
            if name not in known:
                what = f"{shown(name)} is no target of pool {ref.pool_of(item.object.namespace)}"
                yield item.problem((*base, *path), what, suggest(name, known))
