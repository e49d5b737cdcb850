"""Where rollouts are kept: one file for each in the state folder, and the lock that says who leads them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import structlog

from pointsman.app.leadership import Leadership
from pointsman.core.store import StateError, StateFolder
from pointsman.rollout.evidence import EvidenceRecord
from pointsman.rollout.state import VERSION, State

log = structlog.get_logger()

FOLDER: Final = "rollouts"
_SUFFIX: Final = ".json"


class SavedRollout(msgspec.Struct, frozen=True, kw_only=True):
    """A file."""

    state: State
    evidence: EvidenceRecord
    proxies: tuple[str, ...] = ()


class RolloutFiles:
    """The folder `rollouts` of a state folder. Writing blocks for the time of a flush."""

    def __init__(self, state: Path) -> None:
        self._folder = StateFolder(state / FOLDER)
        self._leadership = Leadership(self._folder.path, "rollouts")

    def lead(self) -> bool:
        """Whether this process leads the rollouts of the folder from now on; another one may."""
        return self._leadership.lead()

    def resign(self) -> None:
        """Let another process lead; the end of the process does the same."""
        self._leadership.resign()

    def names(self) -> list[str]:
        """Names ("namespace/name") of what is kept."""
        if not self._folder.path.is_dir():
            return []
        stems = [path.name.removesuffix(_SUFFIX) for path in self._folder.path.glob(f"[!.]*{_SUFFIX}")]
        return sorted(stem.replace(".", "/", 1) for stem in stems)

    def read(self, name: str) -> SavedRollout | None:
        """What is kept of a rollout, None for nothing.

        Raises:
            StateError: it cannot be read. It is never taken for nothing then: that would begin a rollout anew.
        """
        saved = self._folder.read(_file(name), SavedRollout)
        if saved is not None and saved.state.version != VERSION:
            path = self._folder.path / _file(name)
            raise StateError(f"{path} has version {saved.state.version}, this one reads {VERSION}")
        return saved

    def peek(self, name: str) -> SavedRollout | None:
        """The same for a reader who can do without."""
        try:
            return self.read(name)
        except StateError as error:
            log.warning("a rollout cannot be read", policy=name, problem=str(error))
            return None

    def write(self, name: str, saved: SavedRollout) -> None:
        """Keep a rollout; it is on the disk when this returns.

        Raises:
            StateError: it is not, and what was there is.
        """
        self._folder.write(_file(name), saved)

    def remove(self, name: str) -> None:
        """Forget a rollout."""
        try:
            (self._folder.path / _file(name)).unlink(missing_ok=True)
        except OSError as error:
            log.error("a rollout that is over cannot be removed", policy=name, problem=str(error))


def _file(name: str) -> str:
    """A namespace has no dots, so the first one divides."""
    return f"{name.replace('/', '.', 1)}{_SUFFIX}"
