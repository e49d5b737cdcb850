"""Where failover is kept: one file for each policy in the state folder."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Final

import structlog

from pointsman.core.store import StateError, StateFolder
from pointsman.failover.state import FailoverError, State, state_from_json

log = structlog.get_logger()

FOLDER: Final = "failover"
_SUFFIX: Final = ".json"
LONGEST: Final = 180
"""Characters of a policy's name in that of its file: Kubernetes allows more than the 255 bytes that file systems do."""


class FailoverFiles:
    """The folder `failover` of a state folder. Writing blocks for the time of a flush."""

    def __init__(self, state: Path) -> None:
        self._folder = StateFolder(state / FOLDER)
        self.path = self._folder.path

    def read_all(self) -> list[State]:
        """What is kept of all policies.

        Raises:
            StateError: one cannot be read. It is never taken for nothing then: that would bring back what has failed.
        """
        return [state for path in self._paths() if (state := _read(path)) is not None]

    def write(self, state: State) -> None:
        """Keep a policy's state; it is on the disk when this returns.

        Raises:
            StateError: it is not, and what was there is.
        """
        self._folder.write(_file(state.spec.name), state)

    def forget(self, but: Collection[str]) -> None:
        """Forget all policies but those."""
        kept = {_file(name) for name in but}
        for path in self._paths():
            try:
                if path.name not in kept:
                    path.unlink(missing_ok=True)
            except OSError as error:
                log.error("a failover state that is over cannot be removed", file=str(path), problem=str(error))

    def stamp(self) -> tuple[tuple[str, int], ...]:
        """Changes when any file does."""
        found = []
        for path in self._paths():
            try:
                found.append((path.name, path.stat().st_mtime_ns))
            except OSError:
                continue  # removed meanwhile
        return tuple(found)

    def _paths(self) -> list[Path]:
        return sorted(self.path.glob(f"[!.]*{_SUFFIX}"))


def _read(path: Path) -> State | None:
    """A file, None if it was removed meanwhile."""
    try:
        return state_from_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}") from error
    except FailoverError as error:
        raise StateError(f"{path}: {error}") from error


def _file(name: str) -> str:
    """Names are "Kind/namespace/name"; a `_` is in none of the three. Long ones are cut, and told apart by a hash."""
    stem = name.replace("/", "_")
    if len(stem) > LONGEST:
        stem = f"{stem[:LONGEST]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"{stem}{_SUFFIX}"
