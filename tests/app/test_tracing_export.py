"""Spans on their way to a collector: batches, a collector that is away or refuses, and a queue that does not grow."""

from __future__ import annotations

import asyncio
import socket

import grpc
import pytest
from prometheus_client import CollectorRegistry

from pointsman.app import tracing_export
from pointsman.app.tracing_export import BATCH_SPANS, QUEUE_SPANS, SpanCounts, SpanExporter
from pointsman.app.tracing_otlp import export_request
from pointsman.core.tracing import Span, SpanKind
from support.collector import decode, running_collector
from support.waiting import eventually


def span(number: int, **settings: object) -> Span:
    ids = {"trace_id": bytes(15) + b"\1", "span_id": (number + 1).to_bytes(8, "big")}
    return Span(**{"name": "work", "start_ns": 1_000, "end_ns": 3_000, **ids, **settings})  # type: ignore[arg-type]


class Rig:
    def __init__(self, target: str) -> None:
        self.registry = CollectorRegistry()
        self.exporter = SpanExporter(target, {"service.name": "s"}, SpanCounts(self.registry, "spans", "Spans."))

    def count(self, outcome: str) -> float:
        return self.registry.get_sample_value("spans_total", {"outcome": outcome}) or 0.0


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing_export, "INTERVAL_S", 0.01)
    monkeypatch.setattr(tracing_export, "BACK_OFF_S", (0.01, 0.02))


def test_otlp_says_what_the_span_says() -> None:
    attributes = {"text": "a", "yes": True, "number": 7, "share": 0.5}
    made = span(0, parent_id=b"\2" * 8, kind=SpanKind.SERVER, attributes=attributes, error="broken")
    (found,) = decode(export_request([made], {"service.name": "x"}))
    assert (found.service, found.name, found.kind, found.error) == ("x", "work", 2, "broken")
    assert (found.trace, found.id, found.parent) == ("0" * 31 + "1", "0" * 15 + "1", "02" * 8)
    assert (found.start_ns, found.end_ns, found.attributes) == (1_000, 3_000, attributes)
    assert type(found.attributes["yes"]) is bool


async def test_everything_arrives_once_and_in_order() -> None:
    async with running_collector() as collector:
        rig = Rig(collector.target)
        async with rig.exporter.running():
            for number in range(BATCH_SPANS + 100):
                rig.exporter.add(span(number))
            await eventually(lambda: len(collector.spans()) == BATCH_SPANS + 100)
            assert len(collector.raw) == 2  # a full batch, and the rest
            rig.exporter.add(span(9_999))
        ids = [int(found.id, 16) for found in collector.spans()]
        assert ids == [*range(1, BATCH_SPANS + 101), 10_000]  # the last one at the end of the process
        assert (rig.count("sent"), rig.count("dropped")) == (BATCH_SPANS + 101, 0)


async def test_a_collector_that_is_away_costs_a_bounded_queue() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, and not listening
        rig = Rig(f"127.0.0.1:{nobody.getsockname()[1]}")
        async with rig.exporter.running():
            for number in range(QUEUE_SPANS + 50):
                rig.exporter.add(span(number))
            assert rig.count("dropped") == 50
            await asyncio.sleep(0)
        assert rig.count("sent") == 0


async def test_what_waited_is_sent_when_the_collector_is_back() -> None:
    async with running_collector() as collector:
        collector.refuse = grpc.StatusCode.UNAVAILABLE
        rig = Rig(collector.target)
        async with rig.exporter.running():
            rig.exporter.add(span(0))
            await eventually(lambda: collector.calls >= 2)
            collector.refuse = None
            await eventually(lambda: rig.count("sent") == 1)
        assert (len(collector.spans()), rig.count("dropped")) == (1, 0)


async def test_a_collector_that_never_answers_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing_export, "CALL_TIMEOUT_S", 0.05)
    async with running_collector() as collector:
        collector.hangs = True
        rig = Rig(collector.target)
        async with rig.exporter.running():
            rig.exporter.add(span(0))
            await eventually(lambda: collector.calls >= 2)
            collector.hangs = False
            monkeypatch.setattr(tracing_export, "CALL_TIMEOUT_S", 10.0)
            await eventually(lambda: rig.count("sent") == 1)
        assert rig.count("dropped") == 0


async def test_a_refused_batch_is_not_sent_again() -> None:
    async with running_collector() as collector:
        collector.refuse = grpc.StatusCode.INVALID_ARGUMENT
        rig = Rig(collector.target)
        async with rig.exporter.running():
            rig.exporter.add(span(0))
            await eventually(lambda: rig.count("dropped") == 1)
            collector.refuse = None
            rig.exporter.add(span(1))
            await eventually(lambda: rig.count("sent") == 1)
        assert [found.id for found in collector.spans()] == ["0" * 15 + "2"]
