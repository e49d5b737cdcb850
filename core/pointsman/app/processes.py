"""Child processes that never outlive us: start, wait until ready, stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

STOP_GRACE_S = 3.0
"""How long a child may take to end after SIGTERM before it is killed; Envoy and the simulator need well under 1 s."""


class ChildProcess:
    """A child in a process group of its own (Ctrl-C reaches only us) that the kernel kills when we end."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self.name = name

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, None while it runs."""
        return self._process.returncode

    @property
    def stdout(self) -> asyncio.StreamReader:
        """The pipe of its standard output; only where it was started with `pipe_stdout`."""
        if self._process.stdout is None:
            raise RuntimeError(f"{self.name} was started without a pipe")
        return self._process.stdout

    async def wait(self) -> int:
        """Wait until it ends; returns its exit status."""
        return await self._process.wait()

    async def stop(self) -> None:
        """End it: SIGTERM, after `STOP_GRACE_S` SIGKILL. Does nothing when it has ended."""
        if self._process.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), STOP_GRACE_S)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()

    def kill(self) -> None:
        """End it with SIGKILL; `wait` tells when."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        try:
            self._process.send_signal(number)
        except ProcessLookupError:
            return  # it ended in this moment


async def start_child(
    command: Sequence[str | Path],
    *,
    name: str,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    pipe_stdout: bool = False,
    pass_fds: Sequence[int] = (),
) -> ChildProcess:
    """Start `command` (its first word is an absolute path) as a child that dies with us and inherits `pass_fds`.

    Raises:
        OSError: the command cannot be started.
    """
    launcher = [sys.executable, "-m", "pointsman.app.child", str(os.getpid())]
    process = await asyncio.create_subprocess_exec(
        *launcher,
        *[str(word) for word in command],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE if pipe_stdout else stdout,
        stderr=stderr,
        start_new_session=True,
        pass_fds=pass_fds,
    )
    return ChildProcess(process, name)
