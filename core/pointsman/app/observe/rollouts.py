"""What dashboards need of rollouts beyond their counters: the pool of each arm, when a phase began, the evidence.

Read from what the admin API tells, so that a rollout that is gone leaves no series behind.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pointsman.rollout.analysis import Verdict

Json = dict[str, Any]


class RolloutDetails(Collector):
    """`pointsman_rollout_*`; `status` is `Rollouts.status`."""

    def __init__(self, status: Callable[[], list[Json]], registry: CollectorRegistry) -> None:
        self._status = status
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """One family each, with the rollouts that there are."""
        arm = GaugeMetricFamily(
            "pointsman_rollout_arm",
            "1 for each arm of each rule that a rollout leads: joins `pointsman_arm_*` with the rollout.",
            labels=["policy", "rule", "pool", "arm"],
        )
        steps = GaugeMetricFamily("pointsman_rollout_steps", "Number of steps of a rollout.", labels=["policy"])
        changed = GaugeMetricFamily(
            "pointsman_rollout_changed_timestamp_seconds", "When phase or step last changed.", labels=["policy"]
        )
        programmed = GaugeMetricFamily(
            "pointsman_rollout_programmed",
            "1 when every connected gateway has acknowledged the present weight.",
            labels=["policy"],
        )
        value = GaugeMetricFamily(
            "pointsman_rollout_check_value",
            "What a check measured, as a fraction or in milliseconds, as its metric is.",
            labels=["policy", "check", "arm"],
        )
        silent = GaugeMetricFamily(
            "pointsman_rollout_check_no_data", "1 while a check has nothing to judge by.", labels=["policy", "check"]
        )
        for rollout in self._status():
            name = rollout["name"]
            steps.add_metric([name], len(rollout["steps"]))
            changed.add_metric([name], _seconds(rollout["changed_at"]))
            programmed.add_metric([name], float(rollout["programmed"]))
            for rule in rollout["rules"]:
                for role in ("canary", "stable"):
                    arm.add_metric([name, rule["rule"], rollout[role], role], 1.0)
            for check in rollout["checks"]:
                silent.add_metric([name, check["name"]], float(check["verdict"] == Verdict.NO_DATA.value))
                for role in ("canary", "stable"):
                    if check[role] is not None:
                        value.add_metric([name, check["name"], role], check[role])
        yield from (arm, steps, changed, programmed, value, silent)


def _seconds(timestamp: str) -> float:
    return float(calendar.timegm(time.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ")))
