"""What pickers know of each other's load, as a state that converges whatever the network does to the updates.

Each picker alone writes its own registers, one for each endpoint, and numbers its updates; a register keeps the value
with the highest number. So updates may come late, twice, in any order and by any way, and all who got them agree. Lost
ones are healed by the next update that is `whole`. A new life of a picker (a larger epoch) voids the one before, and a
picker that is not heard for `TTL_S` counts as gone until it is heard again. Pure: no sockets, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pointsman.extproc.feedback import Feedback
from pointsman.extproc.prefix import BLOCK_BYTES
from pointsman.picker.v1 import gossip_pb2 as pb

TTL_S = 3.0
"""Silence after which a picker's load vanishes: thirty updates missed. Its requests live on for a while, but without
the picker nobody can tell for how long."""

WHOLE_EVERY = 10
"""Each tenth update is whole, once a second: what was lost is wrong for no longer than a scrape is trusted."""

MAX_PICKERS = 256
"""Pickers that are remembered, the latest heard of: gateways of a fleet come and go for years."""

MAX_WAITING = 10_000
"""Prefixes and outcomes that wait for the next update; past it the oldest are dropped. A tenth of a second at ten times
the rate that a picker can make."""


class EndpointLoad(NamedTuple):
    """Requests in flight at an endpoint and what they are expected to cost; tokens of their prompts."""

    requests: int = 0
    backlog_us: int = 0
    pending_tokens: int = 0
    context_tokens: int = 0
    fresh_kv_tokens: int = 0

    def plus(self, other: EndpointLoad) -> EndpointLoad:
        return EndpointLoad(*(a + b for a, b in zip(self, other, strict=True)))


IDLE = EndpointLoad()

Loads = Mapping[str, EndpointLoad]
Placed = tuple[str, Sequence[int]]


@dataclass(slots=True, kw_only=True)
class Outbox:
    """What a picker has to tell with its next update, besides loads."""

    prefixes: list[Placed] = field(default_factory=list)
    outcomes: list[Feedback] = field(default_factory=list)

    def placed(self, endpoint: str, blocks: Sequence[int]) -> None:
        """A prompt of these blocks goes to `endpoint`."""
        if blocks:
            self.prefixes.append((endpoint, blocks))
            del self.prefixes[:-MAX_WAITING]

    def outcome(self, entry: Feedback) -> None:
        """An access log entry about a pick that is not ours."""
        self.outcomes.append(entry)
        del self.outcomes[:-MAX_WAITING]

    def take(self) -> tuple[list[Placed], list[Feedback]]:
        """All of it; the box is empty then."""
        taken = self.prefixes, self.outcomes
        self.prefixes, self.outcomes = [], []
        return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What an update brought. `news`: it was the latest of its picker, so it is worth passing on."""

    news: bool = False
    prefixes: tuple[Placed, ...] = ()
    outcomes: tuple[Feedback, ...] = ()


NOTHING = Received()


@dataclass(slots=True)
class _Peer:
    epoch: int
    heard_at_s: float
    version: int = 0
    floor: int = 0  # version of the latest whole update: registers below it are void
    registers: dict[str, tuple[int, EndpointLoad]] = field(default_factory=dict)

    def merge(self, update: pb.Update) -> None:
        if update.whole and update.version > self.floor:
            self.floor = update.version
            self.registers = {k: r for k, r in self.registers.items() if r[0] > self.floor}
        if update.version < self.floor:
            return
        for load in update.loads:
            old = self.registers.get(load.endpoint)
            if old is None or old[0] < update.version:
                self.registers[load.endpoint] = (update.version, _load(load))


