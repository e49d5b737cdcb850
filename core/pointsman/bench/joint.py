"""Our own policy: the production `Picker`, fed as in production, in virtual time.

Nothing of the cost is written again here. Plan, prompt bytes, scrapes and access log entries go into the same methods
that the gRPC and scraping shells call. What differs from a real gateway is only the wire.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from pointsman.bench.fleet import Fleet
from pointsman.bench.policy import Sample, World
from pointsman.bench.workload import Arrival, prompt_bytes
from pointsman.core.clock import ManualClock
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.core.model import Endpoint, Plan, Pool, Site, SiteGroup
from pointsman.extproc.cost import CostModel
from pointsman.extproc.decision import PickRequest
from pointsman.extproc.feedback import Feedback
from pointsman.extproc.gossip import GossipState, Outbox
from pointsman.extproc.peers import INTERVAL_S
from pointsman.extproc.picker import Picker
from pointsman.extproc.request import Body
from pointsman.picker.v1 import gossip_pb2 as pb
from pointsman.replay.trace import BLOCK_TOKENS, BYTES_PER_TOKEN

POOL = "bench/pool"
MODEL = "bench"
PORT = 8000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """How the pickers are connected.

    `shared`: all gateways ask one picker with one state (what the baselines have, too). Otherwise one picker for each
    region, and each `gossip_ms` they tell each other their load, by the production state and messages; 0: never.
    `flush_ms` is Envoy's access log interval: a first token is reported with the next entry of its request, which
    comes each `flush_ms` from the start of the request; 0: at once. `buffer_ms` is how long entries are collected.
    `rate_error` multiplies the prefill rates that the picker believes in at first; with `calibrate` (the default in
    production, too) it learns them.
    """

    shared: bool = True
    gossip_ms: float = 0.0
    flush_ms: float = 0.0
    buffer_ms: float = 0.0
    local: bool = False
    rate_error: float = 1.0
    calibrate: bool = True


ALONE = Wiring(shared=False, flush_ms=1_000.0, buffer_ms=50.0)
"""As gateways are configured (ADR 0002): one picker for each, the access log flushed each second; no gossip."""

PRODUCTION = replace(ALONE, gossip_ms=INTERVAL_S * 1000.0)
"""The same, and the pickers know of each other."""


def plan_of(fleet: Fleet) -> Plan:
    """The fleet as the control plane describes it: one pool, one group for each region."""
    groups = []
    for number, region in enumerate(fleet.regions):
        endpoints = tuple(
            Endpoint(name=key_of(replica), address=f"10.{number}.0.{replica + 1}", port=PORT, site=region.name)
            for replica in fleet.local[number]
        )
        groups.append(SiteGroup(site=region.name, priority=number, weight=1, endpoints=endpoints))
    sites = tuple(Site(name=region.name, usd_per_gpu_hour=region.usd_per_gpu_hour) for region in fleet.regions)
    return Plan(sites=tuple(sorted(sites, key=lambda s: s.name)), pools=(Pool(name=POOL, groups=tuple(groups)),))


def key_of(replica: int) -> str:
    """Name of a replica."""
    return f"replica-{replica}"


class Joint:
    """A policy that asks production pickers; see the module."""

    def __init__(self, cost: CostModel | None = None, wiring: Wiring | None = None) -> None:
        self._cost = cost
        self._wiring = wiring or Wiring()
        self.per_region = not self._wiring.shared
        self.pickers: list[Picker] = []

    def bind(self, world: World) -> None:
        """One picker, or one for each region, with a Plan, round trips and learnt sizes."""
        self._world = world
        fleet = world.fleet
        count = 1 if self._wiring.shared else len(fleet.regions)
        self._clocks = [ManualClock() for _ in range(count)]
        names = [f"g{n}" for n in range(count)]
        self._states = [GossipState(name, 1) for name in names]
        self._outboxes = [Outbox() for _ in names]
        self._news = [False] * count
        self.pickers = [
            Picker(
                clock,
                cost=self._cost,
                instance=name,
                calibrate=self._wiring.calibrate,
                outbox=outbox if self._wiring.gossip_ms else None,
            )
            for name, clock, outbox in zip(names, self._clocks, self._outboxes, strict=True)
        ]
        plan = plan_of(fleet)
        endpoints = plan.pools[0].endpoints()
        self._keys = [endpoint.key for endpoint in endpoints]
        self._replica_of = {key: replica for replica, key in enumerate(self._keys)}
        self._subsets = [frozenset(self._keys[r] for r in local) for local in fleet.local]
        self._picks: dict[int, str] = {}
        for picker in self.pickers:
            picker.apply(plan)
            table = picker.table
            for key in self._keys:
                row = table.row(key)
                assert row is not None
                table.prefill_ms[row] *= self._wiring.rate_error
                table.attention_ms[row] *= self._wiring.rate_error
        self._rtt_of = -1
        if self._wiring.gossip_ms:
            for view in range(count):  # their timers are not in step
                world.later(self._wiring.gossip_ms * view / count, partial(self._gossip, view))

    def _picker(self, gateway: int) -> Picker:
        """The gateway's picker, its clock set to now."""
        view = 0 if self._wiring.shared else gateway
        clock = self._clocks[view]
        clock.advance(max(0.0, self._world.now_ms / 1000.0 - clock.monotonic_s()))
        return self.pickers[view]

    def asked(self, gateway: int) -> Picker:
        """The gateway's picker as a pick finds it.

        What peers have told is taken over only now: nothing else reads it, and updates are ten times as many as picks.
        """
        picker = self._picker(gateway)
        if self._wiring.gossip_ms and self._news[gateway]:
            self._news[gateway] = False
            picker.remote_loads(self._states[gateway].others(self._world.now_ms / 1000.0))
        return picker

    def key(self, replica: int) -> str:
        """The endpoint of a replica."""
        return self._keys[replica]

    def choose(self, arrival: Arrival) -> int:
        """Ask the gateway's picker."""
        picker = self.asked(arrival.gateway)
        if self._rtt_of != arrival.gateway and self._wiring.shared:
            # One state for all gateways still measures from the gateway that asks.
            self._measure_rtt(picker, arrival.gateway)
            self._rtt_of = arrival.gateway
        prompt = prompt_bytes(arrival)
        request = PickRequest(
            pool=POOL,
            body=Body(model=MODEL, prompt=prompt, prompt_bytes=arrival.input_tokens * BYTES_PER_TOKEN, stream=True),
            request_id=str(arrival.id),
            subset=self._subsets[arrival.gateway] if self._wiring.local else None,
        )
        decision = picker.pick(request)
        self._picks[arrival.id] = decision.pick_id
        return self._replica_of[decision.endpoints[0]]

    def first_token(self, arrival: Arrival, replica: int) -> None:
        """The access log tells of it with the request's next entry."""
        now_ms, flush_ms = self._world.now_ms, self._wiring.flush_ms
        wait_ms = flush_ms - (now_ms - arrival.at_ms) % flush_ms if flush_ms else 0.0
        self._report(arrival, replica, now_ms + wait_ms, ttft_ms=now_ms - arrival.at_ms, ended=False)

    def ended(self, arrival: Arrival, replica: int) -> None:
        """The last entry."""
        now_ms = self._world.now_ms
        self._report(arrival, replica, now_ms, ttft_ms=now_ms - arrival.at_ms, ended=True)

    def scraped(self, view: int, replica: int, sample: Sample) -> None:
        """What the scraper would have parsed from the replica's page."""
        picker = self._picker(view)
        rtt_ms = None if self._wiring.shared else self._world.fleet.rtt(view, replica)
        metrics = EngineMetrics(
            waiting=sample.waiting,
            running=sample.running,
            kv_usage=sample.kv_usage,
            block_tokens=BLOCK_TOKENS,
            capacity_tokens=self._world.fleet.hbm_tokens,
            host_tokens=self._world.fleet.host_tokens or None,
        )
        picker.signals(self._keys[replica], metrics, rtt_ms=rtt_ms)

    def _measure_rtt(self, picker: Picker, gateway: int) -> None:
        for replica, key in enumerate(self._keys):
            row = picker.table.row(key)
            assert row is not None
            picker.table.rtt_ms[row] = self._world.fleet.rtt(gateway, replica)

    def _report(self, arrival: Arrival, replica: int, at_ms: float, *, ttft_ms: float, ended: bool) -> None:
        pick_id = self._picks.pop(arrival.id) if ended else self._picks[arrival.id]
        entry = Feedback(
            pick_id=pick_id,
            ended=ended,
            cluster=POOL,
            upstream=self._keys[replica],
            status=200,
            ttft_ms=ttft_ms,
            attempts=1,
        )
        at_ms += self._wiring.buffer_ms
        if not ended and at_ms > self._world.now_ms:
            self._world.later(at_ms, lambda: self._deliver_if_running(arrival, entry))
        elif at_ms > self._world.now_ms:
            self._world.later(at_ms, lambda: self._deliver(arrival.gateway, entry))
        else:
            self._deliver(arrival.gateway, entry)

    def _deliver_if_running(self, arrival: Arrival, entry: Feedback) -> None:
        """A request that has ended meanwhile had no other entry than its last."""
        if arrival.id in self._picks:
            self._deliver(arrival.gateway, entry)

    def _deliver(self, gateway: int, entry: Feedback) -> None:
        self._picker(gateway).feedback(entry)

    def _gossip(self, view: int) -> None:
        """What `GossipNode.tell` does each interval; the update is on the wire for half a round trip."""
        world, fleet = self._world, self._world.fleet
        picker = self._picker(view)
        update = self._states[view].update(picker.own_loads(), self._outboxes[view])
        for peer in range(len(self.pickers)):
            if peer != view:
                world.later(world.now_ms + fleet.rtt_ms[view][peer] / 2.0, partial(self._heard, peer, update))
        self._news[view] = True  # peers may have gone silent
        world.later(world.now_ms + self._wiring.gossip_ms, partial(self._gossip, view))

    def _heard(self, view: int, update: pb.Update) -> None:
        """What `GossipNode.heard` does with an update."""
        picker = self._picker(view)
        received = self._states[view].receive(update, self._world.now_ms / 1000.0)
        for endpoint, blocks in received.prefixes:
            picker.placed(endpoint, blocks)
        for entry in received.outcomes:
            picker.feedback(entry, forwarded=True)
        self._news[view] = True
