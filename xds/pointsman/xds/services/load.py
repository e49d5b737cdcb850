"""Load as gateways report it (LRS): what a report says, and the conversation that brings it. Pure.

A gateway counts requests itself and reports the counts of each interval once. Reports are the only view of the traffic
that does not depend on the picker or on the access log, so what watches a fleet can be judged against them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.config.endpoint.v3 import load_report_pb2
from envoy.service.load_stats.v3 import lrs_pb2

from pointsman.core.errors import PeerError
from pointsman.core.model import Locality

ROWS_PER_REPORT: Final = 20_000
"""Localities and endpoints read from one report; twice the largest pool that we plan for."""

NODES_AT_FULL_RATE: Final = 100
"""Gateways that report at the chosen interval. With more of them each reports less often, so that the work of reading
reports does not grow with the fleet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests of one interval: that ended well, that ended badly (5xx, reset, time-out) and that began; and how many
    were running at its end."""

    succeeded: int = 0
    failed: int = 0
    issued: int = 0
    in_progress: int = 0

    def __add__(self, other: Load) -> Load:
        return Load(
            succeeded=self.succeeded + other.succeeded,
            failed=self.failed + other.failed,
            issued=self.issued + other.issued,
            in_progress=self.in_progress + other.in_progress,
        )


NO_LOAD: Final = Load()
NOWHERE: Final = Locality()


class Place(NamedTuple):
    """What a load belongs to: a locality of a cluster, or with `endpoint` (`ip:port`) one endpoint in it."""

    cluster: str
    locality: Locality = NOWHERE
    priority: int = 0
    endpoint: str = ""

    @property
    def site(self) -> str:
        """The site, which the control plane writes into every sub-zone; "" for clusters without localities."""
        return self.locality.sub_zone


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """One report of one gateway proxy. Places without any traffic are left out by Envoy.

    `dropped` counts, per cluster, requests that were not sent because of a drop policy or an open circuit breaker;
    `cut` says that the report was larger than `ROWS_PER_REPORT`. `interval_s` is the time the counts are for.
    """

    gateway: str
    node: str
    interval_s: float
    loads: tuple[tuple[Place, Load], ...] = ()
    dropped: tuple[tuple[str, int], ...] = ()
    cut: bool = False


class LoadConversation:
    """One LRS stream: the first request is answered with what to report, every later one is a report."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self.node: base_pb2.Node | None = None

    def receive(self, request: lrs_pb2.LoadStatsRequest) -> lrs_pb2.LoadStatsResponse | None:
        """Take a request; returns the answer that it needs.

        Raises:
            PeerError: the first request names no node.
        """
        if self.node is not None:
            return None
        if not request.node.id:
            raise PeerError("the first load report of a stream names no node")
        self.node = base_pb2.Node(id=request.node.id, cluster=request.node.cluster, metadata=request.node.metadata)
        answer = lrs_pb2.LoadStatsResponse(send_all_clusters=True, report_endpoint_granularity=True)
        answer.load_reporting_interval.FromMilliseconds(round(self._interval_s * 1000))
        return answer


def interval_for(nodes: int, base_s: float) -> float:
    """Seconds between the reports of a proxy that is one of `nodes`."""
    return base_s * max(1, -(-nodes // NODES_AT_FULL_RATE))


def read_report(request: lrs_pb2.LoadStatsRequest, *, gateway: str, node: str) -> LoadReport:
    """The content of a report. Localities come before the endpoints of the same cluster."""
    loads = tuple(islice(_loads(request), ROWS_PER_REPORT + 1))
    intervals = [stats.load_report_interval.ToMilliseconds() / 1000 for stats in request.cluster_stats]
    return LoadReport(
        gateway=gateway,
        node=node,
        interval_s=max(intervals, default=0.0),
        loads=loads[:ROWS_PER_REPORT],
        dropped=tuple(
            (stats.cluster_name, stats.total_dropped_requests)
            for stats in islice(request.cluster_stats, ROWS_PER_REPORT)
            if stats.total_dropped_requests
        ),
        cut=len(loads) > ROWS_PER_REPORT,
    )


def _loads(request: lrs_pb2.LoadStatsRequest) -> Iterator[tuple[Place, Load]]:
    for cluster in request.cluster_stats:
        name = cluster.cluster_name
        for stats in cluster.upstream_locality_stats:
            yield Place(cluster=name, locality=_locality(stats.locality), priority=stats.priority), _load(stats)
        for stats in cluster.upstream_locality_stats:
            locality, priority = _locality(stats.locality), stats.priority
            for entry in stats.upstream_endpoint_stats:
                key = _key(entry.address)
                if key:
                    yield Place(cluster=name, locality=locality, priority=priority, endpoint=key), _load(entry)


def _load(stats: load_report_pb2.UpstreamLocalityStats | load_report_pb2.UpstreamEndpointStats) -> Load:
    return Load(
        succeeded=stats.total_successful_requests,
        failed=stats.total_error_requests,
        issued=stats.total_issued_requests,
        in_progress=stats.total_requests_in_progress,
    )


def _locality(locality: base_pb2.Locality) -> Locality:
    return Locality(region=locality.region, zone=locality.zone, sub_zone=locality.sub_zone)


def _key(address: address_pb2.Address) -> str:
    """`ip:port` as in `Endpoint.key`; "" for what is no TCP address."""
    host = address.socket_address.address
    if not host:
        return ""
    return (
        f"[{host}]:{address.socket_address.port_value}"
        if ":" in host
        else f"{host}:{address.socket_address.port_value}"
    )
