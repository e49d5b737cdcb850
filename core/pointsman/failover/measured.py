"""What triggers measure at a member, whether they hold or not: how near it comes to being left. For people and graphs;
what is decided rests on `detect` alone, which looks at many windows and at the odds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from pointsman.failover.detect_state import MemberState
from pointsman.failover.model import Observation, Trigger

LATENCY_S: Final = 5.0
"""First bytes of so long tell the delay: the trigger's own second has too few at a quiet site."""

FULL: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A trigger's value and what it is held against, both in its unit (`Finding`)."""

    trigger: Trigger
    value: float
    threshold: float


def measured(member: MemberState, seen: Observation, now_s: float) -> tuple[Measured, ...]:
    """The triggers that are on: error rate of its window, delay of first bytes, the longest wait, the share of
    endpoints whose probes fail, the fill level. 0 where nothing is known."""
    triggers = member.triggers
    found = []
    if triggers.error_rate is not None:
        ring = member.rings.errors
        total, bad = ring.count(min(ring.size, math.ceil(triggers.error_rate.window_s / ring.bucket_s)))
        rate = bad / total if total else 0.0
        found.append(Measured(trigger=Trigger.ERROR_RATE, value=rate, threshold=triggers.error_rate.threshold))
    if triggers.latency is not None:
        excess_ms = _excess_ms(member, now_s, triggers.latency.quantile)
        found.append(Measured(trigger=Trigger.LATENCY, value=excess_ms, threshold=triggers.latency.delta_ms))
    if triggers.stall is not None:
        worst_ms = max((late.excess_ms for late in member.late), default=0.0)
        found.append(Measured(trigger=Trigger.STALL, value=max(0.0, worst_ms), threshold=triggers.stall.late_ms))
    if triggers.probe is not None and seen.endpoints:
        silent = max(0, seen.endpoints - seen.ready - len(seen.failing_endpoints))
        found.append(Measured(trigger=Trigger.PROBE, value=silent / seen.endpoints, threshold=triggers.probe.failing))
    if triggers.saturation is not None:
        found.append(Measured(trigger=Trigger.SATURATION, value=seen.load or 0.0, threshold=FULL))
    return tuple(found)


def _excess_ms(member: MemberState, now_s: float, quantile: float) -> float:
    """The quantile of what the last first bytes took more than usual, and of what is late now; 0: less."""
    values = sorted(excess for at_s, excess in member.excesses if at_s >= now_s - LATENCY_S)
    values = sorted([*values, *(late.excess_ms for late in member.late)])
    return max(0.0, values[min(len(values) - 1, int(quantile * len(values)))]) if values else 0.0
