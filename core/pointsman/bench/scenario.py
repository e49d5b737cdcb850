"""The workloads of the benchmark (`kinds`) at their loads, on the slice for tuning and the slice for reporting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from pathlib import Path

from pointsman.bench.fleet import Fleet
from pointsman.bench.kinds import KINDS, Kind
from pointsman.bench.workload import Sessions, TraceCopies, Workload
from pointsman.core.errors import ConfigError, Problem

SLICE_S = 900.0
"""The traces have half an hour: a quarter for tuning, the next for reporting."""


class Slice(Enum):
    """Constants are chosen on one slice and judged on the other."""

    TUNE = "tune"
    REPORT = "report"

    @property
    def start_s(self) -> float:
        """Where it begins in a trace."""
        return 0.0 if self is Slice.TUNE else SLICE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One workload at one load on one slice. `trace` is needed for A and B."""

    workload: str
    load: int = 77
    part: Slice = Slice.REPORT
    trace: Path | None = None
    duration_s: float = SLICE_S

    def __post_init__(self) -> None:
        if self.kind.sessions is None and self.trace is None:
            what = f"workload {self.workload} replays a trace file and none is named"
            raise ConfigError(Problem(file="bench", line=0, field="--trace", what=what, mend="--trace FILE, or only C"))

    @property
    def kind(self) -> Kind:
        """What is asked of what."""
        return KINDS[self.workload]

    @property
    def fleet(self) -> Fleet:
        """Who is asked."""
        return self.kind.fleet

    @property
    def title(self) -> str:
        """For tables."""
        return f"{self.workload}, {self.load} % load, {self.part.value} slice"

    def build(self, seed: int) -> Workload:
        """The arrivals of a seed, made once."""
        return _build(self, seed)

    def on(self, part: Slice) -> Scenario:
        """The same on another slice."""
        return replace(self, part=part)


@lru_cache(maxsize=12)
def _build(scenario: Scenario, seed: int) -> Workload:
    kind, pace = scenario.kind, scenario.kind.loads[scenario.load]
    if kind.sessions is not None:
        sessions = Sessions(
            rate=pace,
            start_s=scenario.part.start_s,
            duration_s=scenario.duration_s,
            shares=kind.shares,
            sessions=kind.sessions,
        )
        return sessions.build(seed, scenario.title)
    assert scenario.trace is not None
    copies = TraceCopies(
        path=scenario.trace, start_s=scenario.part.start_s, duration_s=scenario.duration_s, time_scale=pace
    )
    return copies.build(seed, scenario.title)
