"""The gossip shell: ten times a second our load goes to the neighbours, and what they tell goes to our picker.

A neighbour is whoever is connected: a worker of ours through its pipe, another picker through the gRPC service. What is
news from one is passed on to the others, so any connected graph will do; a star and a full mesh are the usual ones.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Protocol

import grpc
import structlog

from pointsman.core.clock import Clock
from pointsman.extproc.feedback import Feedback
from pointsman.extproc.gossip import EndpointLoad, GossipState, Loads, Outbox, Placed
from pointsman.extproc.inflight import Account, InFlight
from pointsman.picker.v1 import gossip_pb2 as pb

GOSSIP_SERVICE: Final = "pointsman.picker.v1.Gossip"

INTERVAL_S: Final = 0.1
"""Two intervals and the wire stay under 250 ms: up to there, sharing is worth 13 % of the mean TTFT (facts 4.3)."""

MAX_QUEUED: Final = 100
"""Updates that a slow neighbour has not taken, ten seconds of one picker. The oldest go first; whole ones heal it."""

FIRST_RETRY_S: Final = 0.2
MAX_RETRY_S: Final = 5.0

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]


class Shares(Protocol):
    """What the node needs of the picker."""

    def own_loads(self) -> dict[str, EndpointLoad]: ...

    def remote_loads(self, loads: Loads) -> None: ...

    def placed(self, endpoint: str, blocks: Any) -> None: ...

    inflight: InFlight

    def feedback(self, entry: Feedback, *, forwarded: bool = False) -> Account | None: ...


class Link:
    """One neighbour: what it has yet to be sent, in order."""

    def __init__(self) -> None:
        self._waiting: deque[pb.Update] = deque(maxlen=MAX_QUEUED)
        self._more = asyncio.Event()

    def put(self, update: pb.Update) -> None:
        """Queue an update."""
        self._waiting.append(update)
        self._more.set()

    async def next(self) -> pb.Update:
        """The next update, as soon as there is one."""
        while not self._waiting:
            self._more.clear()
            await self._more.wait()
        return self._waiting.popleft()


class GossipNode:
    """Joins a picker, the gossip state and the links; owned by one event loop."""

    def __init__(
        self,
        picker: Shares,
        state: GossipState,
        outbox: Outbox,
        clock: Clock,
        *,
        interval_s: float = INTERVAL_S,
        on_outcome: Callable[[Feedback], None] | None = None,
    ) -> None:
        self._picker = picker
        self._state = state
        self._outbox = outbox
        self._clock = clock
        self._interval_s = interval_s
        self._on_outcome = on_outcome
        self._links: set[Link] = set()

    def live(self) -> tuple[str, ...]:
        """Names of the other pickers that are heard of."""
        return self._state.live(self._clock.monotonic_s())

    def join(self) -> Link:
        """A new neighbour; its queue begins with all that we know."""
        link = Link()
        for update in self._state.everything(self._clock.monotonic_s()):
            link.put(update)
        self._links.add(link)
        return link

    def leave(self, link: Link, *, gone: str = "") -> None:
        """A neighbour has left; `gone` names a picker that is known to have ended with it."""
        self._links.discard(link)
        if gone:
            self._state.gone(gone)
            self._share()

    def heard(self, update: pb.Update, link: Link) -> None:
        """A neighbour sent this."""
        received = self._state.receive(update, self._clock.monotonic_s())
        self._place(received.prefixes)
        for entry in received.outcomes:
            account = self._picker.feedback(entry, forwarded=True)
            if account is not None and self._on_outcome is not None:
                self._on_outcome(self._picker.inflight.told(entry, account, forwarded=True))
        if received.news:
            for other in self._links - {link}:
                other.put(update)
            self._share()

    def tell(self) -> None:
        """Send our next update to all neighbours, and forget the load of those that fell silent."""
        update = self._state.update(self._picker.own_loads(), self._outbox)
        for link in self._links:
            link.put(update)
        self._share()

    async def run(self) -> None:
        """Tell every `interval_s` until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            self.tell()

    def _place(self, prefixes: tuple[Placed, ...]) -> None:
        for endpoint, blocks in prefixes:
            self._picker.placed(endpoint, blocks)

    def _share(self) -> None:
        self._picker.remote_loads(self._state.others(self._clock.monotonic_s()))


def add_gossip(server: grpc.aio.Server, node: GossipNode) -> None:
    """Register the gossip service on `server`, before it starts."""

    async def exchange(_messages: AsyncIterator[pb.Update], context: Context) -> None:
        link = node.join()
        sender = asyncio.create_task(_send(link, context))
        try:
            while (update := await context.read()) is not grpc.aio.EOF:
                node.heard(update, link)
        finally:
            sender.cancel()
            node.leave(link)

    handler = grpc.stream_stream_rpc_method_handler(
        exchange, request_deserializer=pb.Update.FromString, response_serializer=pb.Update.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(GOSSIP_SERVICE, {"Exchange": handler}),))


async def converse(node: GossipNode, open_channel: Callable[[], grpc.aio.Channel], *, peer: str) -> None:
    """Keep a stream to another picker, for ever: when it breaks, on a new channel. `peer` names it in the log."""
    pause_s = FIRST_RETRY_S
    while True:
        channel = open_channel()
        method: Any = channel.stream_stream(
            f"/{GOSSIP_SERVICE}/Exchange",
            request_serializer=pb.Update.SerializeToString,
            response_deserializer=pb.Update.FromString,
        )
        call = method()
        link = node.join()
        sender = asyncio.create_task(_send(link, call))
        try:
            while (update := await call.read()) is not grpc.aio.EOF:
                if pause_s > FIRST_RETRY_S:
                    log.info("picker peer reached", peer=peer)
                pause_s = FIRST_RETRY_S
                node.heard(update, link)
        except grpc.aio.AioRpcError as error:
            if pause_s == FIRST_RETRY_S:
                log.warning("picker peer lost, it is tried again", peer=peer, error=error.details())
        finally:
            sender.cancel()
            call.cancel()
            node.leave(link)
            await channel.close()
        await asyncio.sleep(pause_s)
        pause_s = min(MAX_RETRY_S, 2.0 * pause_s)


async def _send(link: Link, stream: Any) -> None:
    """Write the link's queue until the stream breaks; the reading side tells why."""
    try:
        while True:
            await stream.write(await link.next())
    except (grpc.RpcError, asyncio.InvalidStateError):
        return
