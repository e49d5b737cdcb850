"""What the operator's desk reads: a thin layer over status, traffic, picker and xDS server. Reading changes nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

from pointsman.app.endpoint_names import names_of, with_names
from pointsman.app.hypothetical import AskBody, explain_request
from pointsman.app.status import FleetStatus
from pointsman.app.traffic import Traffic
from pointsman.app.tree import fleet_tree
from pointsman.app.workers.supervisor import PickerWorkers
from pointsman.core.clock import Clock
from pointsman.core.model import Plan
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc import Picker
from pointsman.xds import XdsServer, render
from pointsman.xds.status import difference_json

Json = dict[str, Any]


TREE_AGE_S: Final = 0.5
"""How old a tree may be. With 1,000 endpoints one takes 12 ms of the loop that serves gateways, and many may look."""


@dataclass(slots=True)
class Desk:
    """See the module."""

    status: FleetStatus
    holder: PlanHolder
    picker: Picker
    xds: XdsServer
    counted: Traffic
    clock: Clock
    workers: PickerWorkers | None = None
    _tree: Json = field(default_factory=dict)
    _tree_at_s: float = -math.inf

    def tree(self) -> Json:
        """See `fleet_tree`; at most `TREE_AGE_S` old."""
        now_s = self.clock.monotonic_s()
        if now_s - self._tree_at_s > TREE_AGE_S:
            self._tree, self._tree_at_s = fleet_tree(self.status.status(), self.counted.recent()), now_s
        return self._tree

    def traffic(self) -> Json:
        """See `Traffic.status`."""
        return self.counted.status()

    async def picks(self, limit: int) -> Json:
        """The last decisions, newest first, in short, of picker workers, too; `/api/v1/picks/{id}` explains one."""
        made = [decision.brief() for decision in self.picker.recent()[-limit:]]
        if self.workers is not None:
            made += await self.workers.recent(limit)
        made.sort(key=lambda one: float(one["at_s"]), reverse=True)
        now_s, names = self.clock.monotonic_s(), names_of(self.holder.plan or Plan())
        return {"picks": [_told(one, now_s, names) for one in made[:limit]]}

    def explain(self, asked: AskBody) -> Json:
        """What would become of a request; nothing is sent or counted.

        Raises:
            QuestionError: the question does not fit the fleet.
        """
        plan = self.holder.plan or Plan()
        found = explain_request(plan, self.picker, asked)
        names = names_of(plan)
        return {**found, "picks": [with_names(pick, names) for pick in found["picks"]]}

    def resources(self, gateway: str) -> Json | None:
        """What a gateway is to have, as JSON; None for a gateway that is not there."""
        snapshot = self.xds.snapshot(gateway)
        if snapshot is None:
            return None
        return {"gateway": gateway, "generation": snapshot.generation, "resources": render(snapshot.resources)}

    def differences(self) -> list[Json]:
        """For every connected proxy what it does not have as it is wanted."""
        return [difference_json(stream) for stream in self.xds.streams()]


def _told(brief: Json, now_s: float, names: dict[str, str]) -> Json:
    """With the age of a decision in place of the moment on a clock that nobody else has, and the endpoint's name."""
    kept = {key: value for key, value in brief.items() if key != "at_s"}
    return {"age_s": round(now_s - brief["at_s"], 3), **kept, "name": names.get(brief["endpoint"], "")}
