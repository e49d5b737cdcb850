"""Random conversations between the session and a model of Envoy; what must hold in every one of them.

- a route never arrives at a client that lacks one of its clusters or their endpoints, a cluster in use never leaves,
  nor one that was in use a short while ago;
- what was found guilty is not sent again;
- once the noise stops, the client has everything but what it rejects, and nothing more is said;
- what has a lifetime and was dropped for want of news comes back, and is confirmed in time from then on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.xds.channel import Reply, Request
from pointsman.xds.memory import Memory
from pointsman.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource
from pointsman.xds.session import Session, Snapshot

TYPES = (CLUSTER, ENDPOINT, LISTENER, ROUTE)
TTL_S = 3.0
TTL_MS = int(TTL_S * 1000)

BAD = "!"
"""Versions that end so are rejected by the client."""


@dataclass
class Client:
    """Envoy, as far as ordering and rejection go: it follows references and applies what it can."""

    delta: bool
    whole: bool  # rejects a response whole, else applies the good part of it
    talkative: bool  # names the culprits
    passing: bool  # and gives a reason that may pass
    state: dict[str, dict[str, Resource]] = field(default_factory=lambda: {t: {} for t in TYPES})
    acked: dict[str, dict[str, str]] = field(default_factory=lambda: {t: {} for t in TYPES})
    version: dict[str, str] = field(default_factory=dict)
    nonce: dict[str, str] = field(default_factory=dict)
    asked: dict[str, set[str]] = field(default_factory=dict)
    outbox: deque[Request] = field(default_factory=deque)
    hasty: bool = False  # the shell's time-out struck: endpoints may be missing
    now_s: float = 0.0
    ends_s: dict[str, float] = field(default_factory=dict)  # of listeners that have a lifetime
    linger_s: float = 0.0
    used_s: dict[str, float] = field(default_factory=dict)  # when a route used a cluster last
    dropped: int = 0

    def expire(self) -> None:
        """Drop what was not confirmed. SotW goes on saying the version that it had it with, as Envoy does."""
        for name in [name for name, end_s in self.ends_s.items() if end_s <= self.now_s]:
            del self.ends_s[name]
            self.dropped += self.state[LISTENER].pop(name, None) is not None
            self.acked[LISTENER].pop(name, None)

    def note_lifetimes(self, reply: Reply) -> None:
        for resource in (*reply.resources, *reply.beats):
            self.ends_s.pop(resource.name, None)
            if resource.ttl_ms and resource.name in self.state[LISTENER]:
                self.ends_s[resource.name] = self.now_s + resource.ttl_ms / 1000

    def connect(self) -> None:
        self.outbox.clear()
        self.nonce = {}
        self.asked = {}
        for type_url in TYPES:
            self.ask(type_url, first=True)

    def wanted(self, type_url: str) -> set[str]:
        parent = {ENDPOINT: CLUSTER, ROUTE: LISTENER}[type_url]
        return {n for r in self.state[parent].values() for kind, n in r.references if kind == type_url}

    def ask(self, type_url: str, *, first: bool = False, error: str = "", answer: bool = False) -> None:
        names = set() if type_url in {CLUSTER, LISTENER} else self.wanted(type_url)
        before = self.asked.get(type_url, set())
        if first and type_url in {ENDPOINT, ROUTE} and not names:
            return
        if not first and not answer and names == before:
            return
        first = type_url not in self.asked
        self.asked[type_url] = names
        self.state[type_url] = {n: r for n, r in self.state[type_url].items() if not names or n in names}
        if type_url in {ENDPOINT, ROUTE} and not names:
            self.state[type_url] = {}
        if self.delta:
            request: Any = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url)
            request.resource_names_subscribe.extend(sorted(names - before))
            request.resource_names_unsubscribe.extend(sorted(before - names))
            for name in before - names:
                self.acked[type_url].pop(name, None)
            if first:
                held = self.acked[type_url]
                request.initial_resource_versions.update(
                    {n: v for n, v in held.items() if type_url in {CLUSTER, LISTENER} or n in names}
                )
            if answer:
                request.response_nonce = self.nonce[type_url]
        else:
            request = discovery_pb2.DiscoveryRequest(type_url=type_url, resource_names=sorted(names))
            request.version_info = self.version.get(type_url, "")
            request.response_nonce = self.nonce.get(type_url, "")
        if error:
            request.error_detail.message = error
        self.outbox.append(request)

    def take(self, reply: Reply) -> None:
        type_url = reply.type_url
        self.nonce[type_url] = reply.nonce
        state = self.state[type_url]
        if any(beat.name not in state or state[beat.name].version != beat.version for beat in reply.beats):
            self.ask(type_url, answer=True, error="type URL embedded in an individual Any does not match")
            return
        bad = [r for r in reply.resources if r.version.endswith(BAD)]
        good = [] if bad and self.whole else [r for r in reply.resources if r not in bad]
        for resource in good:
            self.check_route(resource)
            if type_url == ROUTE:
                self.note_use()
            state[resource.name] = resource
        if not (bad and self.whole):
            gone = set(reply.removed)
            if not self.delta and type_url in {CLUSTER, LISTENER}:
                gone = state.keys() - {r.name for r in reply.resources}
            for name in gone:
                self.check_unused(type_url, name)
                state.pop(name, None)
                self.acked[type_url].pop(name, None)
        error = ""
        if bad:
            reason = "cannot bind to its address" if self.passing else "no"
            error = f"can't take {' '.join(r.name for r in bad)}: {reason}" if self.talkative else "something is wrong"
        else:
            self.version[type_url] = reply.version
            self.acked[type_url] |= {r.name: r.version for r in reply.resources}
        if type_url == LISTENER and not (bad and self.whole):
            self.note_lifetimes(reply)
        self.ask(type_url, answer=True, error=error)
        if type_url in {CLUSTER, LISTENER}:
            self.ask(ENDPOINT if type_url == CLUSTER else ROUTE)

    def check_route(self, resource: Resource) -> None:
        if resource.type_url != ROUTE:
            return
        for kind, name in resource.references:
            assert name in self.state[kind], f"{resource.name}@{resource.version} arrived before {name}"
            assert self.hasty or name in self.state[ENDPOINT], f"{resource.name} arrived before endpoints of {name}"

    def check_unused(self, type_url: str, name: str) -> None:
        if type_url == CLUSTER:
            users = [r.name for r in self.state[ROUTE].values() if (CLUSTER, name) in r.references]
            assert not users, f"cluster {name} left while {users} use it"
            unused_s = self.now_s - self.used_s.get(name, -1e9)
            assert unused_s >= self.linger_s, f"cluster {name} left {unused_s} s after its last request"

    def note_use(self) -> None:
        used = [n for r in self.state[ROUTE].values() for kind, n in r.references if kind == CLUSTER]
        self.used_s.update(dict.fromkeys(used, self.now_s))


class World:
    """Session, client and the wire between them."""

    def __init__(self, *, delta: bool, whole: bool, talkative: bool, passing: bool, linger_s: float) -> None:
        self.client = Client(delta=delta, whole=whole, talkative=talkative, passing=passing, linger_s=linger_s)
        self.memory = Memory()
        self.snapshot = Snapshot()
        self.wire: deque[Reply] = deque()
        self.connect()

    def connect(self) -> None:
        self.wire.clear()
        self.client.connect()
        self.session = Session(self.memory, self.snapshot, delta=self.client.delta, linger_s=self.client.linger_s)

    def restart(self) -> None:
        """The control plane is a new process.

        After a response that was applied in part nobody knows any more what the client has, so this is only asked of
        clients that drop such responses whole, and that can say what they have.
        """
        if self.client.delta and self.client.whole:
            self.memory = Memory()
            self.connect()

    def wait(self) -> None:
        """A second passes; on the wire nothing moves."""
        self.client.now_s += 1.0
        self.client.expire()

    def expire(self) -> None:
        self.client.hasty = True
        self.session.expire()

    def warmed(self) -> None:
        self.session.warmed(self.session.take_warming())

    def publish(self, resources: dict[str, dict[str, Resource]]) -> None:
        self.snapshot = Snapshot(generation=self.snapshot.generation + 1, resources=resources)
        self.session.publish(self.snapshot)

    def server_reads(self) -> bool:
        if not self.client.outbox:
            return False
        self.session.receive(self.client.outbox.popleft())
        return True

    def server_writes(self) -> bool:
        self.session.tick(self.client.now_s)
        reply = self.session.next()
        if reply is None:
            return False
        for resource in reply.resources:
            assert resource not in self.memory.quarantine, f"{resource.name}@{resource.version} was rejected before"
        self.wire.append(reply)
        return True

    def client_reads(self) -> bool:
        if not self.wire:
            return False
        self.client.take(self.wire.popleft())
        return True

    def settle(self) -> None:
        """Let everything arrive; the number of steps is bounded, or somebody repeats himself for ever."""
        for _ in range(2_000):
            moved = self.server_reads() | self.server_writes() | self.client_reads()
            if not moved:
                self.warmed()
                if any(entry.for_name == "*" for entry in self.session.waiting):
                    self.expire()  # a client that came back and has no routes
                if not self.server_writes():
                    return
        raise AssertionError("no end of messages")


@st.composite
def resource_sets(draw: st.DrawFn) -> dict[str, dict[str, Resource]]:
    """A consistent snapshot over a few names, now and then with content that the client will reject."""

    def version() -> str:
        return str(draw(st.integers(0, 3))) + (BAD if draw(st.integers(0, 9)) == 9 else "")

    def with_ttl(resource: Resource, ttl_ms: int) -> Resource:
        return replace(resource, ttl_ms=ttl_ms, version=f"ttl{resource.version}", _parts={})

    def make(type_url: str, name: str, references: tuple[tuple[str, str], ...] = ()) -> Resource:
        tag = "".join(sorted(ref for _, ref in references))
        ver = f"{tag}{version()}"
        return Resource(type_url, name, ver, f"{name}{ver}".encode(), references)

    clusters = draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True))
    routes = draw(st.lists(st.sampled_from(["r1", "r2"]), unique=True))
    found: dict[str, dict[str, Resource]] = {t: {} for t in TYPES}
    for name in sorted(clusters):
        found[CLUSTER][name] = make(CLUSTER, name, ((ENDPOINT, name),))
        found[ENDPOINT][name] = make(ENDPOINT, name)
    for name in sorted(routes):
        arms = draw(st.lists(st.sampled_from(sorted(clusters)), min_size=1, max_size=2, unique=True))
        found[ROUTE][name] = make(ROUTE, name, tuple((CLUSTER, arm) for arm in sorted(arms)))
        made = make(LISTENER, f"l-{name}", ((ROUTE, name),))
        found[LISTENER][made.name] = with_ttl(made, TTL_MS) if draw(st.booleans()) else made
    return found


STEPS = st.one_of(
    st.sampled_from(
        ["server_reads", "server_writes", "client_reads"] * 6
        + ["connect", "warmed", "settle", "restart", "expire"]
        + ["wait"] * 3
    ),
    resource_sets(),
)


def good_state(world: World) -> dict[str, dict[str, str]]:
    return {t: {n: r.version for n, r in world.client.state[t].items()} for t in TYPES}


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
@given(
    whole=st.booleans(),
    talkative=st.booleans(),
    passing=st.booleans(),
    linger_s=st.sampled_from([0.0, 2.0]),
    steps=st.lists(STEPS, max_size=60),
    last=resource_sets(),
)
@settings(max_examples=150, deadline=None)
def test_every_conversation_ends_well(
    delta: bool,
    whole: bool,
    talkative: bool,
    passing: bool,
    linger_s: float,
    steps: list[Any],
    last: dict[str, dict[str, Resource]],
) -> None:
    world = World(delta=delta, whole=whole, talkative=talkative, passing=passing, linger_s=linger_s)
    world.publish(last)
    world.settle()  # most of the interesting moments come after the first one
    for step in steps:
        if isinstance(step, dict):
            world.publish(step)
        else:
            getattr(world, step)()
    world.publish(last)
    world.settle()
    # Everything acceptable has arrived, apart from what depends on something that has no good version.
    held = good_state(world)
    assert not any(version.endswith(BAD) for versions in held.values() for version in versions.values())
    blocked = {(w.type_url, w.name) for w in world.session.waiting}
    for type_url, resources in last.items():
        for name, resource in resources.items():
            reachable = type_url in {CLUSTER, LISTENER} or name in world.client.wanted(type_url)
            if reachable and not resource.version.endswith(BAD) and (type_url, name) not in blocked:
                assert held[type_url].get(name) == resource.version, (type_url, name)
    for type_url, name in blocked:
        bad = [ref for kind, ref in last[type_url][name].references if kind == CLUSTER]
        assert any(last[k][ref].version.endswith(BAD) for ref in bad for k in (CLUSTER, ENDPOINT)), (type_url, name)
    assert world.session.settled() or blocked
    # And nothing more is said.
    world.publish({t: dict(r) for t, r in last.items()})
    assert not world.server_writes()
    # Nor does anything get lost in quiet times.
    dropped = world.client.dropped
    for _ in range(2 * int(TTL_S)):
        world.wait()
        world.settle()
        assert good_state(world)[LISTENER] == held[LISTENER]
    # And what nobody uses has left; but a listener stays while one that may replace it is refused.
    refused = any(resource.version.endswith(BAD) for resource in last[LISTENER].values())
    assert blocked or refused or world.client.state[CLUSTER].keys() <= last[CLUSTER].keys()
    assert world.client.dropped == dropped
