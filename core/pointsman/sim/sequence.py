"""A request to an engine and what becomes of it: the values that `pointsman.sim.engine` takes and gives. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class Phase(Enum):
    """Where a sequence is."""

    NEW = "new"
    WAITING = "waiting"  # for the scheduler, after the API overhead or after a preemption
    PREFILL = "prefill"
    DECODE = "decode"
    ENDED = "ended"


class EventKind(Enum):
    """What `advance` reports. Tokens after the first are not reported one by one: see `Engine.generated`."""

    FIRST_TOKEN = "first_token"  # noqa: S105 (no password)
    FINISHED = "finished"
    PREEMPTED = "preempted"


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """One request to an engine, and what became of it.

    `block_hashes` are the chained hashes of its full blocks from the start; they may be fewer than the prompt has (the
    rest is never shared) or go on into the output (then the answer can be hit by the next turn). `output_tokens` 0 is a
    pooling request: it ends with its prefill. Times are engine ms, NaN until they happen.
    """

    id: int
    block_hashes: SequenceOf[int]
    prompt_tokens: int
    output_tokens: int
    finish_reason: str = "length"
    arrived_ms: float = field(default=math.nan, init=False)
    scheduled_ms: float = field(default=math.nan, init=False)
    first_token_ms: float = field(default=math.nan, init=False)
    finished_ms: float = field(default=math.nan, init=False)
    cached_tokens: int = field(default=0, init=False)
    """Prompt tokens found in the cache at first admission, host tier included."""
    host_tokens: int = field(default=0, init=False)
    preemptions: int = field(default=0, init=False)
    phase: Phase = field(default=Phase.NEW, init=False)
    ready_ms: float = field(default=math.nan, init=False)
    base_tokens: int = field(default=0, init=False)
    """Tokens that the prefill must put into the KV cache: the prompt, after a preemption the output so far, too."""
    computed_tokens: int = field(default=0, init=False)
    load_tokens: int = field(default=0, init=False)
    """Tokens that this admission loads from host memory."""
    made_tokens: int = field(default=0, init=False)
    """Output tokens made before the current decode began; `Engine.generated` adds the rest."""
    decode_start: int = field(default=0, init=False)
    finish_step: int = field(default=0, init=False)
    held: list[int] = field(default_factory=list, init=False)
    registered_blocks: int = field(default=0, init=False)
    retry_blocks: int = field(default=0, init=False)
    """Blocks that were missing at the last try to admit, plus those ever pinned at that time (`_admit`)."""


class Event(NamedTuple):
    """Something that happened to a sequence at `at_ms` (engine time)."""

    kind: EventKind
    at_ms: float
    sequence: Sequence


@dataclass(slots=True)
class Counters:
    """Totals since the start, as vLLM counts them; tokens unless said otherwise."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    host_queries: int = 0
    host_hits: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    host_prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "abort": 0, "error": 0})
    """Sequences that ended, by reason."""
