"""The shell around one stream: reads requests, writes responses, keeps the session's timers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog
from envoy.config.core.v3 import base_pb2

from pointsman.core.clock import Clock
from pointsman.xds.ack_times import AckTimes
from pointsman.xds.channel import Acked, Nacked, Note, Reply, Request, Stale, Unsupported
from pointsman.xds.linger import LINGER_S
from pointsman.xds.metrics import XdsMetrics, label
from pointsman.xds.pace import Pace
from pointsman.xds.quarantine import shorten
from pointsman.xds.resources import SHORT_NAMES
from pointsman.xds.session import Session, Snapshot
from pointsman.xds.views import NodeIdentity

log = structlog.get_logger()

LOGGED_MESSAGE: Final = 300
"""Characters of Envoy's words in a log line; status has more."""

REFUSALS_DATED: Final = 256
"""Refused resources per stream whose time is known; far more than anybody reads."""


class Peer(Protocol):
    """The part of a gRPC context that a stream uses."""

    async def read(self) -> Any: ...

    async def write(self, message: bytes) -> None: ...

    def peer(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTimes:
    """How long a stream waits for its client.

    `warm_s`: time that a new cluster gets to probe its endpoints before routes may use it; Envoy does not tell when it
    is done. `barrier_s`: how long a route waits for an ACK that does not come before it is sent as long as its clusters
    exist; a hundred times a usual round trip across the world. `first_s`: how long a client may take to say who it is;
    whoever opened a stream has nothing else to do. `linger_s`: how long a cluster stays that no route uses any more.
    """

    warm_s: float
    barrier_s: float = 15.0
    first_s: float = 10.0
    linger_s: float = LINGER_S


class Stream:
    """One connected client. `gateway` is None while nobody knows where it belongs.

    `node` is what it said of itself. Times are seconds since the epoch: `acked_at_s` of the last ACK per type,
    `ack_times` per type and generation, `refused_at_s` by type, name and version.
    """

    def __init__(
        self,
        *,
        identity: NodeIdentity,
        agent: str,
        node: base_pb2.Node,
        session: Session,
        peer: Peer,
        clock: Clock,
        metrics: XdsMetrics,
        times: StreamTimes,
        identifier: str,
        on_progress: Callable[[Stream], None],
    ) -> None:
        self.identity = identity
        self.agent = agent
        self.node = node
        self.session = session
        self.gateway: str | None = None
        self.address = peer.peer()
        self.connected_at_s = clock.wall_s()
        self.acked_at_s: dict[str, float] = {}
        self.ack_times: dict[str, AckTimes] = {}
        self.refused_at_s: dict[tuple[str, str, str], float] = {}
        self._peer = peer
        self._clock = clock
        self._metrics = metrics
        self._times = times
        self._identifier = identifier
        self._on_progress = on_progress
        self._wake = asyncio.Event()
        self._warm_timers: set[asyncio.TimerHandle] = set()
        self._barrier_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._tick_at_s: float | None = None
        self._pace = Pace()
        self._sent_at_s: dict[str, float] = {}
        self._log = log.bind(node=identity.id, peer=self.address)

    def publish(self, snapshot: Snapshot) -> None:
        """Bring the client to another state, as soon as it has room."""
        self.session.publish(snapshot)
        self._wake.set()

    async def run(self, first: Request, read: Callable[[], Any]) -> None:
        """Serve the stream until the client ends it.

        Raises:
            PeerError: the client broke the protocol.
        """
        self.handle(first)
        writer = asyncio.create_task(self._write(), name=f"xds writer {self.identity.id}")
        reader = asyncio.create_task(self._read(read), name=f"xds reader {self.identity.id}")
        try:
            done, _ = await asyncio.wait({writer, reader}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for timer in (*self._warm_timers, self._barrier_timer, self._tick_timer):
                if timer is not None:
                    timer.cancel()
            for task in (writer, reader):
                task.cancel()
            await asyncio.gather(writer, reader, return_exceptions=True)

    def handle(self, request: Request) -> None:
        """Take one request."""
        notes = self.session.receive(request)
        self._pace.count(answers=any(isinstance(note, Acked | Nacked) for note in notes))
        if not notes:
            self._metrics.requests.labels(label(request.type_url), "subscribe").inc()
        for note in notes:
            self._report(note)
        self._wake.set()

    async def _read(self, read: Callable[[], Any]) -> None:
        throttled = False
        while (request := await read()) is not None:
            self.handle(request)
            if delay_s := self._pace.delay_s(self._clock.monotonic_s()):
                if not throttled:
                    self._log.warning("xds: more requests than answers to them, reading slowly from now on")
                throttled = True
                self._metrics.throttled.inc()
                await asyncio.sleep(delay_s)

    async def _write(self) -> None:
        while True:
            self._wake.clear()
            while (reply := self._next()) is not None:
                data = self.session.encode(reply, self._identifier)
                kind = label(reply.type_url)
                self._metrics.responses.labels(kind).inc()
                self._metrics.response_bytes.labels(kind).inc(len(data))
                self._sent_at_s[reply.type_url] = self._clock.monotonic_s()
                await self._peer.write(data)
            self._set_timers()
            self._on_progress(self)
            await self._wake.wait()

    def _next(self) -> Reply | None:
        self._tick_at_s = self.session.tick(self._clock.monotonic_s())
        return self.session.next()

    def _set_timers(self) -> None:
        loop = asyncio.get_running_loop()
        if self._tick_timer is not None:
            self._tick_timer.cancel()
            self._tick_timer = None
        if self._tick_at_s is not None:
            delay_s = max(0.0, self._tick_at_s - self._clock.monotonic_s())
            self._tick_timer = loop.call_later(delay_s, self._wake.set)
        if started := self.session.take_warming():
            self._warm_timers = {timer for timer in self._warm_timers if timer.when() > loop.time()}
            self._warm_timers.add(loop.call_later(self._times.warm_s, self._warmed, started))
        waiting = bool(self.session.waiting) and self.session.patient
        if waiting and self._barrier_timer is None:
            self._barrier_timer = loop.call_later(self._times.barrier_s, self._expired)
        elif not waiting and self._barrier_timer is not None:
            self._barrier_timer.cancel()
            self._barrier_timer = None

    def _warmed(self, clusters: frozenset[str]) -> None:
        self.session.warmed(clusters)
        self._wake.set()

    def _expired(self) -> None:
        self._barrier_timer = None
        self._log.warning("xds: no ACK in time", waiting=[str(entry) for entry in self.session.waiting])
        self.session.expire()
        self._wake.set()

    def _report(self, note: Note) -> None:
        if isinstance(note, Stale):
            self._metrics.requests.labels(label(note.type_url), "stale").inc()
            return
        if isinstance(note, Unsupported):
            self._report_unsupported(note)
            return
        type_url = note.reply.type_url
        kind = label(type_url)
        self._metrics.push.labels(kind).observe(self._clock.monotonic_s() - self._sent_at_s[type_url])
        if isinstance(note, Acked):
            self._metrics.requests.labels(kind, "ack").inc()
            self._date_ack(note.reply)
            for rejection in note.forgiven:
                self._log.info("xds: accepted after all", gateway=self.gateway, type=kind, resource=rejection.name)
            return
        self._metrics.requests.labels(kind, "nack").inc()
        self._date_refusals(note)
        self._log_nack(note)

    def _date_ack(self, reply: Reply) -> None:
        now_s = self._clock.wall_s()
        self.acked_at_s[reply.type_url] = now_s
        held = self.session.channels[reply.type_url].generations
        generation = next((held[resource.name] for resource in reply.resources if resource.name in held), None)
        if generation is not None:
            self.ack_times.setdefault(reply.type_url, AckTimes()).note(generation, held, now_s)

    def _date_refusals(self, note: Nacked) -> None:
        now_s = self._clock.wall_s()
        for rejection in note.rejections:
            self.refused_at_s[rejection.type_url, rejection.name, rejection.version] = now_s
        while len(self.refused_at_s) > REFUSALS_DATED:
            del self.refused_at_s[next(iter(self.refused_at_s))]

    def _report_unsupported(self, note: Unsupported) -> None:
        self._metrics.unsupported.labels(label(note.type_url)).inc(len(note.names))
        if len(note.names) == len(self.session.foreign.names):  # the first ones on this stream
            self._log.warning(
                "xds: xdstp names and resource locators are not served, the client is told that they do not exist",
                gateway=self.gateway,
                type=SHORT_NAMES.get(note.type_url, note.type_url),
                names=list(note.names),
            )

    def _log_nack(self, note: Nacked) -> None:
        """Each refusal once, in the client's words: not the steps of the hunt for the culprit, not each retry."""
        fields = {"gateway": self.gateway, "type": SHORT_NAMES.get(note.reply.type_url, note.reply.type_url)}
        message = shorten(note.message, LOGGED_MESSAGE)
        if note.reply.beats:
            names = [resource.name for resource in note.reply.beats]
            self._log.warning("xds: lost before they were confirmed", **fields, resources=names, message=message)
        elif not note.rejections and not note.hunting:
            names = [resource.name for resource in note.reply.resources]
            self._log.error("xds: rejected, looking for the culprit", **fields, resources=names, message=message)
        if fresh := [rejection for rejection in note.rejections if not rejection.retries]:
            names, retry = [r.name for r in fresh], any(not r.final for r in fresh)
            self._log.error("xds: rejected", **fields, resources=names, message=message, retry=retry)
        if ended := [rejection.name for rejection in note.rejections if rejection.retries and rejection.final]:
            self._log.error("xds: rejected to the last, not tried again", **fields, resources=ended, message=message)
