"""One simulated replica apart from its protocol: engine, faults, counts, and the requests in flight."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol

import msgspec

from pointsman.core.clock import Clock
from pointsman.sim import faults as fault_rules
from pointsman.sim import metrics
from pointsman.sim.answers import Voice
from pointsman.sim.driver import Driver
from pointsman.sim.engine import Engine
from pointsman.sim.faults import HEALTHY, Act, Faults, Luck
from pointsman.sim.openai import ApiError, Call, output_length
from pointsman.sim.sequence import Event, EventKind, Phase, Sequence
from pointsman.sim.spec import ReplicaSpec
from pointsman.sim.tokenizer import block_hashes, count_tokens


class ResetNowError(Exception):
    """A fault says that this request's connection is to be reset."""


class Shell(Protocol):
    """A protocol's server around a replica; owns its listener and connections."""

    @property
    def port(self) -> int:
        """The bound port; the same through every close and open."""
        ...

    async def open(self) -> None:
        """Listen. Raises ConfigError when the port is taken."""
        ...

    async def refuse(self) -> None:
        """Close the listener; running requests finish."""
        ...

    async def kill(self) -> None:
        """Close the listener and reset every connection."""
        ...

    async def close(self) -> None:
        """For good: as `kill`, and give the port back."""
        ...


class Counts(msgspec.Struct, kw_only=True):
    """What a replica did since the simulation began, restarts included. Requests are inference requests."""

    requests_received: int = 0
    requests_completed: int = 0
    requests_failed: int = 0
    """Answered with an error, or reset, by a fault or because they were wrong."""
    requests_aborted: int = 0
    """Left by the client, or lost with the process."""
    tokens_sent: int = 0


class Account:
    """Books the outcome of one request by how its `with` block is left."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def __enter__(self) -> None:
        self._counts.requests_received += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._counts.requests_completed += 1
        elif issubclass(kind, (asyncio.CancelledError, ConnectionError)):
            self._counts.requests_aborted += 1
        else:
            self._counts.requests_failed += 1


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the admin endpoint's list. Token counts include those of earlier lives of the replica."""

    name: str
    site: str
    pool: str
    protocol: str
    address: str
    model: str
    loras: tuple[str, ...]
    listening: bool
    restarts: int
    requests_received: int
    requests_completed: int
    requests_failed: int
    requests_aborted: int
    requests_running: int
    requests_waiting: int
    requests_by_model: dict[str, int]
    tokens_sent: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    prompt_tokens: int
    generation_tokens: int
    preemptions: int
    kv_cache_usage: float
    faults: Faults


UNKNOWN_MODEL: Final = "unknown"
"""In `requests_by_model`: all names that the replica does not serve, so that they stay few."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Output tokens `start` to `stop` of an answer; `finish_reason` with the last ones."""

    start: int
    stop: int
    finish_reason: str | None
    malformed: bool


