"""What a pool carries now, from the Plan and the picker's table."""

from __future__ import annotations

import math

from pointsman.core.arm_names import whole_pool
from pointsman.core.model import Health, Plan
from pointsman.extproc import Picker
from pointsman.rollout.capacity import PoolLoad

_TAKES_REQUESTS = frozenset({Health.UNKNOWN, Health.HEALTHY, Health.DEGRADED})


def pool_load(plan: Plan | None, picker: Picker, name: str) -> PoolLoad:
    """The load of a pool; its KV caches count as unknown while one endpoint's is."""
    pool = next((one for one in plan.pools if one.name == whole_pool(name)), None) if plan else None
    endpoints = [e for e in pool.endpoints() if e.health in _TAKES_REQUESTS] if pool else []
    table = picker.table
    rows = [row for e in endpoints if (row := table.row(e.key)) is not None]
    used = [float(table.seen_kv_usage[row] * table.capacity_tokens[row]) for row in rows]
    size = [float(table.capacity_tokens[row]) for row in rows]
    known = bool(rows) and len(rows) == len(endpoints) and all(math.isfinite(value) for value in (*used, *size))
    return PoolLoad(
        endpoints=len(endpoints),
        in_flight=sum(int(table.requests[row] + table.remote_requests[row]) for row in rows),
        kv_used_tokens=sum(used) if known else None,
        kv_tokens=sum(size) if known else None,
    )
