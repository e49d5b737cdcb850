"""The parent of the picker workers: starts them, keeps them at work, and brings them what they need to know.

All workers listen on one port (SO_REUSEPORT): the kernel gives each connection to one of them. The parent scrapes once
for all, passes their gossip on from each to the others, adds up their metrics, and starts another in place of one that
ends or falls silent. Envoy asks the others meanwhile, or balances by itself.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Self

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from pointsman.app.pick_shell import PickerShell
from pointsman.app.ports import PortError
from pointsman.app.processes import ChildProcess, start_child
from pointsman.app.tls import Content
from pointsman.app.tracing_options import TracingOptions
from pointsman.app.workers import frames
from pointsman.app.workers.samples import WorkerMetrics
from pointsman.core.clock import SystemClock
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.core.errors import PeerError
from pointsman.core.model import Plan
from pointsman.core.tasks import error_of, together
from pointsman.extproc import Feedback, Picker, PickPolicy
from pointsman.extproc.inflight import LOST_S, Silent
from pointsman.extproc.kv_events.mirror import Correction
from pointsman.extproc.peers import GossipNode, Link
from pointsman.picker.v1 import gossip_pb2

RESTART_DELAY_S: Final = 0.2
"""Wait before an ended worker is replaced: its connections have broken and Envoy has gone on without it."""

SILENT_S: Final = 5.0
"""Silence after which a worker counts as frozen and is killed: it says something every 0.1 s."""

START_S: Final = 60.0
"""How long a worker may take until it says anything: Python starts in seconds on a machine with no core to spare."""

MAX_UNREAD_BYTES: Final = 1024 * 1024
"""What may wait for a worker that does not read before scrapes are withheld from it; the next ones are fresher."""

ANSWER_S: Final = 1.0
"""For questions of people; a worker that is at work answers between two picks."""

log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class _Running:
    """A worker's life."""

    child: ChildProcess
    writer: asyncio.StreamWriter
    link: Link
    silent_from_s: float  # when silence begins to count
    ready: bool = False
    silent: list[Silent] = field(default_factory=list)
    questions: dict[int, asyncio.Future[Any]] = field(default_factory=dict)

    def send(self, message: frames.ToWorker, *, droppable: bool = False) -> None:
        if not (droppable and self.writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES):
            self.writer.write(frames.frame(message))

    def still_silent(self, now_s: float) -> list[Silent]:
        """The requests that it reported; of a worker that is silent itself it is not known any more who waits."""
        return self.silent if now_s - self.silent_from_s <= LOST_S else []

    def answer(self, number: int, value: Any) -> None:
        """What the worker says to a question; one that nobody waits for any more is gone."""
        question = self.questions.pop(number, None)
        if question is not None and not question.done():
            question.set_result(value)