class Replica:
    """State of one replica. All calls come from one event loop."""

    def __init__(self, spec: ReplicaSpec, *, speed: float, seed: int, clock: Clock) -> None:
        self.spec = spec
        self.speed = speed * spec.speed
        self.clock = clock
        self.counts = Counts()
        self.faults = HEALTHY
        self.asked: Counter[str] = Counter()
        self.voice = Voice(spec.name)
        self.restarts = 0
        # Two generators, so that who brings an id of his own does not change whom a fault hits. Neither is a secret.
        self._luck = random.Random(f"{seed}/{spec.name}/luck")  # noqa: S311
        self._ids = random.Random(f"{seed}/{spec.name}/ids")  # noqa: S311
        self._numbers = itertools.count(1)
        self._fault_change = asyncio.Event()
        self._running: dict[Generation, None] = {}
        self._past = {"queries": 0, "hits": 0, "prompt": 0, "generation": 0, "preemptions": 0}
        self._lock = asyncio.Lock()
        self._boot()

    def _boot(self) -> None:
        self.started_s = self.clock.wall_s()
        self.observations = metrics.Observations(self.spec.engine.max_model_len, self.speed)
        engine = Engine(self.spec.engine, observer=self.observations.step)
        loop = asyncio.get_running_loop()
        self.driver = Driver(engine, loop=loop, speed=self.speed, on_event=self._on_event)

    @property
    def engine(self) -> Engine:
        """The engine of this life of the replica."""
        return self.driver.engine

    @property
    def context_limit(self) -> int:
        """Most prompt plus output tokens of a request."""
        return self.spec.engine.context_limit

    def draw(self) -> Luck:
        """The luck of the next request with the faults."""
        return fault_rules.draw(self._luck)

    def request_id(self) -> str:
        """A new id for a request that brought none."""
        return f"{self._ids.getrandbits(64):016x}"

    async def fault_change(self, timeout_s: float | None = None) -> None:
        """Return when the faults change or after `timeout_s` of wall time."""
        try:
            await asyncio.wait_for(self._fault_change.wait(), timeout_s)
        except TimeoutError:
            return

    async def cross_network(self) -> None:
        """Return after the time that a request and the first byte of its answer spend on the network."""
        if self.spec.rtt_ms:
            await asyncio.sleep(self.spec.rtt_ms / 1000 / self.speed)

    def account(self) -> Account:
        """Counts one inference request, from its arrival to its end: `with replica.account(): …`."""
        return Account(self.counts)

    def check_model(self, model: str | None) -> None:
        """Raises ApiError 404 unless requests for `model` can be answered now; None stands for the base model."""
        spec = self.spec
        if self.faults.model_unloaded or (model is not None and model != spec.model and model not in spec.loras):
            raise ApiError(404, f"The model `{spec.model if model is None else model}` does not exist.", param="model")

    def check_refusal(self, luck: Luck, model: str | None) -> None:
        """Count the model that was asked for; raises ApiError when a fault says that the answer is an error."""
        model = model or self.spec.model
        self.asked[model if model in {self.spec.model, *self.spec.loras} else UNKNOWN_MODEL] += 1
        refused = fault_rules.refusal(self.faults.of(model), luck)
        if refused is not None:
            raise ApiError(refused.status, "Simulated fault.", retry_after_s=refused.retry_after_s)

    def start(self, call: Call, prompt: bytes, luck: Luck) -> Generation:
        """Give a prompt to the engine; use the result as a context manager, which cancels what has not ended.

        Raises ApiError 400 when it can never fit.
        """
        spec = self.spec
        output_tokens, reason = output_length(call, prompt, limit=self.context_limit, default=spec.answer_tokens)
        lora = call.model if call.model is not None and call.model in spec.loras else ""
        text = prompt + self.voice.text(0, output_tokens).encode()
        sequence = Sequence(
            id=next(self._numbers),
            block_hashes=block_hashes(text, spec.engine.block_size, f"{lora}\n{call.salt}"),
            prompt_tokens=count_tokens(prompt),
            output_tokens=output_tokens,
            finish_reason=reason,
        )
        generation = Generation(self, self.driver, sequence, luck, lora)
        self.driver.submit(sequence, generation.wake, every_token=call.stream)
        self._running[generation] = None
        return generation

    def forget(self, generation: Generation) -> None:
        """It has ended one way or the other."""
        self._running.pop(generation, None)

    async def set_faults(self, faults: Faults, shell: Shell) -> None:
        """Make `faults` the replica's faults; in force when this returns. Raises ConfigError if it cannot listen."""
        async with self._lock:
            before = self.faults
            if faults.listening and not before.listening:
                await shell.open()
            self.faults = faults
            if faults.exit and not before.exit:
                await shell.kill()
                self._reboot()
            elif not faults.listening and before.listening:
                await shell.refuse()
            self._fault_change.set()
            self._fault_change = asyncio.Event()
            for generation in self._running:
                generation.wake()

    def _reboot(self) -> None:
        """The process is gone and with it its cache and counters; the admin endpoint's totals go on."""
        counters = self.engine.counters
        self._past["queries"] += counters.prefix_queries
        self._past["hits"] += counters.prefix_hits + counters.host_hits
        self._past["prompt"] += counters.prompt_tokens
        self._past["generation"] += counters.generation_tokens
        self._past["preemptions"] += counters.preemptions
        self.driver.close()
        self.restarts += 1
        self._boot()

    def metrics_page(self) -> bytes:
        """The `/metrics` page."""
        loras = None
        if self.spec.loras:
            by_phase: dict[bool, set[str]] = {True: set(), False: set()}
            for generation in self._running:
                if generation.lora:
                    by_phase[generation.sequence.phase is Phase.WAITING].add(generation.lora)
            loras = metrics.Loras(
                max_running=self.spec.max_loras,
                running=tuple(sorted(by_phase[False])),
                waiting=tuple(sorted(by_phase[True])),
                at_s=self.clock.wall_s(),
            )
        return metrics.render(
            self.engine, self.observations, model=self.spec.model, started_s=self.started_s, loras=loras
        )

    def status(self, port: int) -> Status:
        """What the admin endpoint shows."""
        counters, past, spec = self.engine.counters, self._past, self.spec
        return Status(
            name=spec.name,
            site=spec.site,
            pool=spec.pool,
            protocol=spec.protocol,
            address=host_port(spec.address, port),
            model=spec.model,
            loras=spec.loras,
            listening=self.faults.listening,
            restarts=self.restarts,
            requests_received=self.counts.requests_received,
            requests_completed=self.counts.requests_completed,
            requests_failed=self.counts.requests_failed,
            requests_aborted=self.counts.requests_aborted,
            requests_running=self.engine.running,
            requests_waiting=self.engine.waiting,
            requests_by_model=dict(self.asked),
            tokens_sent=self.counts.tokens_sent,
            prefix_query_tokens=past["queries"] + counters.prefix_queries,
            prefix_hit_tokens=past["hits"] + counters.prefix_hits + counters.host_hits,
            prompt_tokens=past["prompt"] + counters.prompt_tokens,
            generation_tokens=past["generation"] + counters.generation_tokens,
            preemptions=past["preemptions"] + counters.preemptions,
            kv_cache_usage=self.engine.kv_usage,
            faults=self.faults,
        )

    def close(self) -> None:
        """Stop the engine."""
        self.driver.close()

    def _on_event(self, event: Event) -> None:
        if event.kind is EventKind.FIRST_TOKEN:
            self.observations.first_token(event.sequence)
        elif event.kind is EventKind.FINISHED:
            self.observations.finished(event.sequence)


