"""Rules between RolloutPolicies and the routes that they are attached to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pointsman.core.arm_names import target_of, whole_pool
from pointsman.core.config.attachment import listeners_of
from pointsman.core.config.check_rewrites import arms_of_rule, split_targets
from pointsman.core.config.document import Path, shown
from pointsman.core.config.index import Index, Item, suggest_key
from pointsman.core.config.meta import SITE
from pointsman.core.config.policy_kinds import RolloutPolicy, TargetRef
from pointsman.core.config.route_annotations import STICKY_COOKIE, STICKY_HEADER
from pointsman.core.config.route_kinds import BackendRef, GRPCRoute, HTTPRoute, Route, RouteRule
from pointsman.core.config.schema import suggest
from pointsman.core.errors import Problem


def check_policies(index: Index) -> Iterator[Problem]:
    """Everything that is wrong with what policies refer to."""
    taken: dict[tuple[str, int], str] = {}
    for item in index.rollout_policies.values():
        for position, ref in enumerate(item.object.spec.target_refs):
            yield from _target(index, item, ("spec", "targetRefs", position), ref, taken)
        yield from _sites(index, item)


def _target(
    index: Index, item: Item[RolloutPolicy], path: Path, ref: TargetRef, taken: dict[tuple[str, int], str]
) -> Iterator[Problem]:
    key = f"{item.object.namespace}/{ref.name}"
    table = index.http_routes if ref.kind == "HTTPRoute" else index.grpc_routes
    found = table.get(key)
    if found is None:
        if not index.is_broken(ref.kind, key):
            yield item.problem((*path, "name"), f"no {ref.kind} {shown(key)}", suggest_key(key, table, ref.kind))
        return
    route: Route = found.object
    rules = list(enumerate(route.spec.rules))
    if ref.section_name:
        names = {rule.name for rule in route.spec.rules if rule.name}
        rules = [(number, rule) for number, rule in rules if rule.name == ref.section_name]
        if not rules:
            what = f"{ref.kind} {key} has no rule {shown(ref.section_name)}"
            yield item.problem((*path, "sectionName"), what, suggest(ref.section_name, names) or "name the rule there")
            return
    yield from _one_assignment(item, found)
    pools = {item.object.pool_key(item.object.spec.stable), item.object.pool_key(item.object.spec.canary)}
    targets = split_targets(index)
    split = [(number, rule) for number, rule in rules if pools <= arms_of_rule(route, rule, targets)]
    if not split or (ref.section_name and len(split) < len(rules)):
        what = f"{'the rule' if ref.section_name else 'no rule'} of {ref.kind} {key} has"
        what += f"{' not' if ref.section_name else ''} both {' and '.join(sorted(pools))} as backendRefs"
        mend = f"see {found.place(('spec', 'rules'))}; list the canary there with weight: 0"
        yield item.problem(path, what, _models(pools, targets) or mend)
        return
    yield from _kinds(item, route, split[0][1])
    for number, rule in split:
        if not any(arm.weight for arm in rule.backend_refs if _key(route, arm) in {whole_pool(name) for name in pools}):
            what = f"both pools have weight 0 in rule {number} of {ref.kind} {key}"
            yield item.problem(path, what, f"give the stable one a weight at {found.place(('spec', 'rules', number))}")
        place = item.place(path)
        other = taken.setdefault((f"{ref.kind}/{key}", number), place)
        if other != place:
            yield item.problem(path, f"rule {number} of {ref.kind} {key} has two policies", f"the other is at {other}")


def _kinds(item: Item[RolloutPolicy], route: Route, rule: RouteRule) -> Iterator[Problem]:
    """A fleet is called a fleet in both places."""
    spec = item.object.spec
    for field, ref in (("stable", spec.stable), ("canary", spec.canary)):
        kinds = {arm.kind for arm in rule.backend_refs if _key(route, arm) == whole_pool(item.object.pool_key(ref))}
        if ref.kind not in kinds:
            other = min(kinds)
            yield item.problem(("spec", field, "kind"), f"the route has {other} {ref.name}", f"expected {other}")


def _one_assignment(item: Item[RolloutPolicy], route: Item[HTTPRoute] | Item[GRPCRoute]) -> Iterator[Problem]:
    """Users are assigned by the policy or by the route, not by both."""
    if item.object.spec.assignment is None:
        return
    for name in (STICKY_HEADER, STICKY_COOKIE):
        if name in route.object.metadata.annotations:
            what = f"{route.object.kind} {route.object.key} has the annotation {name}, too"
            place = route.place(("metadata", "annotations", name))
            yield item.problem(("spec", "assignment"), what, f"remove one; the other is at {place}")


def _sites(index: Index, item: Item[RolloutPolicy]) -> Iterator[Problem]:
    """Each site of the order exists, and a gateway with a route of the policy stands there."""
    spec = item.object.spec
    for position, name in enumerate(spec.sites.order if spec.sites else ()):
        path = ("spec", "sites", "order", position)
        if name not in index.sites:
            if not index.is_broken("Site", name):
                yield item.problem(path, f"no Site {shown(name)}", suggest_key(name, index.sites, "Site"))
            continue
        names = {item.object.route_name(ref) for ref in spec.target_refs}
        routes = [route for route in index.routes() if f"{route.object.kind}/{route.object.key}" in names]
        here = [gateway.object for gateway in index.gateways.values() if gateway.object.site == name]
        if not any(listeners_of(gateway, route.object) for gateway in here for route in routes):
            what = f"no Gateway with a route of this policy stands at {name}"
            yield item.problem(path, what, f"annotate one with {SITE}: {name}, or take the site out of the order")


def _models(arms: set[str], targets: Mapping[str, frozenset[str]]) -> str:
    """How to name the models of a pool where the arms are not right; empty where it is not models that are wrong."""
    for arm in sorted(arms):
        known = targets.get(whole_pool(arm), frozenset())
        if known and target_of(arm) not in known:
            return f"models of {whole_pool(arm)} are {', '.join(sorted(known))}: name one by stable.model, canary.model"
        if not known and target_of(arm):
            return f"no InferenceModelRewrite gives {whole_pool(arm)} several targets"
    return ""


def _key(route: Route, ref: BackendRef) -> str:
    return ref.pool_of(route.namespace)
