"""What the admin API and the metrics tell of the fleet: read from the Plan, the picker and the xDS server."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Info

from pointsman.app.endpoint_names import names_of, with_names
from pointsman.app.hypothetical import with_arm
from pointsman.app.tls import Certificates
from pointsman.app.version import VERSION
from pointsman.app.workers.supervisor import PickerWorkers
from pointsman.core.arm_names import whole_pool
from pointsman.core.clock import Clock
from pointsman.core.compile.residency import DIRECT, base_pool, required_by
from pointsman.core.errors import ConfigError, PointsmanError
from pointsman.core.model import Endpoint, Gateway, Plan, Pool, Rule, Split
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc import Picker
from pointsman.xds import XdsServer

Json = dict[str, Any]


class FleetStatus:
    """The `StatusSource` of the admin server, and the metrics of the configuration."""

    def __init__(
        self,
        *,
        holder: PlanHolder,
        picker: Picker,
        xds: XdsServer,
        folder: Path,
        state: Path,
        registry: CollectorRegistry,
        clock: Clock,
        tls: Certificates | None = None,
        rollouts: Callable[[], list[Json]] = list,
        failover: Callable[[], list[Json]] = list,
        operations: Callable[[], list[Json]] = list,
        loads: Callable[[], Json] = dict,
        workers: PickerWorkers | None = None,
    ) -> None:
        self._workers = workers
        self._tls = tls
        self._rollouts = rollouts
        self._failover = failover
        self._operations = operations
        self._loads = loads
        self._holder = holder
        self._picker = picker
        self._xds = xds
        self._folder = folder.absolute()
        self._state = state.absolute()
        self._clock = clock
        self._error: PointsmanError | None = None
        self._accepted = False
        self._loaded_at_s = 0.0
        Info("pointsman_build", "Version of Pointsman.", registry=registry).info({"version": VERSION})
        self._reloads = Counter(
            "pointsman_config_reloads", "Times the configuration was read, by outcome.", ["result"], registry=registry
        )
        self._tasks: dict[str, bool] = {}
        self._task_up = Gauge(
            "pointsman_background_task_up",
            "1 while a part of the process runs, 0 once it ended by an error.",
            ["task"],
            registry=registry,
        )
        self._good = Gauge(
            "pointsman_config_reload_success", "1 if the files as they are now are in force.", registry=registry
        )
        self._time = Gauge(
            "pointsman_config_last_success_timestamp_seconds",
            "When the configuration in force was read.",
            registry=registry,
        )

    @property
    def accepted(self) -> bool:
        """Whether the folder as it is now is in force."""
        return self._accepted

    def config_loaded(self) -> None:
        """Note that the folder was read and is in force."""
        self._error = None
        self._accepted = True
        self._loaded_at_s = self._clock.wall_s()
        self._reloads.labels("ok").inc()
        self._good.set(1)
        self._time.set(self._loaded_at_s)

    def config_refused(self, error: PointsmanError) -> None:
        """Note that the folder as it is now was refused."""
        self._error = error
        self._accepted = False
        self._reloads.labels("refused").inc()
        self._good.set(0)

    def task_runs(self, name: str, runs: bool) -> None:
        """Note that a part that has to run for as long as the process does began, or ended before its time."""
        self._tasks[name] = runs
        self._task_up.labels(name).set(1 if runs else 0)

    def ready(self) -> bool:
        """A configuration is in force, and every part that keeps it so runs."""
        return self._holder.plan is not None and all(self._tasks.values())

    def endpoints(self) -> list[Json]:
        plan = self._holder.plan or Plan()
        return [
            {
                "key": endpoint.key,
                "name": endpoint.name,
                "site": endpoint.site,
                "pool": pool.name,
                "protocol": pool.app_protocol.value,
            }
            for pool in plan.pools
            for endpoint in pool.endpoints()
        ]

    async def explain(self, pick_id: str) -> Json | None:
        decision = self._picker.explain(pick_id)
        if decision is not None:
            found: Json | None = decision.explain()
        else:
            found = None if self._workers is None else await self._workers.explain(pick_id)
        if found is None:
            return None
        plan = self._holder.plan or Plan()
        return with_names(with_arm(self._with_forbidden(found), plan), names_of(plan))

    def _with_forbidden(self, decision: Json) -> Json:
        """With the endpoints that residency kept out before the picker was asked."""
        pool = base_pool(decision["pool"])
        if pool == decision["pool"]:
            return decision
        plan = self._holder.plan or Plan()
        known = {*decision["filtered"], *(one["endpoint"] for one in decision["candidates"])}
        every = [e.key for one in plan.pools if one.name == whole_pool(pool) for e in one.endpoints()]
        why = "loop" if DIRECT in required_by(decision["pool"]) else "residency"
        forbidden = {key: why for key in every if key not in known}
        return {**decision, "filtered": {**decision["filtered"], **forbidden}}

    def status(self) -> Json:
        plan = self._holder.plan or Plan()
        return {
            "version": VERSION,
            "configuration": self._configuration(),
            "sites": [{"name": site.name, "draining": site.draining} for site in plan.sites],
            "gateways": [self._gateway(gateway) for gateway in plan.gateways],
            "pools": [self._pool(pool) for pool in plan.pools],
            "weights": [_split(split) for split in plan.splits],
            "notes": [{"rule": note.rule, "reason": note.reason, "message": note.message} for note in plan.notes],
            "rollouts": self._rollouts(),
            "failover": self._failover(),
            "operations": self._operations(),
            "xds": self._xds.status(),
            "load_reports": self._loads(),
        }

    def _configuration(self) -> Json:
        return {
            "folder": str(self._folder),
            "state": str(self._state),
            "accepted": self._accepted,
            "loaded_at": _timestamp(self._loaded_at_s),
            "problems": _problems(self._error),
            "tls": None if self._tls is None else self._tls.status(),
        }

    def _gateway(self, gateway: Gateway) -> Json:
        return {
            "name": gateway.name,
            "site": gateway.site,
            "listeners": [
                {
                    "name": listener.name,
                    "address": f"{listener.address}:{listener.port}",
                    "rules": [_rule(rule) for host in listener.hosts for rule in host.rules],
                }
                for listener in gateway.listeners
            ],
        }

    def _pool(self, pool: Pool) -> Json:
        return {
            "name": pool.name,
            "model": pool.model,
            "protocol": pool.app_protocol.value,
            "sites": [
                {"site": group.site, "endpoints": [self._endpoint(endpoint) for endpoint in group.endpoints]}
                for group in pool.groups
            ],
        }

    def _endpoint(self, endpoint: Endpoint) -> Json:
        table = self._picker.table
        row = table.row(endpoint.key)
        load: Mapping[str, float] = {}
        if row is not None:
            load = {
                "in_flight": float(table.requests[row] + table.remote_requests[row]),  # of all pickers
                "waiting": float(table.seen_waiting[row]),
                "running": float(table.seen_running[row]),
                "kv_usage": float(table.seen_kv_usage[row]),
                "rtt_ms": float(table.rtt_ms[row]),
                "signal_age_s": self._clock.monotonic_s() - float(table.seen_at_s[row]),
            }
        return {
            "name": endpoint.name,
            "key": endpoint.key,
            "health": endpoint.health.value,
            **{name: _known(value) for name, value in load.items()},
        }


def _rule(rule: Rule) -> Json:
    return {
        "name": rule.name,
        "route": rule.route,
        "arms": [{"pool": arm.pool, "weight": arm.weight} for arm in rule.arms],
    }


def _split(split: Split) -> Json:
    """What is in force for a rule, and by whom; `/api/v1/weights` tells more."""
    return {
        "rule": split.rule,
        "set_by": (split.owner or "operator") if split.overlaid else "",
        "effective": {arm.pool: arm.effective for arm in split.arms},
    }


def _known(value: float) -> float | None:
    """Absent measurements are null, never zero."""
    return round(value, 4) if math.isfinite(value) else None


def _timestamp(wall_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_s))


def _problems(error: PointsmanError | None) -> list[Json]:
    if error is None:
        return []
    if isinstance(error, ConfigError):
        return [
            {"file": p.file, "line": p.line, "field": p.field, "what": p.what, "mend": p.mend} for p in error.problems
        ]
    return [{"file": "", "line": 0, "field": "", "what": str(error), "mend": ""}]
