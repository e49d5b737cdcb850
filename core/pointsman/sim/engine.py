"""One replica of a model server in virtual time: continuous batching with chunked prefill. Pure.

No sockets, no clocks, no tasks: the caller says what time it is and gets back what happened. The HTTP and gRPC shells
run it in real time, the policy benchmark runs many of them in virtual time. Times are float ms, sizes integer tokens.

The scheduler is vLLM's (V1) as far as it matters to latency. Each step: every decoding sequence makes one token; what
is left of `max_num_batched_tokens` goes to running prefills in order of admission, then to waiting sequences, first
come first served, while `max_num_seqs` and the KV blocks allow. A sequence is admitted when its whole prompt fits. When
a decoding sequence finds no block, the newest running sequence is preempted and later computed again.

The step loop does no work per decoding sequence: a decode only moves counters (`_decode_step`, `_decode_context`),
block needs are counted by residue of the step number, and finishes are looked up by step number. Four-GPU replicas
times twelve over half an hour of trace (14,000 requests, 5 million tokens) take about a second with blocks of 512
tokens, the unit of Mooncake's hashes, and about ten with blocks of 16.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import msgspec

from pointsman.sim.kv_cache import KvCache
from pointsman.sim.sequence import Counters, Event, EventKind, Phase, Sequence
from pointsman.sim.step_time import StepTime, batch_ms

MAX_STEP_TOKENS = 1 << 20
"""Step times are kept in a table; a million entries is far past any real server and still small."""

StepObserver = Callable[[float, int, int], None]
"""Called at the end of each step with its duration in ms, its prefill tokens and its decoded tokens."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of one replica; the field names are vLLM's where it has one."""

    block_size: int = 16
    """Tokens of a KV block, and so the granularity of prefix hits. 16 is vLLM's default on GPUs."""

    num_gpu_blocks: int = 25_000
    """25,000 blocks of 16 tokens: 400k tokens, what four 80 GB GPUs hold beside 141 GB of weights at 320 KB a token."""

    num_host_blocks: int = 0
    """Blocks of the host tier; 100,000 (1.6 M tokens) is about 512 GB of memory. 0: no host tier."""

    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    max_model_len: int = 131_072
    """Prompt and output tokens of one request, at most (Llama 3.1)."""

    api_overhead_ms: float = 15.6
    """From the arrival of a request to the scheduler's queue: parsing, templating, tokenising (BLIS, alpha0)."""

    step_time: StepTime = StepTime()

    def __post_init__(self) -> None:
        for name in ("block_size", "num_gpu_blocks", "max_num_batched_tokens", "max_num_seqs", "max_model_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more")
        if self.num_host_blocks < 0 or self.api_overhead_ms < 0:
            raise ValueError("`num_host_blocks` and `api_overhead_ms` must be 0 or more")
        if self.max_num_batched_tokens > MAX_STEP_TOKENS:
            raise ValueError(f"`max_num_batched_tokens` must be {MAX_STEP_TOKENS} or less")
        if self.max_num_seqs > self.max_num_batched_tokens:
            raise ValueError(
                "`max_num_seqs` must not be above `max_num_batched_tokens`: each sequence decodes every step"
            )

    @property
    def context_limit(self) -> int:
        """Most prompt plus output tokens of one request: `max_model_len`, or less where the KV cache is smaller."""
        return min(self.max_model_len, self.num_gpu_blocks * self.block_size)


