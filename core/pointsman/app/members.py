"""A pool (or fleet) by its sites: what each carries, how full it is, and where more endpoints are wanted. Pure.

Hints tell of this moment: what keeps coming back is worth acting on. Nothing is deployed by them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from pointsman.failover.detect_triggers import Saturation

Json = dict[str, Any]

FULL: Final = Saturation()
"""What a full endpoint is: as failover has it where no policy says otherwise."""

AIM: Final = 0.8
"""Fill level that a hint aims at: past it queues grow faster than load (utilisation ρ, wait ~ ρ / (1 - ρ))."""


def pools_by_member(sites: Iterable[Json]) -> list[Json]:
    """Of the sites of a tree (`fleet_tree`): each pool with its `members`, by site, and its `placement_hints`."""
    found: dict[str, list[Json]] = {}
    for site in sites:
        for pool in site["pools"]:
            found.setdefault(pool["name"], []).append(_member(site, pool))
    return [
        {"name": name, "members": members, "placement_hints": list(_hints(name, members))}
        for name, members in sorted(found.items())
    ]


def _member(site: Json, pool: Json) -> Json:
    """`saturation`: 1.0 is full; the mean of its endpoints, null where none tells. `share`: of all requests."""
    known = [one for one in pool["endpoints"] if one["waiting"] is not None or one["kv_usage"] is not None]
    levels = [max((one["waiting"] or 0.0) / FULL.queue, (one["kv_usage"] or 0.0) / FULL.kv) for one in known]
    state = next((one for one in site["failover"] if one["pool"] == pool["name"]), None)
    return {
        "site": site["name"],
        "share": pool["share"],
        "endpoints": pool["count"],
        "ready": pool["ready"],
        "in_flight": pool["in_flight"],
        "waiting": sum(one["waiting"] or 0.0 for one in known) if known else None,
        "saturation": round(sum(levels) / len(levels), 4) if levels else None,
        "state": state["state"] if state else "",
        "reason": state["why"] if state else "",
    }


def _hints(pool: str, members: Iterable[Json]) -> Iterable[str]:
    for one in members:
        if one["saturation"] is not None and one["saturation"] >= 1.0:
            more = math.ceil(one["ready"] * one["saturation"] / AIM) - one["ready"]
            yield (
                f"{pool} at {one['site']} is full ({one['saturation']:.0%}, {one['waiting']:g} requests wait): "
                f"{more} more endpoints would bring it to {AIM:.0%}"
            )
