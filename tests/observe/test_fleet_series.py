"""What is added up when Prometheus asks: model servers' pages, endpoints, sites, weights, rollouts."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pointsman.app.exposure import Exposure
from pointsman.app.observe.fleet import FleetMetrics
from pointsman.app.observe.rollouts import RolloutDetails
from pointsman.app.observe.upstreams import STALE_S, Upstreams
from pointsman.core.clock import ManualClock
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.core.model import AppProtocol, Endpoint, Health, Plan, Pool, Site, SiteGroup, Split, SplitArm
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc import Picker
from pointsman.extproc.decision import PickRequest
from pointsman.extproc.feedback import Feedback
from pointsman.extproc.metrics import PickerMetrics
from pointsman.extproc.request import Body
from pointsman.xds import BuildOptions, XdsServer

EU = {"pool": "default/a", "site": "eu"}


def endpoint(number: int, site: str = "eu", health: Health = Health.HEALTHY) -> Endpoint:
    return Endpoint(name=f"e{number}", address=f"10.0.0.{number}", port=80, site=site, health=health)


def plan(*endpoints: Endpoint, protocol: AppProtocol = AppProtocol.HTTP) -> Plan:
    sites = sorted({e.site for e in endpoints})
    groups = tuple(
        SiteGroup(site=site, priority=0, weight=1, endpoints=tuple(e for e in endpoints if e.site == site))
        for site in sites
    )
    return Plan(pools=(Pool(name="default/a", groups=groups, app_protocol=protocol),))


class Sink:
    """Where pages go; remembers them."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def signals(self, key: str, metrics: EngineMetrics | None = None, *, rtt_ms: float | None = None) -> bool:
        self.heard.append(key)
        return key.endswith("1:80")

    def models(self, key: str, names: frozenset[str] | None, adapters: frozenset[str] = frozenset()) -> None:
        self.heard.append(f"models {key}")

    def refused(self, key: str) -> None:
        self.heard.append(f"refused {key}")


class Seen:
    """Upstreams with what is around them."""

    def __init__(self, first: Plan) -> None:
        self.registry, self.clock, self.holder, self.sink = CollectorRegistry(), ManualClock(), PlanHolder(), Sink()
        self.holder.publish(first)
        self.upstreams = Upstreams(self.sink, self.holder, self.registry, self.clock)

    def value(self, name: str, labels: dict[str, str] = EU) -> float | None:
        return self.registry.get_sample_value(name, labels)


def test_pages_are_passed_on_and_added_up() -> None:
    seen = Seen(plan(endpoint(1), endpoint(2), endpoint(3, "us")))
    assert seen.upstreams.signals("10.0.0.1:80", EngineMetrics(running=2, waiting=1, kv_usage=0.5), rtt_ms=1)
    assert not seen.upstreams.signals("10.0.0.2:80", EngineMetrics(running=3, kv_usage=0.1))
    seen.upstreams.models("10.0.0.2:80", None)
    assert seen.sink.heard == ["10.0.0.1:80", "10.0.0.2:80", "models 10.0.0.2:80"]
    seen.clock.advance(2)
    assert seen.value("pointsman_engine_running_requests") == 5
    assert seen.value("pointsman_engine_waiting_requests") == 1
    assert seen.value("pointsman_engine_kv_usage_ratio") == pytest.approx(0.3)
    assert seen.value("pointsman_engine_signal_age_seconds") == pytest.approx(2)
    assert seen.value("pointsman_engine_stale_endpoints") == 0
    assert seen.value("pointsman_engine_stale_endpoints", {"pool": "default/a", "site": "us"}) == 1
    assert seen.value("pointsman_engine_kv_usage_ratio", {"pool": "default/a", "site": "us"}) is None


def test_what_was_said_long_ago_is_no_load() -> None:
    seen = Seen(plan(endpoint(1)))
    seen.upstreams.signals("10.0.0.1:80", EngineMetrics(running=7, waiting=9))
    seen.clock.advance(STALE_S + 1)
    assert seen.value("pointsman_engine_running_requests") == 0
    assert seen.value("pointsman_engine_stale_endpoints") == 1
    assert seen.value("pointsman_engine_signal_age_seconds") == pytest.approx(STALE_S + 1)


