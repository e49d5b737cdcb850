"""Traces: what is read, what is refused and where, and how arrivals are cut and spread."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.core.errors import ConfigError
from pointsman.replay.trace import (
    MAX_LINE_BYTES,
    MAX_PROBLEMS,
    Selection,
    TraceRequest,
    load_trace,
    quantum_ms,
    read_requests,
    select,
)


def line(timestamp: float = 0, input_length: int = 600, output_length: int = 80, hash_ids: Any = (0, 1)) -> bytes:
    fields = {
        "timestamp": timestamp,
        "input_length": input_length,
        "output_length": output_length,
        "hash_ids": hash_ids,
    }
    return json.dumps(fields).encode() + b"\n"


def read(data: bytes) -> list[TraceRequest]:
    return read_requests(io.BytesIO(data), "t.jsonl")


def refused(data: bytes) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        read(data)
    return [f"{p.line}: {p.field}: {p.what}" for p in raised.value.problems]


def arriving(*arrivals_ms: float) -> list[TraceRequest]:
    return [
        TraceRequest(arrival_ms=a, input_tokens=1, output_tokens=n, hash_ids=(0,)) for n, a in enumerate(arrivals_ms)
    ]


def test_a_line_becomes_a_request_and_unknown_fields_and_blank_lines_are_passed_over() -> None:
    data = (
        b'{"timestamp": 27000.5, "input_length": 513, "output_length": 0, "hash_ids": [7, 9], "turn": 3}\n\n' + line()
    )
    first, second = read(data)
    assert first == TraceRequest(arrival_ms=27000.5, input_tokens=513, output_tokens=0, hash_ids=(7, 9))
    assert second.hash_ids == (0, 1)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (b"{\n", "not JSON: Input data was truncated"),
        (b"\xff\xfe\n", "not JSON: JSON is malformed: invalid character (byte 0)"),
        (b'{"timestamp": 0, "input_length": 5, "output_length": 1}\n', "Object missing required field `hash_ids`"),
        (line(timestamp=-1), "timestamp: Expected `float` >= 0.0"),
        (line(input_length=0), "input_length: Expected `int` >= 1"),
        (line(output_length=-1), "output_length: Expected `int` >= 0"),
        (line(input_length=2**40), "input_length: Expected `int` <= 16777216"),
        (line(hash_ids=[0, -1]), "hash_ids[1]: Expected `int` >= 0"),
        (line(hash_ids=[0, "a"]), "hash_ids[1]: Expected `int`, got `str`"),
        (line(hash_ids=[0]), "hash_ids: 1 ids for 600 tokens"),
        (line(hash_ids=[0, 1, 2]), "hash_ids: 3 ids for 600 tokens"),
        (b"[" * 100_000 + b"\n", "Expected `object`, got `array`"),
        (b'{"timestamp": 0, "x": ' + b"[" * 100_000 + b"\n", "not JSON: "),
        (b" " * (MAX_LINE_BYTES + 1), f"the line is longer than {MAX_LINE_BYTES:,} bytes"),
    ],
)
def test_bad_lines_are_refused_with_their_number(bad: bytes, problem: str) -> None:
    found = refused(line() + bad)
    assert len(found) == 1
    assert found[0].startswith("2: ")
    assert problem in found[0]


def test_all_bad_lines_are_told_but_not_without_end() -> None:
    assert [p.partition(":")[0] for p in refused(b"x\n" + line() + b"y\n")] == ["1", "3"]
    assert len(refused(b"timestamp,input,output\n" * 1000)) == MAX_PROBLEMS


def test_an_empty_trace_is_refused() -> None:
    assert refused(b"\n \n") == ["0: : the trace has no requests"]


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        assert read(data)
    except ConfigError as error:
        assert error.problems


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    for path, what in ((tmp_path / "no.jsonl", "No such file"), (tmp_path, "folder")):
        with pytest.raises(ConfigError, match=what) as raised:
            load_trace(path, Selection())
        assert raised.value.problems[0].file == str(path)


def test_a_file_is_loaded_sorted_from_its_first_timestamp(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(line(9000) + line(5000) + line(5100))
    trace = load_trace(path, Selection())
    assert [r.arrival_ms for r in trace.requests] == [0, 100, 4000]
    assert trace.source == str(path)
    assert trace.jitter_ms == 0


def test_a_slice_starts_at_zero_and_takes_the_first_of_it() -> None:
    requests = arriving(1000, 2000, 3000, 4000, 5000, 6000)
    trace = select(requests, Selection(start_s=1, duration_s=3, limit=2), source="t")
    assert [(r.output_tokens, r.arrival_ms) for r in trace.requests] == [(1, 0), (2, 1000)]
    whole = select(requests, Selection(start_s=1, duration_s=3), source="t")
    assert [r.output_tokens for r in whole.requests] == [1, 2, 3]


def test_an_empty_slice_is_refused() -> None:
    with pytest.raises(ConfigError, match="no request in the chosen part"):
        select(arriving(0, 1), Selection(start_s=5), source="t")


def bursts(step_ms: float = 3000, count: int = 20, size: int = 10) -> list[TraceRequest]:
    return arriving(*(step_ms * n for n in range(count) for _ in range(size)))


def test_quantised_timestamps_are_seen() -> None:
    assert quantum_ms(bursts()) == 3000
    # Mooncake's own steps are 2,999, 3,000 or 3,001 ms.
    assert quantum_ms(arriving(*(t for n in range(20) for t in [3000 * n - n % 2] * 8))) in (2999, 3000, 3001)


def test_real_arrival_times_are_left_alone() -> None:
    assert quantum_ms(arriving(*range(0, 100_000, 37))) == 0
    assert quantum_ms(bursts(step_ms=100)) == 0  # bursts of some 100 ms may well be real
    assert quantum_ms(bursts(count=3)) == 0
    assert quantum_ms(arriving(*range(0, 900_000, 60_000))) == 0  # rare, but no bursts


def test_jitter_spreads_each_burst_over_its_step_and_keeps_the_choice() -> None:
    trace = select(bursts(), Selection(limit=100, seed=5), source="t")
    assert trace.jitter_ms == 3000
    arrivals = [r.arrival_ms for r in trace.requests]
    assert arrivals == sorted(arrivals)
    assert len(set(arrivals)) == 100
    assert {r.output_tokens for r in trace.requests} == set(range(100))
    for request in trace.requests:
        burst = 3000 * (request.output_tokens // 10)
        assert burst <= request.arrival_ms <= burst + 3000
    assert trace == select(bursts(), Selection(limit=100, seed=5), source="t")
    assert trace != select(bursts(), Selection(limit=100, seed=6), source="t")


def test_jitter_can_be_turned_off_or_chosen() -> None:
    off = select(bursts(), Selection(jitter_s=0), source="t")
    assert {r.arrival_ms % 3000 for r in off.requests} == {0}
    chosen = select(arriving(0, 10_000), Selection(jitter_s=2), source="t")
    assert chosen.jitter_ms == 2000
    assert 0 < chosen.requests[0].arrival_ms <= 2000
    assert 10_000 < chosen.requests[1].arrival_ms <= 12_000
