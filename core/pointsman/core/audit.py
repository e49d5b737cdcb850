"""The audit log: every decision about traffic, one JSON object a line, each line holding the hash of the one before.

Lines are only ever appended. A line that was changed, removed or put in breaks the chain at that place; lines cut off
at the end are noticed by whoever noted the head (`AuditLog.head`, shown in the status) before.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from pointsman.core.json_text import decode
from pointsman.core.store import StateError, flush_folder

AUDIT_FILE: Final = "audit.jsonl"
FIRST: Final = "0" * 64
"""What the first line holds instead of a hash."""
_TAIL_BYTES: Final = 1 << 20
"""Longest line that is looked for at the end of the file; ours have some hundred bytes."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One decision. `time` is RFC 3339 in UTC.

    `actor` says who ("alice", "RolloutPolicy/default/chat"), `via` how Pointsman knows ("certificate": it names the
    operator; "token": whoever holds the admin token, and calls itself so; "loopback": somebody on the same machine, who
    calls itself so; "file": whoever may write the manifests; "controller").
    `before` and `after` are the values that changed, `evidence` is what the decision rests on or led to.
    """

    seq: int
    prev: str
    time: str
    actor: str
    via: str
    action: str
    target: str
    reason: str = ""
    before: Any = None
    after: Any = None
    evidence: Any = None


_Maker = Callable[[int, str], Record]
"""Number and hash of the line before → the record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a check of the chain found: lines in order, the hash of the last one, and the first thing that is wrong."""

    lines: int
    head: str
    problem: str = ""


def line_hash(line: bytes) -> str:
    """Hash of a line without its line end."""
    return hashlib.sha256(line).hexdigest()


def verify(lines: Iterable[bytes], *, noted: str = "") -> Verdict:
    """Check the chain of lines (without line ends), up to the first thing that is wrong.

    `noted` is a head that somebody wrote down: if no line has it, lines were cut off, or the whole log is another one.
    """
    head, count, seen = FIRST, 0, noted in {"", FIRST}
    for number, line in enumerate(lines, start=1):
        try:
            record = decode(line, Record)
        except msgspec.MsgspecError as error:
            return Verdict(lines=count, head=head, problem=f"line {number} is no record: {error}")
        if record.prev != head:
            problem = f"line {number} does not follow line {number - 1}: one of them was changed, removed or added"
            return Verdict(lines=count, head=head, problem=problem)
        if record.seq != number:
            return Verdict(lines=count, head=head, problem=f"line {number} has number {record.seq}")
        head, count = line_hash(line), number
        seen = seen or head == noted
    return Verdict(lines=count, head=head, problem="" if seen else f"no line has the hash {noted}: lines were cut off")


def verify_file(path: Path, *, noted: str = "") -> Verdict:
    """Check a whole file; one that does not exist has no lines.

    Raises:
        StateError: it cannot be read.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}") from error
    *lines, rest = content.split(b"\n")
    verdict = verify(lines, noted=noted)
    if rest and not verdict.problem:
        problem = "the last line has no end: the process was stopped while it wrote; the next start mends that"
        return Verdict(lines=verdict.lines, head=verdict.head, problem=problem)
    return verdict


class AuditLog:
    """Appends to the audit log of a state folder. Blocks for the time of a flush; event loops call it in a thread."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / AUDIT_FILE
        self._size = -1
        self._seq = 0
        self._head = FIRST

    @property
    def head(self) -> str:
        """Hash of the last line that this process wrote or read."""
        return self._head

    def open(self, time_s: float) -> None:
        """Find the end of the log. Half a line, left by a process that was stopped while it wrote, is cut off, and a
        record tells so. What was written before is not checked: that is what `verify` is for.

        Raises:
            StateError: the log cannot be read or written, or its last line is no record.
        """
        self._append(time_s, ())

    def append(
        self,
        *,
        time_s: float,
        actor: str,
        via: str,
        action: str,
        target: str,
        reason: str = "",
        before: Any = None,
        after: Any = None,
        evidence: Any = None,
    ) -> Record:
        """Add a record; it is on the disk when this returns. `time_s` is in seconds since the epoch.

        Raises:
            StateError: it was not written.
        """

        def record(seq: int, prev: str) -> Record:
            return Record(
                seq=seq,
                prev=prev,
                time=timestamp(time_s),
                actor=actor,
                via=via,
                action=action,
                target=target,
                reason=reason,
                before=before,
                after=after,
                evidence=evidence,
            )

        (written,) = self._append(time_s, (record,))
        return written

    def records(self, limit: int = 100) -> list[Record]:
        """The last `limit` records, oldest first.

        Raises:
            StateError: the log cannot be read.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
            return [decode(line, Record) for line in lines[-limit:]]
        except (OSError, msgspec.MsgspecError) as error:
            raise StateError(f"{self.path} cannot be read: {error}") from error

    def _append(self, time_s: float, makers: Iterable[_Maker]) -> list[Record]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # another control plane may share the folder
                self._catch_up(descriptor, time_s)
                written = [self._write(descriptor, make) for make in makers]
                if is_new:
                    flush_folder(self.path.parent)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StateError(f"{self.path} cannot be written: {error.strerror}") from error
        return written

    def _write(self, descriptor: int, make: _Maker) -> Record:
        record = make(self._seq + 1, self._head)
        line = msgspec.json.encode(record)
        try:
            _write_all(descriptor, line + b"\n")
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, self._size)  # half a line would break the chain
            raise
        self._seq, self._head, self._size = record.seq, line_hash(line), self._size + len(line) + 1
        return record

    def _catch_up(self, descriptor: int, time_s: float) -> None:
        """Read the end of the log where it is not what this process left."""
        size = os.fstat(descriptor).st_size
        if size == self._size:
            return
        tail = os.pread(descriptor, min(size, _TAIL_BYTES), max(0, size - _TAIL_BYTES))
        *lines, rest = tail.split(b"\n")
        if rest:
            os.ftruncate(descriptor, size - len(rest))
        self._size = size - len(rest)
        self._seq, self._head = self._last(lines[-1]) if lines else (0, FIRST)
        if rest:
            self._write(descriptor, lambda seq, prev: _mended(seq, prev, time_s, rest))

    def _last(self, line: bytes) -> tuple[int, str]:
        try:
            return decode(line, Record).seq, line_hash(line)
        except msgspec.MsgspecError as error:
            raise StateError(f"the last line of {self.path} is no record: {error}; move the file away") from error


def timestamp(time_s: float) -> str:
    """RFC 3339 with milliseconds, in UTC."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _mended(seq: int, prev: str, time_s: float, rest: bytes) -> Record:
    return Record(
        seq=seq,
        prev=prev,
        time=timestamp(time_s),
        actor="pointsman",
        via="controller",
        action="audit.mended",
        target=AUDIT_FILE,
        reason="half a line was cut off: the process was stopped while it wrote",
        before={"bytes": len(rest), "sha256": line_hash(rest)},
    )


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
