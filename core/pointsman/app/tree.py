"""The fleet as a tree for people: fleet → site → pool → endpoint, with share, health, load, rollout and failover.

A pure function of the status (`FleetStatus.status`) and of what was counted of late; the page and `pointsman status`
show what stands here and compute nothing of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pointsman.app.members import pools_by_member
from pointsman.core.arm_names import target_of, whole_pool
from pointsman.core.errors import Problem

Json = dict[str, Any]

SILENT_S: Final = 3.0
"""Age of the last metrics from which an endpoint counts as silent: fifteen scrapes were missed."""

_TAKES: Final = frozenset({"healthy", "degraded", "unknown"})
"""States in which an endpoint takes requests, as far as we know."""


def fleet_tree(status: Json, served: Mapping[tuple[str, str], int]) -> Json:
    """The tree. `served`: requests by (pool, endpoint) of late; shares are of those, None while there are none.

    `health` of fleet, sites and pools: `healthy`, `degraded` (something does not take requests) or `down` (nothing
    does); `reasons` says what an operator should look at, worst first. `state` of an endpoint is the Plan's word in
    lower case, or `silent` when its metrics stopped coming.
    """
    total = sum(served.values())
    rollouts = status.get("rollouts", [])
    failover = status.get("failover") or []
    pools = [_pool(pool, served, total, status.get("weights", []), rollouts) for pool in status["pools"]]
    sites = [_site(site, pools, total, failover) for site in _site_names(status)]
    gateways = [_gateway(gateway, status["xds"]) for gateway in status["gateways"]]
    reasons = list(_reasons(status, sites, gateways, rollouts))
    ready = sum(site["ready"] for site in sites)
    endpoints = sum(site["endpoints"] for site in sites)
    return {
        "version": status["version"],
        "health": "down" if endpoints and not ready else "degraded" if reasons else "healthy",
        "reasons": reasons,
        "accepted": status["configuration"]["accepted"],
        "problems": status["configuration"]["problems"],
        "gateways": gateways,
        "endpoints": endpoints,
        "ready": ready,
        "in_flight": sum(site["in_flight"] for site in sites),
        "requests": total,
        "sites": sites,
        "pools": pools_by_member(sites),
        "weights": [_weights(split) for split in status.get("weights", [])],
        "rollouts": [_rollout(rollout) for rollout in rollouts],
        "failover": failover,
        "notes": status.get("notes", []),
    }


def _site_names(status: Json) -> list[Json]:
    """The sites, those that only endpoints name behind those that manifests describe."""
    declared = {site["name"]: site for site in status["sites"]}
    used = {group["site"] for pool in status["pools"] for group in pool["sites"]}
    return [*declared.values(), *({"name": name, "draining": False} for name in sorted(used - declared.keys()))]


def _pool(
    pool: Json, served: Mapping[tuple[str, str], int], total: int, splits: Iterable[Json], rollouts: Iterable[Json]
) -> Json:
    name = pool["name"]
    return {
        "name": name,
        "model": pool["model"],
        "protocol": pool["protocol"],
        "weights": [
            {
                "rule": split["rule"],
                "weight": sum(ours.values()),
                "models": {model: share for arm, share in ours.items() if (model := target_of(arm))},
            }
            for split in splits
            if (ours := {arm: share for arm, share in split["effective"].items() if whole_pool(arm) == name})
        ],
        "rollout": next((_rollout(one) | {"role": role} for one in rollouts if (role := _role(one, name))), None),
        "groups": {
            group["site"]: [_endpoint(one, name, served, total) for one in group["endpoints"]]
            for group in pool["sites"]
        },
    }


def _role(rollout: Json, pool: str) -> str:
    return next((role for role in ("canary", "stable") if whole_pool(rollout.get(role, "")) == pool), "")


def _endpoint(endpoint: Json, pool: str, served: Mapping[tuple[str, str], int], total: int) -> Json:
    count = served.get((pool, endpoint["key"]), 0)
    return {
        "name": endpoint["name"],
        "key": endpoint["key"],
        "state": _state(endpoint),
        "requests": count,
        "share": _share(count, total),
        **{key: endpoint.get(key) for key in ("in_flight", "waiting", "running", "kv_usage", "rtt_ms", "signal_age_s")},
    }


def _state(endpoint: Json) -> str:
    state = str(endpoint["health"]).lower()
    age_s = endpoint.get("signal_age_s")
    if state in {"unknown", "healthy", "degraded"} and age_s is not None:
        return "silent" if age_s > SILENT_S else "healthy" if state == "unknown" else state
    return state


def _site(site: Json, pools: Iterable[Json], total: int, failover: Iterable[Json]) -> Json:
    name = site["name"]
    here = [_pool_at(pool, name, total) for pool in pools if name in pool["groups"]]
    verdicts = [
        {"policy": policy["name"], **{key: one[key] for key in ("pool", "state", "share", "why")}}
        for policy in failover
        for one in policy["sites"]
        if one["site"] == name
    ]
    recovered = [record for policy in failover for record in policy["records"] if record["site"] == name]
    recovered.sort(key=lambda record: float(record["decided_at_s"]))
    times = [record["rto_s"] for record in recovered if record["rto_s"] is not None]
    return {
        "name": name,
        "draining": site["draining"],
        **_sums(here, total),
        "health": _site_health(site, here, {verdict["state"] for verdict in verdicts}),
        "failover": verdicts,
        "rto_s": times[-1] if times else None,
        "pools": here,
    }


def _pool_at(pool: Json, site: str, total: int) -> Json:
    endpoints = pool["groups"][site]
    ready = sum(endpoint["state"] in _TAKES for endpoint in endpoints)
    requests = sum(endpoint["requests"] for endpoint in endpoints)
    return {
        **{key: value for key, value in pool.items() if key != "groups"},
        "endpoints": endpoints,
        "ready": ready,
        "count": len(endpoints),
        "in_flight": sum(endpoint["in_flight"] or 0 for endpoint in endpoints),
        "requests": requests,
        "share": _share(requests, total),
        "health": "down" if endpoints and not ready else "degraded" if ready < len(endpoints) else "healthy",
    }


def _sums(pools: Iterable[Json], total: int) -> Json:
    found = {"endpoints": 0, "ready": 0, "in_flight": 0, "requests": 0}
    for pool in pools:
        for key in found:
            found[key] += pool["count"] if key == "endpoints" else pool[key]
    return {**found, "share": _share(found["requests"], total)}


def _site_health(site: Json, pools: Iterable[Json], states: set[str]) -> str:
    """Of a site: what its endpoints say, and what failover decided of it."""
    if site["draining"] or states & {"Drained", "Evacuated"}:
        return "draining"
    health = _health(pools)
    return "degraded" if health == "healthy" and states - {"Healthy", "Standby"} else health


def _health(pools: Iterable[Json]) -> str:
    states = {pool["health"] for pool in pools}
    if not states - {"healthy"}:
        return "healthy"
    return "down" if states == {"down"} else "degraded"


def _share(count: int, total: int) -> float | None:
    return round(count / total, 4) if total else None


def _gateway(gateway: Json, xds: Json) -> Json:
    name = gateway["name"]
    nodes = [node for node in xds["nodes"] if node["gateway"] == name]
    state: Json = next((one for one in xds["gateways"] if one["name"] == name), {})
    return {
        "name": name,
        "site": gateway["site"],
        "proxies": len(nodes),
        "behind": [node["node"] for node in nodes if not node["settled"]],
        "rejected": [f"{one['type']} {one['name']}: {one['message']}" for one in state.get("rejected", [])],
        "problems": state.get("problems", []),
    }


def _weights(split: Json) -> Json:
    return {"rule": split["rule"], "set_by": split["set_by"], "effective": split["effective"]}


def _rollout(rollout: Json) -> Json:
    kept = ("name", "strategy", "phase", "why", "step", "weight", "programmed", "requests")
    return {**{key: rollout.get(key) for key in kept}, "steps": len(rollout.get("steps", []))}


def _reasons(status: Json, sites: Iterable[Json], gateways: Iterable[Json], rollouts: Iterable[Json]) -> Iterable[str]:
    """What is not as it should be, in words."""
    if not status["configuration"]["accepted"]:
        problems = [str(Problem(**one)).removeprefix(": ") for one in status["configuration"]["problems"]]
        shown = "; ".join(problems[:2]) + (f" and {len(problems) - 2} more" if len(problems) > 2 else "")
        yield "the configuration folder is refused; the last good one is in force" + (f": {shown}" if shown else "")
    for site in sites:
        if site["draining"]:
            yield f"site {site['name']} is Draining in its manifest (spec.state)"
        for verdict in site["failover"]:
            if verdict["state"] not in {"Healthy", "Standby"}:
                why = f": {verdict['why']}" if verdict["why"] else ""
                yield f"{verdict['pool']} at {site['name']} is {verdict['state']}{why}"
        for pool in site["pools"]:
            bad = [f"{one['name']} ({one['state']})" for one in pool["endpoints"] if one["state"] not in _TAKES]
            if bad:
                shown = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
                yield f"{pool['ready']} of {pool['count']} endpoints of {pool['name']} at {site['name']}: {shown}"
    for gateway in gateways:
        for problem in (*gateway["problems"], *gateway["rejected"]):
            yield f"gateway {gateway['name']}: {problem}"
        if not gateway["proxies"]:
            yield f"no proxy of gateway {gateway['name']} is connected"
    for rollout in rollouts:
        if rollout["phase"] in {"Aborting", "Aborted"}:
            yield f"rollout {rollout['name']} was rolled back: {rollout['why']}"
