"""Decisions name endpoints by `ip:port`, as gateways do; people know them by name."""

from __future__ import annotations

from typing import Any

from pointsman.core.model import Plan

Json = dict[str, Any]


def names_of(plan: Plan) -> dict[str, str]:
    """`ip:port` → name, of all endpoints."""
    return {endpoint.key: endpoint.name for pool in plan.pools for endpoint in pool.endpoints()}


def with_names(decision: Json, names: dict[str, str]) -> Json:
    """The decision (`Decision.explain`) with `names` of the endpoints in it that there still are."""
    keys = (*decision["endpoints"], *(one["endpoint"] for one in decision["candidates"]), *decision["filtered"])
    return {**decision, "names": {key: names[key] for key in dict.fromkeys(keys) if key in names}}
