"""Progress of a running replay: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pointsman.replay.load import Tally

STEP: Final = 0.1
INTERVAL_S: Final = 5.0
"""A plain line comes every tenth of the requests, and after five seconds without one."""


class ProgressSink(Protocol):
    """Takes the counts a few times a second and once at the end; shows them or not."""

    def update(self, tally: Tally, elapsed_s: float) -> None: ...


class Silent:
    """Shows nothing."""

    def update(self, tally: Tally, elapsed_s: float) -> None:
        pass


class LineProgress:
    """One line every 10 % or 5 s, whichever comes first."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._step = 0
        self._shown_s = 0.0

    def update(self, tally: Tally, elapsed_s: float) -> None:
        step = int(tally.done / tally.planned / STEP) if tally.planned else 0
        if step <= self._step and elapsed_s - self._shown_s < INTERVAL_S:
            return
        self._step = max(self._step, step)
        self._shown_s = elapsed_s
        self._out.write(f"{progress_text(tally)}, {elapsed_s:.0f} s\n")
        self._out.flush()


class BarProgress:
    """A bar with counts; use it as a context manager, so that the terminal is left as it was."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None)

    def update(self, tally: Tally, elapsed_s: float) -> None:
        text = f"{tally.running:,} running, {tally.failed:,} failed"
        self._bar.update(self._task, total=tally.planned, completed=tally.done, description=text)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def progress_text(tally: Tally) -> str:
    """Counts in one line."""
    percent = 100 * tally.done // tally.planned if tally.planned else 0
    return (
        f"{percent:3d} %: {tally.done:,} of {tally.planned:,} done, {tally.running:,} running, {tally.failed:,} failed"
    )
