"""Picker workers send the spans of their picks themselves, and their parent counts them."""

from __future__ import annotations

from typing import Any

import grpc
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from prometheus_client import CollectorRegistry

from extproc.fleet import POOL, make_plan
from pointsman.app.tracing_options import TracingOptions
from pointsman.app.workers.supervisor import PickerWorkers
from pointsman.core import wire
from pointsman.core.clock import SystemClock
from pointsman.extproc import Picker
from pointsman.extproc.gossip import GossipState, Outbox
from pointsman.extproc.peers import GossipNode
from pointsman.extproc.server import EXT_PROC_SERVICE
from support.collector import running_collector
from support.waiting import eventually

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def test_a_worker_sends_the_spans_of_its_picks() -> None:
    clock, registry = SystemClock(), CollectorRegistry()
    picker = Picker(clock)
    async with running_collector() as collector:
        host, _, port = collector.target.rpartition(":")
        async with PickerWorkers(
            1,
            address="127.0.0.1",
            picker=picker,
            registry=registry,
            gossip=GossipNode(picker, GossipState("parent", 1), Outbox(), clock),
            tracing=TracingOptions(host=host, port=int(port), service_name="mine"),
        ) as workers:
            workers.publish(make_plan({"near": ["10.0.0.1:80"]}))
            await workers.ready()
            message = ext_proc.ProcessingRequest()
            message.request_body.body = b'{"prompt": "hello"}'
            message.request_body.end_of_stream = True
            message.attributes["envoy.filters.http.ext_proc"].fields[wire.ATTRIBUTE_CLUSTER].string_value = POOL
            async with grpc.aio.insecure_channel(f"127.0.0.1:{workers.port}") as channel:
                process: Any = channel.unary_unary(
                    f"/{EXT_PROC_SERVICE}/Process", ext_proc.ProcessingRequest.SerializeToString
                )
                single = (wire.PROFILE_HEADER, wire.PROFILE_SINGLE)
                await process(message, metadata=(single, ("traceparent", f"00-{TRACE}-{SPAN}-01")))
            await eventually(lambda: collector.spans(TRACE))
            (span,) = collector.spans()
            assert (span.service, span.name, span.parent) == ("mine-picker", "pick", SPAN)

            def counted() -> bool:
                return registry.get_sample_value("pointsman_picker_trace_spans_total", {"outcome": "sent"}) == 1

            await eventually(counted)
