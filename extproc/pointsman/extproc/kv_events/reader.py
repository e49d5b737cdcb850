"""The ZeroMQ shell: subscribes to the engines that publish KV events, and asks them for what was lost on the way.

Needs `pyzmq` (extra `kv-events`); without it endpoints that publish are named in the log, and nothing else happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter

from pointsman.core.errors import PeerError
from pointsman.core.model import Plan
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc.endpoint_tasks import EndpointTasks
from pointsman.extproc.kv_events.decode import MAX_PAYLOAD_BYTES, AllBlocksCleared, Batch, BlockStored, decode
from pointsman.extproc.kv_events.mirror import Correction
from pointsman.extproc.kv_events.stream import KvStream

try:
    import zmq
    from zmq.asyncio import Context
except ImportError:  # the extra is not installed
    zmq = None  # type: ignore[assignment]

log = structlog.get_logger()

REPLAY_S: Final = 5.0
"""How long an engine may be silent while it repeats batches: it does so between two of its steps."""

MAX_REPLAYED: Final = 20_000
"""Batches of one repetition that are taken: twice what vLLM keeps."""

MAX_QUEUED: Final = 10_000
"""Batches that may wait to be read, several minutes of a busy engine; past it ZeroMQ drops, and the gap is noticed."""

_NUMBER_BYTES: Final = 8
_END = (-1).to_bytes(_NUMBER_BYTES, "big", signed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSource:
    """Where an engine publishes; `replay_port` 0: it repeats nothing."""

    address: str
    port: int
    replay_port: int = 0

    def url(self, port: int) -> str:
        """The ZeroMQ address of a port of the engine."""
        return f"tcp://[{self.address}]:{port}" if ":" in self.address else f"tcp://{self.address}:{port}"


class Corrected(Protocol):
    """Where corrections go: a picker, or what passes them on to several."""

    def kv_events(self, key: str, corrections: Iterable[Correction]) -> None: ...

    def base_models(self, key: str) -> tuple[str, ...]: ...


def sources(plan: Plan) -> Mapping[str, KvSource]:
    """The endpoints of a Plan that publish, by `ip:port`."""
    return {
        e.key: KvSource(address=e.address, port=e.kv_events_port, replay_port=e.kv_replay_port)
        for pool in plan.pool_views()
        for e in pool.endpoints()
        if e.kv_events_port
    }


class KvEventReader:
    """Reads the KV events of the holder's Plan until `run` is cancelled; no engine's fault ends it."""

    def __init__(
        self, picker: Corrected, holder: PlanHolder, registry: CollectorRegistry, *, replay_s: float = REPLAY_S
    ) -> None:
        self._picker = picker
        self._holder = holder
        self._registry = registry
        self._replay_s = replay_s
        self._events = Counter("pointsman_kv_events", "Events of engines by kind.", ["kind"], registry=registry)
        self._batches = Counter(
            "pointsman_kv_event_batches", "Batches of events by what became of them.", ["outcome"], registry=registry
        )
        self._gaps = Counter(
            "pointsman_kv_event_gaps", "Gaps in the numbers of batches that no replay filled.", registry=registry
        )

    async def run(self) -> None:
        """Follow the Plan. Ends only by cancellation."""
        if zmq is None:
            await self._complain()
        context: Any = Context()
        try:
            work = EndpointTasks(
                "kv_events_reader",
                self._holder,
                sources,
                lambda key, source: self._follow(context, key, source),
                registry=self._registry,
            )
            await work.run()
        finally:
            context.destroy(linger=0)

    async def _complain(self) -> None:
        """Say which endpoints publish in vain, whenever that changes. Never returns."""
        changed, told = asyncio.Event(), frozenset[str]()
        unsubscribe = self._holder.subscribe(lambda _plan: changed.set())
        try:
            while True:
                await changed.wait()
                changed.clear()
                found = frozenset(sources(self._holder.plan or Plan()))
                if found - told:
                    log.error("KV events are not read: install pointsman[kv-events]", endpoints=sorted(found))
                told = found
        finally:
            unsubscribe()

    async def _follow(self, context: Any, key: str, source: KvSource) -> None:
        stream = KvStream(lambda: self._picker.base_models(key))
        socket = _socket(context, zmq.SUB, source.url(source.port))
        socket.subscribe(b"")
        try:
            while True:
                found = _message(await socket.recv_multipart())
                if found is None:
                    self._batches.labels("malformed").inc()
                    continue
                number, payload = found
                since = stream.missing_from(number)
                if since is not None and source.replay_port:
                    for earlier, content in await self._replay(context, source, since, number):
                        self._take(key, stream, earlier, content)
                self._take(key, stream, number, payload)
        finally:
            socket.close(linger=0)

    def _take(self, key: str, stream: KvStream, number: int, payload: bytes) -> None:
        batch: Batch | None = None
        try:
            batch = decode(payload)
        except PeerError as error:
            self._batches.labels("malformed").inc()
            log.warning("KV events cannot be read", endpoint=key, number=number, error=str(error))
        else:
            self._batches.labels("read").inc()
            self._count(batch)
        gaps = stream.gaps
        corrections = stream.take(number, batch)
        if stream.gaps > gaps:
            self._gaps.inc()
            log.warning("KV events were lost, what they vouched for is forgotten", endpoint=key, number=number)
        if corrections:
            self._picker.kv_events(key, corrections)

    def _count(self, batch: Batch) -> None:
        for event in batch.events:
            kind = "stored" if isinstance(event, BlockStored) else "removed"
            self._events.labels("cleared" if isinstance(event, AllBlocksCleared) else kind).inc()
        if batch.skipped:
            self._events.labels("skipped").inc(batch.skipped)

    async def _replay(self, context: Any, source: KvSource, since: int, until: int) -> list[tuple[int, bytes]]:
        """Batches from `since` to before `until` that the engine still has."""
        socket = _socket(context, zmq.DEALER, source.url(source.replay_port))
        found: list[tuple[int, bytes]] = []
        try:
            await socket.send_multipart([b"", since.to_bytes(_NUMBER_BYTES, "big")])
            for _ in range(MAX_REPLAYED):  # of whatever comes: what is of no use must not go on for ever
                async with asyncio.timeout(self._replay_s):
                    parts = await socket.recv_multipart()
                if len(parts) >= 2 and parts[-2] == _END:
                    break
                message = _message(parts)
                if message is not None and since <= message[0] < until:
                    found.append(message)
        except TimeoutError:
            log.warning("an engine does not repeat its KV events", address=source.url(source.replay_port))
        finally:
            socket.close(linger=0)
        self._batches.labels("replayed").inc(len(found))
        return found


def _socket(context: Any, kind: int, url: str) -> Any:
    socket = context.socket(kind)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_PAYLOAD_BYTES)
    socket.setsockopt(zmq.RCVHWM, MAX_QUEUED)
    socket.connect(url)
    return socket


def _message(parts: list[bytes]) -> tuple[int, bytes] | None:
    """Number and payload: the last two parts, whatever stands before them (topic; an empty one in replays)."""
    if len(parts) < 2 or len(parts[-2]) != _NUMBER_BYTES:
        return None
    return int.from_bytes(parts[-2], "big"), parts[-1]
