"""The workloads of the benchmark at their loads, on the slice for tuning and the slice for reporting.

    A  Mooncake conversation, a copy for each region, host tier       B  the same without a host tier
    C  generated multi-turn sessions, without a host tier             D  another trace in Mooncake's format, host tier

Load is what round robin uses: prompt tokens that it computes, in percent of what it computes when it is saturated (7.3
tokens per ms and replica for A, 11.7 for C: measured with this simulator on the tuning slice at twice the load).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from pathlib import Path

from pointsman.bench.fleet import HOST_TOKENS, Fleet
from pointsman.bench.workload import Sessions, TraceCopies, Workload
from pointsman.core.errors import ConfigError, Problem

SLICE_S = 900.0
"""The traces have half an hour: a quarter for tuning, the next for reporting."""

TIME_SCALES = {77: 1.70, 80: 1.635, 92: 1.42, 102: 1.28}
"""Load in % → how much the arrivals of three copies of the conversation trace are stretched."""

RATES = {77: 18.5, 80: 19.2, 92: 22.0, 102: 24.5}
"""Load in % → requests per second of the generated sessions, all regions together."""


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
    """One workload at one load on one slice. `trace` is needed for all but C. `shares` are the regions' parts (C)."""

    workload: str
    load: int = 77
    part: Slice = Slice.REPORT
    trace: Path | None = None
    duration_s: float = SLICE_S
    shares: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.workload != "C" and self.trace is None:
            what = f"workload {self.workload} replays a trace file and none is named"
            raise ConfigError(Problem(file="bench", line=0, field="--trace", what=what, mend="--trace FILE, or only C"))

    @property
    def fleet(self) -> Fleet:
        """A and D have a host tier: without one the prefixes of these traces are too far apart to hit."""
        return Fleet(host_tokens=HOST_TOKENS if self.workload in "AD" else 0)

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
    if scenario.workload == "C":
        sessions = Sessions(
            rate=RATES[scenario.load],
            start_s=scenario.part.start_s,
            duration_s=scenario.duration_s,
            shares=scenario.shares,
        )
        return sessions.build(seed, scenario.title)
    assert scenario.trace is not None
    copies = TraceCopies(
        path=scenario.trace,
        start_s=scenario.part.start_s,
        duration_s=scenario.duration_s,
        time_scale=TIME_SCALES[scenario.load],
    )
    return copies.build(seed, scenario.title)
