"""Failover for humans, scripts and Prometheus."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pointsman.core.model import TOTAL_WEIGHT
from pointsman.failover.directives import directives, drained_endpoints
from pointsman.failover.measured import Measured
from pointsman.failover.model import Directive, Finding, Member, Observation, Trigger
from pointsman.failover.ramp import hold_left_s
from pointsman.failover.record import Record
from pointsman.failover.state import AWAY, HELD, Phase, Report, State, member_of

Json = dict[str, Any]

RTO_BUCKETS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Around the times that are promised: 1, 2, 3, 5 and 120 s."""

MEASURED_S: Final = 1.0
"""As often as Prometheus asks, at most: to measure takes longer than to decide."""

_WORST: Final = {
    phase: rank
    for rank, phase in enumerate(
        (
            Phase.HEALTHY,
            Phase.STANDBY,
            Phase.WARMING_UP,
            Phase.RAMPING,
            Phase.SUSPECT,
            Phase.DRAINED,
            Phase.EVACUATED,
            Phase.HOLD_DOWN,
            Phase.FAILED,
        )
    )
}


def failover_json(
    state: State,
    *,
    problem: str = "",
    judged: frozenset[Member] = frozenset(),
    closed: Mapping[str, str] | None = None,
) -> Json:
    """A policy as the API tells it. Shares are from 0 to 1, times are seconds since the epoch, null where there is
    none. `judged`: members whose usual time to first byte is known; `closed`: sites that their manifests take out."""
    spec = state.spec
    decided, drained = directives(state), drained_endpoints(state)
    records = [record_json(record) for record in (*state.open, *state.records)]
    records.sort(key=lambda record: float(record["decided_at_s"]))
    return {
        "name": spec.name,
        "declared": spec.policy,
        "mode": spec.mode.value,
        "pools": list(spec.pools),
        "tiers": [{"sites": list(tier.sites), "role": tier.role.value} for tier in spec.tiers],
        "active_tier": _active_tier(state),
        "problem": problem,
        "frozen_by": state.frozen_by or ("a freeze window" if state.in_window else ""),
        "degraded": dict(state.degraded),
        "programmed": state.programmed >= state.change,
        "sites": [
            _member(state, key, decided)
            | {"baseline": member_of(key) in judged}
            | _by_manifest(state, key, closed or {})
            for key in sorted(state.members)
        ],
        "endpoints": [
            {
                "endpoint": key,
                "pool": drain.pool,
                "site": drain.site,
                "automatic": drain.automatic,
                "by": drain.by,
                "why": drain.why,
                "deadline_at_s": drain.deadline_s or None,
            }
            for key, drain in sorted(state.endpoints.items())
            if key in drained
        ],
        "spill": {pool: spill.share / TOTAL_WEIGHT for pool, spill in sorted(state.spill.items())},
        "proposals": [msgspec.to_builtins(proposal) for proposal in state.proposals],
        "rto_objective_s": spec.rto.objective_s,
        "records": records,
        "last": records[-1] if records else None,
    }


def record_json(record: Record) -> Json:
    """A fault and what became of it: when it began, was detected, decided on, programmed, over; and what it cost."""
    return {
        "site": record.site,
        "pools": list(record.pools),
        "trigger": record.trigger,
        "why": record.why,
        "by": record.by,
        "evidence": list(record.evidence),
        "fault_at_s": record.fault_s,
        "detected_at_s": record.detected_s,
        "decided_at_s": record.decided_s,
        "programmed_at_s": record.programmed_s or None,
        "recovered_at_s": record.recovered_s or None,
        "rto_s": record.rto_s,
        "requests": record.requests,
        "failed": record.failed,
        "truncated": record.truncated,
        "retried": record.retried,
        "outcome": record.outcome,
    }


def _member(state: State, key: str, decided: Mapping[Member, Directive]) -> Json:
    member, found = member_of(key), state.members[key]
    directive = decided.get(member)
    since_s = state.now_s - (state.clock_s - found.entered_s)
    return {
        "site": member.site,
        "pool": member.pool,
        "tier": state.spec.tier_of(member.site),
        "state": found.phase.value,
        "why": found.why,
        "by": found.by,
        "since": _timestamp(since_s),
        "evidence": list(found.evidence),
        "triggers": [trigger.value for trigger in found.triggers],
        "share": (directive.share if directive else TOTAL_WEIGHT) / TOTAL_WEIGHT,
        "max_concurrent": directive.max_concurrent if directive else 0,
        "load": found.load,
        "ready": found.ready,
        "hold_down_s": round(hold_left_s(state, found), 1),
    }


def _by_manifest(state: State, key: str, closed: Mapping[str, str]) -> Json:
    """What stands in place of the state where a Site manifest takes the site out, and nothing else does."""
    said = closed.get(member_of(key).site)
    if said is None or state.members[key].phase in AWAY | HELD:
        return {}
    phase = Phase.EVACUATED if said == Phase.EVACUATED.value else Phase.DRAINED
    return {"state": phase.value, "why": f"its Site manifest says `state: {said}`", "by": "manifest", "ready": 0}


def _active_tier(state: State) -> int | None:
    """The lowest tier that serves."""
    serving = [
        state.spec.tier_of(member_of(key).site)
        for key, found in state.members.items()
        if found.phase not in AWAY | HELD and found.ready != 0
    ]
    return min(serving, default=None)


def _timestamp(wall_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_s))


