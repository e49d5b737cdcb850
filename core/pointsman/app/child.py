"""Runs a command that dies with its parent: `python -m pointsman.app.child PARENT_PID COMMAND [ARG...]`.

The kernel sends the signal (Linux `prctl(PR_SET_PDEATHSIG)`), so it works when the parent is killed with SIGKILL. The
setting survives `execv`, so no process of ours stays between the parent and the command. Elsewhere than on Linux the
command is run without it: Ctrl-C still ends everything, a killed parent does not.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent ends; exit at once if it has ended already."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:  # it ended before the kernel was asked
        sys.exit(0)


def main(argv: list[str]) -> None:
    parent_pid, command = int(argv[0]), argv[1:]
    die_with_parent(parent_pid)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
