"""What the admin API and Prometheus tell of a state."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pointsman.app.failover_status import FailoverMetrics, failover_json
from pointsman.failover import machine
from pointsman.failover.measured import Measured
from pointsman.failover.model import Finding, Member, Observation, Trigger
from pointsman.failover.spec import Failback, FailoverSpec, Tier
from pointsman.failover.state import Observed, State

SPEC = FailoverSpec(
    name="FailoverPolicy/n/f",
    pools=("n/p",),
    tiers=(Tier(sites=("a", "b")),),
    sites={"n/p": ("a", "b")},
    failback=Failback(hold_down_s=20.0, healthy_for_s=5.0),
)
DEAD = Finding(trigger=Trigger.ERROR_RATE, value=1.0, threshold=0.1, samples=50, since_s=0.0)


class Life:
    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.state: State = machine.begin(SPEC, self.now_s)

    def live(self, seconds: float, *, bad: bool) -> None:
        for _ in range(round(seconds)):
            self.now_s += 1.0
            seen = tuple(
                Observation(
                    member=Member(pool="n/p", site=site),
                    findings=(DEAD,) if bad and site == "a" else (),
                    clear=not (bad and site == "a"),
                    ready=1,
                    endpoints=1,
                )
                for site in ("a", "b")
            )
            self.state, _ = machine.step(self.state, Observed(observations=seen, at_s=0.0), self.now_s)

    @property
    def a(self) -> dict[str, Any]:
        (found,) = [one for one in failover_json(self.state)["sites"] if one["site"] == "a"]
        return dict(found)


def test_what_is_left_of_a_hold_down_is_when_it_ends() -> None:
    """Also the second one, which is twice as long, and with the time in which the site was still bad taken off."""
    life, registry = Life(), CollectorRegistry()
    metrics = FailoverMetrics(registry)
    for hold_s in (20.0, 40.0):
        life.live(4, bad=True)
        life.live(2, bad=False)
        assert life.a["state"] == "HoldDown"
        left_s = life.a["hold_down_s"]
        assert left_s == pytest.approx(hold_s - 5.0, abs=1.5)
        metrics.show(life.state, ())
        labels = {"policy": SPEC.name, "site": "a"}
        assert registry.get_sample_value("pointsman_failover_hold_down_seconds", labels) == left_s
        life.live(left_s - 1, bad=False)
        assert life.a["state"] == "HoldDown"
        life.live(2, bad=False)
        assert (life.a["state"], life.a["hold_down_s"]) == ("Ramping", 0.0)


def test_evidence_is_shown_before_anything_holds() -> None:
    """One sees a site come near its threshold; once a trigger holds it is told at once, not at the next second."""
    life, registry = Life(), CollectorRegistry()
    metrics = FailoverMetrics(registry)
    member = Member(pool="n/p", site="a")
    labels = {"policy": SPEC.name, "site": "a", "trigger": "errorRate"}
    asked = []

    def measure() -> list[tuple[Member, Measured]]:
        asked.append(life.state.now_s)
        return [(member, Measured(trigger=Trigger.ERROR_RATE, value=0.04, threshold=0.1))]

    def shown() -> tuple[float | None, float | None]:
        return (
            registry.get_sample_value("pointsman_failover_evidence", labels),
            registry.get_sample_value("pointsman_failover_threshold", {"policy": SPEC.name, "trigger": "errorRate"}),
        )

    life.live(1, bad=False)
    for _ in range(10):
        metrics.show(life.state, (Observation(member=member),), measure)
    assert shown() == (0.04, 0.1)
    assert len(asked) == 1, "ten times a second would cost too much"
    metrics.show(life.state, (Observation(member=member, findings=(DEAD,)),), measure)
    assert shown() == (DEAD.value, DEAD.threshold)
    life.live(1, bad=False)
    metrics.show(life.state, (Observation(member=member),), measure)
    assert shown() == (0.04, 0.1)
    metrics.forget(life.state)
    assert shown()[0] is None


def test_a_policy_that_is_gone_leaves_no_gauge_behind() -> None:
    life, registry = Life(), CollectorRegistry()
    metrics = FailoverMetrics(registry)
    life.live(4, bad=True)
    life.live(2, bad=False)
    metrics.show(life.state, (Observation(member=Member(pool="n/p", site="a"), findings=(DEAD,)),))
    labels = {"policy": SPEC.name, "site": "a"}
    gauges = (
        ("pointsman_failover_hold_down_seconds", labels),
        ("pointsman_failover_evidence", labels | {"trigger": "errorRate"}),
        ("pointsman_failover_site_state", labels | {"state": "HoldDown"}),
    )
    assert all(registry.get_sample_value(*gauge) for gauge in gauges)
    metrics.forget(life.state)
    assert [registry.get_sample_value(*gauge) for gauge in gauges] == [None] * 3
