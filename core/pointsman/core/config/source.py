"""The configuration folder: which files belong to it, what they hold, and whether it changed.

Files are `*.yaml`, `*.yml` and `*.json` at any depth. Names that begin with a dot are left out, so in a mounted
ConfigMap the links at the top are read and the `..data` folders behind them are not. Links are followed, but never into
a folder that they stand in.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from pointsman.core.config.document import Document, shown
from pointsman.core.config.document import Path as FieldPath
from pointsman.core.config.parse import parse
from pointsman.core.errors import Problem

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
MAX_FILE_BYTES = 8 * 1024 * 1024
"""Size of one file. etcd keeps no object above 1.5 MiB; a file may hold several."""
MAX_FILES = 10_000
"""Files in a folder; above it somebody has pointed us at a home directory."""
MAX_FOLDER_DEPTH = 16
KUSTOMIZATION = frozenset({"kustomization.yaml", "kustomization.yml"})

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Per file: relative name, inode, size in bytes, change time in ns. Equal ones: nothing was written in between."""


@dataclass(slots=True)
class Source:
    """What a folder holds: manifests with lists flattened, problems met on the way, files that are no manifests."""

    documents: list[Document] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_folder(folder: Path) -> Source:
    """Read all manifests; files in the order of their names. Never raises for what it finds there."""
    source = Source()
    if not _is_folder(folder):
        what = "is not a folder" if os.path.lexists(folder) else "no such folder"
        source.problems.append(_file_problem(str(folder), what, "expected a folder of manifests"))
        return source
    files = _files(folder, source.problems)
    if not files and not source.problems:
        source.problems.append(
            _file_problem(str(folder), "holds no manifests", "expected *.yaml, *.yml or *.json files"),
        )
    for name, path in files:
        if path.name not in KUSTOMIZATION:
            text = _read(name, path, source.problems)
            if text is not None:
                _add_documents(source, name, text)
    return source


def fingerprint(folder: Path) -> Fingerprint | None:
    """State of the folder's files without reading them; None where there is no such folder."""
    if not _is_folder(folder):
        return None
    entries = []
    for name, path in _files(folder, []):
        try:
            stat = path.stat()
        except OSError:
            entries.append((name, 0, 0, 0))
        else:
            entries.append((name, stat.st_ino, stat.st_size, stat.st_ctime_ns))
    return tuple(entries)


def manifest_files(folder: Path) -> list[str]:
    """Names of the files that `read_folder` would read, relative to the folder."""
    return [name for name, _ in _files(folder, [])]


def read_text(name: str, text: str) -> Source:
    """The manifests of one text, as `read_folder` would read them from a file called `name`."""
    source = Source()
    _add_documents(source, name, text)
    return source


def _files(folder: Path, problems: list[Problem]) -> list[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    waiting: list[tuple[str, Path, tuple[tuple[int, int], ...]]] = [("", folder, ())]
    while waiting:
        prefix, directory, above = waiting.pop()
        try:
            stat = directory.stat()
            entries = list(os.scandir(directory))
        except OSError as error:
            problems.append(_file_problem(prefix.rstrip("/") or str(folder), f"can't be read: {error.strerror}"))
            continue
        identity = (stat.st_dev, stat.st_ino)
        if identity in above:
            continue
        for entry in entries:
            name = prefix + _printable(entry.name)
            if entry.name.startswith("."):
                continue
            if _is_folder(Path(entry.path)):
                if len(above) + 1 >= MAX_FOLDER_DEPTH:
                    problems.append(_file_problem(name, f"folders are nested more than {MAX_FOLDER_DEPTH} deep"))
                else:
                    waiting.append((name + "/", Path(entry.path), (*above, identity)))
            elif Path(entry.name).suffix.lower() in SUFFIXES:
                found.append((name, Path(entry.path)))
        if len(found) > MAX_FILES:
            problems.append(_file_problem(str(folder), f"holds more than {MAX_FILES} manifests"))
            return []
    return sorted(found)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # above it is a folder that we may not enter
        return False


def _printable(name: str) -> str:
    """A file name for texts: it may hold bytes that are no UTF-8, and line feeds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _read(name: str, path: Path, problems: list[Problem]) -> str | None:
    try:
        if not path.is_file():
            problems.append(_file_problem(name, "is not a regular file" if path.exists() else "is a broken link"))
            return None
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        problems.append(_file_problem(name, f"can't be read: {error.strerror}"))
        return None
    if not data:  # half of a write, more often than meant: the objects in it would be gone
        problems.append(_file_problem(name, "is empty", "delete it if it is meant to hold nothing"))
        return None
    if len(data) > MAX_FILE_BYTES:
        problems.append(_file_problem(name, f"is larger than {MAX_FILE_BYTES} bytes", "split the file"))
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problems.append(Problem(file=name, line=line, field="", what="is not UTF-8 text", mend="save it as UTF-8"))
        return None


def _add_documents(source: Source, name: str, text: str) -> None:
    trees, problems = parse(text, name)
    source.problems += problems
    for tree in trees:
        if isinstance(tree.value, dict):
            _flatten(source, Document(file=name, data=tree.value, mark=tree.mark))
        else:
            what = f"found {shown(tree.value)} where a manifest should be"
            mend = "expected apiVersion, kind, metadata and spec"
            source.problems.append(Problem(file=name, line=tree.mark.line, field="", what=what, mend=mend))


def _flatten(source: Source, document: Document) -> None:
    """Add the document, or the items of a `List`, or of an `HTTPRouteList`, which need not say their kind again."""
    kind, items = document.data.get("kind"), document.data.get("items")
    if not isinstance(kind, str) or not kind.endswith("List") or not isinstance(items, list):
        source.documents.append(document)
        return
    inherited: dict[str, object] = {}
    if kind != "List":
        inherited = {"apiVersion": document.data.get("apiVersion"), "kind": kind.removesuffix("List")}
    for index, item in enumerate(items):
        path: FieldPath = ("items", index)
        if not isinstance(item, dict):
            source.problems.append(document.problem(path, f"found {shown(item)}", "expected a manifest"))
            continue
        mark = document.mark.items["items"].items[index]
        _flatten(source, Document(file=document.file, data=inherited | item, mark=mark, root=document.root + path))


def _file_problem(file: str, what: str, mend: str = "") -> Problem:
    return Problem(file=file, line=0, field="", what=what, mend=mend)
