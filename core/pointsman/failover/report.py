"""The report of drills: figures of each run, bars, verdicts; as text, JSON and Markdown. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pointsman.failover.outcome import Counts

EMBEDDED: Final = "embedded"
"""The set-up that a drill starts by itself: its model servers are simulated, all else is real."""


NOTHING: Final = Counts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """What a drill must reach; None: not asked for.

    `rto_s`: from the fault to the start of the first good window, in each run. `failed` counts all requests,
    `failed_streamed` those with streamed answers. `switches`: changes of the site that serves.
    """

    rto_s: float | None = None
    failed: int | None = None
    failed_streamed: int | None = None
    switches: int | None = None
    truncated: int | None = None

    def text(self) -> str:
        """In words, "" when nothing is asked for."""
        words = []
        if self.rto_s is not None:
            words.append(f"RTO ≤ {self.rto_s:g} s")
        for limit, name in (
            (self.failed, "failed"),
            (self.failed_streamed, "failed on streaming routes"),
            (self.truncated, "truncated"),
        ):
            if limit is not None:
                words.append(f"{limit} {name}" if limit == 0 else f"≤ {limit} {name}")
        if self.switches is not None:
            words.append(f"≤ {self.switches} switches")
        return ", ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Something that happened `at_s` seconds after the fault (negative: before)."""

    at_s: float
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One drill. Times are seconds after the fault; None: not seen.

    `detected_s`, `decided_s` and `programmed_s` are what the control plane recorded, the rest is what clients saw.
    `usual_ms`: (streamed, plain) 99th percentile before the fault. `aborted`: why it was ended early.
    """

    kind: str
    site: str
    number: int = 1
    rto_s: float | None = None
    relapses: int = 0
    counts: Counts = NOTHING
    switches: int = 0
    detected_s: float | None = None
    decided_s: float | None = None
    programmed_s: float | None = None
    usual_ms: tuple[float, float] = (0.0, 0.0)
    moments: tuple[Moment, ...] = ()
    aborted: str = ""
    set_up: str = EMBEDDED
    reason: str = ""


def misses(run: Run, bars: Bars) -> tuple[str, ...]:
    """What of `bars` this run did not reach, in words."""
    counts = run.counts
    found = []
    if run.aborted:
        found.append(f"aborted: {run.aborted}")
    if bars.rto_s is not None:
        if run.rto_s is None:
            found.append("never recovered")
        elif run.rto_s > bars.rto_s:
            found.append(f"RTO {run.rto_s:.2f} s > {bars.rto_s:g} s")
        if run.relapses:
            found.append(f"{run.relapses} relapses")
    for limit, value, name in (
        (bars.failed, counts.failed, "failed"),
        (bars.failed_streamed, counts.failed_streamed, "failed with streamed answers"),
        (bars.truncated, counts.truncated, "truncated"),
        (bars.switches, run.switches, "switches"),
    ):
        if limit is not None and value > limit:
            found.append(f"{value} {name}")
    if counts.silent:
        found.append(f"{counts.silent} cut answers that ended as if they were whole")
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All runs of one kind of drill."""

    kind: str
    bars: Bars
    runs: tuple[Run, ...]

    @property
    def met(self) -> bool:
        """Whether each run reached its bars."""
        return all(not misses(run, self.bars) for run in self.runs)

    @property
    def rto_p50_s(self) -> float | None:
        """Median of the runs that recovered; None when one did not."""
        times = [run.rto_s for run in self.runs if run.rto_s is not None]
        return statistics.median(times) if times and len(times) == len(self.runs) else None

    @property
    def rto_max_s(self) -> float | None:
        """The longest; None when one never recovered."""
        times = [run.rto_s for run in self.runs if run.rto_s is not None]
        return max(times) if times and len(times) == len(self.runs) else None


def run_text(run: Run, bars: Bars) -> str:
    """A run for people: what happened when, what clients saw, the verdict."""
    counts = run.counts
    found = misses(run, bars)
    lines = [f"{run.kind} at {run.site}, run {run.number} ({run.set_up})"]
    lines += [f"  {_clock(moment.at_s)}  {moment.what}" for moment in run.moments]
    lines.append(
        f"  {counts.requests} requests: {counts.ok} ok, {counts.failed} failed, {counts.truncated} truncated, "
        f"{counts.rejected} rejected, {counts.slow} slow"
    )
    lines += [f"    {times} × {reason}" for reason, times in counts.reasons[:5]]
    verdict = "met" if not found else f"NOT met: {'; '.join(found)}"
    lines.append(f"  RTO {_seconds(run.rto_s)}; bar {bars.text() or 'none'}: {verdict}")
    return "\n".join(lines)


def table_text(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    return _aligned([_HEAD, *[_cells(row) for row in rows]])


def markdown(rows: Sequence[Row]) -> str:
    """The table for a page."""
    lines = [_HEAD, tuple("---" for _ in _HEAD), *[_cells(row) for row in rows]]
    return "\n".join("| " + " | ".join(cell or " " for cell in line) + " |" for line in lines) + "\n"


_HEAD: Final = (
    "drill",
    "runs",
    "RTO p50",
    "RTO max",
    "requests",
    "failed",
    "streamed",
    "truncated",
    "slow",
    "429",
    "switches",
    "bar",
    "met",
)
"""`streamed`: those of the failed whose answer was to be streamed; counts are sums over the runs, switches the most."""


def _cells(row: Row) -> tuple[str, ...]:
    counts = [run.counts for run in row.runs]
    return (
        row.kind,
        str(len(row.runs)),
        _seconds(row.rto_p50_s),
        _seconds(row.rto_max_s),
        str(sum(c.requests for c in counts)),
        str(sum(c.failed for c in counts)),
        str(sum(c.failed_streamed for c in counts)),
        str(sum(c.truncated for c in counts)),
        str(sum(c.slow for c in counts)),
        str(sum(c.rejected for c in counts)),
        str(max((run.switches for run in row.runs), default=0)),
        row.bars.text(),
        "yes" if row.met else f"no ({sum(bool(misses(run, row.bars)) for run in row.runs)} of {len(row.runs)} missed)",
    )


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"


def _clock(at_s: float) -> str:
    return f"{at_s:>+7.2f} s"
