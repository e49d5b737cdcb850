"""The audit log: appended, chained, mended after a crash, and any change of it is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.core.audit import AUDIT_FILE, FIRST, AuditLog, line_hash, timestamp, verify, verify_file
from pointsman.core.store import StateError


def add(log: AuditLog, **more: Any) -> None:
    log.append(time_s=1.5, actor="alice", via="token", action="weights.set", target="r", **more)


def filled(folder: Path, count: int = 5) -> AuditLog:
    log = AuditLog(folder)
    for turn in range(count):
        add(log, reason=f"turn {turn}", before={"a": turn}, after={"a": turn + 1})
    return log


def test_records_are_kept_in_order_and_chained(tmp_path: Path) -> None:
    log = filled(tmp_path)
    lines = (tmp_path / AUDIT_FILE).read_bytes().splitlines()
    verdict = verify_file(log.path)
    assert (verdict.lines, verdict.problem, verdict.head) == (5, "", line_hash(lines[-1]))
    assert verdict.head == log.head
    assert [record.seq for record in log.records(3)] == [3, 4, 5]
    assert log.records(1)[0].time == "1970-01-01T00:00:01.500Z" == timestamp(1.5)
    assert log.records(1)[0].after == {"a": 5}


def test_an_empty_log_is_in_order(tmp_path: Path) -> None:
    assert verify_file(tmp_path / AUDIT_FILE).head == FIRST
    log = AuditLog(tmp_path)
    log.open(0.0)
    assert log.records() == []
    assert verify_file(log.path).lines == 0


def test_another_process_goes_on_where_this_one_ended(tmp_path: Path) -> None:
    one, other = filled(tmp_path), AuditLog(tmp_path)
    add(other)
    add(one)
    add(other)
    assert verify_file(one.path).problem == ""
    assert verify_file(one.path).lines == 8


@given(st.data())
def test_every_change_of_a_line_is_noticed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = filled(Path(folder)).path.read_bytes().splitlines()
    head = line_hash(lines[-1])
    assert verify(lines).head == head
    index = data.draw(st.integers(0, len(lines) - 1))
    kind = data.draw(st.sampled_from(["change", "remove", "swap", "add"]))
    spoiled = list(lines)
    if kind == "change":
        place = data.draw(st.integers(0, len(lines[index]) - 1))
        byte = data.draw(st.integers(32, 126).filter(lambda b: b != lines[index][place]))
        spoiled[index] = lines[index][:place] + bytes([byte]) + lines[index][place + 1 :]
    elif kind == "remove":
        del spoiled[index]
    elif kind == "swap":
        other = data.draw(st.integers(0, len(lines) - 1).filter(lambda i: i != index))
        spoiled[index], spoiled[other] = spoiled[other], spoiled[index]
    else:
        spoiled.insert(index, lines[index])
    verdict = verify(spoiled)
    assert verdict.problem or verdict.head != head, "a chain that is in order ends with another head"


def test_half_a_line_is_cut_off_and_told(tmp_path: Path) -> None:
    log = filled(tmp_path)
    with log.path.open("ab") as file:
        file.write(b'{"seq":6,"prev":"')
    assert "no end" in verify_file(log.path).problem
    again = AuditLog(tmp_path)
    again.open(2.0)
    assert verify_file(log.path).problem == ""
    assert [r.action for r in again.records(2)] == ["weights.set", "audit.mended"]
    add(log)
    assert verify_file(log.path).lines == 7


def test_a_last_line_that_is_no_record_is_told(tmp_path: Path) -> None:
    log = filled(tmp_path)
    with log.path.open("ab") as file:
        file.write(b"what?\n")
    with pytest.raises(StateError, match="no record"):
        AuditLog(tmp_path).open(0.0)
    assert "line 6 is no record" in verify_file(log.path).problem


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written"):
        AuditLog(tmp_path / "file").open(0.0)


WRITER = """
import sys
from pathlib import Path
from pointsman.core.audit import AuditLog
log = AuditLog(Path(sys.argv[1]))
for turn in range(100_000):
    log.append(time_s=turn, actor="a", via="token", action="x", target="t")
    print(turn, flush=True)
"""


def test_a_writer_killed_at_any_moment_loses_nothing_that_was_told(tmp_path: Path) -> None:
    told = 0
    for turns in (1, 5, 23):
        with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(turns):
                writer.stdout.readline()
            os.kill(writer.pid, signal.SIGKILL)
        told += turns
        AuditLog(tmp_path).open(0.0)
        verdict = verify_file(tmp_path / AUDIT_FILE)
        assert verdict.problem == ""
        assert verdict.lines >= told
