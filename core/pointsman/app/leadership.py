"""Who leads: of several control planes on one state folder only one decides, the others follow what it saves."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import structlog

log = structlog.get_logger()


class Leadership:
    """A lock on a folder that ends with the process that holds it. `what` is led, for the log."""

    def __init__(self, folder: Path, what: str) -> None:
        self._folder = folder
        self._what = what
        self._descriptor = -1

    def lead(self) -> bool:
        """Whether this process leads from now on; another one may."""
        if self._descriptor >= 0:
            return True
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder / ".leader", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            log.error(f"{self._what} cannot be led", folder=str(self._folder), problem=str(error))
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def resign(self) -> None:
        """Let another process lead; the end of the process does the same."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
