"""One picker worker: `python -m pointsman.app.workers.process OPTIONS`, started by the supervisor.

It listens once it has its first Plan, on a port that it shares with the other workers, and ends with its parent. It
asks nobody for anything: Plans, scrapes and the load of the other workers come through the pipe, and without them it
goes on with what it has.
"""

from __future__ import annotations

import asyncio
import gc
import secrets
import signal
import socket
import sys
import time
from typing import Any, Final, cast

import grpc
import msgspec
import structlog
from prometheus_client import CollectorRegistry

from pointsman.app.grpc_options import SHARED_PORT_OPTIONS, STOP_GRACE_S
from pointsman.app.identity import Guard
from pointsman.app.logs import configure_logs
from pointsman.app.pick_shell import PickerShell, native_server
from pointsman.app.tls import Content, following_credentials
from pointsman.app.tracing_picks import PickTracing
from pointsman.app.workers import frames
from pointsman.app.workers.samples import families_of
from pointsman.core.clock import SystemClock
from pointsman.core.errors import PeerError
from pointsman.core.grpc_health import GrpcHealth
from pointsman.core.snapshot import PlanHolder
from pointsman.core.tasks import together
from pointsman.extproc import Feedback, Picker, PickPolicy, add_health, add_services
from pointsman.extproc.gossip import GossipState, Outbox
from pointsman.extproc.health import READY_SERVICES
from pointsman.extproc.inflight import Silent
from pointsman.extproc.peers import GossipNode, Link
from pointsman.extproc.pick_server import PickServer
from pointsman.picker.v1 import gossip_pb2

SAMPLES_S: Final = 1.0

FEEDBACK_S: Final = 0.05
"""How long access log entries are collected for the parent; as long as Envoy collects them."""

SILENT_S: Final = 0.1
"""How often the parent hears of requests that wait for a first byte: as often as it judges sites."""

log = structlog.get_logger()


