"""What the fleet is asked: a trace in Mooncake's format, one copy for each region, or generated multi-turn sessions.

Prompts are block ids; for the picker, which reads text, each id stands for 2,048 bytes of its own (`prompt_bytes`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from pointsman.replay.generate import MultiTurn, generate
from pointsman.replay.trace import BLOCK_TOKENS, BYTES_PER_TOKEN, Selection, TraceRequest, load_trace

MULTI_TURN = MultiTurn()

WARM_UP_SHARE = 0.2
"""First part of a run that is not counted: caches fill (the study behind the facts dropped 300 of 1,500 s)."""

SHARED_SHARE = 0.02
"""A block that more than this share of the requests has belongs to no session (system prompts)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrival:
    """One request: when it comes to the gateway of which region, and what it asks. `blocks` holds the partial last
    block, too; `session` is the same for the turns of a conversation."""

    id: int
    at_ms: float
    gateway: int
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    session: int

    @property
    def full_blocks(self) -> tuple[int, ...]:
        """The blocks that a cache can hold."""
        return self.blocks[: self.input_tokens // BLOCK_TOKENS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Arrivals in order; those before `warm_up_ms` are not counted."""

    name: str
    arrivals: tuple[Arrival, ...]
    warm_up_ms: float
    duration_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceCopies:
    """A part of a trace file, `regions` copies of it, each turned round by its share of the part, so that the regions
    do not peak together. `time_scale` above 1 slows the arrivals down. Copies share only what all their requests
    share (the system prompt)."""

    path: Path
    start_s: float = 0.0
    duration_s: float = 900.0
    time_scale: float = 1.25
    regions: int = 3

    def build(self, seed: int, name: str = "trace") -> Workload:
        """Read the file and make the copies. The seed spreads quantised arrivals. Raises `ConfigError`."""
        selection = Selection(start_s=self.start_s, duration_s=self.duration_s, seed=seed)
        requests = load_trace(self.path, selection).requests
        return self.of_requests(requests, name)

    def of_requests(self, requests: Sequence[TraceRequest], name: str = "trace") -> Workload:
        """The copies of these requests."""
        span_ms = self.duration_s * 1000.0
        common = _common_blocks(requests)
        sessions = [_session(request, common) for request in requests]
        found: list[tuple[float, int, TraceRequest, int]] = []
        for copy in range(self.regions):
            turn_ms = copy * span_ms / self.regions
            for request, session in zip(requests, sessions, strict=True):
                at_ms = (request.arrival_ms + turn_ms) % span_ms * self.time_scale
                found.append((at_ms, copy, request, session))
        found.sort(key=lambda entry: (entry[0], entry[1]))
        arrivals = tuple(
            Arrival(
                id=number,
                at_ms=at_ms,
                gateway=copy,
                input_tokens=request.input_tokens,
                output_tokens=max(1, request.output_tokens),
                blocks=tuple(b * (self.regions + 1) + (0 if b in common else copy + 1) for b in request.hash_ids),
                session=session * self.regions + copy,
            )
            for number, (at_ms, copy, request, session) in enumerate(found)
        )
        duration_ms = span_ms * self.time_scale
        return Workload(name=name, arrivals=arrivals, warm_up_ms=WARM_UP_SHARE * duration_ms, duration_ms=duration_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Generated multi-turn sessions at `rate` requests a second in all; each session stays with the gateway where it
    began. `shares` are the regions' parts of the sessions. `start_s` cuts the beginning off (other slices of the same
    sessions). `sessions` says what they look like."""

    rate: float = 20.0
    start_s: float = 0.0
    duration_s: float = 900.0
    shares: tuple[float, ...] = (1.0, 1.0, 1.0)
    sessions: MultiTurn = MULTI_TURN

    def build(self, seed: int, name: str = "sessions") -> Workload:
        """Generate the sessions of a seed."""
        requests = generate(
            replace(self.sessions, duration_s=self.start_s + self.duration_s, rate=self.rate, seed=seed)
        )
        requests = [r for r in requests if r.arrival_ms >= self.start_s * 1000.0]
        return self.of_requests(requests, seed, name)

    def of_requests(self, requests: Sequence[TraceRequest], seed: int, name: str = "sessions") -> Workload:
        """The requests with a home for each session."""
        common = _common_blocks(requests)
        home: dict[int, int] = {}
        rng = random.Random(seed)  # noqa: S311 - a workload, no secrets
        arrivals: list[Arrival] = []
        for number, request in enumerate(requests):
            session = _session(request, common)
            gateway = home.get(session)
            if gateway is None:
                gateway = home[session] = rng.choices(range(len(self.shares)), self.shares)[0]
            arrivals.append(
                Arrival(
                    id=number,
                    at_ms=request.arrival_ms - self.start_s * 1000.0,
                    gateway=gateway,
                    input_tokens=request.input_tokens,
                    output_tokens=max(1, request.output_tokens),
                    blocks=request.hash_ids,
                    session=session,
                )
            )
        duration_ms = self.duration_s * 1000.0
        return Workload(
            name=name, arrivals=tuple(arrivals), warm_up_ms=WARM_UP_SHARE * duration_ms, duration_ms=duration_ms
        )


@lru_cache(maxsize=20_000)
def _block_text(block: int) -> bytes:
    return block.to_bytes(8, "little") * (BLOCK_TOKENS * BYTES_PER_TOKEN // 8)


def prompt_bytes(arrival: Arrival) -> bytes:
    """The prompt as the picker reads it: four bytes for each token, equal blocks have equal text."""
    return b"".join(map(_block_text, arrival.blocks))[: arrival.input_tokens * BYTES_PER_TOKEN]


def _common_blocks(requests: Sequence[TraceRequest]) -> frozenset[int]:
    """Blocks of system prompts: those that many requests begin with."""
    counts = Counter(block for request in requests for block in set(request.hash_ids))
    return frozenset(block for block, count in counts.items() if count > max(2.0, SHARED_SHARE * len(requests)))


def _session(request: TraceRequest, common: frozenset[int]) -> int:
    """The first block of its own; a prompt of shared blocks only is its last block's session."""
    return next((block for block in request.hash_ids if block not in common), request.hash_ids[-1])