def test_counters_of_engines_survive_their_restarts_and_departures() -> None:
    seen = Seen(plan(endpoint(1), endpoint(2)))
    name = "pointsman_engine_prefix_hit_tokens_total"
    for total in (1_000.0, 1_300.0, 40.0, None, 90.0):  # it has run before us, restarts, leaves a page out
        seen.upstreams.signals("10.0.0.1:80", EngineMetrics(prefix_hits_total=total))
    assert seen.value(name) == 300 + 40
    seen.upstreams.signals("10.0.0.1:80", EngineMetrics(prefix_hits_total=100.0))
    assert seen.value(name) == 350
    seen.holder.publish(plan(endpoint(2)))
    assert seen.value(name) == 350
    seen.upstreams.signals("10.0.0.1:80", EngineMetrics(prefix_hits_total=5_000.0))  # a page that was under way
    seen.holder.publish(plan(endpoint(1), endpoint(2)))
    seen.upstreams.signals("10.0.0.1:80", EngineMetrics(prefix_hits_total=6_000.0))
    assert seen.value(name) == 350


def test_endpoints_without_a_page_are_not_stale() -> None:
    seen = Seen(plan(endpoint(1), protocol=AppProtocol.H2C))
    assert seen.value("pointsman_engine_stale_endpoints") is None


def test_the_plan_as_gauges() -> None:
    registry, holder, picker = CollectorRegistry(), PlanHolder(), Picker(ManualClock())
    xds = XdsServer(holder, BuildOptions(picker_address="127.0.0.1", picker_port=1), CollectorRegistry())
    FleetMetrics(holder, picker, xds, registry)
    assert registry.get_sample_value("pointsman_site_draining", {"site": "eu"}) is None
    arms = (
        SplitArm(pool="default/b", declared=1, decided=1, effective=2_500),
        SplitArm(pool="default/a", declared=1, decided=1, effective=5_000),
        SplitArm(pool="default/b", declared=1, decided=1, effective=2_500),
    )
    pools = plan(endpoint(1), endpoint(2, health=Health.DRAINING)).pools
    sites = (Site(name="eu", max_concurrent=40, usd_per_gpu_hour=2.5), Site(name="us", draining=True))
    holder.publish(Plan(pools=pools, sites=sites, splits=(Split(rule="HTTPRoute/d/r/0", arms=arms),)))
    picker.apply(holder.plan or Plan())
    picker.pick(PickRequest(pool="default/a"))
    expected = {
        ("pointsman_endpoints", (*EU.items(), ("health", "HEALTHY"))): 1,
        ("pointsman_endpoints", (*EU.items(), ("health", "DRAINING"))): 1,
        ("pointsman_endpoints", (*EU.items(), ("health", "UNHEALTHY"))): 0,
        ("pointsman_inflight_requests", tuple(EU.items())): 1,
        ("pointsman_site_capacity_requests", (("site", "eu"),)): 40,
        ("pointsman_site_capacity_requests", (("site", "us"),)): None,
        ("pointsman_site_gpu_hour_usd", (("site", "eu"),)): 2.5,
        ("pointsman_site_draining", (("site", "us"),)): 1,
        ("pointsman_arm_weight_ratio", (("rule", "HTTPRoute/d/r/0"), ("pool", "default/b"))): 0.5,
    }
    for (name, labels), value in expected.items():
        assert registry.get_sample_value(name, dict(labels)) == value, (name, labels)
    xds.close()


