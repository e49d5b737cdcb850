"""TrafficOperation (pointsman.dev): an act on traffic as an auditable object, as a Job is one of computing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from pointsman.core.config.document import Path, shown
from pointsman.core.config.failover_kinds import CronText
from pointsman.core.config.meta import Duration, Name, Resource
from pointsman.core.config.schema import Complaint, Fields, not_yet, rule
from pointsman.core.config.syntax import canonical_ip, dns_label, dns_subdomain, duration_ms, timestamp

Found = Iterator[tuple[Path, str, str]]

_CONDITION = re.compile(r"(errorRate|ttft\.p50|ttft\.p95|ttft\.p99)\s*>\s*([0-9]{1,7}(?:\.[0-9]{1,3})?)(%|ms|s)\Z")


def condition(value: str) -> Complaint | None:
    """A bound on what clients see meanwhile."""
    found = _CONDITION.match(value)
    if found is not None and (found[1] == "errorRate") == (found[3] == "%"):
        return None
    return f"{shown(value)} is no condition", "expected one such as errorRate>1% or ttft.p95>3s"


def condition_parts(value: str) -> tuple[str, float]:
    """A valid `condition` as (metric, bound): a fraction for errorRate, milliseconds for the others."""
    found = _CONDITION.match(value)
    assert found is not None
    metric, number, unit = found.groups()
    return metric, float(number) * {"%": 0.01, "ms": 1.0, "s": 1_000.0}[unit]


class OperationTarget(Fields, frozen=True, kw_only=True):
    """A site, there only one `pool` ("namespace/name" or the name of one in the same namespace), or an endpoint."""

    kind: Literal["Site", "Endpoint"]
    name: Annotated[str, Meta(min_length=1, max_length=253)]
    pool: Annotated[str, Meta(max_length=317)] = ""

    def complaints(self) -> Found:
        if self.kind == "Site" and (complaint := dns_label(self.name)):
            yield ("name",), *complaint
        if self.kind == "Endpoint":
            host, _, port = self.name.rpartition(":")
            good = port.isdecimal() and 0 < int(port) <= 65_535 and canonical_ip(host.strip("[]")) is not None
            if not good:
                yield ("name",), f"{shown(self.name)} is no endpoint", "expected ip:port, as 10.0.0.1:8000"
        if self.pool and any(dns_subdomain(part) for part in self.pool.split("/")):
            yield ("pool",), f"{shown(self.pool)} is no pool", "expected a name, or namespace/name"


class TrafficOperationSpec(Fields, frozen=True, kw_only=True):
    """`ttl`: how long a drain, an evacuation, a failover or a freeze lasts before it is undone; without it, until
    somebody ends it. `deadline`: when what is drained will be gone. `schedule`: cron, in UTC; without it, once."""

    action: Annotated[
        Literal["Drain", "Evacuate", "Activate", "Failover", "Failback", "Freeze", "Unfreeze"],
        not_yet("Drill", "Promote", "Abort"),
    ]
    target: OperationTarget | None = None
    policy: Name = ""
    reason: Annotated[str, Meta(min_length=1, max_length=1024)]
    requested_by: Annotated[str, Meta(max_length=253)] = ""
    schedule: CronText | None = None
    deadline: Annotated[str, rule(timestamp)] | None = None
    abort_if: Annotated[tuple[Annotated[str, rule(condition)], ...], Meta(max_length=8)] = ()
    dry_run: bool = False
    force: bool = False
    ttl: Duration | None = None

    def complaints(self) -> Found:
        freezes = self.action in {"Freeze", "Unfreeze"}
        if freezes and self.target is not None:
            yield ("target",), f"{self.action} is about a policy, not about a site", "name it in spec.policy"
        elif not freezes and self.target is None:
            yield ("target",), "is missing", f"expected what to {self.action.lower()}"
        elif self.target is not None and self.target.kind == "Endpoint" and self.action not in _ENDPOINT_ACTIONS:
            yield ("target", "kind"), f"an endpoint can't {self.action.lower()}", "expected kind: Site"
        if self.policy and not freezes:
            yield ("policy",), f"does not belong to {self.action}", "name a site in spec.target"
        if not reversible(self.action):
            for field, given in (("ttl", self.ttl is not None), ("abortIf", bool(self.abort_if))):
                if given:
                    yield (field,), f"{self.action} can't be undone", "remove it"
        if self.ttl is not None and duration_ms(self.ttl) < 1_000:
            yield ("ttl",), f"{shown(self.ttl)} is too short", "expected at least 1s"
        if self.deadline is not None and self.schedule is not None:
            yield ("deadline",), "does not fit a schedule", "remove one of them"


class TrafficOperation(Resource, frozen=True, kw_only=True):
    """Done once for each name and content: changing the spec makes it another operation."""

    spec: TrafficOperationSpec


def reversible(action: str) -> bool:
    """Whether the action lasts until it is ended."""
    return action in {"Drain", "Evacuate", "Failover", "Freeze"}


_ENDPOINT_ACTIONS = frozenset({"Drain", "Evacuate", "Activate"})
