"""What one client wants of one resource type: names, or everything.

The rules are those of the xDS protocol ("How the client specifies what resources to return" and "Unsubscribing From
Resources"):

- `*` subscribes to everything, next to any names.
- A client that has never named anything on this stream and sends no names wants everything, too (the legacy form).
  SotW: it ends with the first request that names something. Delta: it counts as `*` until that is unsubscribed.
- SotW requests list everything that is wanted, delta requests list changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pointsman.xds.resources import Resource, ResourceSet

WILDCARD: Final = "*"


class Subscription:
    """The names a client asked for, and whether it asked for all."""

    __slots__ = ("_named_once", "_started", "names", "wildcard")

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.wildcard = False
        self._started = False
        self._named_once = False

    def wants(self, name: str) -> bool:
        """Whether a resource of that name is to be sent."""
        return self.wildcard or name in self.names

    def select(self, resources: ResourceSet) -> ResourceSet:
        """The part of `resources` that is wanted, in their order."""
        if self.wildcard:
            return resources
        if len(self.names) < len(resources):
            return {name: resources[name] for name in sorted(self.names) if name in resources}
        return {name: resource for name, resource in resources.items() if name in self.names}

    def replace(self, names: Iterable[str]) -> set[str]:
        """A SotW request's list; returns the names that were not wanted by name before."""
        wanted = set(names)
        if wanted:
            self._named_once = True
        explicit = wanted - {WILDCARD}
        added = explicit - self.names
        self.names = explicit
        self.wildcard = WILDCARD in wanted or (not wanted and not self._named_once)
        self._started = True
        return added

    def change(self, subscribe: Iterable[str], unsubscribe: Iterable[str]) -> tuple[set[str], set[str]]:
        """A delta request's changes; returns what is to be answered in any case: asked for (again), and given up.

        A name that is given up while the wildcard stays is returned as asked for: the client dropped it and must hear
        whether it still gets it.
        """
        added, dropped = set(subscribe), set(unsubscribe)
        if not self._started and not added:
            added = {WILDCARD}
        self._started = True
        if WILDCARD in added:
            self.wildcard = True
        if WILDCARD in dropped:
            self.wildcard = False
        asked = added - {WILDCARD}
        given_up = (dropped & self.names) - asked
        self.names |= asked
        self.names -= given_up
        if self.wildcard:
            return asked | given_up, set()
        return asked, given_up


def keep_wanted(known: dict[str, Resource], subscription: Subscription) -> dict[str, Resource]:
    """`known` without what is not wanted any more: a client forgets what it unsubscribes from."""
    if subscription.wildcard:
        return known
    return {name: resource for name, resource in known.items() if name in subscription.names}
