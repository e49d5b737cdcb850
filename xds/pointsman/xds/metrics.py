"""Prometheus metrics of the control plane; children are made once."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pointsman.xds.resources import SHORT_NAMES

PUSH_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""From a weight change on an idle machine (2 ms) to a gateway in trouble; 100 ms is the bar."""


class XdsMetrics:
    """All `pointsman_xds_*` series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.streams = Gauge("pointsman_xds_streams", "Open xDS streams", ["protocol"], registry=registry)
        self.unknown_nodes = Counter(
            "pointsman_xds_unknown_nodes_total", "Streams of proxies that belong to no gateway", registry=registry
        )
        self.denied_nodes = Counter(
            "pointsman_xds_denied_nodes_total",
            "Streams of proxies that said they are a gateway that their certificate does not name",
            registry=registry,
        )
        self.doubled_nodes = Counter(
            "pointsman_xds_doubled_nodes_total",
            "Aggregated streams that began while another of the same node id and gateway was open",
            registry=registry,
        )
        self.requests = Counter(
            "pointsman_xds_requests_total",
            "Requests by what they were: ack, nack, stale or subscribe",
            ["type", "kind"],
            registry=registry,
        )
        self.unsupported = Counter(
            "pointsman_xds_unsupported_names_total",
            "xdstp names and resource locators that clients asked for",
            ["type"],
            registry=registry,
        )
        self.throttled = Counter(
            "pointsman_xds_throttled_requests_total",
            "Requests after which a client was read more slowly, because most of them answered nothing",
            registry=registry,
        )
        self.responses = Counter("pointsman_xds_responses_total", "Responses sent", ["type"], registry=registry)
        self.response_bytes = Counter(
            "pointsman_xds_response_bytes_total", "Bytes of responses sent", ["type"], registry=registry
        )
        self.push = Histogram(
            "pointsman_xds_push_duration_seconds",
            "Time from sending a response to its ACK",
            ["type"],
            buckets=PUSH_BUCKETS_S,
            registry=registry,
        )
        self.build = Histogram(
            "pointsman_xds_build_duration_seconds",
            "Time to build all changed gateways",
            buckets=PUSH_BUCKETS_S,
            registry=registry,
        )
        self.refused = Gauge(
            "pointsman_xds_snapshot_refused",
            "1 while the Plan of a gateway is inconsistent",
            ["gateway"],
            registry=registry,
        )


def label(type_url: str) -> str:
    """CDS, EDS, … ("other" for types that we do not serve, so that clients can't make series)."""
    return SHORT_NAMES.get(type_url, "other")
