"""Several picker processes behind one port: they agree, hear of each other's outcomes, and are replaced if they end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry

from extproc.fleet import POOL, make_plan
from pointsman.app.ports import PortError
from pointsman.app.workers import frames, supervisor
from pointsman.app.workers.samples import WorkerMetrics, families_of
from pointsman.app.workers.supervisor import PickerWorkers
from pointsman.core import wire
from pointsman.core.clock import SystemClock
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.core.errors import PeerError
from pointsman.extproc import Feedback, Picker
from pointsman.extproc.gossip import GossipState, Outbox
from pointsman.extproc.peers import GossipNode
from pointsman.extproc.server import ALS_SERVICE, EXT_PROC_SERVICE
from support.pids import runs
from support.waiting import eventually

KEYS = ["10.0.0.1:80", "10.0.0.2:80"]
PLAN = make_plan({"near": KEYS})


class Door:
    """One connection to the shared port, hence to one worker."""

    def __init__(self, port: int) -> None:
        own = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=own)
        self._process: Any = self.channel.stream_stream(
            f"/{EXT_PROC_SERVICE}/Process",
            request_serializer=ext_proc.ProcessingRequest.SerializeToString,
            response_deserializer=ext_proc.ProcessingResponse.FromString,
        )
        self._logs: Any = self.channel.stream_unary(
            f"/{ALS_SERVICE}/StreamAccessLogs",
            request_serializer=als_pb2.StreamAccessLogsMessage.SerializeToString,
            response_deserializer=als_pb2.StreamAccessLogsResponse.FromString,
        )

    async def pick(self, prompt: str = "hello", *, pool: str = POOL) -> tuple[str, str]:
        """The pick id and the first endpoint; both empty for an unknown pool."""
        message = ext_proc.ProcessingRequest()
        message.request_body.body = b'{"model": "m", "prompt": "%s"}' % prompt.encode()
        message.request_body.end_of_stream = True
        message.attributes["envoy.filters.http.ext_proc"].fields[wire.ATTRIBUTE_CLUSTER].string_value = pool
        call = self._process()
        await call.write(message)
        fields = (await call.read()).dynamic_metadata.fields
        destination = fields[wire.LB_NAMESPACE].struct_value.fields[wire.DESTINATION_KEY].string_value
        return fields[wire.PICK_NAMESPACE].struct_value.fields[wire.PICK_KEY].string_value, destination.split(",")[0]

    async def log(self, pick_id: str) -> None:
        """Tell the worker behind this door that a request has ended."""
        message = als_pb2.StreamAccessLogsMessage()
        common = message.http_logs.log_entry.add().common_properties
        common.custom_tags[wire.TAG_PICK] = pick_id
        common.upstream_cluster = POOL
        common.access_log_type = accesslog_pb2.DownstreamEnd
        call = self._logs()
        await call.write(message)
        await call.done_writing()
        await call

    async def health(self) -> int:
        check: Any = self.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        return int((await check(health_pb2.HealthCheckRequest(service=EXT_PROC_SERVICE))).status)


class Workers:
    def __init__(self, workers: PickerWorkers, picker: Picker, registry: CollectorRegistry) -> None:
        self.workers, self.picker, self.registry = workers, picker, registry
        self.heard: list[Feedback] = []
        self._stack = AsyncExitStack()

    async def doors(self) -> list[Door]:
        """A connection to each worker: the kernel chooses, so more are opened until all were hit."""
        found: dict[str, Door] = {}

        async def another() -> bool:
            door = Door(self.workers.port)
            self._stack.push_async_callback(door.channel.close)
            pick_id, _ = await door.pick()
            await door.log(pick_id)
            found.setdefault(pick_id.rpartition("-")[0], door)
            return len(found) == len(self.workers.pids)

        await eventually(another, timeout_s=60, what="every worker gets connections")
        await eventually(lambda: self.in_flight() == 0)
        return list(found.values())

    def in_flight(self) -> int:
        """Requests in flight at all workers, as the parent knows by gossip."""
        return int(self.picker.table.remote_requests.sum())

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def close(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def running(count: int = 2) -> AsyncIterator[Workers]:
    clock, registry = SystemClock(), CollectorRegistry()
    picker = Picker(clock)
    picker.apply(PLAN)
    gossip = GossipNode(picker, GossipState("parent", 1), Outbox(), clock)
    heard: list[Feedback] = []
    async with PickerWorkers(
        count,
        address="127.0.0.1",
        picker=picker,
        registry=registry,
        gossip=gossip,
        on_feedback=heard.append,
        log_format="json",
    ) as workers:
        workers.publish(PLAN)
        async with asyncio.timeout(60):
            await workers.ready()
        made = Workers(workers, picker, registry)
        made.heard = heard
        try:
            yield made
        finally:
            await made.close()


async def test_workers_share_load_prefixes_and_outcomes() -> None:
    async with running() as fleet:
        one, two = await fleet.doors()
        long = "the quick brown fox jumps over the lazy dog. " * 300
        pick_id, endpoint = await one.pick(long)
        await eventually(lambda: fleet.in_flight() == 1)
        other = KEYS[1 - KEYS.index(endpoint)]
        asked = 0

        async def avoided() -> bool:
            """A request is in flight where the first one is not; what went elsewhere is ended and tried again."""
            nonlocal asked
            asked += 1
            at, chosen = await two.pick(f"{asked} something quite different " * 200)
            if chosen != other:
                await two.log(at)
            return chosen == other

        # The parent passes on what it has heard, and a pick may overtake that.
        await eventually(avoided, what="the second knows of the first one's load")
        await eventually(lambda: fleet.in_flight() == 2)
        # What a picker tells of its load and of its prefixes is one message: now the second knows both.
        warm_id, warm = await two.pick(long + " and then?")
        assert warm == endpoint
        told = await fleet.workers.explain(warm_id)
        assert told is not None
        assert {c["endpoint"]: c["cached_tokens"] for c in told["candidates"]}[endpoint] > 3_000
        # The last decisions of all workers are told in short, each in its order.
        last = await fleet.workers.recent(100)
        told_ids = [decision["pick"] for decision in last]
        assert {pick_id, warm_id} <= set(told_ids)
        assert {one.rpartition("-")[0] for one in told_ids} == {one.rpartition("-")[0] for one in (pick_id, warm_id)}
        assert last[told_ids.index(warm_id)]["endpoint"] == warm
        assert len(await fleet.workers.recent(1)) == 2, "the last one of each"
        # The access log of a pick reaches a worker that did not make it.
        await two.log(pick_id)
        await eventually(lambda: fleet.in_flight() == 2)
        await eventually(lambda: pick_id in [entry.pick_id for entry in fleet.heard])


async def test_plans_and_scrapes_reach_all_workers_and_the_parent() -> None:
    async with running() as fleet:
        doors = await fleet.doors()
        for door in doors:
            assert await door.pick(pool="default/other") == ("", "")
        fleet.workers.publish(make_plan({"near": KEYS}, pool="default/other"))

        async def known() -> bool:
            return all([(await door.pick(pool="default/other"))[0] for door in doors])

        await eventually(known)
        metrics = EngineMetrics(waiting=50.0, running=100.0, kv_usage=0.9)
        assert not fleet.workers.signals(KEYS[0], metrics, rtt_ms=1.0)
        fleet.workers.models(KEYS[1], frozenset({"m"}))

        async def avoided() -> bool:
            return {(await door.pick(pool="default/other"))[1] for door in doors} == {KEYS[1]}

        await eventually(avoided)
        row = fleet.picker.table.row(KEYS[0])
        assert row is not None
        assert fleet.picker.table.seen_waiting[row] == 50.0


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_a_worker_that_ends_or_freezes_is_replaced(fault: str) -> None:
    async with running() as fleet:
        await fleet.doors()
        await eventually(lambda: fleet.value("pointsman_picks_total", pool=POOL, outcome="picked") >= 2)
        counted = fleet.value("pointsman_picks_total", pool=POOL, outcome="picked")
        fleet.workers.models(KEYS[0], frozenset({"another"}))  # unlike load, that is never too old to count
        before = fleet.workers.pids
        os.kill(before[0], signal.SIGKILL if fault == "killed" else signal.SIGSTOP)

        async def one_answers() -> bool:
            return len(await fleet.workers.recent(1)) == 1

        await eventually(one_answers, what="the other one answers; nobody waits for this one for long")

        def replaced() -> bool:
            for one in fleet.workers._running.values():
                if fault == "frozen" and one.child.pid == before[0]:
                    one.silent_from_s -= supervisor.SILENT_S  # as if it had been silent for so long
            return len(fleet.workers.pids) == 2 and before[0] not in fleet.workers.pids

        await eventually(replaced, timeout_s=60)
        assert before[1] in fleet.workers.pids, "the other one goes on"
        one, two = await fleet.doors()
        for door in (one, two):
            assert (await door.pick())[1] == KEYS[1], "the new one was told what is known"
        await eventually(lambda: fleet.value("pointsman_picks_total", pool=POOL, outcome="picked") > counted)


async def test_a_defect_in_the_parent_costs_a_worker_and_not_its_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(1) as fleet:
        (before,) = fleet.workers.pids
        handle, failed = fleet.workers._handle, []

        def defective(*args: Any) -> None:
            if not failed:
                failed.append(True)
                raise LookupError("a message that nobody foresaw")
            handle(*args)

        monkeypatch.setattr(fleet.workers, "_handle", defective)
        await eventually(
            lambda: [r.ready and r.child.pid != before for r in fleet.workers._running.values()] == [True], timeout_s=60
        )
        (door,) = await fleet.doors()
        assert (await door.pick())[1] in KEYS


async def test_the_load_of_a_killed_worker_vanishes() -> None:
    async with running() as fleet:
        one, _two = await fleet.doors()
        for number in range(5):
            await one.pick(f"request {number}")
        await eventually(lambda: fleet.in_flight() == 5)
        for pid in fleet.workers.pids:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: fleet.in_flight() == 0)


async def test_workers_drain_and_end_with_the_parent() -> None:
    async with running() as fleet:
        doors = await fleet.doors()
        assert [await door.health() for door in doors] == [health_pb2.HealthCheckResponse.SERVING] * 2
        fleet.workers.drain()

        async def drained() -> bool:
            return {await door.health() for door in doors} == {health_pb2.HealthCheckResponse.NOT_SERVING}

        await eventually(drained)
        pids = fleet.workers.pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


PARENT = """
import asyncio
from app.test_picker_workers import running
async def main():
    async with running() as fleet:
        print("pids", *fleet.workers.pids, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_no_worker_outlives_a_parent_that_is_killed() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PARENT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert parent.stdout is not None
    try:
        async with asyncio.timeout(60):
            while not (line := await parent.stdout.readline()).startswith(b"pids"):
                assert line
    finally:
        parent.kill()
        await parent.wait()
    pids = [int(word) for word in line.split()[1:]]
    assert len(pids) == 2

    def gone() -> bool:
        return not any(runs(pid) for pid in pids)

    await eventually(gone)


async def test_a_port_that_somebody_listens_on_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        workers = PickerWorkers(
            2,
            address="127.0.0.1",
            port=taken.getsockname()[1],
            picker=Picker(SystemClock()),
            registry=CollectorRegistry(),
            gossip=GossipNode(Picker(SystemClock()), GossipState("parent", 1), Outbox(), SystemClock()),
        )
        with pytest.raises(PortError):
            await workers.__aenter__()


def test_metrics_add_up_and_never_go_back() -> None:
    total = CollectorRegistry()
    merged = WorkerMetrics(total)
    registries = []
    for number in range(2):
        registry = CollectorRegistry()
        picker = Picker(SystemClock())
        picker.apply(PLAN)
        from pointsman.extproc.metrics import PickerMetrics

        metrics = PickerMetrics(registry, picker)
        for _ in range(number + 1):
            metrics.heard(Feedback(pick_id="x", ended=True, cluster=POOL, ttft_ms=100.0), matched=True)
        registries.append(registry)
        merged.took(f"w{number}", families_of(registry))
    assert total.get_sample_value("pointsman_feedback_total", {"kind": "end"}) == 3
    assert total.get_sample_value("pointsman_ttft_seconds_count", {"pool": POOL}) == 3
    assert total.get_sample_value("pointsman_picker_endpoints") == 2, "all know the same endpoints"
    merged.ended("w1")
    assert total.get_sample_value("pointsman_feedback_total", {"kind": "end"}) == 3
    merged.took("w1", families_of(registries[1]))
    merged.ended("w1")
    merged.took("w1", families_of(registries[0]))
    assert total.get_sample_value("pointsman_feedback_total", {"kind": "end"}) == 1 + 2 + 2 + 1


async def test_bytes_that_are_no_frame_are_a_peer_error() -> None:
    for content in (b"\0\0\0\1\xc1", b"\xff\xff\xff\xff"):
        stream = asyncio.StreamReader()
        stream.feed_data(content)
        stream.feed_eof()
        with pytest.raises(PeerError):
            await frames.read_by_worker(stream)
    stream = asyncio.StreamReader()
    stream.feed_data(frames.frame(frames.SetPlan(PLAN)) + b"\0\0")
    stream.feed_eof()
    assert await frames.read_by_worker(stream) == frames.SetPlan(PLAN)
    assert await frames.read_by_worker(stream) is None
