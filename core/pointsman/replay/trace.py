"""Request traces in Mooncake's format: read, check, cut, spread over time.

One JSON object a line: `timestamp` (ms), `input_length` and `output_length` (tokens) and `hash_ids`, one id for each
512-token block of the prompt, the last one possibly partial. Equal ids stand for equal text. Other fields are ignored.
Source: kvcache-ai/Mooncake, FAST25-release.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, BinaryIO, Final

import msgspec

from pointsman.core.errors import ConfigError, Problem
from pointsman.core.wire import MAX_PROMPT_BYTES

BLOCK_TOKENS: Final = 512
"""Tokens that one hash id stands for, in every trace of this format."""

BYTES_PER_TOKEN: Final = 4
"""Prompt text is made with four ASCII characters a token: close to English, and what the simulated pool counts."""

MAX_INPUT_TOKENS: Final = MAX_PROMPT_BYTES // BYTES_PER_TOKEN
MAX_OUTPUT_TOKENS: Final = 1_000_000
MAX_LINE_BYTES: Final = 1024 * 1024
"""A line of the largest prompt that the gateway takes (32,768 ids) has less than half of this."""

MAX_TRACE_BYTES: Final = 256 * 1024 * 1024
"""Requests are held in memory, about ten bytes for each byte of the file; an hour of Mooncake has 3 MB."""

MAX_PROBLEMS: Final = 5
"""A file of another format is wrong in each line: the first ones are enough to see it."""

MIN_QUANTUM_MS: Final = 500.0
MIN_BURST: Final = 2.0
MIN_DISTINCT: Final = 5
"""Timestamps count as quantised when there are at least five distinct ones, half a second or more apart (median), and
two or more requests share each of them on average. Mooncake: 600 distinct ones for 5,719 requests, 3 s apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One request: when it arrives (ms after the start of the slice), how long it is, what its prompt is made of."""

    arrival_ms: float
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in the order of their arrival. `jitter_ms` is the width of the jitter that was added, 0 for none."""

    source: str
    requests: tuple[TraceRequest, ...]
    jitter_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which part of a trace, and how its arrivals are spread.

    `start_s` and `duration_s` count from the first timestamp (`duration_s` None: to the end); then the first `limit`
    requests are taken, so that the choice does not depend on the seed. `jitter_s` None adds U(0, step) where the
    timestamps are quantised, 0 adds nothing, any other width is used as it is.
    """

    start_s: float = 0.0
    duration_s: float | None = None
    limit: int | None = None
    jitter_s: float | None = None
    seed: int = 0


class _Line(msgspec.Struct):
    timestamp: Annotated[float, msgspec.Meta(ge=0, le=1e15)]
    input_length: Annotated[int, msgspec.Meta(ge=1, le=MAX_INPUT_TOKENS)]
    output_length: Annotated[int, msgspec.Meta(ge=0, le=MAX_OUTPUT_TOKENS)]
    hash_ids: list[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]]


_DECODER: Final = msgspec.json.Decoder(_Line)


def load_trace(path: Path, selection: Selection) -> Trace:
    """Read a trace file and select from it. Raises `ConfigError` with the lines that are wrong."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise ConfigError(_problem(str(path), 0, "this is a folder", "name a trace file (JSON lines)"))
        if size > MAX_TRACE_BYTES:
            what = f"the file has {size:,} bytes"
            raise ConfigError(
                _problem(str(path), 0, what, f"at most {MAX_TRACE_BYTES:,}: cut it, for instance with head")
            )
        with path.open("rb") as file:
            requests = read_requests(file, str(path))
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise ConfigError(_problem(str(path), 0, what, "name a trace file (JSON lines)")) from error
    return select(requests, selection, source=str(path))


def read_requests(file: BinaryIO, name: str) -> list[TraceRequest]:
    """All requests of an open file, in file order, with the file's own timestamps. Raises `ConfigError`."""
    requests: list[TraceRequest] = []
    problems: list[Problem] = []
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            problems.append(_problem(name, number, f"the line is longer than {MAX_LINE_BYTES:,} bytes", _FORMAT))
            break
        if not line.strip():
            continue
        found = _parse(line, name, number)
        if isinstance(found, TraceRequest):
            requests.append(found)
            continue
        problems.append(found)
        if len(problems) == MAX_PROBLEMS:
            break
    if problems:
        raise ConfigError(problems)
    if not requests:
        raise ConfigError(_problem(name, 0, "the trace has no requests", _FORMAT))
    return requests


def select(requests: Iterable[TraceRequest], selection: Selection, *, source: str) -> Trace:
    """Sort, cut, jitter, sort. Raises `ConfigError` when nothing is left."""
    ordered = sorted(requests, key=_arrival)
    begin_ms = (ordered[0].arrival_ms if ordered else 0.0) + selection.start_s * 1000
    end_ms = begin_ms + selection.duration_s * 1000 if selection.duration_s is not None else float("inf")
    width_ms = quantum_ms(ordered) if selection.jitter_s is None else selection.jitter_s * 1000
    chosen = [r for r in ordered if begin_ms <= r.arrival_ms < end_ms][: selection.limit]
    if not chosen:
        what = f"no request in the chosen part (from {selection.start_s:g} s, limit {selection.limit})"
        raise ConfigError(_problem(source, 0, what, "start earlier, take a longer part or a higher limit"))
    rng = random.Random(selection.seed)  # noqa: S311 - arrival times, no secrets
    spread = [
        replace(r, arrival_ms=r.arrival_ms - begin_ms + (rng.uniform(0, width_ms) if width_ms else 0.0)) for r in chosen
    ]
    return Trace(source=source, requests=tuple(sorted(spread, key=_arrival)), jitter_ms=width_ms)


def quantum_ms(ordered: Iterable[TraceRequest]) -> float:
    """The step of quantised timestamps in ms, 0 where they look like real arrival times. Input sorted by arrival."""
    arrivals = [r.arrival_ms for r in ordered]
    distinct = sorted(set(arrivals))
    if len(distinct) < MIN_DISTINCT or len(arrivals) < MIN_BURST * len(distinct):
        return 0.0
    step_ms = median(b - a for a, b in pairwise(distinct))
    return step_ms if step_ms >= MIN_QUANTUM_MS else 0.0


def blocks_of(tokens: int) -> int:
    """Number of blocks, the partial one included, of a prompt of `tokens`."""
    return -(-tokens // BLOCK_TOKENS)


_FORMAT: Final = 'expected lines like {"timestamp": 0, "input_length": 600, "output_length": 80, "hash_ids": [0, 1]}'


def _parse(line: bytes, name: str, number: int) -> TraceRequest | Problem:
    try:
        found = _DECODER.decode(line)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$")
        return _problem(name, number, text, _FORMAT, field=where.rstrip("`").lstrip("."))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _problem(name, number, f"not JSON: {error}", _FORMAT)
    needed = blocks_of(found.input_length)
    if len(found.hash_ids) != needed:
        what = f"{len(found.hash_ids)} ids for {found.input_length} tokens"
        return _problem(name, number, what, f"expected {needed}, one for each {BLOCK_TOKENS} tokens", field="hash_ids")
    return TraceRequest(
        arrival_ms=found.timestamp,
        input_tokens=found.input_length,
        output_tokens=found.output_length,
        hash_ids=tuple(found.hash_ids),
    )


def _arrival(request: TraceRequest) -> float:
    return request.arrival_ms


def _problem(name: str, line: int, what: str, mend: str, *, field: str = "") -> Problem:
    return Problem(file=name, line=line, field=field, what=what, mend=mend)
