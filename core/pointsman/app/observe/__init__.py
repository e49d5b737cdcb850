"""What Prometheus sees of the fleet beyond the counters of the hot path, read when it asks; dashboards and alerts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

from pointsman.app.observe.drills import DrillReports
from pointsman.app.observe.failovers import FailoverDetails
from pointsman.app.observe.fleet import FleetMetrics
from pointsman.app.observe.rollouts import Json, RolloutDetails
from pointsman.app.observe.upstreams import Upstreams
from pointsman.core.clock import Clock
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc import Picker
from pointsman.extproc.scrape import Signals
from pointsman.xds import XdsServer


def observe(
    registry: CollectorRegistry,
    *,
    holder: PlanHolder,
    picker: Picker,
    xds: XdsServer,
    signals: Signals,
    rollouts: Callable[[], list[Json]],
    failovers: Callable[[], list[Json]],
    clock: Clock,
    state: Path,
) -> Upstreams:
    """Register what is read at a scrape; the scraper is to give its pages to what is returned, not to `signals`."""
    FleetMetrics(holder, picker, xds, registry)
    RolloutDetails(rollouts, registry)
    FailoverDetails(failovers, registry)
    DrillReports(state, registry)
    return Upstreams(signals, holder, registry, clock)
