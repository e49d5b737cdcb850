"""A change of a rule's weights: what is asked for, checked against the Plan and the overlay, as a new overlay. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from pointsman.core.arm_names import short_names
from pointsman.core.compile.weights import normalise
from pointsman.core.errors import PointsmanError
from pointsman.core.model import Mirror, Plan, Split
from pointsman.core.overlay import OPERATOR, Overlay, RuleOverlay


class Refusal(Enum):
    """Why a change was refused."""

    UNKNOWN = "unknown"  # there is no such rule
    INVALID = "invalid"  # the weights do not fit the rule
    VERSION = "version"  # somebody else changed the rule in between
    OWNED = "owned"  # a controller leads the rule


class ChangeError(PointsmanError):
    """The change was refused, and nothing has changed. `version` is the rule's version now."""

    def __init__(self, refusal: Refusal, message: str, *, version: int = 0) -> None:
        super().__init__(message)
        self.refusal = refusal
        self.version = version


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Who changes something and why; see `pointsman.core.audit.Record`."""

    actor: str
    via: str
    reason: str = ""
    evidence: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightChange:
    """What somebody asks for. `rule` is a rule id.

    `weights` maps every arm's pool ("namespace/name") to its part, in any unit: they are scaled to 10,000. None clears
    the overlay of the rule: its manifest holds again. `owner` signs the entry: a controller's name, or `OPERATOR`.
    A person cannot change what a controller owns, except with `force`; a controller can take over what a person set.
    `mirror` is laid over, too; `sites` maps sites to the weights that their gateways get instead. `if_version`: only if
    this is the rule's version (0: nobody has set anything).
    """

    rule: str
    weights: Mapping[str, int] | None
    signature: Signature
    owner: str = OPERATOR
    mirror: Mirror | None = None
    sites: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    if_version: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The overlay after a change, and the rule's entry before and after it (None: none)."""

    overlay: Overlay
    before: RuleOverlay | None
    after: RuleOverlay | None
    changed: bool = field(default=True)


def decide(overlay: Overlay, plan: Plan, change: WeightChange) -> Decided:
    """The overlay with the change; the same one if there is nothing to change.

    Raises:
        ChangeError: it is not allowed, or does not fit.
    """
    before = overlay.rule(change.rule)
    version = overlay.version(change.rule)
    split = plan.split(change.rule)
    if split is None and (change.weights is not None or before is None):
        raise ChangeError(Refusal.UNKNOWN, f"there is no rule {change.rule}", version=version)
    if change.if_version is not None and change.if_version != version:
        what = f"{change.rule} has version {version}, not {change.if_version}: somebody changed it in between"
        raise ChangeError(Refusal.VERSION, what, version=version)
    if before and before.owner not in {OPERATOR, change.owner} and not change.force:
        what = f"{before.owner} leads {change.rule}: pause or abort it, or say --force to take the rule from it"
        raise ChangeError(Refusal.OWNED, what, version=version)
    if change.weights is None:
        after = None
    else:
        assert split is not None
        shares = _shares(split, change.weights, version)
        sites = {site: _shares(split, weights, version) for site, weights in change.sites.items()}
        after = RuleOverlay.of(shares, owner=change.owner, mirror=change.mirror, sites=sites)
    if _same(before, after):
        return Decided(overlay=overlay, before=before, after=before, changed=False)
    new = overlay.without_rule(change.rule) if after is None else overlay.with_rule(change.rule, after)
    return Decided(overlay=new, before=before, after=new.rule(change.rule))


def resolve(plan: Plan, target: str, overlay: Overlay | None = None) -> str:
    """The rule id that somebody means by `[KIND/][NAMESPACE/]ROUTE[/RULE]`.

    Without RULE it is the only rule of the route that has several arms, or its only rule. Rules that only the overlay
    knows can be meant, too.

    Raises:
        ChangeError: none or several are meant; the message lists them.
    """
    ids = {split.rule: len(split.arms) for split in plan.splits}
    ids |= {rule: 0 for rule, _ in overlay or ()} | ids
    exact = [rule for rule in ids if target == rule]
    found = exact or [rule for rule in ids if target in _names(rule)]
    if len(found) > 1:
        splits = [rule for rule in found if ids[rule] > 1]
        same_route = len({rule.rpartition("/")[0] for rule in found}) == 1
        if len(splits) == 1 and same_route:
            return splits[0]
        raise ChangeError(Refusal.INVALID, f"{target} may be {_listed(found)}: name one of them")
    if not found:
        known = f"there are {_listed(sorted(ids))}" if ids else "there are none"
        raise ChangeError(Refusal.UNKNOWN, f"no rule is called {target}; {known}")
    return found[0]


def pool_names(split: Split, weights: Mapping[str, int]) -> dict[str, int]:
    """Weights with the short names of pools written out: `canary` is the arm "namespace/canary", and a model that
    requests are renamed to is the arm of that.

    Raises:
        ChangeError: a name is no arm of the rule, or may be several.
    """
    found: dict[str, int] = {}
    pools = list(dict.fromkeys(arm.pool for arm in split.arms))
    for name, weight in weights.items():
        meant = [pool for pool in pools if name == pool or name in short_names(pool)]
        if len(meant) != 1 or meant[0] in found:
            what = "is named twice" if meant and meant[0] in found else "may be several arms" if meant else "is no arm"
            raise ChangeError(Refusal.INVALID, f"{name} {what} of {split.rule}; its arms are {_listed(pools)}")
        found[meant[0]] = weight
    return found


def _shares(split: Split, weights: Mapping[str, int], version: int) -> dict[str, int]:
    named = pool_names(split, weights)
    missing = [arm.pool for arm in split.arms if arm.pool not in named]
    if missing:
        what = f"no weight for {_listed(list(dict.fromkeys(missing)))}: every arm of {split.rule} must be named"
        raise ChangeError(Refusal.INVALID, what, version=version)
    if any(weight < 0 for weight in named.values()):
        raise ChangeError(Refusal.INVALID, "a weight is negative", version=version)
    shares = dict(zip(named, normalise(list(named.values())), strict=True))
    lost = [pool for pool, weight in named.items() if weight and not shares[pool]]
    if lost:
        raise ChangeError(Refusal.INVALID, f"the share of {_listed(lost)} is less than 0.01 %", version=version)
    return shares


def _same(before: RuleOverlay | None, after: RuleOverlay | None) -> bool:
    if before is None or after is None:
        return before is after
    return replace(before, version=after.version) == after


def _names(rule: str) -> set[str]:
    """All ways to name a rule."""
    kind, namespace, route, name = rule.split("/", 3)
    heads = (route, f"{namespace}/{route}", f"{kind}/{namespace}/{route}")
    return {*heads, *(f"{head}/{name}" for head in heads)}


def _listed(names: list[str]) -> str:
    return ", ".join(names)
