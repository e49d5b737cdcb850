"""One stream of one client: the types on it, in order, with what the client rejected kept out.

Pure: requests, snapshots and the passing of time come in as calls, responses are fetched with `next` when there is room
to send one. The state that outlives a stream (what the client process holds, what it rejected) is its `Memory`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Final

from envoy.service.discovery.v3 import discovery_pb2

from pointsman.core.errors import PeerError
from pointsman.xds.channel import Acked, Channel, Note, Reply, Request, Unsupported
from pointsman.xds.delta import DeltaChannel, encode_delta
from pointsman.xds.linger import LINGER_S, Linger
from pointsman.xds.memory import Memory
from pointsman.xds.names import ForeignNames
from pointsman.xds.order import View, Waiting, target, unused
from pointsman.xds.quarantine import Rejection
from pointsman.xds.resources import (
    CLUSTER,
    EMPTY,
    ENDPOINT,
    LISTENER,
    PUSH_ORDER,
    ROUTE,
    Resource,
    Resources,
    ResourceSet,
)
from pointsman.xds.sotw import SotwChannel, encode_sotw

TYPES_PER_STREAM: Final = 32
"""More types than xDS has; a client that asks for more is broken."""

NAMES_PER_TYPE: Final = 100_000
"""Ten times the largest fleet that we plan for; a client that asks for more only fills our memory."""

CHILDREN: Final = {CLUSTER: ENDPOINT, LISTENER: ROUTE}
"""A changed parent starts anew and waits for its child, changed or not."""

PARENTS: Final = {child: parent for parent, child in CHILDREN.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a gateway is to have. `generation` counts up with every change."""

    generation: int = 0
    resources: Resources = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeState:
    """How far a client is with one type, for status.

    `version` is the acknowledged SotW version; `pending` are names that it does not have yet as desired.
    """

    type_url: str
    version: str
    acked: Mapping[str, str]
    pending: tuple[str, ...]
    in_flight: bool