class Engine:
    """See the module. Not thread-safe; calls must come in the order of their times."""

    def __init__(self, config: EngineConfig, observer: StepObserver | None = None) -> None:
        self.config = config
        self.counters = Counters()
        self.kv = KvCache(config.num_gpu_blocks, config.num_host_blocks)
        self._observer = observer
        self._batch_ms = batch_ms(config.step_time, config.max_num_batched_tokens)
        self._now_ms = 0.0
        self._pending: deque[Sequence] = deque()
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, None] = {}  # in order of admission
        self._prefilling: list[Sequence] = []
        self._chunks: list[tuple[Sequence, int]] = []
        self._in_step = False
        self._step_end_ms = math.inf
        self._step_ms = 0.0
        self._step_prefill_tokens = 0
        self._decode_step = 0
        self._decodes = 0
        self._decode_context = 0
        self._needs = [0] * config.block_size
        self._finish_at: dict[int, list[Sequence]] = {}

    @property
    def now_ms(self) -> float:
        """How far the engine has come."""
        return self._now_ms

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences in the scheduler's queue."""
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks that running sequences hold, 0 to 1."""
        return self.kv.used / self.kv.blocks

    @property
    def pending_prefill_tokens(self) -> int:
        """Prompt tokens that are still to be computed, waiting ones counted whole; for perfect-knowledge baselines."""
        prefilling = sum(s.base_tokens - s.computed_tokens for s in self._prefilling)
        return prefilling + sum(s.base_tokens for s in self._waiting) + sum(s.base_tokens for s in self._pending)

    def prefill_ahead(self) -> tuple[int, float]:
        """Prompt tokens to compute after the current step, without those that are cached, and the token pairs that
        their attention looks at; for perfect-knowledge baselines."""
        going = {id(sequence): chunk for sequence, chunk in self._chunks} if self._in_step else {}
        tokens, area, size = 0, 0.0, self.config.block_size
        for sequence in self._prefilling:
            left = sequence.base_tokens - sequence.computed_tokens - going.get(id(sequence), 0)
            tokens += left
            area += left * (sequence.base_tokens - left * 0.5)
        for queue in (self._waiting, self._pending):
            for sequence in queue:
                hit = self.kv.lookup(sequence.block_hashes, (sequence.base_tokens - 1) // size)
                left = sequence.base_tokens - hit.blocks * size
                tokens += left
                area += left * (sequence.base_tokens - left * 0.5)
        return tokens, area

    @property
    def decodes(self) -> int:
        """Sequences that make a token in each step."""
        return self._decodes

    @property
    def decode_context_tokens(self) -> int:
        """Context tokens that one decode step reads now."""
        return self._decode_context

    def submit(self, now_ms: float, sequence: Sequence) -> None:
        """A request arrives. Raises ValueError when it can never fit, is not new, or `now_ms` is in the past."""
        limit = self.config.context_limit
        if sequence.phase is not Phase.NEW:
            raise ValueError(f"sequence {sequence.id} was submitted before")
        if now_ms < self._now_ms:
            raise ValueError(f"time does not go back: {now_ms} ms is before {self._now_ms} ms")
        if sequence.prompt_tokens < 1 or sequence.output_tokens < 0:
            raise ValueError("a sequence needs a prompt of 1 token or more and an output of 0 or more")
        if sequence.prompt_tokens + sequence.output_tokens > limit:
            raise ValueError(f"{sequence.prompt_tokens} + {sequence.output_tokens} tokens are more than {limit}")
        sequence.phase = Phase.WAITING
        sequence.arrived_ms = now_ms
        sequence.ready_ms = now_ms + self.config.api_overhead_ms
        sequence.base_tokens = sequence.prompt_tokens
        self._now_ms = now_ms
        self._pending.append(sequence)

    def next_event_ms(self) -> float:
        """When `advance` has something to do next; infinity when the engine is idle."""
        if self._in_step:
            return self._step_end_ms
        return self._pending[0].ready_ms if self._pending else math.inf

    def advance(self, until_ms: float) -> list[Event]:
        """Run every step that ends by `until_ms`; returns what happened, in order. Infinity: to the end of all work.

        How a span is cut into calls makes no difference, as long as requests are submitted in time.
        """
        events: list[Event] = []
        pending = self._pending
        at_ms = self._now_ms
        while True:
            if self._in_step:
                if self._step_end_ms > until_ms:
                    break
                at_ms = self._step_end_ms
                self._end_step(at_ms, events)
            elif pending:
                if pending[0].ready_ms > until_ms:
                    break
                at_ms = pending[0].ready_ms
            else:
                break
            self._begin_step(at_ms, events)
        self._now_ms = max(self._now_ms, at_ms if math.isinf(until_ms) else until_ms)
        return events

    def cancel(self, sequence: Sequence) -> bool:
        """The client is gone: give its blocks back at once. False when it has ended or was never submitted here."""
        if sequence.phase in (Phase.ENDED, Phase.NEW):
            return False
        if sequence.phase is Phase.WAITING:
            (self._pending if sequence in self._pending else self._waiting).remove(sequence)
            sequence.phase = Phase.ENDED
        else:
            self._leave(sequence, Phase.ENDED)
        sequence.finish_reason = "abort"
        self.counters.finished["abort"] += 1
        return True

    def generated(self, sequence: Sequence) -> int:
        """Output tokens made so far; those of the step that is going on do not count yet."""
        if sequence.phase is not Phase.DECODE:
            return sequence.made_tokens
        done = self._decode_step - 1 if self._in_step else self._decode_step
        return sequence.made_tokens + done - sequence.decode_start

    def _begin_step(self, at_ms: float, events: list[Event]) -> None:
        pending, waiting, config = self._pending, self._waiting, self.config
        while pending and pending[0].ready_ms <= at_ms:
            waiting.append(pending.popleft())
        preempted = self._make_room(at_ms, events)
        decodes = self._decodes
        self._decode_step += 1
        self._decode_context += decodes
        budget = config.max_num_batched_tokens - decodes
        chunks = self._chunks
        area = 0.0  # Σ chunk·(context + chunk/2): token pairs that prefill attention looks at
        load_ms = 0.0
        for sequence in self._prefilling:
            if not budget:
                break
            computed = sequence.computed_tokens
            chunk = min(budget, sequence.base_tokens - computed)
            budget -= chunk
            area += chunk * (computed + chunk * 0.5)
            chunks.append((sequence, chunk))
        if waiting and not preempted:
            while waiting and budget and len(self._running) < config.max_num_seqs and self._admit(waiting[0], at_ms):
                sequence = waiting.popleft()
                computed = sequence.computed_tokens
                chunk = min(budget, sequence.base_tokens - computed)
                budget -= chunk
                area += chunk * (computed + chunk * 0.5)
                chunks.append((sequence, chunk))
                if sequence.load_tokens:
                    load_ms += config.step_time.host_load_ms(sequence.load_tokens, computed - sequence.load_tokens)
        if not chunks and not decodes:
            self._in_step = False
            return
        model = config.step_time
        tokens = config.max_num_batched_tokens - budget
        self._step_prefill_tokens = tokens - decodes
        self._step_ms = model.slowdown * (
            self._batch_ms[tokens]
            + model.prefill_attention_ms * area
            + model.decode_attention_ms * self._decode_context
            + model.decode_sequence_ms * decodes
            + load_ms
        )
        self._step_end_ms = at_ms + self._step_ms
        self._in_step = True

    def _end_step(self, at_ms: float, events: list[Event]) -> None:
        self._in_step = False
        counters = self.counters
        counters.steps += 1
        decodes = self._decodes  # those cancelled meanwhile have left
        counters.generation_tokens += decodes
        finishing = self._finish_at.pop(self._decode_step, None)
        if finishing:
            for sequence in finishing:
                self._finish(sequence, at_ms, events)
        if self._chunks:
            for sequence, chunk in self._chunks:
                if sequence.phase is Phase.PREFILL:  # neither cancelled nor preempted meanwhile
                    self._computed(sequence, chunk, at_ms, events)
            self._chunks.clear()
        if self._observer is not None:
            self._observer(self._step_ms, self._step_prefill_tokens, decodes)

    def _make_room(self, at_ms: float, events: list[Event]) -> bool:
        """Take the blocks that the next decode step needs; True when sequences had to be preempted for them."""
        residue = (self._decode_step + 1) % self.config.block_size
        if not self._needs[residue]:
            return False
        preempted = False
        while self.kv.available < self._needs[residue]:
            sequence = next(reversed(self._running))
            self._leave(sequence, Phase.WAITING)
            sequence.base_tokens = sequence.prompt_tokens + sequence.made_tokens
            sequence.computed_tokens = 0
            sequence.preemptions += 1
            self.counters.preemptions += 1
            self._waiting.appendleft(sequence)
            events.append(Event(EventKind.PREEMPTED, at_ms, sequence))
            preempted = True
        self.kv.take(self._needs[residue])
        return preempted

    def _admit(self, sequence: Sequence, at_ms: float) -> bool:
        """Put a waiting sequence into the batch if its whole prompt fits; never in part."""
        kv, size = self.kv, self.config.block_size
        if sequence.retry_blocks > kv.available + kv.pinned_ever:
            return False  # it missed more blocks last time than came free or can have become shared since
        total = -(-sequence.base_tokens // size)
        # At least one token is computed, or there would be nothing to sample from.
        hit = kv.lookup(sequence.block_hashes, (sequence.base_tokens - 1) // size)
        missing = total - hit.pinned
        if missing > kv.available:
            sequence.retry_blocks = missing + kv.pinned_ever
            return False
        sequence.retry_blocks = 0
        sequence.held = kv.acquire(sequence.block_hashes, hit, total)
        sequence.registered_blocks = hit.blocks
        sequence.computed_tokens = hit.blocks * size
        sequence.load_tokens = hit.host * size
        sequence.phase = Phase.PREFILL
        self._running[sequence] = None
        self._prefilling.append(sequence)
        if math.isnan(sequence.scheduled_ms):
            sequence.scheduled_ms = at_ms
            sequence.cached_tokens = sequence.computed_tokens
            sequence.host_tokens = sequence.load_tokens
            counters = self.counters
            counters.prefix_queries += sequence.prompt_tokens
            counters.prefix_hits += sequence.computed_tokens - sequence.host_tokens
            if kv.host_blocks:
                counters.host_queries += sequence.prompt_tokens - sequence.computed_tokens + sequence.host_tokens
                counters.host_hits += sequence.host_tokens
        return True

    def _computed(self, sequence: Sequence, chunk: int, at_ms: float, events: list[Event]) -> None:
        """A chunk of prefill is done; with the last one comes the first token."""
        sequence.computed_tokens += chunk
        full = sequence.computed_tokens // self.config.block_size
        if full > sequence.registered_blocks:
            self.kv.register(sequence.block_hashes, sequence.registered_blocks, full, sequence.held)
            sequence.registered_blocks = full
        if sequence.computed_tokens < sequence.base_tokens:
            return
        first = math.isnan(sequence.first_token_ms)
        if first:
            sequence.first_token_ms = at_ms
            counters = self.counters
            counters.prompt_tokens += sequence.prompt_tokens
            counters.cached_prompt_tokens += sequence.cached_tokens
            counters.host_prompt_tokens += sequence.host_tokens
        if not sequence.output_tokens:
            self._finish(sequence, at_ms, events)
            return
        sequence.made_tokens += 1
        self.counters.generation_tokens += 1
        if first:
            events.append(Event(EventKind.FIRST_TOKEN, at_ms, sequence))
        left = sequence.output_tokens - sequence.made_tokens
        if not left:
            self._finish(sequence, at_ms, events)
            return
        self._prefilling.remove(sequence)
        step = self._decode_step
        sequence.phase = Phase.DECODE
        sequence.decode_start = step
        self._decodes += 1
        self._decode_context += sequence.base_tokens
        self._needs[(step + 1 - sequence.base_tokens) % self.config.block_size] += 1
        sequence.finish_step = step + left
        self._finish_at.setdefault(sequence.finish_step, []).append(sequence)

    def _finish(self, sequence: Sequence, at_ms: float, events: list[Event]) -> None:
        self._leave(sequence, Phase.ENDED)
        sequence.finished_ms = at_ms
        self.counters.finished[sequence.finish_reason] += 1
        events.append(Event(EventKind.FINISHED, at_ms, sequence))

    def _leave(self, sequence: Sequence, phase: Phase) -> None:
        """Out of the batch: settle its counters and give its blocks back, output blocks with known hashes as cached."""
        size = self.config.block_size
        tokens = sequence.base_tokens  # whose blocks it holds
        if sequence.phase is Phase.DECODE:
            steps = self._decode_step - sequence.decode_start
            tokens += steps
            sequence.made_tokens = self.generated(sequence)
            sequence.computed_tokens = tokens - 1 if self._in_step else tokens
            self._decodes -= 1
            self._decode_context -= tokens
            self._needs[(sequence.decode_start + 1 - sequence.base_tokens) % size] -= 1
            due = self._finish_at.get(sequence.finish_step)
            if due is not None:
                due.remove(sequence)
                if not due:
                    del self._finish_at[sequence.finish_step]
            self.kv.register(
                sequence.block_hashes, sequence.registered_blocks, sequence.computed_tokens // size, sequence.held
            )
        else:
            self._prefilling.remove(sequence)
        del self._running[sequence]
        self.kv.release(sequence.held, -(-tokens // size) - len(sequence.held))
        sequence.held = []
        sequence.registered_blocks = 0
        sequence.phase = phase
