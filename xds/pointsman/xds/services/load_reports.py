"""The load reporting service (LRS): the gRPC shell, who listens to reports, status and metrics."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import grpc
import structlog
from envoy.service.load_stats.v3 import lrs_pb2
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pointsman.core.clock import Clock, SystemClock
from pointsman.core.errors import PeerError
from pointsman.xds.server import identity_of
from pointsman.xds.services.load import NO_LOAD, Load, LoadConversation, LoadReport, interval_for, read_report
from pointsman.xds.services.load_table import LoadTable
from pointsman.xds.status import Json
from pointsman.xds.views import NodeIdentity

log = structlog.get_logger()

LRS_SERVICE: Final = "envoy.service.load_stats.v3.LoadReportingService"

INTERVAL_S: Final = 1.0
"""Seconds between reports. What fails shall be seen within a few of them and within 5 s, so it can't be longer; and
it costs little: reading 1,000 endpoints takes 3.5 ms."""

Context = grpc.aio.ServicerContext[Any, Any]
Listener = Callable[[LoadReport], None]


class LoadReports:
    """Receives load reports, keeps them in `table` and hands each to the listeners.

    `find_gateway` tells which gateway a proxy belongs to (`XdsServer.find_gateway`); a proxy of none is counted under
    gateway "". `allowed` tells which gateways a caller's certificate names, as for `XdsServer`; a proxy that says it is
    another is refused. Single-threaded, like the xDS server. Listeners return at once; they see every count once.
    """

    def __init__(
        self,
        find_gateway: Callable[[NodeIdentity], str | None],
        registry: CollectorRegistry,
        *,
        clock: Clock | None = None,
        interval_s: float = INTERVAL_S,
        table: LoadTable | None = None,
        allowed: Callable[[Context], frozenset[str]] | None = None,
    ) -> None:
        self.table = LoadTable() if table is None else table
        self._find_gateway = find_gateway
        self._allowed = allowed
        self._clock = clock or SystemClock()
        self._interval_s = interval_s
        self._listeners: list[Listener] = []
        self._streams: Counter[str] = Counter()
        registry.register(_LoadCollector(self.table))

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service, before the server starts."""
        handler = grpc.stream_stream_rpc_method_handler(
            self._serve,
            request_deserializer=lrs_pb2.LoadStatsRequest.FromString,
            response_serializer=lrs_pb2.LoadStatsResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(LRS_SERVICE, {"StreamLoadStats": handler}),)
        )

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every report from now on; returns the function that ends it."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            self._listeners.remove(listener)

        return unsubscribe

    def status(self, node: str = "") -> Json:
        """Proxies that report, and the load per gateway, cluster, locality and endpoint: added up over all proxies, or
        of one of them. `total` counts since a proxy began to report, `latest` are the last intervals together."""
        now_s = self._clock.monotonic_s()
        return {
            "nodes": [
                {
                    "node": entry.node,
                    "gateway": entry.gateway,
                    "age_s": round(now_s - entry.at_s, 3),
                    "interval_s": entry.interval_s,
                    "reports": entry.reports,
                }
                for entry in self.table.nodes()
                if node in {"", entry.node}
            ],
            "loads": _loads_json(self.table, node),
            "evicted_rows": self.table.evicted,
        }

    async def _serve(
        self, requests: AsyncIterator[lrs_pb2.LoadStatsRequest], context: Context
    ) -> AsyncIterator[lrs_pb2.LoadStatsResponse]:
        conversation = LoadConversation(interval_for(len(self._streams) + 1, self._interval_s))
        allowed = self._allowed(context) if self._allowed else None
        identity: NodeIdentity | None = None
        try:
            async for request in requests:
                answer = conversation.receive(request)
                if identity is None and conversation.node is not None:
                    claimed = replace(identity_of(conversation.node), allowed=allowed)
                    if not claimed.proven():
                        await self._deny(claimed, context)
                    identity = claimed
                    self._streams[identity.id] += 1
                if identity is not None and (answer is None or request.cluster_stats):
                    self._take(request, identity)
                if answer is not None:
                    yield answer
        except PeerError as error:
            log.warning("lrs: stream ended", peer=context.peer(), reason=str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            if identity is not None:
                self._left(identity.id)

    async def _deny(self, identity: NodeIdentity, context: Context) -> None:
        claim, allowed = identity.claims()[0], sorted(identity.allowed or ())
        log.warning(
            "lrs: a proxy reports for a gateway that its certificate does not name",
            node=identity.id,
            gateway=claim,
            allowed=allowed,
            peer=context.peer(),
        )
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"this certificate is not for {claim} but for {allowed}")

    def _take(self, request: lrs_pb2.LoadStatsRequest, identity: NodeIdentity) -> None:
        report = read_report(request, gateway=self._find_gateway(identity) or "", node=identity.id)
        if report.cut:
            log.warning("lrs: a report is too large and was read in part", node=identity.id, loads=len(report.loads))
        self.table.take(report, self._clock.monotonic_s())
        for listener in tuple(self._listeners):
            listener(report)

    def _left(self, node: str) -> None:
        self._streams[node] -= 1
        if not self._streams[node]:
            del self._streams[node]
            self.table.forget(node)


