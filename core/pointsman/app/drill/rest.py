"""Whether the set-up of a drill is at rest: what its gateways and control planes say of its replicas and sites."""

from __future__ import annotations

import json
from typing import Any, Final

import aiohttp

from pointsman.app.drill.manifests import POOL

Json = dict[str, Any]

SOON: Final = aiohttp.ClientTimeout(total=1)
"""What runs on this machine and is not frozen answers within this."""

_CLUSTER: Final = f"default/{POOL}"
_WELL: Final = (False, "HEALTHY", "UNKNOWN")
_AT_REST: Final = frozenset({"Healthy", "Standby"})
_HELD_BACK: Final = frozenset({"HoldDown", "Ramping"})
"""What looks well and is kept waiting. What is brought back while it looks ill is another thing: against slowness it is
kept for its hold-down then, also in the next drill."""


async def gateway_unrest(session: aiohttp.ClientSession, envoy_admin: str, replicas: int) -> str:
    """Why a gateway does not use all `replicas`, "" when it does."""
    try:
        async with session.get(f"{envoy_admin}/clusters", params={"format": "json"}, timeout=SOON) as response:
            found = json.loads(await response.text())
    except (aiohttp.ClientError, OSError, TimeoutError):
        return "does not answer"
    hosts = [
        host
        for cluster in found["cluster_statuses"]
        if cluster["name"] == _CLUSTER
        for host in cluster.get("host_statuses", [])
    ]
    if len(hosts) != replicas:
        return f"knows {len(hosts)} of {replicas} replicas"
    for host in hosts:
        unwell = [name for name, value in host["health_status"].items() if value not in _WELL]
        if unwell:
            return f"holds {host.get('hostname', 'a replica')} for unwell: {', '.join(unwell)}"
    return ""


async def failover_unrest(session: aiohttp.ClientSession, admin: str) -> str:
    """What a control plane still keeps out, "" when nothing. It is asked to take it back at once: what failed is seen
    to be well again, and the next drill does not wait for the rest of a hold-down."""
    for policy in await policies(session, admin):
        away = [one for one in policy["sites"] if one["state"] not in _AT_REST]
        for site in {one["site"] for one in away if one["state"] in _HELD_BACK}:
            await ask(session, admin, "failback", site=site)  # refused while it looks ill; it is asked again
        if away:
            return f"holds {away[0]['site']} for {away[0]['state']}"
        unknown = [one["site"] for one in policy["sites"] if one["state"] == "Healthy" and not one["baseline"]]
        if unknown:
            return f"does not know yet what is usual at {unknown[0]}"
        out = policy["endpoints"]
        for one in out:
            await ask(session, admin, "activate", endpoint=one["endpoint"])
        if out:
            return f"keeps {out[0]['endpoint']} out: {out[0]['why']}"
    return ""


async def policies(session: aiohttp.ClientSession, admin: str) -> list[Json]:
    """What a control plane says of failover, [] while it does not answer."""
    try:
        async with session.get(f"{admin}/api/v1/failover", timeout=SOON) as response:
            found: list[Json] = (await response.json(content_type=None))["policies"]
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError):
        return []
    return found


async def ask(session: aiohttp.ClientSession, admin: str, action: str, *, site: str = "", endpoint: str = "") -> str:
    """Ask a control plane to do something; what it says against it, "" when it did it."""
    body = {"site": site, "endpoint": endpoint, "actor": "drill", "reason": "drill", "force": True}
    try:
        async with session.post(f"{admin}/api/v1/failover/{action}", json=body) as response:
            return "" if response.status == 200 else await response.text()
    except (aiohttp.ClientError, OSError) as error:
        return str(error) or type(error).__name__