class GossipState:
    """The registers of all pickers. `epoch` is the start of this one's process."""

    def __init__(self, picker: str, epoch: int, *, ttl_s: float = TTL_S) -> None:
        self.picker = picker
        self._epoch = epoch
        self._ttl_s = ttl_s
        self._version = 0
        self._own: dict[str, EndpointLoad] = {}
        self._peers: dict[str, _Peer] = {}  # latest heard of last

    def update(self, loads: Loads, outbox: Outbox | None = None) -> pb.Update:
        """Our next update. `loads` are all endpoints with load; those that are missing have none."""
        self._version += 1
        whole = self._version % WHOLE_EVERY == 1
        now = {endpoint: load for endpoint, load in loads.items() if load != IDLE}
        if whole:
            changed: Loads = now
        else:
            changed = {k: load for k, load in now.items() if self._own.get(k) != load}
            changed |= {k: IDLE for k in self._own if k not in now}
        self._own = now
        update = self._message(self.picker, self._epoch, self._version, whole, changed)
        if outbox is not None:
            prefixes, outcomes = outbox.take()
            update.block_bytes = BLOCK_BYTES
            update.prefixes.extend(pb.Prefix(endpoint=endpoint, blocks=blocks) for endpoint, blocks in prefixes)
            update.outcomes.extend(_outcome_message(entry) for entry in outcomes)
        return update

    def receive(self, update: pb.Update, now_s: float) -> Received:
        """Take in an update of any picker, by whatever way it came. Our own and those of former lives say nothing."""
        if not update.picker or update.picker == self.picker or not update.version:
            return NOTHING
        peer = self._peers.get(update.picker)
        if peer is not None and update.epoch < peer.epoch:
            return NOTHING
        if peer is None or update.epoch > peer.epoch:
            peer = _Peer(update.epoch, now_s)
            self._peers[update.picker] = peer
        peer.merge(update)
        news = update.version > peer.version
        if news:
            peer.version, peer.heard_at_s = update.version, now_s
            self._peers[update.picker] = self._peers.pop(update.picker)
            while len(self._peers) > MAX_PICKERS:
                del self._peers[next(iter(self._peers))]
        same_blocks = update.block_bytes == BLOCK_BYTES
        return Received(
            news=news,
            prefixes=tuple((p.endpoint, tuple(p.blocks)) for p in update.prefixes) if same_blocks else (),
            outcomes=tuple(_outcome(outcome) for outcome in update.outcomes),
        )

    def live(self, now_s: float) -> tuple[str, ...]:
        """Names of the other pickers that were heard within the last `ttl_s`."""
        return tuple(sorted(name for name, peer in self._peers.items() if now_s - peer.heard_at_s < self._ttl_s))

    def others(self, now_s: float) -> dict[str, EndpointLoad]:
        """The load of all other live pickers together, by endpoint."""
        total: dict[str, EndpointLoad] = {}
        for name in self.live(now_s):
            for endpoint, (_, load) in self._peers[name].registers.items():
                if load != IDLE:
                    total[endpoint] = load.plus(total.get(endpoint, IDLE))
        return total

    def gone(self, picker: str) -> None:
        """A picker is known to have ended: its load counts no more. It comes back with its next life."""
        peer = self._peers.get(picker)
        if peer is not None:
            peer.heard_at_s = float("-inf")

    def everything(self, now_s: float) -> list[pb.Update]:
        """What a new neighbour should know: the state of us and of each live picker, under its latest version."""
        told = [self._message(self.picker, self._epoch, self._version, True, self._own)] if self._version else []
        for name in self.live(now_s):
            peer = self._peers[name]
            # Each register under its own number: what we have missed must not look newer than it is.
            for version in sorted({peer.floor, peer.version, *(number for number, _ in peer.registers.values())} - {0}):
                loads = {endpoint: load for endpoint, (number, load) in peer.registers.items() if number == version}
                told.append(self._message(name, peer.epoch, version, version == peer.floor, loads))
        return told

    def _message(self, picker: str, epoch: int, version: int, whole: bool, loads: Loads) -> pb.Update:
        return pb.Update(picker=picker, epoch=epoch, version=version, whole=whole, loads=_load_messages(loads))


def _load_messages(loads: Loads) -> Iterable[pb.Load]:
    return (pb.Load(endpoint=endpoint, **load._asdict()) for endpoint, load in loads.items())


def _load(message: pb.Load) -> EndpointLoad:
    return EndpointLoad(*(getattr(message, name) for name in EndpointLoad._fields))


def _outcome_message(entry: Feedback) -> pb.Outcome:
    return pb.Outcome(
        pick=entry.pick_id,
        ended=entry.ended,
        upstream=entry.upstream,
        status=entry.status,
        ttft_us=None if entry.ttft_ms is None else round(entry.ttft_ms * 1000),
        attempts=entry.attempts,
        failed=entry.failed,
    )


def _outcome(message: pb.Outcome) -> Feedback:
    return Feedback(
        pick_id=message.pick,
        ended=message.ended,
        upstream=message.upstream,
        status=message.status,
        ttft_ms=message.ttft_us / 1000 if message.HasField("ttft_us") else None,
        attempts=message.attempts,
        failed=message.failed,
    )
