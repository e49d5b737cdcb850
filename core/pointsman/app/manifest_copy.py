"""Copying a folder of manifests into one that a control plane watches, so that it never reads half of it.

All files are staged first, under names that the loader leaves out, on the file system of the target; then each is moved
into place. The moves take well under a millisecond each, and the watcher waits for 100 ms of quiet before it reads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from pointsman.core.config.source import manifest_files
from pointsman.core.errors import PointsmanError


class CopyError(PointsmanError):
    """The manifests were not copied."""


def to_remove(new: Path, target: Path) -> list[Path]:
    """Manifests of the target that the new folder has not, relative to it."""
    return sorted(Path(name) for name in set(manifest_files(target)) - set(manifest_files(new)))


def copy_manifests(new: Path, target: Path, removed: Sequence[Path]) -> list[Path]:
    """Make the target hold the manifests of the new folder, without those to be `removed`; what was copied.

    Raises:
        CopyError: nothing was changed, or the message says what was.
    """
    if new.resolve() == target.resolve():
        raise CopyError(f"{new} is the folder that is watched: its files are in force already")
    names = [Path(name) for name in manifest_files(new)]
    staged: list[tuple[Path, Path]] = []
    try:
        for name in names:
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = place.with_name(f".{place.name}.{os.getpid()}.draft")
            staged.append((draft, place))
            _write(draft, (new / name).read_bytes())
    except OSError as error:
        for draft, _ in staged:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
        raise CopyError(f"nothing was changed: {error}") from error
    try:
        for draft, place in staged:
            draft.replace(place)
        for name in removed:
            (target / name).unlink(missing_ok=True)
    except OSError as error:
        raise CopyError(f"only a part was copied: {error}; mend that and apply again") from error
    return names


def _write(path: Path, content: bytes) -> None:
    """On the disk before it is moved: a crash must not leave an empty file under a good name."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
