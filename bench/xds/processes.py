"""Processes of a benchmark: what they cost, and one that does as a pipe tells it."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_PAGE_BYTES = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def cpu_s(pid: int) -> float:
    """User and system time that a process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def machine() -> str:
    """One line about where this runs."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} × {model}, Python {platform.python_version()}, load average at the start {load:.1f}"


class Child:
    """A process that runs `main(pipe)`; `ask` sends it a command and waits for the answer."""

    def __init__(self, process: Any, pipe: Connection) -> None:
        self._process = process
        self._pipe = pipe
        self.pid: int = process.pid

    def ask(self, command: str, *arguments: Any, timeout_s: float = 120) -> Any:
        """The answer to a command; ends the benchmark when there is none in time."""
        self.tell(command, *arguments)
        return self.answer(timeout_s)

    def tell(self, command: str, *arguments: Any) -> None:
        """Send a command whose answer is fetched later."""
        self._pipe.send((command, *arguments))

    def answer(self, timeout_s: float = 120) -> Any:
        """The answer to the oldest command without one."""
        if not self._pipe.poll(timeout_s):
            raise SystemExit(f"no answer within {timeout_s:g} s")
        return self._pipe.recv()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.join()


@contextmanager
def child(main: Callable[..., None], *arguments: Any) -> Iterator[Child]:
    """Run `main(pipe, *arguments)` in a fresh interpreter; it ends with the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=main, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    started = Child(process, ours)
    try:
        yield started
    finally:
        started.kill()
