"""What people and controllers decided at run time on top of the manifests (design D9).

Manifests say what was asked for; the overlay says what is in force until somebody clears it. Routes are never
rewritten: `compile_plan(manifests, overlay)` lays the overlay over the compiled rules. It changes numbers only: never
which arms a rule has, nor their order, so that users of a sticky split only move towards the arm listed first (D8).

The overlay is a value. It is kept in the state folder (`pointsman.core.store`), so it survives a crash at any moment
and is applied before anything is served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pointsman.core.model import TOTAL_WEIGHT, Mirror

OPERATOR = ""
"""Owner of weights that a person set. Controllers sign with their name, "RolloutPolicy/namespace/name"."""

NONE = 0
"""Version of a rule without an overlay."""


Weights = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleOverlay:
    """The effective weights of one rule: pool "namespace/name" → share in 1/10,000, sorted by pool.

    They add up to `TOTAL_WEIGHT`, or are all 0 (the rule answers 503). Arms of the rule that are not named get 0.
    Without `weights` those of the manifest hold, and only the mirror is laid over. `sites` holds (site, weights) where
    gateways at a site get others than the rest, sorted by site. `version` is the overlay's
    `revision` of the last change of this rule: what an optimistic writer compares.
    """

    weights: tuple[tuple[str, int], ...] = ()
    mirror: Mirror | None = None
    owner: str = OPERATOR
    version: int = NONE
    sites: tuple[tuple[str, Weights], ...] = ()

    def __post_init__(self) -> None:
        for weights in (self.weights, *(weights for _, weights in self.sites)):
            names = [pool for pool, _ in weights]
            shares = [share for _, share in weights]
            if names != sorted(set(names)):
                raise ValueError(f"pools are named once and in order, not as {names}")
            if any(share < 0 for share in shares) or sum(shares) not in {0, TOTAL_WEIGHT}:
                raise ValueError(f"weights add up to {TOTAL_WEIGHT} or are all 0, not {shares}")
        sites = [site for site, _ in self.sites]
        if sites != sorted(set(sites)):
            raise ValueError(f"sites are named once and in order, not as {sites}")

    @classmethod
    def of(
        cls,
        weights: Mapping[str, int],
        *,
        owner: str = OPERATOR,
        mirror: Mirror | None = None,
        sites: Mapping[str, Mapping[str, int]] | None = None,
    ) -> RuleOverlay:
        """From mappings in any order."""
        by_site = tuple((site, tuple(sorted(at.items()))) for site, at in sorted((sites or {}).items()))
        return cls(weights=tuple(sorted(weights.items())), owner=owner, mirror=mirror, sites=by_site)

    def shares(self) -> dict[str, int]:
        """The weights as a mapping."""
        return dict(self.weights)


ANY_POOL = "*"
"""Instead of a pool: what is laid over a site holds for all pools there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteOverlay:
    """What was decided of a pool at a site.

    `share` in 1/10,000: of the requests that may be sent there; `spill`: of those that may be sent there although a
    lower tier serves. `last`: behind all other sites. `draining`: no new requests, running ones finish.
    `max_concurrent`: requests at once, 0: no limit. `owner` decided it, for `reason`.
    """

    share: int = TOTAL_WEIGHT
    spill: int = 0
    max_concurrent: int = 0
    last: bool = False
    draining: bool = False
    owner: str = OPERATOR
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """All that was decided at run time.

    `rules` holds (rule id, what is laid over it), sorted by id. A rule id is "HTTPRoute/namespace/name/rule": the
    rule's own name, or its number in the route where it has none. An entry for a rule or a pool that is not there is
    not applied; `Plan.notes` tells of it.

    `unavailable` are pools that a controller found unable to serve, although their manifests say nothing of it: the
    arms of a split treat them as pools without a ready endpoint (annotation `pointsman.dev/on-unavailable`).

    `ceilings` holds ((rule id, pool), share in 1/10,000), sorted: the most that an arm has after unavailable ones
    handed theirs over. A controller that knows what the pool can carry keeps them.

    `sites` holds ((pool or `ANY_POOL`, site), what is laid over it), sorted; `drained` are endpoints (`ip:port`) that
    get no new requests. Their controller keeps them.

    `revision` grows by one with every change of `rules` and never goes back.
    """

    rules: tuple[tuple[str, RuleOverlay], ...] = ()
    unavailable: frozenset[str] = frozenset()
    revision: int = 0
    sites: tuple[tuple[tuple[str, str], SiteOverlay], ...] = ()
    drained: frozenset[str] = frozenset()
    ceilings: tuple[tuple[tuple[str, str], int], ...] = ()

    def site(self, pool: str, site: str) -> SiteOverlay | None:
        """What holds for a pool at a site: the stricter of what was said of it and of the whole site."""
        found = [entry for (name, where), entry in self.sites if where == site and name in (pool, ANY_POOL)]
        if not found:
            return None
        strictest = min(found, key=lambda entry: entry.share)
        return replace(strictest, last=any(e.last for e in found), draining=any(e.draining for e in found))

    def __iter__(self) -> Iterator[tuple[str, RuleOverlay]]:
        return iter(self.rules)

    def rule(self, rule_id: str) -> RuleOverlay | None:
        """What is laid over a rule."""
        return next((entry for name, entry in self.rules if name == rule_id), None)

    def at(self, site: str) -> Overlay:
        """As it is for the gateways at a site; the same overlay where nothing else is said of it."""
        rules = tuple(
            (rule_id, replace(entry, weights=dict(entry.sites).get(site, entry.weights), sites=()))
            if entry.sites
            else (rule_id, entry)
            for rule_id, entry in self.rules
        )
        changed = any(a.weights != b.weights for (_, a), (_, b) in zip(rules, self.rules, strict=True))
        return replace(self, rules=rules) if changed else self

    def version(self, rule_id: str) -> int:
        """Version of a rule's entry, `NONE` without one."""
        entry = self.rule(rule_id)
        return NONE if entry is None else entry.version

    def with_rule(self, rule_id: str, entry: RuleOverlay) -> Overlay:
        """With this entry instead of the one before; it gets the next version."""
        revision = self.revision + 1
        rules = {**dict(self.rules), rule_id: replace(entry, version=revision)}
        return replace(self, rules=tuple(sorted(rules.items())), revision=revision)

    def without_rule(self, rule_id: str) -> Overlay:
        """Without an entry for this rule, so that its manifest holds again; the same overlay if there is none."""
        if self.rule(rule_id) is None:
            return self
        rules = tuple((name, entry) for name, entry in self.rules if name != rule_id)
        return replace(self, rules=rules, revision=self.revision + 1)


EMPTY = Overlay()
"""Nothing decided: the manifests hold."""
