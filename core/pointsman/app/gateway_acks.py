"""How the proxies of a gateway stand with a change, read from the xDS server's status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayAcks:
    """How the connected proxies of a gateway stand with a change.

    `acked` maps node ids to milliseconds from the change to their acknowledgement; a node that needed nothing has 0.
    `rejected` maps node ids to what they said. `problems`: why the gateway's configuration is not served at all.
    """

    gateway: str
    acked: Mapping[str, float] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)
    pending: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether every connected proxy has it."""
        return not self.rejected and not self.pending and not self.problems


def acks_of(gateway: str, status: Json, since_s: float, now_s: float) -> GatewayAcks:
    """How a gateway stands at `now_s` with what was put in force at `since_s`, seconds since the epoch."""
    problems = next((tuple(g["problems"]) for g in status["gateways"] if g["name"] == gateway), ())
    acked: dict[str, float] = {}
    rejected: dict[str, str] = {}
    pending: list[str] = []
    for node in status["nodes"]:
        if node["gateway"] != gateway:
            continue
        routes = [state for state in node["types"] if state["type"] == "RDS"]
        if node["rejected"]:
            rejected[node["node"]] = "; ".join(f"{r['type']} {r['name']}: {r['message']}" for r in node["rejected"])
        elif not node["settled"]:
            pending.append(node["node"])
        else:
            ages_s = [state["since_ack_s"] for state in routes if state["since_ack_s"] is not None]
            acked[node["node"]] = round(max([0.0, *((now_s - age_s - since_s) * 1000 for age_s in ages_s)]), 1)
    return GatewayAcks(
        gateway=gateway, acked=acked, rejected=rejected, pending=tuple(sorted(pending)), problems=problems
    )


def acks_json(acks: GatewayAcks) -> Json:
    """How the proxies of a gateway stand, as the API and the audit log tell it."""
    return {
        "gateway": acks.gateway,
        "done": acks.done,
        "acked_ms": dict(acks.acked),
        "rejected": dict(acks.rejected),
        "pending": list(acks.pending),
        "problems": list(acks.problems),
    }
