"""When each site was last left and given back its requests: a way out that nobody has tried for months is a hope."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Json = dict[str, Any]


class FailoverDetails(Collector):
    """`pointsman_failover_last_timestamp_seconds`; `status` is `Failover.status`."""

    def __init__(self, status: Callable[[], list[Json]], registry: CollectorRegistry) -> None:
        self._status = status
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """A series for each site of each policy that a manifest declares; 0: it was never left."""
        last = GaugeMetricFamily(
            "pointsman_failover_last_timestamp_seconds",
            "When a failover from a site, a real one or a drill, was last over; 0: there was none.",
            labels=["policy", "site"],
        )
        for policy in self._status():
            if policy["declared"]:
                ends = dict.fromkeys((member["site"] for member in policy["sites"]), 0.0)
                for record in policy["records"]:
                    if record["site"] in ends and record["recovered_at_s"] is not None:
                        ends[record["site"]] = max(ends[record["site"]], float(record["recovered_at_s"]))
                for site, at_s in sorted(ends.items()):
                    last.add_metric([policy["name"], site], at_s)
        yield last