class Session:
    """The stream's state machine. `delta` selects the protocol; unused clusters stay for `linger_s`."""

    def __init__(self, memory: Memory, snapshot: Snapshot, *, delta: bool, linger_s: float = LINGER_S) -> None:
        self.delta = delta
        self._memory = memory
        self._snapshot = snapshot
        self._channels: dict[str, Channel] = {}
        self._protocols: dict[str, SotwChannel | DeltaChannel] = {}
        self._order: list[str] = []
        self._dirty: set[str] = set()
        self._since: dict[tuple[str, str], int] = {}
        self._warming: set[str] = set()  # acknowledged, and nothing may use them yet
        self._probing: set[str] = set()  # those of them that have their endpoints
        self._patient = True
        self._resumed = False
        self._nonce = 0
        self._now_s = 0.0
        self._releases = memory.quarantine.releases
        self._waiting: dict[str, list[Waiting]] = {}
        self._linger = Linger(linger_s)
        self.foreign = ForeignNames()

    # events

    def receive(self, request: Request) -> list[Note]:
        """Take a request.

        Raises:
            PeerError: the stream can't go on; the shell ends it.
        """
        type_url = request.type_url
        protocol = self._protocols.get(type_url)
        if protocol is None:
            protocol = self._open(type_url, request)
        channel = self._channels[type_url]
        before = channel.known  # an ACK replaces it
        note = protocol.receive(request)
        if len(channel.subscription.names) > NAMES_PER_TYPE:
            raise PeerError(f"more than {NAMES_PER_TYPE} names of one type")
        self._dirty.add(type_url)
        self._memory.held[type_url] = channel.known
        foreign = self.foreign.note(request)
        notes: list[Note] = [Unsupported(type_url=type_url, names=foreign)] if foreign else []
        if note is None:
            return notes
        if isinstance(note, Acked):
            self._accepted(channel, before, int(note.reply.nonce))
        self._dirty.update(self._channels)
        return [note, *notes]

    def tick(self, now_s: float) -> float | None:
        """Time has passed (seconds of any clock that does not go back): what has a lifetime is confirmed, what was
        refused for a reason that may pass is tried again, what was kept for a while leaves. Returns when there is more
        to do, None for never."""
        self._now_s = now_s
        due_s = [self._memory.quarantine.tick(now_s)]
        if self._releases != self._memory.quarantine.releases:
            self._releases = self._memory.quarantine.releases
            self._dirty.update(self._channels)
        for type_url, channel in self._channels.items():
            due_s.append(channel.tick(now_s))
            if channel.beats or channel.renewing:
                self._dirty.add(type_url)
        ends_s = self._linger.next_s()
        if (CLUSTER in self._dirty or (ends_s is not None and ends_s <= now_s)) and self._linger.check(
            unused(self._view()), now_s
        ):
            self._dirty.update(self._channels)
        due_s.append(self._linger.next_s())
        return min((at_s for at_s in due_s if at_s is not None), default=None)

    def publish(self, snapshot: Snapshot) -> None:
        """A new desired state replaces the old one; nothing in between is ever sent."""
        old = self._snapshot.resources
        self._snapshot = snapshot
        self._patient = True
        for type_url in set(old) | set(snapshot.resources):
            before, after = old.get(type_url, EMPTY), snapshot.resources.get(type_url, EMPTY)
            if before is after:
                continue
            self._dirty.update(self._channels)
            if type_url in self._channels:
                self._channels[type_url].learn(after)
            if type_url in {LISTENER, ROUTE}:
                self._date(type_url, before, after)

    def take_warming(self) -> frozenset[str]:
        """New clusters whose endpoints were acknowledged since the last call: they begin to probe them now."""
        started = frozenset(
            name
            for name in self._warming - self._probing
            if self._acknowledged(ENDPOINT, self._channels[CLUSTER].known[name])
        )
        self._probing |= started
        return started

    def warmed(self, clusters: Set[str]) -> None:
        """These clusters had the time they need to probe their endpoints."""
        self._warming -= clusters
        self._probing -= clusters
        self._dirty.update(self._channels)

    def expire(self) -> None:
        """Waiting took too long: send what waits as long as its clusters exist."""
        self._patient = False
        self._warming.clear()
        self._probing.clear()
        self._dirty.update(self._channels)

    def next(self) -> Reply | None:
        """The next response to send, None while there is nothing to say."""
        for type_url in self._order:
            if type_url not in self._dirty:
                continue
            found, waiting = target(self._view(), type_url)
            self._waiting[type_url] = waiting
            reply = self._protocols[type_url].respond(found, self._snapshot.generation)
            self._memory.held[type_url] = self._channels[type_url].known
            if reply is not None:
                return reply
            self._dirty.discard(type_url)
        return None

    def encode(self, reply: Reply, identifier: str) -> bytes:
        """The serialised response; `identifier` names this control plane."""
        return encode_delta(reply, identifier) if self.delta else encode_sotw(reply, identifier)

    # state, for the shell and for status

    @property
    def generation(self) -> int:
        """Generation of the snapshot this stream is being brought to."""
        return self._snapshot.generation

    @property
    def channels(self) -> Mapping[str, Channel]:
        """The types on this stream, for reading only."""
        return self._channels

    @property
    def desired(self) -> Resources:
        """What the client is to have in the end."""
        return self._snapshot.resources

    @property
    def patient(self) -> bool:
        """Whether what waits still waits for every ACK (see `expire`)."""
        return self._patient

    @property
    def waiting(self) -> list[Waiting]:
        """What is held back for now, and why."""
        return [entry for entries in self._waiting.values() for entry in entries if not self._arrived(entry)]

    def rejections(self) -> list[Rejection]:
        """What the client rejected of the present snapshot."""
        quarantine = self._memory.quarantine
        if not quarantine:
            return []
        return quarantine.current(r for resources in self._snapshot.resources.values() for r in resources.values())

    def types(self) -> list[TypeState]:
        """State per type, in push order."""
        return [self._type_state(type_url) for type_url in self._order]

    def settled(self) -> bool:
        """Whether the client has acknowledged all it is to have, apart from what it rejected.

        A client that takes everything (Envoy) is only settled once it asked for the routes and endpoints, too.
        """
        if any(channel.in_flight and not channel.in_flight.renewal for channel in self._channels.values()):
            return False
        clusters, listeners = self._channels.get(CLUSTER), self._channels.get(LISTENER)
        whole = bool(clusters and clusters.subscription.wildcard and listeners and listeners.subscription.wildcard)
        if whole and any(t not in self._channels and self._expected(t) for t in PARENTS):
            return False
        return bool(self._channels) and not any(self._open_ends(channel) for channel in self._channels.values())

    # inside

    def _open(self, type_url: str, request: Request) -> SotwChannel | DeltaChannel:
        if not type_url:
            raise PeerError("a request without a type URL on an aggregated stream")
        if len(self._channels) >= TYPES_PER_STREAM:
            raise PeerError(f"more than {TYPES_PER_STREAM} resource types on one stream")
        channel = Channel(
            type_url=type_url,
            quarantine=self._memory.quarantine,
            nonces=self._next_nonce,
            uncertain=self._memory.uncertain.setdefault(type_url, set()),
            now_s=self._now_s,
        )
        held = self._memory.held.get(type_url)
        if isinstance(request, discovery_pb2.DeltaDiscoveryRequest):
            if len(request.initial_resource_versions) > NAMES_PER_TYPE:
                raise PeerError(f"more than {NAMES_PER_TYPE} resources of one type")
            fresh = not request.initial_resource_versions
            protocol: SotwChannel | DeltaChannel = DeltaChannel(
                channel, lambda name, version: self._find(type_url, name, version)
            )
        else:
            fresh = not request.version_info
            parent = self._channels.get(PARENTS.get(type_url, ""))
            protocol = SotwChannel(channel, held, resume=parent is None or not parent.last_nonce)
        self._resumed |= not fresh
        if fresh and held and not self._channels:
            # It acknowledged something before and has nothing now: a new process, with another judgement perhaps.
            self._memory.quarantine.clear()
            self._memory.held.clear()
        if type_url == LISTENER:
            # Envoy asks for listeners when its first clusters are warm.
            self._warming.clear()
            self._probing.clear()
        self._channels[type_url] = channel
        self._protocols[type_url] = protocol
        known_order = {known: i for i, known in enumerate(PUSH_ORDER)}
        self._dirty.update(self._channels)
        self._order = sorted(self._channels, key=lambda t: (known_order.get(t, len(known_order)), t))
        return protocol

    def _arrived(self, entry: Waiting) -> bool:
        """Whether a client that was thought to wait for something turned out to have it."""
        held = self._channels[entry.type_url].known.get(entry.name)
        wanted = self._snapshot.resources.get(entry.type_url, EMPTY).get(entry.name)
        return held is not None and wanted is not None and held.version == wanted.version

    def _acknowledged(self, type_url: str, user: Resource) -> bool:
        """Whether the client has everything of a type that `user` refers to."""
        channel = self._channels.get(type_url)
        return channel is not None and all(n in channel.known for kind, n in user.references if kind == type_url)

    def _accepted(self, channel: Channel, before: Mapping[str, Resource], nonce: int) -> None:
        """Note what an ACK changed: new clusters warm, changed parents want their children again."""
        if channel.type_url == CLUSTER:
            self._warming &= channel.known.keys()
            self._probing &= self._warming
        child = self._channels.get(CHILDREN.get(channel.type_url, ""))
        for name, resource in channel.known.items():
            held = before.get(name)
            if held is not None and held.version == resource.version:
                continue
            below = [ref for kind, ref in resource.references if kind == CHILDREN.get(channel.type_url)]
            if child is not None:
                for ref in below:
                    child.refresh(ref, nonce)
            if held is None and channel.type_url == CLUSTER and below and LISTENER in self._channels:
                self._warming.add(name)

    def _date(self, type_url: str, before: ResourceSet, after: ResourceSet) -> None:
        """Note which resources of a type are new with this generation."""
        for name in before.keys() - after.keys():
            self._since.pop((type_url, name), None)
        for name, resource in after.items():
            held = before.get(name)
            if held is None or held.version != resource.version:
                self._since[type_url, name] = self._snapshot.generation

    def _next_nonce(self) -> str:
        self._nonce += 1
        return str(self._nonce)

    def _find(self, type_url: str, name: str, version: str) -> Resource | None:
        wanted = self._snapshot.resources.get(type_url, EMPTY).get(name)
        if wanted is not None and wanted.version == version:
            return wanted
        return self._memory.find(type_url, name, version)

    def _usable(self) -> dict[str, ResourceSet]:
        return self._without_rejected()[0]

    def _without_rejected(self) -> tuple[dict[str, ResourceSet], dict[str, Set[str]]]:
        """The desired state with the last good version of what was rejected, and the names that have none."""
        quarantine = self._memory.quarantine
        if not quarantine:
            return dict(self._snapshot.resources), {}
        usable: dict[str, ResourceSet] = {}
        withheld: dict[str, Set[str]] = {}
        for type_url, resources in self._snapshot.resources.items():
            rejected = [name for name, resource in resources.items() if resource in quarantine]
            if not rejected:
                usable[type_url] = resources
                continue
            known = self._channels[type_url].known if type_url in self._channels else {}
            good = dict(resources)
            for name in rejected:
                if name in known:
                    good[name] = known[name]
                else:
                    del good[name]
            usable[type_url] = good
            withheld[type_url] = {name for name in rejected if name not in known}
        return usable, withheld

    def _view(self) -> View:
        usable, withheld = self._without_rejected()
        return View(
            desired=usable,
            withheld=withheld,
            channels=self._channels,
            since=self._since,
            warming=self._warming,
            patient=self._patient,
            resumed=self._resumed,
            lingering=self._linger.names,
        )

    def _expected(self, type_url: str) -> set[str]:
        """Names of a type that the client's own resources refer to: it will ask for them if it has not yet."""
        parent = self._channels.get(PARENTS.get(type_url, ""))
        if parent is None or not parent.subscription.wildcard:
            return set()
        return {name for held in parent.known.values() for kind, name in held.references if kind == type_url}

    def _open_ends(self, channel: Channel) -> bool:
        """Whether something of a type is still to be sent."""
        usable = self._usable().get(channel.type_url, EMPTY)
        expected = self._expected(channel.type_url)
        wanted = dict(channel.subscription.select(usable)) | {n: usable[n] for n in expected if n in usable}
        if channel.changed(wanted):
            return True
        # What a last good version still needs stays, and that is as it should be.
        return bool(channel.known.keys() - target(self._view(), channel.type_url)[0].resources.keys() - wanted.keys())

    def _type_state(self, type_url: str) -> TypeState:
        channel = self._channels[type_url]
        wanted = channel.subscription.select(self._snapshot.resources.get(type_url, EMPTY))
        return TypeState(
            type_url=type_url,
            version=channel.acked_version,
            acked={name: resource.version for name, resource in channel.known.items()},
            pending=tuple(channel.changed(wanted)),
            in_flight=channel.in_flight is not None,
        )
