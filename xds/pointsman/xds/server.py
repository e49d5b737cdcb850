"""The xDS server: the aggregated and the separate services, SotW and delta, over `grpc.aio`.

The aggregated stream is what gateways use. On the separate services each stream knows one type, so nothing is ordered
between types (the protocol promises no more).
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import grpc
import structlog
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import struct_pb2
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pointsman.core.clock import Clock, SystemClock
from pointsman.core.errors import ConfigError, PeerError, Problem
from pointsman.core.model import Locality, Plan
from pointsman.core.snapshot import PlanHolder
from pointsman.xds.build import BuildOptions
from pointsman.xds.channel import Request
from pointsman.xds.convergence import Convergence, Progress, Stand
from pointsman.xds.heartbeat import Lifetime
from pointsman.xds.memory import Memories
from pointsman.xds.metrics import XdsMetrics, label
from pointsman.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, RUNTIME, SECRET
from pointsman.xds.session import Session, Snapshot
from pointsman.xds.status import Json, node_json, rejected_json
from pointsman.xds.stream import Stream, StreamTimes
from pointsman.xds.views import NOBODY, NodeIdentity, Views

log = structlog.get_logger()

SERVICES: Final = {
    CLUSTER: ("envoy.service.cluster.v3.ClusterDiscoveryService", "Clusters"),
    ENDPOINT: ("envoy.service.endpoint.v3.EndpointDiscoveryService", "Endpoints"),
    LISTENER: ("envoy.service.listener.v3.ListenerDiscoveryService", "Listeners"),
    ROUTE: ("envoy.service.route.v3.RouteDiscoveryService", "Routes"),
    SECRET: ("envoy.service.secret.v3.SecretDiscoveryService", "Secrets"),
    RUNTIME: ("envoy.service.runtime.v3.RuntimeDiscoveryService", "Runtime"),
}
"""Type URL → service and the noun of its methods (`StreamClusters`, `DeltaClusters`)."""

AGGREGATED: Final = ("envoy.service.discovery.v3.AggregatedDiscoveryService", "AggregatedResources")

Context = grpc.aio.ServicerContext[Any, Any]


class XdsServer:
    """Serves the Plan of `holder` to every proxy that connects.

    Until the first Plan is there nobody is answered, so a control plane that starts never takes a gateway's
    configuration away. `identifier` names this instance in every response. `allowed` tells which gateways the client
    of a call may be; whoever says it is another is refused with PERMISSION_DENIED. `lifetimes` are for resources that a
    gateway is to drop when it hears nothing from here any more; usually there are none.
    """

    def __init__(
        self,
        holder: PlanHolder,
        options: BuildOptions,
        registry: CollectorRegistry,
        *,
        clock: Clock | None = None,
        identifier: str = "",
        times: StreamTimes | None = None,
        lifetimes: Sequence[Lifetime] = (),
        allowed: Callable[[Context], frozenset[str]] | None = None,
    ) -> None:
        self._allowed = allowed
        self._clock = clock or SystemClock()
        self._metrics = XdsMetrics(registry)
        self._identifier = identifier or f"pointsman-{uuid.uuid4().hex[:8]}"
        # Endpoints have answered their first probe after its time-out at the latest; the rest is for a busy machine.
        self._times = times or StreamTimes(warm_s=(options.health_timeout_ms + 200) / 1000)
        self._views = Views(options, lifetimes)
        self._streams: set[Stream] = set()
        self._progress = Progress()
        registry.register(_Collector(self._collect))
        self._memories = Memories()
        self._changed = asyncio.Event()
        self._unsubscribe = holder.subscribe(self._on_plan)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register all services; to be called before the server starts."""
        services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for type_url, (service, noun) in {**SERVICES, "": AGGREGATED}.items():
            services[service] = {
                f"Stream{noun}": self._handler(type_url, discovery_pb2.DiscoveryRequest.FromString, delta=False),
                f"Delta{noun}": self._handler(type_url, discovery_pb2.DeltaDiscoveryRequest.FromString, delta=True),
            }
        server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items())
        )

    def close(self) -> None:
        """Stop listening to the Plan; streams end with the gRPC server."""
        self._unsubscribe()

    def must_accept(self, plan: Plan) -> None:
        """Check a Plan for every gateway before anybody is told of it.

        Raises:
            ConfigError: a gateway would refuse it, with all problems of all gateways.
        """
        refused = self._views.refused(plan)
        if refused:
            mend = "change the object that is named; Envoy would refuse it"
            found = [(name, why) for name, whys in refused.items() for why in whys]
            raise ConfigError(
                [Problem(file=f"gateway {name}", line=0, field="", what=why, mend=mend) for name, why in found]
            )

    def status(self) -> Json:
        """What operators see: gateways with their problems, and every connected proxy (see `status.node_json`)."""
        return {
            "identifier": self._identifier,
            "gateways": [
                {
                    "name": name,
                    "problems": list(self._views.problems(name)),
                    "generation": self._generation(name),
                    "rejected": rejected_json(stream for stream in self._sorted_streams() if stream.gateway == name),
                }
                for name in self._views.names()
            ],
            "nodes": [node_json(stream, self._clock.wall_s()) for stream in self._sorted_streams()],
        }

    def snapshot(self, gateway: str) -> Snapshot | None:
        """What a gateway is to have; None for one that is not there."""
        return self._views.snapshot(gateway) if gateway in self._views.names() else None

    def streams(self) -> list[Stream]:
        """Every connected proxy's stream, sorted by node id; for reading only."""
        return self._sorted_streams()

    def find_gateway(self, identity: NodeIdentity) -> str | None:
        """The gateway that a proxy belongs to, None while nobody knows it."""
        return self._views.find(identity)

    def convergence(self, gateway: str) -> Convergence:
        """How the connected proxies of a gateway stand now."""
        return self._progress.of(gateway)

    async def wait_acked(self, gateway: str, timeout_s: float, *, nodes: int = 0) -> Convergence:
        """Wait until every connected proxy of the gateway, and at least `nodes` of them, has answered for everything.

        Returns early with `rejected` proxies when nothing is pending; after `timeout_s` returns how things stand.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._progress.answered(gateway, nodes):
                    await self._changed.wait()
        return self._progress.of(gateway)

    # streams

    def _handler(
        self, type_url: str, deserialize: Callable[[bytes], Request], *, delta: bool
    ) -> grpc.RpcMethodHandler[Any, Any]:
        behaviour: Callable[[Any, Context], Awaitable[None]] = partial(self._serve, type_url=type_url, delta=delta)
        return grpc.stream_stream_rpc_method_handler(
            behaviour,  # type: ignore[arg-type]  # the stubs only know the synchronous server
            request_deserializer=deserialize,
            response_serializer=bytes,  # already serialised
        )

    async def _serve(self, _: Any, context: Context, *, type_url: str, delta: bool) -> None:
        async def read() -> Request | None:
            message = await context.read()
            if message is grpc.aio.EOF:
                return None
            request: Request = message
            if type_url:
                if request.type_url not in {"", type_url}:
                    raise PeerError(f"{request.type_url} was asked for on the stream of {type_url}")
                request.type_url = type_url
            return request

        protocol = "delta" if delta else "sotw"
        try:
            async with asyncio.timeout(self._times.first_s):
                first = await read()
            if first is None:
                return
            if not first.node.id:
                raise PeerError("the first request of a stream names no node")
            with self._metrics.streams.labels(protocol).track_inprogress():
                await self._run(first, read, context, delta=delta, aggregated=not type_url)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the stream began without a request")
        except PeerError as error:
            log.warning("xds: stream ended", peer=context.peer(), reason=str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _run(
        self,
        first: Request,
        read: Callable[[], Awaitable[Request | None]],
        context: Context,
        *,
        delta: bool,
        aggregated: bool,
    ) -> None:
        identity = replace(identity_of(first.node), allowed=self._allowed(context) if self._allowed else None)
        if not identity.proven():
            await self._deny(identity, context)
        gateway = self._views.find(identity)
        while (snapshot := self._views.snapshot_for(gateway, identity)) is None:
            await self._changed.wait()
            gateway = self._views.find(identity)
        client: Hashable = identity.claims()  # not the id alone: what one gateway rejected is no matter of another's
        if aggregated:
            client = seat = self._memories.seat(client)
            if seat[1]:
                self._metrics.doubled_nodes.inc()
                log.warning(
                    "xds: another proxy of this node id is connected; give each its own",
                    node=identity.id,
                    gateway=gateway,
                    peer=context.peer(),
                )
        stream = Stream(
            identity=identity,
            agent=_agent(first.node),
            node=_brief(first.node),
            session=Session(self._memories.enter(client), snapshot, delta=delta, linger_s=self._times.linger_s),
            peer=context,
            clock=self._clock,
            metrics=self._metrics,
            times=self._times,
            identifier=self._identifier,
            on_progress=self._note,
        )
        try:
            self._place(stream, gateway)
            self._streams.add(stream)
            self._note(stream)
            await stream.run(first, read)
        finally:
            self._streams.discard(stream)
            self._memories.leave(client)
            self._progress.drop(stream)
            self._wake()

    async def _deny(self, identity: NodeIdentity, context: Context) -> None:
        self._metrics.denied_nodes.inc()
        claim, allowed = identity.claims()[0], sorted(identity.allowed or ())
        log.warning(
            "xds: a proxy says it is a gateway that its certificate does not name",
            node=identity.id,
            gateway=claim,
            allowed=allowed,
            peer=context.peer(),
        )
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"this certificate is not for {claim} but for {allowed}")

    def _place(self, stream: Stream, gateway: str | None) -> None:
        stream.gateway = gateway
        if gateway is None:
            self._metrics.unknown_nodes.inc()
            log.warning(
                "xds: a proxy belongs to no gateway and gets nothing",
                node=stream.identity.id,
                tried=stream.identity.names(),
                peer=stream.address,
            )

    # the Plan

    def _on_plan(self, plan: Plan) -> None:
        with self._metrics.build.time():
            changed = set(self._views.update(plan))
        for name in sorted(changed):
            problems = self._views.problems(name)
            self._metrics.refused.labels(name).set(1 if problems else 0)
            if problems:
                log.error("xds: inconsistent, the last good state is served", gateway=name, problems=problems)
        for stream in self._streams:
            gateway = self._views.find(stream.identity)
            if gateway == stream.gateway and gateway not in changed:
                continue
            if gateway != stream.gateway:
                self._place(stream, gateway)
            snapshot = self._views.snapshot_for(gateway, stream.identity)
            if snapshot is not None and snapshot.generation != stream.session.generation:
                stream.publish(snapshot)
                # Its writer finds out what is to be sent and then says how it stands; looking twice is dear in a fleet.
                self._stand(stream, Stand.PENDING)
            else:
                self._note(stream)
        self._wake()

    def _generation(self, gateway: str) -> int:
        return (self._views.snapshot(gateway) or NOBODY).generation

    def _sorted_streams(self) -> list[Stream]:
        return sorted(self._streams, key=lambda stream: (stream.identity.id, stream.connected_at_s))

    def _note(self, stream: Stream) -> None:
        """Take over how a stream stands, and wake whoever waits for it."""
        session = stream.session
        snapshot = self._views.snapshot(stream.gateway)
        stand = Stand.ACKED
        if snapshot is None or session.generation != snapshot.generation or not session.settled():
            stand = Stand.PENDING
        elif session.rejections():
            stand = Stand.REJECTED
        if self._stand(stream, stand):
            self._wake()

    def _stand(self, stream: Stream, stand: Stand) -> bool:
        return self._progress.note(stream, stream.gateway or "", stream.identity.id, stand)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _collect(self) -> Iterator[Metric]:
        """Counts over all streams, made when Prometheus asks and not with every ACK."""
        nodes = GaugeMetricFamily("pointsman_xds_nodes", "Connected proxies", labels=["gateway"])
        rejected = GaugeMetricFamily(
            "pointsman_xds_rejected_resources",
            "Resources that a connected proxy rejected and does not have",
            labels=["gateway", "type"],
        )
        connected = Counter(dict.fromkeys(self._views.names(), 0))
        refused: Counter[tuple[str, str]] = Counter()
        for stream in self._streams:
            name = stream.gateway or ""
            connected[name] += 1
            refused.update((name, label(rejection.type_url)) for rejection in stream.session.rejections())
        for name, count in sorted(connected.items()):
            nodes.add_metric([name], count)
        for key, count in sorted(refused.items()):
            rejected.add_metric(key, count)
        yield nodes
        yield rejected


class _Collector(Collector):
    """Hands Prometheus what a function yields."""

    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        return self._collect()


def identity_of(node: base_pb2.Node) -> NodeIdentity:
    """Who a proxy says it is."""
    metadata = {key: value.string_value for key, value in node.metadata.fields.items() if _is_text(value)}
    where = node.locality
    locality = Locality(region=where.region, zone=where.zone, sub_zone=where.sub_zone)
    return NodeIdentity(id=node.id, cluster=node.cluster, locality=locality, metadata=metadata)


def _is_text(value: struct_pb2.Value) -> bool:
    return value.WhichOneof("kind") == "string_value"


def _agent(node: base_pb2.Node) -> str:
    """Name and version of the client's software."""
    version = node.user_agent_build_version.version
    if node.HasField("user_agent_build_version"):
        return f"{node.user_agent_name} {version.major_number}.{version.minor_number}.{version.patch}"
    return f"{node.user_agent_name} {node.user_agent_version}".strip()


def _brief(node: base_pb2.Node) -> base_pb2.Node:
    """The node without what it was built with: Envoy lists hundreds of extensions, 60 kB for each stream."""
    brief = base_pb2.Node()
    brief.CopyFrom(node)
    brief.ClearField("extensions")
    if brief.HasField("user_agent_build_version"):
        brief.user_agent_build_version.ClearField("metadata")
    return brief
