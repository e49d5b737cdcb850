"""Memory of a picker over a million requests: does it stay flat? `python bench/picker/memory.py [--picks N]`

One picker in this process, on a clock of its own, with all that it has in production: messages of Envoy as bytes, the
exchange, body reading, the picker with 100 endpoints, access log entries as bytes, metrics, gossip to a peer, scrapes
five times a second, endpoints that are replaced, engines that restart. The traffic: conversations that grow and end,
each with a salt of its own; of a thousand requests ten are retried elsewhere, five get no end (they expire), five are
ended twice, ten are no JSON. Prints the resident memory at ten marks and its slope over the last seven, when every
table has reached its bound.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from prometheus_client import CollectorRegistry

from pointsman.core import wire
from pointsman.core.clock import ManualClock
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.core.model import Endpoint, Plan, Pool, Site, SiteGroup
from pointsman.extproc import Exchange, Picker
from pointsman.extproc.feedback import entries
from pointsman.extproc.gossip import GossipState, Outbox
from pointsman.extproc.metrics import PickerMetrics

POOL = "default/llama"
ENDPOINTS = 100
RATE_PER_S = 500.0
"""Requests a second of the virtual clock: five for each endpoint, each two seconds long."""
DURATION_S = 2.0
SESSIONS = 2_000
CAPACITY_TOKENS = 400_000
MARKS = 10
SETTLED = 3
"""Marks that are left out of the slope: tables fill, and pages that were needed once stay with the process."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Session:
    """A conversation: a piece of the text, which grows with each turn."""

    number: int
    start: int
    length: int
    turns: int


