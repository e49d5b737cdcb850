"""The state folder: what must survive a restart, as small JSON files that are always whole.

A file is written beside its place, flushed to the disk, and renamed: after a crash at any moment it holds the old or
the new content. Several control planes may share a folder; whoever changes a file holds the lock while it reads,
decides and writes. Everything here blocks (a flush takes milliseconds): event loops call it in a thread.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from pointsman.core.errors import PointsmanError
from pointsman.core.json_text import decode
from pointsman.core.model import Mirror
from pointsman.core.overlay import Overlay, RuleOverlay

OVERLAY_FILE: Final = "overlay.json"
OVERLAY_FORMAT: Final = 1
_LOCK_FILE: Final = ".lock"

T = TypeVar("T")


class StateError(PointsmanError):
    """The state folder cannot be read or written; what is in it has not changed."""


class StateFolder:
    """Named files of one folder, which is made when something is written. `path` is where it is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str, kind: type[T]) -> T | None:
        """The content of a JSON file as a `kind` (anything that msgspec can decode to), None if there is none.

        Raises:
            StateError: it cannot be read, or its content is not a `kind`.
        """
        path = self.path / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{path} cannot be read: {error.strerror}") from error
        try:
            return decode(content, kind)
        except msgspec.MsgspecError as error:
            raise StateError(
                f"{path} is damaged: {error}; mend it, or move it away to go on without what it says"
            ) from error

    def write(self, name: str, value: Any) -> None:
        """Put JSON into a file: all of it is there when this returns, also after a loss of power.

        Raises:
            StateError: it cannot be written; the file is as it was.
        """
        path = self.path / name
        # A name of its own for each writer: two threads that save at once must not take each other's draft away.
        draft = self.path / f".{name}.{os.getpid()}-{threading.get_ident()}.draft"
        content = msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            flush_folder(path.parent)
        except OSError as error:
            raise StateError(f"{path} cannot be written: {error.strerror}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes and threads from changing files of the folder meanwhile; they wait.

        Raises:
            StateError: the folder cannot be written.
        """
        path = self.path / _LOCK_FILE
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StateError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)  # also gives the lock back, as does the end of the process


def flush_folder(folder: Path) -> None:
    """Flush the names of a folder to the disk: a new file survives a loss of power only then."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _MirrorFile(msgspec.Struct, forbid_unknown_fields=True):
    pool: str
    share: int


class _RuleFile(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    version: int
    weights: dict[str, int] = msgspec.field(default_factory=dict)
    owner: str = ""
    mirror: _MirrorFile | None = None
    sites: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)


class _OverlayFile(msgspec.Struct, forbid_unknown_fields=True):
    """`overlay.json`. `format` tells a later Pointsman how to read it."""

    format: int
    revision: int
    rules: dict[str, _RuleFile]


def read_overlay(folder: StateFolder) -> Overlay:
    """The overlay of the folder, an empty one where nothing was decided yet.

    Raises:
        StateError: it cannot be read. It is never taken for empty then: that would undo roll-backs.
    """
    file = folder.read(OVERLAY_FILE, _OverlayFile)
    if file is None:
        return Overlay()
    place = folder.path / OVERLAY_FILE
    if file.format != OVERLAY_FORMAT:
        raise StateError(f"{place} has format {file.format}, this version reads {OVERLAY_FORMAT}")
    try:
        rules = tuple((rule_id, _entry(rule)) for rule_id, rule in sorted(file.rules.items()))
    except ValueError as error:
        raise StateError(f"{place} is damaged: {error}; mend it, or move it away") from error
    return Overlay(rules=rules, revision=file.revision)


def write_overlay(folder: StateFolder, overlay: Overlay) -> None:
    """Keep the overlay; what controllers find out anew after a start (`unavailable`) is not kept.

    Raises:
        StateError: it cannot be written; the file is as it was.
    """
    rules = {
        rule_id: _RuleFile(
            version=entry.version,
            weights=entry.shares(),
            owner=entry.owner,
            mirror=None if entry.mirror is None else _MirrorFile(entry.mirror.pool, entry.mirror.share),
            sites={site: dict(weights) for site, weights in entry.sites},
        )
        for rule_id, entry in overlay
    }
    folder.write(OVERLAY_FILE, _OverlayFile(format=OVERLAY_FORMAT, revision=overlay.revision, rules=rules))


def _entry(rule: _RuleFile) -> RuleOverlay:
    return RuleOverlay(
        weights=tuple(sorted(rule.weights.items())),
        mirror=None if rule.mirror is None else Mirror(pool=rule.mirror.pool, share=rule.mirror.share),
        owner=rule.owner,
        version=rule.version,
        sites=tuple((site, tuple(sorted(weights.items()))) for site, weights in sorted(rule.sites.items())),
    )
