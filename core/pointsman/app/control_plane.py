"""The control plane and the picker in one process: a folder of manifests in, xDS, picks and the admin API out."""

from __future__ import annotations

import asyncio
import functools
import secrets
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Final, Self

import grpc
import structlog
from prometheus_client import CollectorRegistry

from pointsman.app.admin import AdminServer, admin_application
from pointsman.app.admin_access import Operators
from pointsman.app.admin_desk import PAGE_PATHS, add_desk_routes
from pointsman.app.admin_failover import add_failover_routes
from pointsman.app.admin_rollouts import add_rollout_routes
from pointsman.app.admin_write import add_writing_routes
from pointsman.app.arm_outages import ArmOutages
from pointsman.app.config_changes import config_changes
from pointsman.app.control_plane_options import ControlPlaneOptions
from pointsman.app.desk import Desk
from pointsman.app.exposure import Exposure
from pointsman.app.failover import Failover
from pointsman.app.failover_views import endpoint_views
from pointsman.app.grpc_options import GRPC_OPTIONS, STOP_GRACE_S
from pointsman.app.identity import Guard
from pointsman.app.observe import observe
from pointsman.app.operations import Operations
from pointsman.app.pool_load import pool_load
from pointsman.app.ports import PortError, check_free, is_loopback
from pointsman.app.rollouts import Rollouts
from pointsman.app.status import FleetStatus
from pointsman.app.stream_age import StreamAge, connection_options
from pointsman.app.tls import Certificates
from pointsman.app.tracing import Tracing
from pointsman.app.traffic import Traffic
from pointsman.app.traffic_operations import TrafficOperations
from pointsman.app.workers.supervisor import PickerWorkers
from pointsman.core.attention import Attention
from pointsman.core.clock import SystemClock
from pointsman.core.compile import compile_plan
from pointsman.core.config import ConfigWatcher, Manifests, load
from pointsman.core.errors import ConfigError, PointsmanError
from pointsman.core.grpc_health import GrpcHealth
from pointsman.core.model import Plan
from pointsman.core.overlay import Overlay
from pointsman.core.snapshot import PlanHolder
from pointsman.core.store import StateFolder
from pointsman.extproc import Picker, Scraper, add_health, add_services
from pointsman.extproc.feedback import Feedback
from pointsman.extproc.gossip import GossipState, Outbox
from pointsman.extproc.inflight import Silent
from pointsman.extproc.kv_events.reader import KvEventReader
from pointsman.extproc.peers import GossipNode, add_gossip, converse
from pointsman.extproc.server import ALS_SERVICE, EXT_PROC_SERVICE
from pointsman.extproc.site_metrics import SiteScraper
from pointsman.failover.model import EndpointView
from pointsman.xds import BuildOptions, GatewayTls, XdsServer
from pointsman.xds.server import AGGREGATED
from pointsman.xds.services import ClientStatus, LoadReports, add_reflection

log = structlog.get_logger()

FIRST_LOOK_S: Final = 1.0
"""Longest wait for the first answer of every endpoint before all is said to be ready; a page may hang."""