class FailoverMetrics:
    """What Prometheus sees. Labels are names of policies, sites, triggers and states: as many as manifests have."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._state = Gauge(
            "pointsman_failover_site_state",
            "1 for the state that a site is in for a policy, the worst of its pools; 0 for the others.",
            ["policy", "site", "state"],
            registry=registry,
        )
        self._hold = Gauge(
            "pointsman_failover_hold_down_seconds",
            "What is left of a site's hold-down.",
            ["policy", "site"],
            registry=registry,
        )
        self._evidence = Gauge(
            "pointsman_failover_evidence",
            "What a trigger measures, whether it holds or not: of a site's pools the worst.",
            ["policy", "site", "trigger"],
            registry=registry,
        )
        self._threshold = Gauge(
            "pointsman_failover_threshold", "What the value is held against.", ["policy", "trigger"], registry=registry
        )
        self._switches = Counter(
            "pointsman_failover_switches",
            "Times a site was left, by trigger.",
            ["policy", "site", "trigger"],
            registry=registry,
        )
        self._events = Counter(
            "pointsman_failover_events", "Decisions of failover.", ["policy", "what"], registry=registry
        )
        self._failed = Counter(
            "pointsman_failover_requests_failed",
            "Requests that failed or broke off between a fault and the recovery.",
            ["policy"],
            registry=registry,
        )
        self._rto = Histogram(
            "pointsman_failover_rto_seconds",
            "From the first bad request of a fault to the first good second after it.",
            ["policy", "trigger"],
            buckets=RTO_BUCKETS_S,
            registry=registry,
        )
        self.missed = Counter(
            "pointsman_failover_missed_seconds",
            "Time that does not count as evidence of absence, since the control plane itself was late.",
            registry=registry,
        )
        self._seen: dict[str, dict[str, Phase]] = {}
        self._shown: dict[str, set[tuple[str, str]]] = {}
        self._measured_at_s: dict[str, float] = {}
        self._last: dict[str, list[tuple[Member, Measured]]] = {}
        self._open: dict[str, frozenset[tuple[str, float]]] = {}

    def show(
        self,
        state: State,
        observations: Iterable[Observation],
        measure: Callable[[], Iterable[tuple[Member, Measured]]] = tuple,
    ) -> None:
        """The policy as it is now. `measure` tells what its triggers measure, and is asked once a second."""
        name = state.spec.name
        worst: dict[str, Phase] = {}
        for key, found in state.members.items():
            site = member_of(key).site
            worst[site] = max(worst.get(site, found.phase), found.phase, key=_WORST.__getitem__)
        if name not in self._seen:  # from 0, so that an increase tells of the first one, too
            self._failed.labels(name)
            for site in worst:
                for trigger in Trigger:
                    self._switches.labels(name, site, trigger.value)
        if worst != self._seen.get(name):
            for site in self._seen.get(name, {}).keys() - worst.keys():
                self._forget_site(name, site)
            self._seen[name] = worst
            for site, phase in worst.items():
                for other in Phase:
                    self._state.labels(name, site, other.value).set(1 if other is phase else 0)
        shown = self._shown.setdefault(name, set())
        for site, phase in worst.items():
            if phase is Phase.HOLD_DOWN or (name, site) in shown:
                left = max(hold_left_s(state, one) for key, one in state.members.items() if member_of(key).site == site)
                self._hold.labels(name, site).set(round(left, 1))
                shown.add((name, site))
        held = [(one.member, finding) for one in observations for finding in one.findings]
        at_s = self._measured_at_s.get(name, -math.inf)
        if abs(state.now_s - at_s) >= MEASURED_S:
            self._measured_at_s[name] = state.now_s
            self._show_evidence(name, [*measure(), *held])
        elif held:
            self._show_evidence(name, [*self._last.get(name, ()), *held])

    def _show_evidence(self, name: str, evidence: Sequence[tuple[Member, Measured | Finding]]) -> None:
        self._last[name] = [(member, one) for member, one in evidence if isinstance(one, Measured)]
        shown = self._shown.setdefault(f"{name} evidence", set())
        holding: dict[tuple[str, str], float] = {}
        for member, one in evidence:
            key = (member.site, one.trigger.value)
            holding[key] = max(one.value, holding.get(key, 0.0))
            self._threshold.labels(name, one.trigger.value).set(one.threshold)
        for site, trigger in shown - holding.keys():
            self._evidence.labels(name, site, trigger).set(0)
        for (site, trigger), value in holding.items():
            self._evidence.labels(name, site, trigger).set(value)
        self._shown[f"{name} evidence"] = shown | holding.keys()

    def count(self, state: State, report: Report) -> None:
        """A decision was made."""
        self._events.labels(state.spec.name, report.what).inc()

    def opened(self, state: State) -> None:
        """Count the sites that were left since the last look."""
        name = state.spec.name
        now = frozenset((record.site, record.decided_s) for record in state.open)
        if now == self._open.get(name, frozenset()):
            return
        for record in state.open:
            if (record.site, record.decided_s) not in self._open.get(name, frozenset()):
                self._switches.labels(name, record.site, record.trigger).inc()
        self._open[name] = now

    def closed(self, state: State, record: Record) -> None:
        """A fault is over."""
        name = state.spec.name
        self._failed.labels(name).inc(record.failed + record.truncated)
        if record.rto_s is not None:
            self._rto.labels(name, record.trigger).observe(record.rto_s)

    def forget(self, state: State) -> None:
        """A policy is gone."""
        self._last.pop(state.spec.name, None)
        for site in self._seen.pop(state.spec.name, {}):
            self._forget_site(state.spec.name, site)

    def _forget_site(self, name: str, site: str) -> None:
        for phase in Phase:
            self._state.remove(name, site, phase.value)
        holds, evidence = self._shown.get(name, set()), self._shown.get(f"{name} evidence", set())
        if (name, site) in holds:
            holds.remove((name, site))
            self._hold.remove(name, site)
        for where, trigger in [one for one in evidence if one[0] == site]:
            evidence.remove((where, trigger))
            self._evidence.remove(name, where, trigger)