class Generation:
    """One request in the engine, seen through the faults: `next_batch` until it gives None."""

    def __init__(
        self,
        replica: Replica,
        driver: Driver,
        sequence: Sequence,
        luck: Luck,
        lora: str,
    ) -> None:
        self.sequence = sequence
        self.lora = lora
        self.sent_tokens = 0
        self._replica = replica
        self._driver = driver
        self._luck = luck
        self._awake = asyncio.Event()
        self._first_ready_s: float | None = None
        self._ended = False

    def wake(self) -> None:
        """Something may have changed: tokens, the end, the faults."""
        self._awake.set()

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._driver.cancel(self.sequence)
        self._replica.forget(self)

    async def next_batch(self) -> Batch | None:
        """The tokens made since the last call, waiting for at least one; None after the last.

        Raises ResetNowError when a fault says so.
        """
        sequence, replica = self.sequence, self._replica
        while not self._ended:
            self._awake.clear()
            verdict = fault_rules.verdict(self._faults, self._luck, self.sent_tokens)
            if verdict.act is Act.RESET:
                raise ResetNowError
            done = sequence.phase is Phase.ENDED
            made = self._driver.engine.generated(sequence)
            stop = made if verdict.limit is None else min(made, verdict.limit)
            if verdict.act is Act.SEND and (stop > self.sent_tokens or (done and stop == made)):
                if not self.sent_tokens and (left_s := self._latency_left_s()) > 0:
                    await replica.fault_change(left_s)
                    continue
                start, self.sent_tokens = self.sent_tokens, stop
                self._ended = done and stop == made
                replica.counts.tokens_sent += stop - start
                return Batch(start, stop, sequence.finish_reason if self._ended else None, verdict.malformed)
            await self._awake.wait()
        return None

    @property
    def _faults(self) -> Faults:
        return self._replica.faults.of(self.lora or self._replica.spec.model)

    def _latency_left_s(self) -> float:
        """Wall seconds that the first token is still held back by a fault."""
        now_s = asyncio.get_running_loop().time()
        if self._first_ready_s is None:
            self._first_ready_s = now_s
        return self._first_ready_s + fault_rules.added_latency_ms(self._faults, self._luck) / 1000 - now_s


def host_port(address: str, port: int) -> str:
    """`address:port`, IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
