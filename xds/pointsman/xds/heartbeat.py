"""Resources that live only as long as somebody confirms them (`Resource.ttl`): when to say "still there". Pure.

A client drops such a resource when its time is over, so the control plane confirms it three times as often. No resource
has a lifetime unless a `Lifetime` asks for it: a gateway must go on when its control plane is gone (design R13), and a
lifetime is the opposite of that.

How a confirmation looks was tried with Envoy 1.40:

- delta: name, version and TTL without a body. A client that let go of the resource before that refuses it ("type URL
  embedded in an individual Any does not match"); it is sent the whole resource then.
- SotW: resources with bodies, wrapped in `Resource`. Envoy takes a cluster response of nothing but bodiless heartbeats
  for an empty one and deletes every cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from pointsman.xds.resources import FULL_STATE, Resource, Resources, ResourceSet, with_ttl

BEATS_PER_TTL: Final = 3
"""Two confirmations may be lost or late before a resource is dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """Resources that a gateway is to drop `ttl_ms` after the control plane fell silent.

    `names` is a shell pattern. Only for clusters and listeners: of an assignment or a route configuration Envoy 1.40
    ignores the end in delta and dies of it in SotW (segmentation fault).
    """

    type_url: str
    ttl_ms: int
    names: str = "*"

    def __post_init__(self) -> None:
        if self.ttl_ms < 1:
            raise ValueError(f"a lifetime of {self.ttl_ms} ms")
        if self.type_url not in FULL_STATE:
            raise ValueError(f"only clusters and listeners can have a lifetime, not {self.type_url}")


@dataclass(slots=True, kw_only=True)
class Lifetimes:
    """Gives the resources of one gateway their lifetimes; the first rule that fits counts.

    What did not change stays the same object, as everywhere on the way from the Plan to a stream.
    """

    rules: Sequence[Lifetime] = ()
    _made: dict[str, tuple[ResourceSet, ResourceSet]] = field(default_factory=dict)

    def apply(self, resources: Resources) -> Resources:
        """The same resources, some of them mortal."""
        if not self.rules:
            return resources
        return {type_url: self._apply(type_url, members) for type_url, members in resources.items()}

    def _apply(self, type_url: str, members: ResourceSet) -> ResourceSet:
        rules = [rule for rule in self.rules if rule.type_url == type_url]
        if not rules:
            return members
        before = self._made.get(type_url)
        if before is not None and before[0] is members:
            return before[1]
        made = {name: _mortal(resource, rules) for name, resource in members.items()}
        self._made[type_url] = (members, made)
        return made


def _mortal(resource: Resource, rules: Iterable[Lifetime]) -> Resource:
    rule = next((rule for rule in rules if fnmatchcase(resource.name, rule.names)), None)
    return resource if rule is None else with_ttl(resource, rule.ttl_ms)


class Heartbeats:
    """When the mortal resources that one client has of one type were confirmed. Times are seconds of any clock."""

    __slots__ = ("_confirmed_s", "_next_s")

    def __init__(self) -> None:
        self._confirmed_s: dict[str, float] = {}
        self._next_s: dict[str, float] = {}

    def sent(self, resources: Iterable[Resource], now_s: float) -> None:
        """These are on their way, with or without a body."""
        for resource in resources:
            if resource.ttl_ms:
                self._confirmed_s[resource.name] = now_s
                self._next_s[resource.name] = now_s + _period_s(resource)
            elif resource.name in self._next_s:
                del self._confirmed_s[resource.name], self._next_s[resource.name]

    def found(self, resource: Resource, now_s: float) -> None:
        """The client says that it has this, since when it does not say: it is to be confirmed at once."""
        if resource.ttl_ms:
            self._confirmed_s[resource.name] = self._next_s[resource.name] = now_s

    def check(
        self, held: Mapping[str, Resource], on_its_way: Mapping[str, Resource], now_s: float
    ) -> tuple[set[str], set[str]]:
        """Names to confirm now, and names that were not confirmed in time: those are sent whole, because the client
        has dropped them."""
        due: set[str] = set()
        lost: set[str] = set()
        for name in list(self._next_s):
            resource = held.get(name)
            if name in on_its_way:
                continue  # the answer to it will tell
            if resource is None or not resource.ttl_ms:
                del self._confirmed_s[name], self._next_s[name]
            elif now_s - self._confirmed_s[name] >= resource.ttl_ms / 1000:
                lost.add(name)
                del self._confirmed_s[name], self._next_s[name]
            elif now_s >= self._next_s[name]:
                due.add(name)
                self._next_s[name] = now_s + _period_s(resource)
        return due, lost

    def refused(self, names: Iterable[str], now_s: float) -> None:
        """A response with these was refused, so what the client had of them was not confirmed: do that at once."""
        for name in names:
            if name in self._next_s:
                self._next_s[name] = now_s

    def next_s(self) -> float | None:
        """When `check` has something to say at the earliest."""
        return min(self._next_s.values(), default=None)


def _period_s(resource: Resource) -> float:
    return resource.ttl_ms / 1000 / BEATS_PER_TTL
