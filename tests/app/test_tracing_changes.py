"""The trace of a change of configuration: its steps, each proxy's answer, and changes that overtake each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from pointsman.app.tracing_changes import Change, ChangeTracer, Push, Step, change_spans
from pointsman.core.model import Gateway, Plan
from pointsman.core.snapshot import PlanHolder
from pointsman.core.tracing import Span
from pointsman.xds import Convergence
from support.waiting import eventually

NOBODY: frozenset[str] = frozenset()


@dataclass
class Xds:
    """As much of the xDS server as is asked: one gateway with a proxy `one` whose answer the test gives."""

    generation: int = 0
    acked: asyncio.Event = field(default_factory=asyncio.Event)
    proxy: Any = field(
        default_factory=lambda: SimpleNamespace(
            gateway="ns/gw",
            identity=SimpleNamespace(id="one"),
            acked_at_s={},
            session=SimpleNamespace(rejections=lambda: ()),
        )
    )

    def snapshot(self, name: str) -> Any:
        return SimpleNamespace(generation=self.generation)

    def streams(self) -> list[Any]:
        return [self.proxy]

    async def wait_acked(self, name: str, timeout_s: float) -> None:
        await self.acked.wait()

    def convergence(self, name: str) -> Convergence:
        pending = NOBODY if self.acked.is_set() else frozenset({"one"})
        return Convergence(acked=frozenset({"one"}) - pending, rejected=NOBODY, pending=pending)

    def ack(self, at_s: float) -> None:
        self.proxy.acked_at_s["RDS"] = at_s
        self.acked.set()


class Rig:
    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.xds = Xds()
        self.holder = PlanHolder()
        self.changes = ChangeTracer(SimpleNamespace(add=self.spans.append))  # type: ignore[arg-type]
        self.compile = self.changes.timed("compile", lambda site: Plan(gateways=(Gateway(name="ns/gw", site=site),)))

    def publish(self, site: str) -> None:
        self.xds.generation += 1
        self.xds.acked.clear()
        self.holder.publish(self.compile(site))

    def trace(self, name: str) -> dict[str, Span]:
        """The spans of the trace with this root, by name."""
        (root,) = [span for span in self.spans if span.name == name]
        return {span.name: span for span in self.spans if span.trace_id == root.trace_id}


@asynccontextmanager
async def following() -> AsyncIterator[Rig]:
    rig = Rig()
    rig.publish("first")
    async with rig.changes.following(rig.holder, rig.xds):  # type: ignore[arg-type]
        assert rig.spans == []
        yield rig


def test_the_span_of_a_change_holds_its_steps_and_its_slowest_proxy() -> None:
    change = Change(
        steps=(Step("read", 10, 20), Step("compile", 20, 30), Step("build", 30, 40)), by_manifests=True, gateways=("g",)
    )
    pushes = [Push(gateway="g", node="fast", end_ns=50), Push(gateway="g", node="slow", end_ns=90, error="no answer")]
    root, *parts = change_spans(change, pushes, 40)
    assert (root.name, root.start_ns, root.end_ns, root.parent_id) == ("configuration change", 10, 90, b"")
    assert root.error == "1 proxies do not have it"
    assert [(p.name, p.start_ns, p.end_ns, p.error) for p in parts] == [
        ("read", 10, 20, ""),
        ("compile", 20, 30, ""),
        ("build", 30, 40, ""),
        ("push", 40, 50, ""),
        ("push", 40, 90, "no answer"),
    ]
    assert {p.parent_id for p in parts} == {root.span_id}
    assert {p.trace_id for p in parts} == {root.trace_id}
    assert len({p.span_id for p in (root, *parts)}) == 6


async def test_a_change_of_the_manifests() -> None:
    async with following() as rig:
        rig.changes.noticed()
        rig.changes.reload(rig.publish)("second")
        rig.xds.ack(4e9)  # the year 2096
        await eventually(lambda: rig.spans)
    found = rig.trace("configuration change")
    assert list(found) == ["configuration change", "read", "compile", "build", "push"]
    assert found["push"].end_ns == found["configuration change"].end_ns == 4_000_000_000_000_000_000


async def test_what_was_compiled_for_a_question_belongs_to_no_change() -> None:
    async with following() as rig:
        rig.compile("a dry run")
        rig.publish("a decision")
        rig.xds.ack(4e9)
        await eventually(lambda: rig.spans)
    assert [span.name for span in rig.spans] == ["decision", "compile", "build", "push"]


async def test_a_proxy_that_refuses() -> None:
    async with following() as rig:
        rig.xds.proxy.session.rejections = lambda: (SimpleNamespace(name="ns/gw/http", message="bad " * 200),)
        rig.publish("second")
        rig.xds.acked.set()
        await eventually(lambda: rig.spans)
    found = rig.trace("decision")
    assert found["push"].error.startswith("ns/gw/http: bad bad")
    assert len(found["push"].error) == 256
    assert found["decision"].error


async def test_a_newer_change_ends_the_trace_of_the_one_before() -> None:
    async with following() as rig:
        rig.publish("second")
        await asyncio.sleep(0)  # the follower waits
        rig.publish("third")
        await eventually(lambda: rig.spans)
        old = rig.trace("decision")
        assert old["decision"].attributes["pointsman.overtaken"] is True
        assert (old["decision"].error, old["push"].error) == ("", "overtaken before it answered")
        rig.spans.clear()
        rig.xds.ack(4e9)
        await eventually(lambda: rig.spans)
        assert rig.trace("decision")["decision"].attributes["pointsman.overtaken"] is False


async def test_a_change_that_is_overtaken_at_once_is_told_too() -> None:
    async with following() as rig:
        rig.publish("second")
        rig.publish("third")
        assert [span.name for span in rig.spans if not span.parent_id] == ["decision"]
        assert rig.trace("decision")["decision"].attributes["pointsman.overtaken"] is True


async def test_a_gateway_for_which_nothing_changed_is_left_out() -> None:
    async with following() as rig:
        rig.holder.publish(rig.compile("second"))  # the same generation
        await eventually(lambda: rig.spans)
    assert [span.name for span in rig.spans] == ["decision", "compile", "build"]
