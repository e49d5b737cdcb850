"""State of the Plan and of the gateways as gauges, made when Prometheus asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pointsman.core.model import TOTAL_WEIGHT, Health, Plan
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc import Picker
from pointsman.xds import XdsServer

STANDS: Final = ("acked", "pending", "rejected")


class FleetMetrics(Collector):
    """`pointsman_endpoints`, `pointsman_site_*`, `pointsman_arm_weight_ratio`, `pointsman_xds_node_stands`."""

    def __init__(self, holder: PlanHolder, picker: Picker, xds: XdsServer, registry: CollectorRegistry) -> None:
        self._holder = holder
        self._picker = picker
        self._xds = xds
        registry.register(self)
        ProcessCollector(registry=registry)

    def collect(self) -> Iterator[Metric]:
        """All families; without a Plan they are empty."""
        plan = self._holder.plan or Plan()
        yield from self._endpoints(plan)
        yield from _sites(plan)
        yield _weights(plan)
        yield self._stands(plan)

    def _endpoints(self, plan: Plan) -> Iterator[Metric]:
        states = GaugeMetricFamily(
            "pointsman_endpoints",
            "Endpoints of the Plan by what is known of their health.",
            labels=["pool", "site", "health"],
        )
        running = GaugeMetricFamily(
            "pointsman_inflight_requests",
            "Picked requests that have not ended, of all pickers.",
            labels=["pool", "site"],
        )
        table = self._picker.table
        counts: Counter[tuple[str, str, str]] = Counter()
        in_flight: Counter[tuple[str, str]] = Counter()
        for pool in plan.pools:
            for endpoint in pool.endpoints():
                counts[pool.name, endpoint.site, endpoint.health.value] += 1
                row = table.row(endpoint.key)
                busy = 0 if row is None else int(table.requests[row] + table.remote_requests[row])
                in_flight[pool.name, endpoint.site] += busy
        for pool_name, site in sorted(in_flight):
            running.add_metric([pool_name, site], in_flight[pool_name, site])
            for health in Health:
                states.add_metric([pool_name, site, health.value], counts[pool_name, site, health.value])
        yield states
        yield running

    def _stands(self, plan: Plan) -> Metric:
        stands = GaugeMetricFamily(
            "pointsman_xds_node_stands",
            "Connected proxies by how they stand with the newest configuration of their gateway.",
            labels=["gateway", "stand"],
        )
        for gateway in plan.gateways:
            found = self._xds.convergence(gateway.name)
            for stand in STANDS:
                stands.add_metric([gateway.name, stand], len(getattr(found, stand)))
        return stands


def _sites(plan: Plan) -> Iterator[Metric]:
    draining = GaugeMetricFamily("pointsman_site_draining", "1 while a site gets no new requests.", labels=["site"])
    price = GaugeMetricFamily(
        "pointsman_site_gpu_hour_usd", "Declared price of a GPU hour; absent where it is not known.", labels=["site"]
    )
    capacity = GaugeMetricFamily(
        "pointsman_site_capacity_requests",
        "Requests at a time that a site is declared to carry; absent where it is not known.",
        labels=["site"],
    )
    for site in plan.sites:
        draining.add_metric([site.name], float(site.draining))
        if site.usd_per_gpu_hour:
            price.add_metric([site.name], site.usd_per_gpu_hour)
        if site.max_concurrent:
            capacity.add_metric([site.name], site.max_concurrent)
    yield draining
    yield price
    yield capacity


def _weights(plan: Plan) -> Metric:
    weights = GaugeMetricFamily(
        "pointsman_arm_weight_ratio", "Share of a rule's requests that an arm shall get.", labels=["rule", "pool"]
    )
    for split in plan.splits:
        total = sum(arm.effective for arm in split.arms) or TOTAL_WEIGHT
        shares: Counter[str] = Counter()
        for arm in split.arms:  # a pool may stand in a split twice
            shares[arm.pool] += arm.effective
        for pool, share in shares.items():
            weights.add_metric([split.rule, pool], share / total)
    return weights