def _loads_json(table: LoadTable, node: str) -> list[Json]:
    localities: dict[tuple[str, str, str, int], list[Load]] = {}
    endpoints: defaultdict[tuple[str, str, str, int], dict[str, list[Load]]] = defaultdict(dict)
    for row in table.rows(node):
        key = (row.gateway, row.place.cluster, row.place.site, row.place.priority)
        if row.place.endpoint:
            sums = endpoints[key].setdefault(row.place.endpoint, [NO_LOAD, NO_LOAD])
        else:
            sums = localities.setdefault(key, [NO_LOAD, NO_LOAD])
        sums[0] += row.total
        sums[1] += row.latest
    return [
        {
            "gateway": key[0],
            "cluster": key[1],
            "site": key[2],
            "priority": key[3],
            **_sums_json(*sums),
            "endpoints": [
                {"endpoint": name, **_sums_json(*counts)} for name, counts in sorted(endpoints.get(key, {}).items())
            ],
        }
        for key, sums in sorted(localities.items())
    ]


def _sums_json(total: Load, latest: Load) -> Json:
    return {
        "in_progress": latest.in_progress,
        "total": {"succeeded": total.succeeded, "failed": total.failed, "issued": total.issued},
        "latest": {"succeeded": latest.succeeded, "failed": latest.failed, "issued": latest.issued},
    }


class _LoadCollector(Collector):
    """The load as metrics, added up over the proxies of a gateway when Prometheus asks."""

    def __init__(self, table: LoadTable) -> None:
        self._table = table

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "pointsman_upstream_requests",
            "Requests to pools as gateways count them, by how they ended",
            labels=["gateway", "cluster", "site", "outcome"],
        )
        running = GaugeMetricFamily(
            "pointsman_upstream_requests_in_progress",
            "Requests that run, as gateways count them",
            labels=["gateway", "cluster", "site"],
        )
        for series, totals in sorted(self._table.totals().items()):
            requests.add_metric([*series, "succeeded"], totals.succeeded)
            requests.add_metric([*series, "failed"], totals.failed)
            if totals.dropped:
                requests.add_metric([*series, "dropped"], totals.dropped)
        for series, count in sorted(self._table.in_progress().items()):
            running.add_metric(series, count)
        nodes = GaugeMetricFamily("pointsman_load_reporting_nodes", "Proxies that report load", labels=["gateway"])
        for gateway, count in sorted(Counter(node.gateway for node in self._table.nodes()).items()):
            nodes.add_metric([gateway], count)
        yield requests
        yield running
        yield nodes
        yield CounterMetricFamily(
            "pointsman_load_rows_evicted", "Rows of load that had to make room", value=self._table.evicted
        )
