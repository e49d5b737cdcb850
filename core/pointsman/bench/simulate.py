"""Virtual time: arrivals, wires, scrapes and engines around one routing policy. No sleeping, no sockets.

Engines are advanced only when somebody looks: at an arrival, a scrape, or when a request reaches them. What they did
meanwhile is put into the order of time before anybody decides on it, so laziness changes no result.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pointsman.bench.fleet import Fleet
from pointsman.bench.policy import Policy, Sample
from pointsman.bench.workload import Arrival
from pointsman.sim.engine import Engine
from pointsman.sim.sequence import Event, EventKind
from pointsman.sim.sequence import Sequence as EngineSequence
from pointsman.sim.step_time import batch_ms

HOLD_RETRY_MS = 10.0
"""How often a policy that held a request back is asked again: the fastest probing that a balancer could bear."""

LATE_LIMIT_MS = 4 * 3_600_000.0
"""A run that is not empty four hours after the last arrival is a fault of the policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a request; times in virtual ms at its gateway. `cached_tokens` are those of the engine."""

    arrival: Arrival
    replica: int
    ttft_ms: float
    e2e_ms: float
    cached_tokens: int

    @property
    def itl_ms(self) -> float | None:
        """Mean time between tokens; None for a single one."""
        tokens = self.arrival.output_tokens
        return (self.e2e_ms - self.ttft_ms) / (tokens - 1) if tokens > 1 else None


@dataclass(slots=True, eq=False)
class _Flight:
    arrival: Arrival
    replica: int
    sequence: EngineSequence
    first_ms: float = math.nan


class Simulation:
    """One run; `run` may be called once. `scrape_ms` is the period of the scrapes of each replica."""

    def __init__(self, fleet: Fleet, arrivals: Sequence[Arrival], policy: Policy, *, scrape_ms: float = 200.0) -> None:
        self.fleet = fleet
        self.now_ms = 0.0
        self.prefill_ms = [0.0] * fleet.size
        self.prefill_tokens = [0] * fleet.size
        self.engines = [Engine(fleet.engine_config(i), self._observer(i)) for i in range(fleet.size)]
        self._arrivals = arrivals
        self._policy = policy
        self._scrape_ms = scrape_ms
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._flights: dict[int, _Flight] = {}
        self._wire: list[dict[int, Arrival]] = [{} for _ in range(fleet.size)]
        self._held: list[deque[Arrival]] = [deque() for _ in fleet.regions]
        self._retrying = False
        self._samples: list[deque[tuple[float, Sample]]] = [deque() for _ in range(fleet.size)]
        self._told_ms = [[-1.0] * fleet.size for _ in fleet.regions]
        self._outcomes: list[Outcome] = []
        keep_ms = max(max(row) for row in fleet.rtt_ms) / 2.0
        self._keep_samples = int(keep_ms / scrape_ms) + 2

    def _observer(self, replica: int) -> Callable[[float, int, int], None]:
        config = self.fleet.engine_config(replica)
        table, slowdown = batch_ms(config.step_time, config.max_num_batched_tokens), config.step_time.slowdown

        def observe(_step_ms: float, prefill_tokens: int, decodes: int) -> None:
            if prefill_tokens:
                # What the step would have been spared without its prefill.
                self.prefill_ms[replica] += slowdown * (table[prefill_tokens + decodes] - table[decodes])
                self.prefill_tokens[replica] += prefill_tokens

        return observe

    def flying(self, replica: int) -> Sequence[Arrival]:
        """Requests on the wire to a replica."""
        return tuple(self._wire[replica].values())

    def later(self, at_ms: float, action: Callable[[], None]) -> None:
        """Put an action into the order of time; one for the past is done next."""
        self._order += 1
        heapq.heappush(self._heap, (at_ms, self._order, action))

    def run(self) -> list[Outcome]:
        """All requests to their end, in the order in which they ended at their gateways."""
        self._policy.bind(self)
        self.later(0.0, self._scrape)
        for arrival in self._arrivals:
            self._until(arrival.at_ms)
            self._offer(arrival)
        end_ms = self.now_ms
        while len(self._outcomes) < len(self._arrivals):
            if self.now_ms > end_ms + LATE_LIMIT_MS:
                raise RuntimeError(f"{len(self._arrivals) - len(self._outcomes)} requests never end")
            self._until(self.now_ms + 1_000.0)
        return self._outcomes

    def _until(self, until_ms: float) -> None:
        """Everything that happens by `until_ms`, in order."""
        heap = self._heap
        while True:
            at_ms = heap[0][0] if heap and heap[0][0] < until_ms else until_ms
            self._advance(at_ms)  # may put something earlier on the heap
            if not heap or heap[0][0] > until_ms:
                break
            at_ms, _, action = heapq.heappop(heap)
            self.now_ms = max(self.now_ms, at_ms)
            action()
        self.now_ms = max(self.now_ms, until_ms)

    def _advance(self, until_ms: float) -> None:
        for engine in self.engines:
            if engine.next_event_ms() <= until_ms:
                for event in engine.advance(until_ms):
                    self._note(event)

    def _note(self, event: Event) -> None:
        """Put an engine's event on the wire to the gateway."""
        if event.kind is EventKind.PREEMPTED:
            return
        flight = self._flights[event.sequence.id]
        at_ms = event.at_ms + self.fleet.rtt(flight.arrival.gateway, flight.replica) / 2.0
        if math.isnan(flight.first_ms):
            flight.first_ms = at_ms
            self.later(at_ms, lambda: self._policy.first_token(flight.arrival, flight.replica))
        if event.kind is EventKind.FINISHED:
            self.later(at_ms, lambda: self._end(flight, at_ms))

    def _end(self, flight: _Flight, at_ms: float) -> None:
        arrival = flight.arrival
        del self._flights[arrival.id]
        self._outcomes.append(
            Outcome(
                arrival=arrival,
                replica=flight.replica,
                ttft_ms=flight.first_ms - arrival.at_ms,
                e2e_ms=at_ms - arrival.at_ms,
                cached_tokens=flight.sequence.cached_tokens,
            )
        )
        self._policy.ended(arrival, flight.replica)

    def _offer(self, arrival: Arrival) -> None:
        """A request is at its gateway; those that wait there go first."""
        held = self._held[arrival.gateway]
        if held or not self._dispatch(arrival):
            held.append(arrival)
            self._retry_soon()

    def _retry_soon(self) -> None:
        if not self._retrying:
            self._retrying = True
            self.later(self.now_ms + HOLD_RETRY_MS, self._retry)

    def _retry(self) -> None:
        self._retrying = False
        for held in self._held:
            while held and self._dispatch(held[0]):
                held.popleft()
        if any(self._held):
            self._retry_soon()

    def _dispatch(self, arrival: Arrival) -> bool:
        self._tell(arrival.gateway)
        replica = self._policy.choose(arrival)
        if replica is None:
            return False
        sequence = EngineSequence(
            id=arrival.id,
            block_hashes=arrival.full_blocks,
            prompt_tokens=arrival.input_tokens,
            output_tokens=arrival.output_tokens,
        )
        self._flights[arrival.id] = _Flight(arrival, replica, sequence)
        self._wire[replica][arrival.id] = arrival
        at_ms = self.now_ms + self.fleet.rtt(arrival.gateway, replica) / 2.0
        self.later(at_ms, lambda: self._submit(replica, sequence))
        return True

    def _submit(self, replica: int, sequence: EngineSequence) -> None:
        engine = self.engines[replica]
        del self._wire[replica][sequence.id]
        for event in engine.advance(self.now_ms):
            self._note(event)
        engine.submit(self.now_ms, sequence)

    def _scrape(self) -> None:
        for samples, engine in zip(self._samples, self.engines, strict=True):
            samples.append((self.now_ms, Sample(engine.waiting, engine.running, engine.kv_usage)))
            if len(samples) > self._keep_samples:
                samples.popleft()
        self.later(self.now_ms + self._scrape_ms, self._scrape)

    def _tell(self, gateway: int) -> None:
        """Report the newest scrapes that the gateway's observer can have."""
        view = gateway if self._policy.per_region else 0
        told = self._told_ms[view]
        for replica, samples in enumerate(self._samples):
            wire_ms = self.fleet.rtt(gateway, replica) / 2.0 if self._policy.per_region else 0.0
            for at_ms, sample in reversed(samples):
                if at_ms + wire_ms <= self.now_ms:
                    if at_ms > told[replica]:
                        told[replica] = at_ms
                        self._policy.scraped(view, replica, sample)
                    break
