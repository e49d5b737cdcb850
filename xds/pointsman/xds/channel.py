"""One resource type on one stream: what the client holds, what is on its way, what comes next.

The client's state moves only when it acknowledges (design D10). One response per type is on its way at a time, so a
slow client holds up nobody and finds the newest state when it is back; nothing queues.

    IDLE ──next()──▶ IN FLIGHT ──ACK──▶ IDLE, known = what was sent
                        │
                        └────NACK─▶ IDLE, known as before; culprits in quarantine or the rest on probation
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Final, Protocol

from envoy.service.discovery.v3 import discovery_pb2

from pointsman.xds.heartbeat import Heartbeats
from pointsman.xds.quarantine import Probation, Quarantine, Rejection
from pointsman.xds.resources import Resource, ResourceSet
from pointsman.xds.subscription import Subscription, keep_wanted

ANYTHING: Final = (("*", "*"),)
"""References of a resource whose content we do not know: it may need anything."""


def unknown_content(type_url: str, name: str, version: str) -> Resource:
    """Stands for what a client says it holds and we have never seen."""
    return Resource(type_url, name, version, b"", ANYTHING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a client may be told of one type now.

    `resources` is the state to bring it to. `withheld` are names that exist but may not be sent yet (or are in
    quarantine): nothing is said about them, least of all that they do not exist. `desired` is where it ends when
    nothing is held back any more.
    """

    resources: ResourceSet
    desired: ResourceSet
    withheld: Set[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One response. `version` is SotW's version_info (empty for delta). `beats` are confirmed, without their bodies."""

    type_url: str
    nonce: str
    version: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...] = ()
    beats: tuple[Resource, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """A response that was not answered yet. `trial` is the part of it that the client has not accepted before.

    `renewal`: it only confirms what the client has.
    """

    reply: Reply
    generation: int
    sent: Mapping[str, Resource]
    trial: Mapping[str, Resource]
    renewal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """A response was accepted; `forgiven` was refused before and is fine now."""

    reply: Reply
    forgiven: tuple[Rejection, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Nacked:
    """A response was refused; `rejections` is empty while the culprit is still being looked for, `hunting` says that
    this had begun before."""

    reply: Reply
    message: str
    rejections: tuple[Rejection, ...]
    hunting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """A request that answers an older response than the last one."""

    type_url: str
    nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsupported:
    """A request asked for names of a kind that is not served here; they do not exist."""

    type_url: str
    names: tuple[str, ...]


Note = Acked | Nacked | Stale | Unsupported
"""What the shell may want to log or count."""


Request = discovery_pb2.DiscoveryRequest | discovery_pb2.DeltaDiscoveryRequest


class Nonces(Protocol):
    """Gives the next nonce of a stream: a decimal number that counts up."""

    def __call__(self) -> str: ...


@dataclass(slots=True, kw_only=True)
class Channel:
    """State that SotW and delta share.

    `known` is what the client acknowledged; `generations` says with which snapshot the acknowledged version was sent,
    `sent_with` the number of the last response with that name. `forced` are names to send although nothing changed.
    `uncertain` are names that were in a refused response: the client may or may not have applied them, whatever it
    acknowledged before, so they are sent until they are acknowledged. It outlives the stream. `suspected` is what the
    client held on an earlier stream and may still be using.

    `beats` are names to confirm without a body, `renewing` those to confirm with one: all of them once `whole` is set.
    `now_s` is the time of the last `tick`.
    """

    type_url: str
    quarantine: Quarantine
    nonces: Nonces
    subscription: Subscription = field(default_factory=Subscription)
    known: dict[str, Resource] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    in_flight: InFlight | None = None
    probation: Probation = field(default_factory=Probation)
    forced: set[str] = field(default_factory=set)
    uncertain: set[str] = field(default_factory=set)
    suspected: dict[str, Resource] = field(default_factory=dict)
    owes_answer: bool = False
    last_nonce: str = ""
    sent_with: dict[str, int] = field(default_factory=dict)
    acked_version: str = ""
    heartbeats: Heartbeats = field(default_factory=Heartbeats)
    beats: set[str] = field(default_factory=set)
    renewing: set[str] = field(default_factory=set)
    whole: bool = False
    now_s: float = 0.0

    def firm(self, name: str) -> bool:
        """Whether the client has `name` now and nothing on its way takes it away."""
        return name in self.known and (self.in_flight is None or name not in self.in_flight.reply.removed)

    def held(self) -> list[Resource]:
        """Everything the client may be using: acknowledged, sent and not answered, or left from before."""
        found = [*self.known.values(), *self.suspected.values()]
        if self.in_flight is not None:
            found += self.in_flight.trial.values()
        return found

    def learn(self, resources: ResourceSet) -> None:
        """Put the content in where only a version was known, now that it has been seen."""
        for name, held in self.known.items():
            seen = resources.get(name) if not held.body else None
            if seen is not None and seen.version == held.version:
                self.known[name] = seen
                self.heartbeats.found(seen, self.now_s)

    def tick(self, now_s: float) -> float | None:
        """Time has passed: note what is to be confirmed; returns when the next of it is due, None if the answer to the
        response on its way must come first."""
        self.now_s = now_s
        due, lost = self.heartbeats.check(self.known, self.in_flight.sent if self.in_flight else {}, now_s)
        self.renewing |= lost
        (self.renewing if self.whole else self.beats).update(due)
        return None if self.in_flight is not None else self.heartbeats.next_s()

    def take_beats(self) -> tuple[Resource, ...]:
        """What is to be confirmed without a body now."""
        found = tuple(self.known[name] for name in sorted(self.beats - self.renewing) if name in self.known)
        self.beats.clear()
        return found

    def refresh(self, name: str, since: int) -> None:
        """Send `name` again although the client has it, unless that was done after response number `since`.

        What depends on it starts anew then and waits for it (a changed cluster warms with its endpoints).
        """
        present = name in self.known or (self.in_flight is not None and name in self.in_flight.sent)
        if present and self.sent_with.get(name, 0) < since:
            self.forced.add(name)

    def changed(self, wanted: ResourceSet) -> dict[str, Resource]:
        """The wanted resources whose content the client has not acknowledged, or that must be sent again.

        Content that was never seen here can't be sent; it is only wanted where the client has it already.
        """
        known = self.known
        forced = self.forced | self.uncertain | self.renewing
        return {
            name: resource
            for name, resource in wanted.items()
            if resource.body
            and (name in forced or (held := known.get(name)) is None or held.version != resource.version)
        }

    def unsubscribed(self) -> None:
        """Forget what the client does not want any more."""
        self.known = keep_wanted(self.known, self.subscription)
        self.suspected = keep_wanted(self.suspected, self.subscription)
        self.generations = {name: g for name, g in self.generations.items() if name in self.known}
        self.sent_with = {name: number for name, number in self.sent_with.items() if self.subscription.wants(name)}
        self.forced = {name for name in self.forced if self.subscription.wants(name)}
        self.renewing &= self.known.keys()

    def send(self, reply: Reply, trial: Mapping[str, Resource], generation: int) -> Reply:
        """Note that `reply` is on its way."""
        sent = {resource.name: resource for resource in reply.resources}
        renewal = bool(reply.beats) or (bool(trial) and not reply.removed and trial.keys() <= self.renewing)
        self.in_flight = InFlight(reply=reply, generation=generation, sent=sent, trial=trial, renewal=renewal)
        self.heartbeats.sent((*reply.resources, *reply.beats), self.now_s)
        self.renewing.difference_update(sent, reply.removed)
        self.forced.difference_update(sent)
        self.forced.difference_update(reply.removed)
        self.sent_with.update(dict.fromkeys(sent, int(reply.nonce)))
        self.owes_answer = self.owes_answer and bool(reply.beats)
        self.last_nonce = reply.nonce
        return reply

    def acknowledge(self, known: dict[str, Resource]) -> Acked:
        """The response on its way was accepted; `known` is what the client holds now."""
        flight = self.in_flight
        if flight is None:
            raise ValueError("nothing is on its way")
        for name in flight.sent:
            self.generations[name] = flight.generation
        self.uncertain.difference_update(flight.sent, flight.reply.removed)
        self.suspected = {name: resource for name, resource in self.suspected.items() if name not in known}
        self.known = known
        self.acked_version = flight.reply.version
        self.in_flight = None
        if flight.trial:
            self.probation.accepted()
        self.unsubscribed()
        return Acked(reply=flight.reply, forgiven=self.quarantine.accepted(flight.sent.values()))

    def refuse(self, message: str) -> Nacked:
        """The response on its way was refused: the client holds what it held before."""
        flight = self.in_flight
        if flight is None:
            raise ValueError("nothing is on its way")
        self.in_flight = None
        if flight.reply.beats:
            # It let go of something before the confirmation came, or does not know confirmations.
            self.whole = True
            self.renewing.update(resource.name for resource in flight.reply.beats)
            return Nacked(reply=flight.reply, message=message, rejections=())
        self.heartbeats.refused(flight.sent, self.now_s)
        hunting = bool(self.probation)
        fresh = {name: resource for name, resource in flight.trial.items() if resource not in self.quarantine}
        culprits = self.probation.rejected(fresh, message) if fresh else []
        rejections = tuple(self.quarantine.add(resource, message) for resource in culprits)
        self.uncertain.update(flight.trial.keys() - {resource.name for resource in culprits}, flight.reply.removed)
        self.unsubscribed()
        return Nacked(reply=flight.reply, message=message, rejections=rejections, hunting=hunting)
