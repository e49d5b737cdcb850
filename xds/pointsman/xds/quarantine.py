"""What a gateway rejected, and how the culprit is found when it does not say.

Envoy rejects in two grades (seen with 1.40): a message that breaks a constraint is dropped whole, with the text of the
resource in the error; a resource that makes no sense is left out, its siblings are applied, and the error names it.
Either way the control plane hears one NACK for the whole response.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pointsman.xds.resources import Resource

MESSAGE_LIMIT: Final = 2_000
"""Characters kept of an error. Envoy puts the text of the resource into it (and cuts it after 4,096)."""

VERSIONS_KEPT: Final = 16
"""Rejected versions remembered per resource, so that content that flips back and forth is still not sent again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """One resource that a gateway refused, in its own words."""

    type_url: str
    name: str
    version: str
    message: str


class Quarantine:
    """Rejected content of one gateway process: (type, name, version) is never sent again."""

    def __init__(self) -> None:
        self._by_name: dict[tuple[str, str], dict[str, Rejection]] = {}

    def __contains__(self, resource: Resource) -> bool:
        return resource.version in self._by_name.get((resource.type_url, resource.name), ())

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, resource: Resource, message: str) -> Rejection:
        """Note a rejection; the oldest of too many versions is forgotten."""
        rejection = Rejection(
            type_url=resource.type_url,
            name=resource.name,
            version=resource.version,
            message=shorten(message, MESSAGE_LIMIT),
        )
        versions = self._by_name.setdefault((resource.type_url, resource.name), {})
        versions[resource.version] = rejection
        if len(versions) > VERSIONS_KEPT:
            del versions[next(iter(versions))]
        return rejection

    def of(self, resource: Resource) -> Rejection | None:
        """The rejection of exactly this content."""
        return self._by_name.get((resource.type_url, resource.name), {}).get(resource.version)

    def current(self, wanted: Iterable[Resource]) -> list[Rejection]:
        """The rejections of what is wanted now."""
        return [found for resource in wanted if (found := self.of(resource)) is not None]

    def clear(self) -> None:
        """Forget everything: the gateway is a new process."""
        self._by_name.clear()


def shorten(message: str, limit: int) -> str:
    """At most `limit` characters, more of the end than of the beginning: Envoy writes the resource first and what is
    wrong with it last."""
    if len(message) <= limit:
        return message
    head = limit // 4
    return f"{message[:head]} … {message[head + 3 - limit :]}"


def named_in(message: str, candidates: Iterable[str]) -> list[str]:
    """The candidates whose name stands in the message as a word of its own, sorted."""
    return [name for name in sorted(candidates) if re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w/-]|\.\w)", message)]


class Probation:
    """Content under suspicion, in groups that are tried one after the other (bisection).

    A group that is accepted leaves; a group that is rejected is split; a group of one that is rejected is the culprit.
    """

    def __init__(self) -> None:
        self._groups: list[tuple[tuple[str, str], ...]] = []

    def __bool__(self) -> bool:
        return bool(self._groups)

    def next_trial(self, changed: Mapping[str, Resource]) -> Mapping[str, Resource]:
        """The part of `changed` that may be sent now: all of it, or the first group that still is of interest."""
        while self._groups:
            group = {
                name: changed[name]
                for name, version in self._groups[0]
                if name in changed and changed[name].version == version
            }
            if group:
                return group
            self._groups.pop(0)
        return changed

    def accepted(self) -> None:
        """The last trial was fine."""
        if self._groups:
            self._groups.pop(0)

    def rejected(self, trial: Mapping[str, Resource], message: str) -> list[Resource]:
        """The last trial was not: returns the culprits if they are known, else splits the trial in two."""
        if self._groups:
            self._groups.pop(0)
        culprits = named_in(message, trial) or (list(trial) if len(trial) == 1 else [])
        if culprits:
            return [trial[name] for name in culprits]
        names = [(name, trial[name].version) for name in sorted(trial)]
        middle = len(names) // 2
        self._groups[:0] = [tuple(half) for half in (names[:middle], names[middle:]) if half]
        return []