class Traffic:
    """Request bodies of conversations that come and go."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        alphabet = string.ascii_letters + "     "
        self._text = "".join(self._random.choices(alphabet, k=4_000_000)).encode()
        self._numbers = iter(range(1 << 60))
        self._sessions = [self._begin() for _ in range(SESSIONS)]

    def _begin(self) -> Session:
        length = min(64_000, int(self._random.lognormvariate(8.0, 1.0)))
        start = self._random.randrange(len(self._text) - 200_000)
        return Session(next(self._numbers), start, length, self._random.randint(1, 10))

    def next(self) -> tuple[str, bytes]:
        """A user and a body."""
        place = self._random.randrange(SESSIONS)
        session = self._sessions[place]
        if not session.turns:
            session = self._sessions[place] = self._begin()
        session.turns -= 1
        session.length += 1_200
        if self._random.random() < 0.01:
            return f"user-{session.number}", b"no JSON, number %d" % session.number
        text = self._text[session.start : session.start + session.length]
        head = b'{"model":"m","cache_salt":"%d","messages":[{"role":"user","content":"' % session.number
        return f"user-{session.number}", head + text + b'"}],"max_tokens":200,"stream":true}'


def plan_of(first: int) -> Plan:
    """A Plan of `ENDPOINTS` endpoints at two sites, numbered from `first` on."""
    groups = []
    for site, numbers in (("near", range(first, first + 50)), ("far", range(first + 50, first + ENDPOINTS))):
        endpoints = tuple(
            Endpoint(name=f"e{n}", address=f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", port=8000, site=site)
            for n in numbers
        )
        groups.append(SiteGroup(site=site, priority=0, weight=1, endpoints=endpoints))
    return Plan(sites=(Site(name="far"), Site(name="near")), pools=(Pool(name=POOL, groups=tuple(groups)),))


def request_of(user: str, request_id: str, body: bytes) -> bytes:
    message = ext_proc.ProcessingRequest()
    message.request_body.body = body
    message.request_body.end_of_stream = True
    fields = message.attributes["envoy.filters.http.ext_proc"].fields
    fields[wire.ATTRIBUTE_CLUSTER].string_value = POOL
    fields[wire.ATTRIBUTE_REQUEST_ID].string_value = request_id
    fields[wire.ATTRIBUTE_AFFINITY].string_value = user
    return message.SerializeToString()


def log_of(pick: str, upstream: str, *, ended: bool) -> bytes:
    """An access log message of Envoy with one entry."""
    message = als_pb2.StreamAccessLogsMessage()
    entry = message.http_logs.log_entry.add()
    common = entry.common_properties
    common.upstream_cluster = POOL
    host, _, port = upstream.rpartition(":")
    common.upstream_remote_address.socket_address.address = host
    common.upstream_remote_address.socket_address.port_value = int(port)
    common.custom_tags[wire.TAG_PICK] = pick
    common.custom_tags[wire.TAG_TTFT] = "150000"
    common.intermediate_log_entry = not ended
    entry.response.response_code.value = 200
    return message.SerializeToString()


class Gateway:
    """One picker and the Envoy before it."""

    def __init__(self, seed: int) -> None:
        self.clock = ManualClock()
        self.outbox = Outbox()
        self.picker = Picker(self.clock, instance="m", outbox=self.outbox, calibrate=True)
        self._gossip, self._peer = GossipState("m", 1), GossipState("peer", 1)
        self._metrics = PickerMetrics(CollectorRegistry(), self.picker)
        self._random = random.Random(seed)
        self._open: list[tuple[float, str, str]] = []
        self.first = 0
        self.picker.apply(plan_of(0))

    def one(self, number: int, user: str, body: bytes) -> None:
        """A request, and the end of one that began before."""
        exchange = Exchange(self.picker)
        answers = exchange.receive(ext_proc.ProcessingRequest.FromString(request_of(user, f"r-{number:x}", body)))
        for answer in answers:
            answer.SerializeToString()
        decision = exchange.decision
        assert decision is not None
        self._metrics.picked(decision, 0.0003)
        luck = self._random.random()
        served = decision.endpoints[1 if luck < 0.01 else 0]
        if luck < 0.995:
            self._open.append((self.clock.monotonic_s() + DURATION_S, decision.pick_id, served))
        if luck > 0.99 and luck < 0.995:
            self._open.append((self.clock.monotonic_s() + DURATION_S, decision.pick_id, served))

    def end_due(self) -> None:
        """Log entries of what has ended by now: one while it ran, one at its end."""
        now_s = self.clock.monotonic_s()
        due = 0
        while due < len(self._open) and self._open[due][0] <= now_s:
            _, pick, served = self._open[due]
            for ended in (False, True):
                for entry in entries(als_pb2.StreamAccessLogsMessage.FromString(log_of(pick, served, ended=ended))):
                    account = self.picker.feedback(entry)
                    self._metrics.heard(entry, matched=account is not None)
            due += 1
        del self._open[:due]

    def scrape(self, number: int) -> None:
        """A fifth of a second has passed."""
        for key in list(self.picker.table.keys()):
            started = 1_000.0 + (number // 5_000 if key.endswith(".7:8000") else 0)
            metrics = EngineMetrics(
                waiting=1.0,
                running=10.0,
                kv_usage=0.5,
                block_tokens=16,
                capacity_tokens=CAPACITY_TOKENS,
                start_time_s=started,
                prompt_tokens_total=float(number),
            )
            self.picker.signals(key, metrics, rtt_ms=1.0)
        self._peer.receive(self._gossip.update(self.picker.own_loads(), self.outbox), self.clock.monotonic_s())
        for update in self._peer.everything(self.clock.monotonic_s()):
            self._gossip.receive(update, self.clock.monotonic_s())

    def replace_one(self) -> None:
        """The oldest endpoint goes, a new one comes."""
        self.first += 1
        self.picker.apply(plan_of(self.first))


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES / 1e6


def marks(picks: int, seed: int) -> Iterator[tuple[int, float, Picker]]:
    """Resident MB at each mark."""
    gateway, traffic = Gateway(seed), Traffic(seed)
    scrape_every = round(RATE_PER_S / 5)
    for number in range(1, picks + 1):
        gateway.clock.advance(1.0 / RATE_PER_S)
        gateway.one(number, *traffic.next())
        gateway.end_due()
        if number % scrape_every == 0:
            gateway.scrape(number // scrape_every)
        if number % 10_000 == 0:
            gateway.replace_one()
        if number % (picks // MARKS) == 0:
            gc.collect()
            yield number, resident_mb(), gateway.picker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picks", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    found = []
    print(f"{'picks':>9}  {'RSS MB':>7}  {'blocks':>8}  {'in flight':>9}  {'expired':>7}", flush=True)
    for number, mb, picker in marks(options.picks, options.seed):
        stats = picker.stats()
        print(f"{number:>9}  {mb:7.1f}  {stats.prefix_blocks:>8}  {stats.in_flight:>9}  {stats.expired:>7}", flush=True)
        found.append((number, mb))
    settled = np.array(found[SETTLED:])
    slope = np.polyfit(settled[:, 0] / 1e6, settled[:, 1], 1)[0]
    print(f"slope over the last {len(settled)} marks: {slope:+.1f} MB per million picks; seed {options.seed}")


if __name__ == "__main__":
    main()