class PickerWorkers:
    """`count` workers on `address`; an asynchronous context manager. `port` 0 takes any; it is known after entering.

    `picker` is the parent's own: it picks nothing, but holds what is scraped and, by `gossip`, the load of all workers.
    Feed Plans with `publish` and give this object to the `Scraper` in place of the picker. `on_feedback` hears every
    access log entry of all workers. With `tls` they demand client certificates and let gateways in only.
    """

    def __init__(
        self,
        count: int,
        *,
        address: str,
        port: int = 0,
        picker: Picker,
        registry: CollectorRegistry,
        gossip: GossipNode,
        policy: PickPolicy = PickPolicy.JOINT,
        default_pool: str = "",
        calibrate: bool = True,
        shell: PickerShell = PickerShell.NATIVE,
        on_feedback: Callable[[Feedback], None] | None = None,
        tls: Content | None = None,
        trust_domain: str = "",
        tracing: TracingOptions | None = None,
        log_level: str = "info",
        log_format: str = "auto",
    ) -> None:
        self.port = port
        self._count = count
        self._address = address
        self._picker = picker
        self._clock = SystemClock()
        self._gossip_node = gossip
        self._family = secrets.token_hex(4)  # names of workers differ from those of other machines
        self._metrics = WorkerMetrics(registry)
        self._on_feedback = on_feedback
        self._template = frames.WorkerOptions(
            fd=-1,
            name="",
            address=address,
            port=port,
            policy=policy.value,
            default_pool=default_pool,
            guarded=tls is not None,
            trust_domain=trust_domain,
            tracing=tracing,
            calibrate=calibrate,
            shell=shell.value,
            log_level=log_level,
            log_format=log_format,
        )
        self._tls = tls
        self._plan: Plan | None = None
        self._signals: dict[str, frames.Signal] = {}
        self._models: dict[str, frames.Models] = {}
        self._running: dict[int, _Running] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._numbers = itertools.count(1)
        self._all_ready = asyncio.Event()
        self._reservation: socket.socket | None = None

    async def __aenter__(self) -> Self:
        self._reservation = _reserve(self._address, self.port)
        self.port = self._reservation.getsockname()[1]
        self._tasks = [
            asyncio.create_task(self._keep(slot), name=f"picker worker {slot}") for slot in range(self._count)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._reservation is not None:
            self._reservation.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that run, in the order of their slots."""
        return tuple(running.child.pid for _, running in sorted(self._running.items()))

    def publish(self, plan: Plan) -> None:
        """Give all workers this Plan; the first lets them listen."""
        self._plan = plan
        keys = {endpoint.key for pool in plan.pool_views() for endpoint in pool.endpoints()}
        self._signals = {key: known for key, known in self._signals.items() if key in keys}
        self._models = {key: known for key, known in self._models.items() if key in keys}
        self._tell(frames.SetPlan(plan))

    def certificates(self, tls: Content) -> None:
        """Let all workers listen with these files from now on; only where they listen with TLS at all."""
        self._tls = tls
        self._tell(frames.SetCertificates(tls))

    async def ready(self) -> None:
        """Wait until all workers listen; that needs a Plan."""
        await self._all_ready.wait()

    def signals(self, key: str, metrics: EngineMetrics | None = None, *, rtt_ms: float | None = None) -> bool:
        """As `Picker.signals`, for all workers."""
        message = self._signals[key] = frames.Signal(key, metrics, rtt_ms)
        self._tell(message, droppable=True)
        return self._picker.signals(key, metrics, rtt_ms=rtt_ms)

    def models(self, key: str, names: frozenset[str] | None, adapters: frozenset[str] = frozenset()) -> None:
        """As `Picker.models`, for all workers."""
        message = self._models[key] = frames.Models(key, names, adapters)
        self._tell(message, droppable=True)
        self._picker.models(key, names, adapters)

    def refused(self, key: str) -> None:
        """As `Picker.refused`, for all workers."""
        self._tell(frames.Refused(key), droppable=True)
        self._picker.refused(key)

    def kv_events(self, key: str, corrections: Iterable[Correction]) -> None:
        """As `Picker.kv_events`, for all workers. One that does not read misses them; its record ages by itself."""
        found = list(corrections)
        self._tell(frames.KvEvents(key, found), droppable=True)
        self._picker.kv_events(key, found)

    def base_models(self, key: str) -> tuple[str, ...]:
        """As `Picker.base_models`."""
        return self._picker.base_models(key)

    async def explain(self, identity: str) -> dict[str, Any] | None:
        """A recent decision of any worker as plain data, by pick or request id; None when none remembers it."""
        return next(iter(await self._ask(lambda number: frames.Explain(number, identity))), None)

    async def recent(self, limit: int) -> list[dict[str, Any]]:
        """The last `limit` decisions of each worker in short (`Decision.brief`), in no order; workers are asked."""
        answers = await self._ask(lambda number: frames.Recent(number, limit))
        return [decision for made in answers for decision in made]

    async def _ask(self, question: Callable[[int], frames.ToWorker]) -> list[Any]:
        """What the workers answer that do so in time; None is no answer."""
        numbers = [next(self._numbers) for _ in self._running]
        asked = list(zip(numbers, self._running.values(), strict=True))
        loop = asyncio.get_running_loop()
        for number, running in asked:
            running.questions[number] = loop.create_future()
            running.send(question(number))
        waiting = {number: running.questions[number] for number, running in asked}
        if waiting:
            await asyncio.wait(waiting.values(), timeout=ANSWER_S)
        for number, running in asked:
            if running.questions.pop(number, None) is not None:
                log.warning("a picker worker does not answer", pid=running.child.pid)
        return [future.result() for future in waiting.values() if future.done() and future.result() is not None]

    def silent(self) -> list[Silent]:
        """The requests of all workers that wait for their first byte, as `InFlight.silent`."""
        now_s = self._clock.monotonic_s()
        return [request for running in self._running.values() for request in running.still_silent(now_s)]

    def drain(self) -> None:
        """Let all workers say NOT_SERVING, before they are stopped."""
        self._tell(frames.Drain())

    def _tell(self, message: frames.ToWorker, *, droppable: bool = False) -> None:
        for running in self._running.values():
            running.send(message, droppable=droppable)

    async def _keep(self, slot: int) -> None:
        """Keep one worker at work for ever."""
        name = f"{self._family}/{slot}"
        while True:
            error = await error_of(self._life(slot, name))
            if error is not None:
                defect = None if isinstance(error, OSError | PeerError) else error
                log.error("a picker worker cannot be used", worker=slot, error=repr(error), exc_info=defect)
            await asyncio.sleep(RESTART_DELAY_S)

    async def _life(self, slot: int, name: str) -> None:
        ours, theirs = socket.socketpair()
        options = msgspec.structs.replace(self._template, fd=theirs.fileno(), name=name, port=self.port)
        try:
            child = await start_child(
                [sys.executable, "-m", "pointsman.app.workers.process", msgspec.json.encode(options).decode()],
                name=name,
                pass_fds=(theirs.fileno(),),
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        running = _Running(
            child=child, writer=writer, link=self._gossip_node.join(), silent_from_s=self._clock.monotonic_s() + START_S
        )
        self._running[slot] = running
        self._introduce(running)
        try:
            await together(self._listen(slot, running, reader), self._gossip(running), self._watch(running))
            log.error("a picker worker ended and is replaced", worker=slot, pid=child.pid)
        finally:
            del self._running[slot]
            for number in list(running.questions):
                running.answer(number, None)
            self._gossip_node.leave(running.link, gone=name)
            self._metrics.ended(name)
            writer.close()
            await child.stop()

    async def _listen(self, slot: int, running: _Running, reader: asyncio.StreamReader) -> None:
        while (message := await frames.read_by_parent(reader)) is not None:
            self._handle(slot, running, message)

    def _introduce(self, running: _Running) -> None:
        if self._tls is not None:
            running.send(frames.SetCertificates(self._tls))
        if self._plan is not None:
            running.send(frames.SetPlan(self._plan))
        for signal in self._signals.values():
            running.send(signal)
        for models in self._models.values():
            running.send(models)

    def _handle(self, slot: int, running: _Running, message: frames.ToParent) -> None:
        running.silent_from_s = self._clock.monotonic_s()
        match message:
            case frames.Ready():
                running.ready = True
                if sum(r.ready for r in self._running.values()) == self._count:
                    self._all_ready.set()
                log.info("picker worker ready", worker=slot, pid=running.child.pid, port=self.port)
            case frames.Gossip(update=update):
                self._gossip_node.heard(gossip_pb2.Update.FromString(update), running.link)
            case frames.Explained(number=number, decision=decision):
                running.answer(number, decision)
            case frames.Made(number=number, decisions=decisions):
                running.answer(number, decisions)
            case frames.Heard(entries=entries):
                if self._on_feedback is not None:
                    for entry in entries:
                        self._on_feedback(entry)
            case frames.StillSilent(requests=requests):
                running.silent = requests
            case frames.Samples(families=families):
                self._metrics.took(f"{self._family}/{slot}", families)

    async def _gossip(self, running: _Running) -> None:
        while True:
            update = await running.link.next()
            running.send(frames.Gossip(update.SerializeToString()), droppable=True)

    async def _watch(self, running: _Running) -> None:
        """Kill the worker when it is frozen; its end of the pipe closes then."""
        while True:
            await asyncio.sleep(SILENT_S / 5)
            if self._clock.monotonic_s() - running.silent_from_s > SILENT_S:
                log.error("a picker worker is silent and is killed", pid=running.child.pid)
                running.child.kill()
                return


def _reserve(address: str, port: int) -> socket.socket:
    """A socket that holds the port for the workers without listening itself.

    Raises:
        PortError: somebody else has it.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    held = socket.socket(family, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        held.bind((address, port))
    except OSError as error:
        held.close()
        raise PortError(f"the picker workers cannot listen on {address}:{port}: {error}") from error
    return held
