"""Where failover is kept: one file for each policy in the state folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog

from pointsman.core.store import StateError, StateFolder
from pointsman.failover.state import FailoverError, State, state_from_json

log = structlog.get_logger()

FOLDER: Final = "failover"
_SUFFIX: Final = ".json"


class FailoverFiles:
    """The folder `failover` of a state folder. Writing blocks for the time of a flush."""

    def __init__(self, state: Path) -> None:
        self._folder = StateFolder(state / FOLDER)
        self.path = self._folder.path

    def names(self) -> list[str]:
        """Names of the policies that something is kept of."""
        if not self.path.is_dir():
            return []
        return sorted(_name(path.name) for path in self.path.glob(f"[!.]*{_SUFFIX}"))

    def read(self, name: str) -> State | None:
        """What is kept of a policy, None for nothing.

        Raises:
            StateError: it cannot be read. It is never taken for nothing then: that would bring back what has failed.
        """
        path = self.path / _file(name)
        try:
            return state_from_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{path} cannot be read: {error.strerror}") from error
        except FailoverError as error:
            raise StateError(f"{path}: {error}") from error

    def write(self, state: State) -> None:
        """Keep a policy's state; it is on the disk when this returns.

        Raises:
            StateError: it is not, and what was there is.
        """
        self._folder.write(_file(state.spec.name), state)

    def remove(self, name: str) -> None:
        """Forget a policy."""
        try:
            (self.path / _file(name)).unlink(missing_ok=True)
        except OSError as error:
            log.error("a failover state that is over cannot be removed", policy=name, problem=str(error))

    def stamp(self) -> tuple[tuple[str, int], ...]:
        """Changes when any file does."""
        if not self.path.is_dir():
            return ()
        found = []
        for path in self.path.glob(f"[!.]*{_SUFFIX}"):
            try:
                found.append((path.name, path.stat().st_mtime_ns))
            except OSError:
                continue  # removed meanwhile
        return tuple(sorted(found))


def _file(name: str) -> str:
    """Names are "Kind/namespace/name"; a `_` is in none of the three."""
    return f"{name.replace('/', '_')}{_SUFFIX}"


def _name(file: str) -> str:
    return file.removesuffix(_SUFFIX).replace("_", "/")
