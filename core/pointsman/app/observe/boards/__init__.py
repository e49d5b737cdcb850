"""The four dashboards. Gauges are read with `max by`, so that two control planes of one fleet do not count twice."""

from __future__ import annotations

from typing import Final

from pointsman.app.observe.boards.control_plane import CONTROL_PLANE
from pointsman.app.observe.boards.failover import FAILOVER
from pointsman.app.observe.boards.fleet import FLEET
from pointsman.app.observe.boards.rollout import ROLLOUT
from pointsman.app.observe.grafana import Dashboard

DASHBOARDS: Final[dict[str, Dashboard]] = {
    "fleet": FLEET,
    "rollout": ROLLOUT,
    "failover": FAILOVER,
    "control-plane": CONTROL_PLANE,
}
"""File name without `.json` → dashboard."""