class Worker:
    """The state of a worker process."""

    def __init__(self, options: frames.WorkerOptions, writer: asyncio.StreamWriter) -> None:
        self._options = options
        self._writer = writer
        self._clock = SystemClock()
        self._registry = CollectorRegistry()
        self._holder = PlanHolder()
        outbox = Outbox()
        # Not the worker's name: a pick of its former life must not be taken for one of this.
        instance = secrets.token_hex(4)
        self._picker = Picker(
            self._clock,
            policy=PickPolicy(options.policy),
            instance=instance,
            calibrate=options.calibrate,
            outbox=outbox,
        )
        self._tracing = PickTracing(options.tracing, self._registry, instance)
        self._heard: list[Feedback] = []
        self._certificates: Content | None = None
        self._node = GossipNode(
            self._picker,
            GossipState(options.name, time.time_ns()),
            outbox,
            self._clock,
            on_outcome=self._heard.append,
        )
        self._link = self._node.join()
        self._server: grpc.aio.Server | PickServer | None = None
        self._health: GrpcHealth | None = None

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Follow the parent until it ends or says so.

        When any other part ends, that is a defect, and this ends with its error: the parent starts another worker.
        """
        shells = (self._node.run(), self._gossip(self._link), self._samples(), self._feedback(), self._silent())
        try:
            async with self._tracing.running():
                await together(self._follow(reader), *shells)
        finally:
            if self._health is not None:
                self._health.drain()
            if self._server is not None:
                await self._server.stop(STOP_GRACE_S)

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        while (message := await frames.read_by_worker(reader)) is not None:
            await self._handle(message)

    async def _handle(self, message: frames.ToWorker) -> None:
        match message:
            case frames.SetPlan(plan=plan):
                self._picker.apply(plan)
                self._holder.publish(plan)
                if self._server is None:
                    self._server = await self._listen()
                    self._say(frames.Ready())
            case frames.SetCertificates(content=content):
                self._certificates = content
            case frames.Signal(key=key, metrics=metrics, rtt_ms=rtt_ms):
                self._picker.signals(key, metrics, rtt_ms=rtt_ms)
            case frames.Models(key=key, names=names, adapters=adapters):
                self._picker.models(key, names, adapters)
            case frames.Refused(key=key):
                self._picker.refused(key)
            case frames.KvEvents(key=key, corrections=corrections):
                self._picker.kv_events(key, corrections)
            case frames.Gossip(update=update):
                self._node.heard(gossip_pb2.Update.FromString(update), self._link)
            case frames.Explain(number=number, identity=identity):
                found = self._picker.explain(identity)
                self._say(frames.Explained(number, None if found is None else found.explain()))
            case frames.Recent(number=number, limit=limit):
                last = self._picker.recent()[-limit:]
                self._say(frames.Made(number, [decision.brief() for decision in last]))
            case frames.Drain():
                if self._health is not None:
                    self._health.drain()

    async def _listen(self) -> grpc.aio.Server | PickServer:
        native = self._options.shell == PickerShell.NATIVE
        server = self._listen_natively() if native else await self._listen_by_grpc()
        # What is there now stays for life: the collector need not look at it, nor run every few requests (4 % of CPU).
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        return server

    def _listen_natively(self) -> PickServer:
        options = self._options
        self._health = GrpcHealth()
        self._health.serve_from_first_plan(self._holder, READY_SERVICES)
        server = native_server(
            self._picker,
            self._registry,
            self._health,
            default_pool=options.default_pool,
            on_feedback=self._heard.append,
            tracer=self._tracing.tracer,
            tls=self._files if options.guarded else None,
            trust_domain=options.trust_domain,
        )
        server.listen(options.address, options.port, shared=True)
        return server

    async def _listen_by_grpc(self) -> grpc.aio.Server:
        options = self._options
        # Its count of refused calls stays here: the control plane has one of the same name. The log tells of each.
        guard = [Guard(CollectorRegistry(), trust_domain=options.trust_domain)] if options.guarded else []
        server = grpc.aio.server(options=SHARED_PORT_OPTIONS, interceptors=guard)
        add_services(
            server,
            self._picker,
            self._registry,
            default_pool=options.default_pool,
            on_feedback=self._heard.append,
            tracer=self._tracing.tracer,
        )
        self._health = add_health(server, self._holder)
        address = f"[{options.address}]" if ":" in options.address else options.address
        if options.guarded:
            server.add_secure_port(f"{address}:{options.port}", following_credentials(self._files))
        else:
            server.add_insecure_port(f"{address}:{options.port}")
        await server.start()
        return server

    def _files(self) -> Content:
        if self._certificates is None:
            raise PeerError("the control plane sent a Plan before the certificates to serve it with")
        return self._certificates

    def _say(self, message: frames.ToParent) -> None:
        self._writer.write(frames.frame(message))

    async def _gossip(self, link: Link) -> None:
        while True:
            self._say(frames.Gossip((await link.next()).SerializeToString()))
            await self._writer.drain()

    async def _feedback(self) -> None:
        while True:
            await asyncio.sleep(FEEDBACK_S)
            if self._heard:
                self._say(frames.Heard(self._heard[:]))
                self._heard.clear()

    async def _silent(self) -> None:
        told: list[Silent] = []
        while True:
            await asyncio.sleep(SILENT_S)
            silent = self._picker.inflight.silent(self._clock.monotonic_s())
            if silent or told:
                self._say(frames.StillSilent(silent))
                told = silent

    async def _samples(self) -> None:
        while True:
            self._say(frames.Samples(families_of(self._registry)))
            await asyncio.sleep(SAMPLES_S)


async def _serve(options: frames.WorkerOptions) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=options.fd))
    task = asyncio.create_task(Worker(options, writer).run(reader))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return
    except (PeerError, OSError) as error:
        log.error("picker worker ends", worker=options.name, error=str(error))
        sys.exit(1)
    finally:
        writer.close()


def main(argv: list[str]) -> None:
    options = msgspec.json.decode(argv[0], type=frames.WorkerOptions)
    configure_logs(level=options.log_level, format_=cast("Any", options.log_format))
    asyncio.run(_serve(options))


if __name__ == "__main__":
    main(sys.argv[1:])