def test_a_rollout_that_is_gone_leaves_no_series() -> None:
    registry = CollectorRegistry()
    told: list[dict[str, Any]] = [
        {
            "name": "default/chat",
            "canary": "default/b",
            "stable": "default/a",
            "steps": [{}, {}],
            "changed_at": "2026-01-02T03:04:05Z",
            "programmed": True,
            "rules": [{"rule": "HTTPRoute/d/r/0"}],
            "checks": [{"name": "errors", "verdict": "NoData", "canary": None, "stable": 0.25}],
        }
    ]
    RolloutDetails(lambda: told, registry)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"pointsman_rollout_{name}", {"policy": "default/chat", **labels})

    assert value("arm", rule="HTTPRoute/d/r/0", pool="default/b", arm="canary") == 1
    assert value("steps") == 2
    assert value("changed_timestamp_seconds") == 1_767_323_045
    assert value("check_no_data", check="errors") == 1
    assert value("check_value", check="errors", arm="stable") == 0.25
    assert value("check_value", check="errors", arm="canary") is None
    told.clear()
    assert value("steps") is None


def test_picks_are_added_up_by_term_and_prefix() -> None:
    registry, picker = CollectorRegistry(), Picker(ManualClock())
    picker.apply(plan(endpoint(1)))
    metrics = PickerMetrics(registry, picker)
    text = b"all trains run to the harbour " * 100
    prompt = Body(model="m", prompt=text, prompt_bytes=len(text))
    decisions = [picker.pick(PickRequest(pool="default/a", body=prompt)) for _ in range(2)]
    for decision in (*decisions, picker.pick(PickRequest(pool="default/none"))):
        metrics.picked(decision, 0.001)
    second = decisions[1]
    assert second.terms is not None
    assert second.cached_tokens is not None
    own_ms = sum(float(decision.terms.own[0]) for decision in decisions if decision.terms)
    assert registry.get_sample_value("pointsman_pick_cost_seconds_total", {"term": "own"}) == pytest.approx(
        own_ms / 1000
    )
    pool = {"pool": "default/a"}
    assert registry.get_sample_value("pointsman_pick_prompt_tokens_total", pool) == 2 * second.prompt_tokens
    hits = registry.get_sample_value("pointsman_pick_prefix_hit_tokens_total", pool)
    assert hits == float(second.cached_tokens[0]) > 0


def test_added_latency_counts_requests_that_took_one_attempt() -> None:
    registry, picker = CollectorRegistry(), Picker(ManualClock())
    metrics = PickerMetrics(registry, picker)
    for attempts, added_ms, ended in ((1, 4.0, True), (1, None, True), (3, 900.0, True), (1, 5.0, False)):
        entry = Feedback(pick_id="", ended=ended, cluster="default/a", attempts=attempts, added_ms=added_ms)
        metrics.heard(entry, matched=False)
    assert registry.get_sample_value("pointsman_added_latency_seconds_count") == 1
    assert registry.get_sample_value("pointsman_added_latency_seconds_sum") == pytest.approx(0.004)
    assert registry.get_sample_value("pointsman_upstream_retries_total", {"pool": "default/a"}) == 2


def test_times_of_an_arm_are_those_of_its_requests() -> None:
    registry = CollectorRegistry()
    exposure = Exposure(registry)
    arm = SplitArm(pool="default/a", declared=1, decided=1, effective=10_000)
    exposure.apply(Plan(splits=(Split(rule="HTTPRoute/d/r/0", arms=(arm,)),)))
    for route, ttft_ms in (("HTTPRoute/d/r/0/0", 250.0), ("HTTPRoute/d/r/0/1", None), ("HTTPRoute/d/evil/0/0", 9.0)):
        exposure.feedback(
            Feedback(pick_id="", ended=True, cluster="default/a", route=route, ttft_ms=ttft_ms, duration_ms=2_000)
        )
    labels = {"rule": "HTTPRoute/d/r/0", "pool": "default/a"}
    assert registry.get_sample_value("pointsman_arm_ttft_seconds_sum", labels) == pytest.approx(0.25)
    assert registry.get_sample_value("pointsman_arm_duration_seconds_count", labels) == 2
    other = {"rule": "other", "pool": "other"}
    assert registry.get_sample_value("pointsman_arm_ttft_seconds_count", other) == 1
