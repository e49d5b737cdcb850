"""Arms that Envoy's own probes find dead: their share goes to the others where the route says so.

`pointsman.dev/on-unavailable: Redistribute` and `Fallback` would otherwise go by manifests and failover alone.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from pointsman.app.operations import Operations
from pointsman.core.arm_names import whole_pool
from pointsman.core.clock import Clock
from pointsman.core.config import Manifests
from pointsman.core.config.route_annotations import OnUnavailable, route_terms
from pointsman.core.model import Plan
from pointsman.extproc import Picker
from pointsman.extproc.feedback import Feedback
from pointsman.rollout.outages import Outages

log = structlog.get_logger()

INTERVAL_S: Final = 0.25
"""How often it is looked whether an arm may be tried again. That one is down takes effect at once."""


class ArmOutages:
    """Watches the arms of such routes; used from one event loop. `set_unavailable` is called from here only."""

    def __init__(self, operations: Operations, picker: Picker, clock: Clock) -> None:
        self._operations = operations
        self._picker = picker
        self._clock = clock
        self._plan = Plan()
        self._outages = Outages()

    def configure(self, manifests: Manifests, plan: Plan) -> None:
        """Take over which arms hand their share over."""
        self._plan = plan
        routes = {
            f"{route.kind}/{route.key}"
            for route in manifests.routes()
            if route_terms(route.metadata.annotations).on_unavailable is not OnUnavailable.FAIL
        }
        arms = {arm.pool for one in plan.splits if one.rule.rpartition("/")[0] in routes for arm in one.arms}
        self._outages.watch(frozenset(arms))

    def feedback(self, entry: Feedback) -> None:
        """Note whether a request found an endpoint."""
        if not entry.ended or entry.cluster not in self._outages.watched:
            return
        if not entry.no_endpoint:
            self._outages.served(entry.cluster)
        elif self._outages.missed(entry.cluster, self._clock.monotonic_s()):
            log.warning("gateways have no endpoint for an arm: the others get its share", pool=entry.cluster)
            self._operations.set_unavailable(self._outages.down)

    async def run(self) -> None:
        """Try arms again, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            back = self._outages.tick(self._clock.monotonic_s(), self._scraped_s)
            for pool in sorted(back):
                log.info("an arm is tried again", pool=pool)
            # Also drops pools that nobody watches any more.
            self._operations.set_unavailable(self._outages.down)

    def _scraped_s(self, name: str) -> float:
        """When an endpoint of a pool last answered a scrape (monotonic)."""
        pool = next((one for one in self._plan.pools if one.name == whole_pool(name)), None)
        table = self._picker.table
        rows = [row for e in (pool.endpoints() if pool else ()) if (row := table.row(e.key)) is not None]
        return max((float(table.seen_at_s[row]) for row in rows), default=float("-inf"))
