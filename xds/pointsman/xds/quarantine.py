"""What a gateway rejected, and how the culprit is found when it does not say.

Envoy rejects in two grades (seen with 1.40): a message that breaks a constraint is dropped whole, with the text of the
resource in the error; a resource that makes no sense is left out, its siblings are applied, and the error names it.
Either way the control plane hears one NACK for the whole response.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pointsman.xds.resources import LISTENER, Resource

MESSAGE_LIMIT: Final = 2_000
"""Characters kept of an error. Envoy puts the text of the resource into it (and cuts it after 4,096)."""

VERSIONS_KEPT: Final = 16
"""Rejected versions remembered per resource, so that content that flips back and forth is still not sent again."""

NAMES_KEPT: Final = 10_000
"""Rejected resources remembered per process: more than a gateway has, so that names that come and go fill no memory."""

RETRIES: Final = 20
RETRY_MAX_S: Final = 60.0
"""Tries after the first one, 1, 2, 4 … 60 s apart, 15 minutes in all: an old process on the port has ended its drain by
then (Envoy's takes 10 minutes), an address that is being moved has arrived."""

_SURROUNDINGS: Final = re.compile(r"cannot bind |Address already in use|Cannot assign requested address", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """One resource that a gateway refused, in its own words.

    `retries` counts how often it was sent again, `final` says that this will not happen any more.
    """

    type_url: str
    name: str
    version: str
    message: str
    retries: int = 0
    final: bool = True

    @property
    def key(self) -> tuple[str, str, str]:
        return self.type_url, self.name, self.version


class Quarantine:
    """Rejected content of one gateway process: (type, name, version) is not sent again.

    One refusal says nothing against the content: that an address can't be listened on *now*. Somebody else still has
    the port, or the address is on its way from another machine. Nobody would change the content because of that, so it
    is tried again, ever less often and not for ever (`RETRIES`). `releases` counts what was let out for it.
    """

    def __init__(self) -> None:
        self._by_name: dict[tuple[str, str], dict[str, Rejection]] = {}
        self._due_s: dict[tuple[str, str, str], float | None] = {}
        self._paroled: set[tuple[str, str, str]] = set()
        self.releases = 0

    def __contains__(self, resource: Resource) -> bool:
        found = self.of(resource)
        return found is not None and found.key not in self._paroled

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, resource: Resource, message: str) -> Rejection:
        """Note a rejection; the oldest of too many is forgotten."""
        before = self.of(resource)
        retries = before.retries + 1 if before is not None else 0
        passing = resource.type_url == LISTENER and _SURROUNDINGS.search(message) is not None
        final = not passing or retries >= RETRIES
        rejection = Rejection(
            type_url=resource.type_url,
            name=resource.name,
            version=resource.version,
            message=shorten(message, MESSAGE_LIMIT),
            retries=retries,
            final=final,
        )
        self._forget(rejection.key)
        versions = self._by_name.setdefault((resource.type_url, resource.name), {})
        versions[resource.version] = rejection
        if not final:
            self._due_s[rejection.key] = None
        if len(versions) > VERSIONS_KEPT:
            self._forget(next(iter(versions.values())).key)
        if len(self._by_name) > NAMES_KEPT:
            for oldest in list(next(iter(self._by_name.values())).values()):
                self._forget(oldest.key)
        return rejection

    def accepted(self, resources: Collection[Resource]) -> tuple[Rejection, ...]:
        """The client took these: forget what was out on a retry, and return it."""
        if not self._paroled:
            return ()
        fine = tuple(found for r in resources if (found := self.of(r)) is not None and found.key in self._paroled)
        for rejection in fine:
            self._forget(rejection.key)
        return fine

    def tick(self, now_s: float) -> float | None:
        """Let out what is to be tried again now; returns when the next one is due."""
        for key, due_s in list(self._due_s.items()):
            if due_s is None:
                rejection = self._by_name[key[0], key[1]][key[2]]
                self._due_s[key] = now_s + min(2.0**rejection.retries, RETRY_MAX_S)
            elif now_s >= due_s:
                del self._due_s[key]
                self._paroled.add(key)
                self.releases += 1
        return min((due_s for due_s in self._due_s.values() if due_s is not None), default=None)

    def _forget(self, key: tuple[str, str, str]) -> None:
        self._due_s.pop(key, None)
        self._paroled.discard(key)
        versions = self._by_name.get((key[0], key[1]), {})
        versions.pop(key[2], None)
        if not versions:
            self._by_name.pop((key[0], key[1]), None)

    def of(self, resource: Resource) -> Rejection | None:
        """The rejection of exactly this content."""
        return self._by_name.get((resource.type_url, resource.name), {}).get(resource.version)

    def current(self, wanted: Iterable[Resource]) -> list[Rejection]:
        """The rejections of what is wanted now."""
        return [found for resource in wanted if (found := self.of(resource)) is not None]

    def clear(self) -> None:
        """Forget everything: the gateway is a new process."""
        self._by_name.clear()
        self._due_s.clear()
        self._paroled.clear()
        self.releases += 1


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
