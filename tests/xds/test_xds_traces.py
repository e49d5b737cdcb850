"""Conversations with the stream state machine, as text: `traces/*.txt`.

A block is a command with indented lines, `----`, and exactly what came of it:

    publish                      a new desired state: `TYPE name@version [ttl=seconds] [needs TYPE/name …]` per line
    connect sotw | delta         a new stream of the same client process
    restart                      the control plane forgets what it knew of the client
    request TYPE names…          SotW: `nonce=…`, `version=…` (`last`: as last received), default: the last nonce
    subscribe TYPE names…        delta: `-name` unsubscribes, `holds=name@version,…` is sent at a reconnect
    ack TYPE / nack TYPE text    answers the last response of that type (SotW: with the same names as before)
    warmed / expire              the shell's timers
    tick SECONDS                 the time that it is now
    linger SECONDS               how long unused clusters stay on streams from now on; without it they leave at once
    state                        what status would show

What comes of it: notes, `-> TYPE #nonce name@version -removed`, and what is held back. `+name` is sent again although
the client has it, `~name` confirmed without a body.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from envoy.service.discovery.v3 import discovery_pb2

from pointsman.core.errors import PeerError
from pointsman.xds.channel import Acked, Nacked, Note, Reply, Request, Stale, Unsupported
from pointsman.xds.memory import Memory
from pointsman.xds.resources import SHORT_NAMES, Resource
from pointsman.xds.session import Session, Snapshot
from support.traces import check_trace

TRACES = sorted((Path(__file__).parent / "traces").glob("*.txt"))
TYPES = {short: url for url, short in SHORT_NAMES.items()}


def fake(line: str) -> Resource:
    """A resource from its line in `publish`."""
    before, _, needs = line.partition(" needs ")
    kind, spec, *options = before.split()
    name, _, version = spec.partition("@")
    references = tuple((TYPES[kind], ref) for kind, _, ref in (entry.partition("/") for entry in needs.split()))
    ttl_ms = sum(int(1000 * float(option.removeprefix("ttl="))) for option in options)
    return Resource(TYPES[kind], name, version, f"{name} {version}".encode(), references, ttl_ms)


class Script:
    """Runs the commands of one file."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.snapshot = Snapshot()
        self.session = Session(self.memory, self.snapshot, delta=False, linger_s=0.0)
        self.last: dict[str, Reply] = {}
        self.names: dict[str, list[str]] = {}
        self.now_s = self.linger_s = 0.0

    def run(self, command: str, lines: list[str]) -> list[str]:
        verb, *words = command.split()
        out: list[str] = []
        try:
            out += getattr(self, f"do_{verb}")(words, lines) or []
        except PeerError as error:
            return [f"error: {error}"]
        self.session.tick(self.now_s)
        while (reply := self.session.next()) is not None:
            self.last[reply.type_url] = reply
            flight = self.session.channels[reply.type_url].in_flight
            again = "+" if flight is not None and flight.renewal else ""
            parts = [f"{again}{r.name}@{r.version}" for r in reply.resources] + [f"-{name}" for name in reply.removed]
            parts += [f"~{r.name}@{r.version}" for r in reply.beats]
            out.append(f"-> {short(reply.type_url)} #{reply.nonce} {' '.join(parts) or '(empty)'}")
        return out + [f"   {waiting}" for waiting in self.session.waiting]

    def do_publish(self, _: list[str], lines: list[str]) -> None:
        resources: dict[str, dict[str, Resource]] = {}
        for line in lines:
            resource = fake(line)
            resources.setdefault(resource.type_url, {})[resource.name] = resource
        self.snapshot = Snapshot(generation=self.snapshot.generation + 1, resources=resources)
        self.session.publish(self.snapshot)

    def do_connect(self, words: list[str], _: list[str]) -> None:
        self.session = Session(self.memory, self.snapshot, delta=words[0] == "delta", linger_s=self.linger_s)
        self.last_version = {t: reply.version for t, reply in self.last.items()}
        self.last = {t: replace(reply, nonce="") for t, reply in self.last.items()}

    def do_restart(self, _: list[str], __: list[str]) -> None:
        self.memory = Memory()

    def do_request(self, words: list[str], _: list[str]) -> list[str]:
        type_url = TYPES[words[0]]
        options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        names = [word for word in words[1:] if "=" not in word]
        last = self.last.get(type_url)
        nonce, version = options.get("nonce", "last"), options.get("version", "")
        self.names[type_url] = names
        return self.receive(
            discovery_pb2.DiscoveryRequest(
                type_url=type_url,
                resource_names=names,
                response_nonce=(last.nonce if last else "") if nonce == "last" else nonce,
                version_info=(last.version if last else "") if version == "last" else version,
            )
        )

    def do_subscribe(self, words: list[str], _: list[str]) -> list[str]:
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=TYPES[words[0]])
        for word in words[1:]:
            if word.startswith("holds="):
                for spec in word.removeprefix("holds=").split(","):
                    name, _, version = spec.partition("@")
                    request.initial_resource_versions[name] = version
            elif word.startswith("nonce="):
                request.response_nonce = word.removeprefix("nonce=")
            elif word.startswith("-"):
                request.resource_names_unsubscribe.append(word[1:])
            else:
                request.resource_names_subscribe.append(word)
        return self.receive(request)

    def do_ack(self, words: list[str], _: list[str]) -> list[str]:
        return self.answer(TYPES[words[0]], "")

    def do_nack(self, words: list[str], _: list[str]) -> list[str]:
        return self.answer(TYPES[words[0]], " ".join(words[1:]))

    def do_warmed(self, _: list[str], __: list[str]) -> None:
        self.session.warmed(self.session.take_warming())

    def do_expire(self, _: list[str], __: list[str]) -> None:
        self.session.expire()

    def do_tick(self, words: list[str], _: list[str]) -> list[str]:
        self.now_s = float(words[0])
        next_s = self.session.tick(self.now_s)
        return [] if next_s is None else [f"next: {next_s:g}"]

    def do_linger(self, words: list[str], _: list[str]) -> None:
        self.linger_s = float(words[0])

    def do_state(self, _: list[str], __: list[str]) -> list[str]:
        lines = [f"settled: {'yes' if self.session.settled() else 'no'}"]
        for state in self.session.types():
            held = " ".join(f"{name}@{version}" for name, version in sorted(state.acked.items()))
            pending = f" pending: {' '.join(state.pending)}" if state.pending else ""
            lines.append(f"{short(state.type_url)}: {held or '(nothing)'}{pending}")
        for r in self.session.rejections():
            retries = f" (retries: {r.retries}, {'no more' if r.final else 'more to come'})" if r.retries else ""
            lines.append(f"rejected: {short(r.type_url)} {r.name}@{r.version}: {r.message}{retries}")
        return lines

    def answer(self, type_url: str, error: str) -> list[str]:
        nonce = self.last[type_url].nonce
        request: Request
        if self.session.delta:
            request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, response_nonce=nonce)
        else:
            request = discovery_pb2.DiscoveryRequest(
                type_url=type_url, response_nonce=nonce, resource_names=self.names[type_url]
            )
        if error:
            request.error_detail.code = 13
            request.error_detail.message = error
        return self.receive(request)

    def receive(self, request: Request) -> list[str]:
        return [describe(note) for note in self.session.receive(request)]


def short(type_url: str) -> str:
    return SHORT_NAMES.get(type_url, type_url)


def describe(note: Note) -> str:
    if isinstance(note, Acked):
        forgiven = "".join(f", {r.name}@{r.version} after all" for r in note.forgiven)
        return f"acked {short(note.reply.type_url)} #{note.reply.nonce}{forgiven}"
    if isinstance(note, Unsupported):
        return f"not served {short(note.type_url)}: {' '.join(note.names)}"
    if isinstance(note, Stale):
        return f"stale {short(note.type_url)} #{note.nonce}"
    assert isinstance(note, Nacked)
    found = " ".join(f"{r.name}@{r.version}" for r in note.rejections)
    return f"nacked {short(note.reply.type_url)} #{note.reply.nonce}: {found or 'culprit unknown'}"


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_trace(path: Path, request: pytest.FixtureRequest) -> None:
    check_trace(path, Script().run, rewrite=request.config.getoption("--rewrite", default=False))