class ControlPlane:
    """Everything but Envoy and the upstreams. Used as an asynchronous context manager.

    The first configuration must be good (else `ConfigError`); later ones that are not leave the last good one in
    force and are shown in the log, the metrics and the status.
    """

    def __init__(self, options: ControlPlaneOptions, *, on_plan: Callable[[Plan], None] | None = None) -> None:
        self._options = options
        self._on_plan = on_plan
        self._clock = SystemClock()
        self._stack = AsyncExitStack()
        self.holder = PlanHolder()
        self.registry = CollectorRegistry()
        outbox = Outbox()
        instance = secrets.token_hex(4)  # a pick of an earlier life or of a peer must not be taken for one of ours
        self.picker = Picker(self._clock, policy=options.policy, instance=instance, outbox=outbox)
        self._tracing = Tracing(options.tracing, self.registry, instance, picks=not options.picker_workers)
        self._compile_plan = self._tracing.timed("compile", compile_plan)
        self.gossip = GossipNode(
            self.picker, GossipState(instance, time.time_ns()), outbox, self._clock, on_outcome=self._on_feedback
        )
        self.workers: PickerWorkers | None = None
        self.health = GrpcHealth()
        self.tls: Certificates | None = None
        self.grpc_port = 0
        self.admin_url = ""
        self._manifests = Manifests()
        self.operations = Operations(
            state=StateFolder(options.state),
            clock=self._clock,
            compile_with=self._compile,
            publish=self._put_in_force,
            current=lambda: self.holder.plan or Plan(),
            xds=lambda: self.xds,
        )
        self._exposure = Exposure(self.registry)
        self._traffic = Traffic(self._clock, lambda: self.holder.plan)
        self.rollouts = Rollouts(
            state=StateFolder(options.state),
            operations=self.operations,
            clock=self._clock,
            loads=lambda pool: pool_load(self.holder.plan, self.picker, pool),
            registry=self.registry,
        )

        self._arms = ArmOutages(self.operations, self.picker, self._clock)
        self._scraper: Scraper | None = None
        self.failover = Failover(
            state=StateFolder(options.state),
            operations=self.operations,
            clock=self._clock,
            silent=self._silent,
            views=self._views,
            registry=self.registry,
        )
        self.traffic_operations = TrafficOperations(state=options.state, failover=self.failover, clock=self._clock)

    async def __aenter__(self) -> Self:
        options = self._options
        options.check()
        check_free(options.wanted_ports())
        self._manifests = load(options.config)  # before anything listens: a bad folder starts nothing
        # Nobody ever sees the manifests without what was decided.
        plan = self._compile(self.operations.start(*self.failover.restore()))
        if options.tls is not None:
            self.tls = Certificates(options.tls, self.registry, self._clock)
        async with AsyncExitStack() as stack:
            await self._serve_grpc(stack)
            self.status = FleetStatus(
                holder=self.holder,
                picker=self.picker,
                xds=self.xds,
                folder=options.config,
                state=options.state,
                registry=self.registry,
                clock=self._clock,
                tls=self.tls,
                rollouts=self.rollouts.status,
                failover=self.failover.status,
                operations=self.traffic_operations.status,
                loads=self.loads.status,
                workers=self.workers,
            )
            scraped = observe(
                self.registry,
                holder=self.holder,
                picker=self.picker,
                xds=self.xds,
                signals=self.workers or self.picker,
                rollouts=self.rollouts.status,
                failovers=self.failover.status,
                clock=self._clock,
                state=options.state,
            )
            tls = None if self.tls is None else self.tls.admin(open_to_others=not is_loopback(options.admin_address))
            application = admin_application(
                self.status,
                self.registry,
                token_file=options.admin_token_file,
                clients=Operators(tls=tls, trust_domain=options.trust_domain) if tls and tls.asks else None,
                open_paths=PAGE_PATHS,
            )
            stack.push_async_callback(self.operations.stop)
            add_rollout_routes(application, self.rollouts)
            add_failover_routes(application, self.failover, self._clock)
            add_desk_routes(
                application,
                Desk(self.status, self.holder, self.picker, self.xds, self._traffic, self._clock, self.workers),
            )
            add_writing_routes(application, self.operations)
            admin = AdminServer(
                application,
                address=options.admin_address,
                port=options.admin_port,
                tls=tls.listening if tls else None,
            )
            stack.push_async_callback(admin.stop)
            await admin.start()
            self.admin_url = admin.url
            self._publish(plan)
            await stack.enter_async_context(self._tracing.running(self.holder, self.xds))
            if self.workers is not None:
                await self.workers.ready()
            watcher = ConfigWatcher(
                options.config,
                on_good=self._tracing.reload(self._on_manifests),
                on_bad=self._on_bad,
                on_change=self._tracing.noticed,
            )
            self._run_beside(stack, "configuration watcher", watcher.run())
            self._run_beside(stack, "state folder watcher", self.operations.follow())
            self._run_beside(stack, "rollouts", self.rollouts.run())
            self._scraper = Scraper(scraped, self.holder, registry=self.registry, attention=self.failover.attention)
            self._run_beside(stack, "scraper", self._scraper.run())
            sites = SiteScraper(self.workers or self.picker, self.holder, registry=self.registry)
            self._run_beside(stack, "site metrics", sites.run())
            self._run_beside(stack, "failover", self.failover.run())
            self._run_beside(stack, "traffic operations", self.traffic_operations.run())
            self._run_beside(stack, "outages of arms", self._arms.run())
            events = KvEventReader(self.workers or self.picker, self.holder, self.registry)
            self._run_beside(stack, "kv events", events.run())
            await self._join_peers(stack)
            if self.tls is not None:
                self._run_beside(stack, "certificate watcher", self.tls.run())
            await self._scraper.first_look(FIRST_LOOK_S)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.health.drain()
        await self._stack.aclose()

    async def _serve_grpc(self, stack: AsyncExitStack) -> None:
        options = self._options
        guard = None if self.tls is None else Guard(self.registry, trust_domain=options.trust_domain)
        server = grpc.aio.server(
            options=(*GRPC_OPTIONS, *connection_options(options.stream_age_s)),
            # The guard is asked first: who may not call a service opens no stream that could grow old.
            interceptors=[*([guard] if guard else []), StreamAge(options.stream_age_s)],
        )
        address = f"[{options.grpc_address}]" if ":" in options.grpc_address else options.grpc_address
        try:
            self.grpc_port = self._bind(server, f"{address}:{options.grpc_port}")
        except RuntimeError as error:
            raise PortError(f"the gRPC server cannot listen on {address}:{options.grpc_port}: {error}") from error
        picker_here = await self._pickers_port(stack)
        (picker_address, picker_port), *standbys = options.pickers or ((options.grpc_address, picker_here),)
        self.xds = XdsServer(
            self.holder,
            BuildOptions(
                picker_address=picker_address,
                picker_port=picker_port,
                picker_standbys=tuple(standbys),
                picker_tls=None if self.tls is None else GatewayTls(),
                picker_health_check=True,
                tracing=self._tracing.gateways(),
            ),
            self.registry,
            allowed=guard.gateways if guard else None,
        )
        self.xds.add_to(server)
        self.loads = LoadReports(self.xds.find_gateway, self.registry, allowed=guard.gateways if guard else None)
        self.loads.add_to(server)
        ClientStatus(self.xds.streams).add_to(server)
        add_reflection(server, [EXT_PROC_SERVICE, ALS_SERVICE])
        if self.workers is None:
            add_services(
                server,
                self.picker,
                self.registry,
                default_pool=options.default_pool,
                on_feedback=self._on_feedback,
                tracer=self._tracing.picks,
            )
            add_health(server, self.holder, self.health)
        add_gossip(server, self.gossip)
        self.health.add_to(server)
        self.health.serve_from_first_plan(self.holder, [AGGREGATED[0]])
        await server.start()
        stack.push_async_callback(server.stop, STOP_GRACE_S)

    async def _pickers_port(self, stack: AsyncExitStack) -> int:
        """The port on which picks are made: the server's own, or that of the workers, which are started."""
        options = self._options
        if not options.picker_workers:
            return self.grpc_port
        self.workers = await stack.enter_async_context(
            PickerWorkers(
                options.picker_workers,
                address=options.grpc_address,
                picker=self.picker,
                registry=self.registry,
                policy=options.policy,
                default_pool=options.default_pool,
                on_feedback=self._on_feedback,
                gossip=self.gossip,
                tls=None if self.tls is None else self.tls.content,
                trust_domain=options.trust_domain,
                tracing=options.tracing,
                shell=options.picker_shell,
            )
        )
        if self.tls is not None:
            self.tls.on_change(self.workers.certificates)
        return self.workers.port

    async def _join_peers(self, stack: AsyncExitStack) -> None:
        """Share load with other control planes' pickers; where we dial and where they do, both learn."""
        self._run_beside(stack, "gossip", self.gossip.run())
        for host, port in self._options.picker_peers:
            peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            open_channel = grpc.aio.insecure_channel if self.tls is None else self.tls.peer_channel
            talk = converse(self.gossip, functools.partial(open_channel, peer), peer=peer)
            self._run_beside(stack, f"gossip with {peer}", talk)

    def _bind(self, server: grpc.aio.Server, address: str) -> int:
        if self.tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self.tls.grpc_credentials())

    def _run_beside(self, stack: AsyncExitStack, name: str, work: Coroutine[None, None, None]) -> None:
        """Run `work` until the control plane stops.

        That it ends earlier is a defect: it is logged, counted, and the process is not ready any more, so that whoever
        watches it starts another one. Gateways keep what they have.
        """
        task = asyncio.create_task(work, name=name)
        self.status.task_runs(name, True)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.status.task_runs(name, False)
                log.critical("a background task ended", task=name, error=repr(error), exc_info=error)

        async def stop() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        task.add_done_callback(ended)
        stack.push_async_callback(stop)

    def _compile(self, overlay: Overlay) -> Plan:
        return self._compile_plan(self._manifests, overlay)

    def _on_manifests(self, manifests: Manifests) -> None:
        try:
            plan = self._compile_plan(manifests, self.operations.overlay)
            self.xds.must_accept(plan)  # before the picker follows it
        except ConfigError as error:
            self._on_bad(error)
            return
        self._manifests = manifests
        changes = config_changes(self.holder.plan or Plan(), plan)
        self._publish(plan)
        if changes:
            self.operations.note_soon("configuration", str(self._options.config), after=changes)

    def _publish(self, plan: Plan) -> None:
        """Put the Plan of a new configuration in force."""
        changed = self._put_in_force(plan)
        if not changed and not self.status.accepted:  # the last line of the log must not be the refusal
            log.info("configuration good again, it is what is in force already")
        if changed or not self.status.accepted:
            self.status.config_loaded()
        self.rollouts.configure(self._manifests, plan)
        self.failover.configure(self._manifests, plan)
        self.traffic_operations.configure(self._manifests)
        self._arms.configure(self._manifests, plan)

    def _on_feedback(self, entry: Feedback) -> None:
        if entry.forwarded:  # its outcome was told where it was heard, the time to its first byte was not
            self.failover.feedback(entry)
            return
        self._exposure.feedback(entry)
        self._traffic.feedback(entry)
        self.rollouts.feedback(entry)
        self.failover.feedback(entry)
        self.traffic_operations.feedback(entry)
        self._arms.feedback(entry)

    def _silent(self) -> list[Silent]:
        """Requests that have been reported without a first byte, of all picker processes."""
        if self.workers is not None:
            return self.workers.silent()
        return self.picker.inflight.silent(self._clock.monotonic_s())

    def _views(self, attention: Attention) -> dict[str, EndpointView]:
        scraper = self._scraper
        if scraper is None:
            return {}
        return endpoint_views(self.picker.table, scraper, self._clock.monotonic_s(), attention)

    def _put_in_force(self, plan: Plan) -> bool:
        self._exposure.apply(plan)
        self.picker.apply(plan)  # before Envoy can ask for a pool of this Plan
        if self.workers is not None and plan != self.holder.plan:
            self.workers.publish(plan)
        changed = self.holder.publish(plan)
        if changed:
            log.info("configuration in force", gateways=len(plan.gateways), pools=len(plan.pools))
            if self._on_plan is not None:
                self._on_plan(plan)
        return changed

    def _on_bad(self, error: PointsmanError) -> None:
        self.status.config_refused(error)
        log.error("configuration refused, the last good one stays in force", problems=str(error).splitlines())
