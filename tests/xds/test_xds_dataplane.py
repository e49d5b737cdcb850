"""What the generated configuration makes a real Envoy do with requests, while no picker answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc

from pointsman.core import wire
from pointsman.core.model import (
    Endpoint,
    FailureMode,
    Health,
    MatchType,
    PickProfile,
    Plan,
    RouteMatch,
    SiteGroup,
    StringMatch,
)
from pointsman.core.snapshot import PlanHolder
from support.envoy import running_envoy
from support.waiting import eventually

pytestmark = pytest.mark.e2e

DEAD = Endpoint(name="dead", address="127.0.0.1", port=1, site="here")


def at(path: str) -> RouteMatch:
    return RouteMatch(path=StringMatch(type=MatchType.PREFIX, value=path))


@asynccontextmanager
async def picker(reply: ext_proc.ProcessingResponse) -> AsyncIterator[int]:
    """A picker that always gives the same answer; yields its port."""

    async def process(requests: AsyncIterator[Any], _: Any) -> AsyncIterator[ext_proc.ProcessingResponse]:
        async for _message in requests:
            yield reply

    handler = grpc.stream_stream_rpc_method_handler(
        process,
        request_deserializer=ext_proc.ProcessingRequest.FromString,
        response_serializer=ext_proc.ProcessingResponse.SerializeToString,
    )
    server = grpc.aio.server()
    service = "envoy.service.ext_proc.v3.ExternalProcessor"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"Process": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(None)


class Gate:
    """Requests to a running gateway."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self._url.removeprefix("http://").rpartition(":")
        return host, int(port)

    async def ask(self, path: str = "/v1/x", *, method: str = "POST", size: int = 10, **headers: str) -> Any:
        """Status, JSON body and reason."""
        data = b"x" * size if method == "POST" else None
        async with self._session.request(method, self._url + path, data=data, headers=headers) as response:
            return response.status, await response.json(), response.headers.get(wire.REASON_HEADER, "")


@asynccontextmanager
async def gateway(kit: Any, plan: Plan, **settings: Any) -> AsyncIterator[Gate]:
    holder = PlanHolder()
    holder.publish(plan)
    async with kit.ControlPlane(holder, **settings) as plane, running_envoy(plane.bootstrap(delta=True)) as envoy:

        async def listening() -> str:
            return dict(await envoy.listener_addresses()).get("default/gw/http", "")

        await eventually(listening, what="the listener")
        await plane.acked()
        async with aiohttp.ClientSession() as session:
            yield Gate(session, f"http://{await listening()}")


async def test_requests_without_a_picker_are_balanced_and_client_headers_choose_nothing(kit, upstreams) -> None:
    one, two = await upstreams.start("one"), await upstreams.start("two")
    plan = kit.plan_of([kit.pool("default/p", one, two)], kit.listener("http", kit.rule("r", ("default/p", 10_000))))
    async with gateway(kit, plan) as gate:
        for _ in range(20):
            status, body, _ = await gate.ask(**{wire.DESTINATION_KEY: two.key, wire.SUBSET_KEY: two.key})
            assert status == 200
            assert not {h.lower() for h in body["headers"]} & {wire.DESTINATION_KEY, wire.SERVED_KEY, wire.SUBSET_KEY}
        assert upstreams.served["one"] > 0


async def test_a_broken_replica_is_not_seen_even_with_a_large_body(kit, upstreams) -> None:
    one, two = await upstreams.start("one"), await upstreams.start("two")
    plan = kit.plan_of([kit.pool("default/p", one, two)], kit.listener("http", kit.rule("r", ("default/p", 10_000))))
    async with gateway(kit, plan) as gate:
        upstreams.broken.add("one")

        async def tried() -> bool:
            status, body, _ = await gate.ask(size=3_000_000)
            assert (status, body["bytes"], body["system_fingerprint"]) == (200, 3_000_000, "two")
            return upstreams.served["one"] >= 3

        await eventually(tried, what="some went to the broken one first")


async def test_answers_of_the_gateway_itself_say_why(kit, upstreams) -> None:
    one = await upstreams.start("one")
    rules = (
        kit.rule("dead", ("default/dead", 10_000), match=at("/dead")),
        kit.rule("direct", match=at("/direct"), direct_status=503, direct_reason="drained for the night"),
        kit.rule("r", ("default/p", 10_000), match=at("/v1")),
    )
    plan = kit.plan_of([kit.pool("default/p", one), kit.pool("default/dead", DEAD)], kit.listener("http", *rules))
    async with gateway(kit, plan, max_prompt_bytes=1_000_000) as gate:
        status, body, reason = await gate.ask(size=1_200_000)
        assert (status, reason) == (413, "request_payload_too_large")
        assert body["error"]["message"] == "Payload Too Large"
        status, body, reason = await gate.ask("/dead/x")
        assert (status, reason) == (503, "no_healthy_upstream")
        assert body["error"]["code"] == 503
        status, body, reason = await gate.ask("/nowhere")
        assert (status, reason) == (404, "route_not_found")
        assert body["error"] == {
            "message": "no rule of this gateway takes this request",
            "type": "gateway_error",
            "param": None,
            "code": 404,
        }
        status, body, reason = await gate.ask("/direct")
        assert (status, reason) == (503, "drained for the night")
        assert (body["error"]["message"], body["error"]["type"]) == ("drained for the night", "gateway_error")


async def test_a_tunnel_is_refused_at_once(kit, upstreams) -> None:
    """A rule for every path does not take CONNECT, and the filters may not wait for the end of a tunnel."""
    one = await upstreams.start("one")
    plan = kit.plan_of([kit.pool("default/p", one)], kit.listener("http", kit.rule("all", ("default/p", 10_000))))
    async with gateway(kit, plan) as gate:
        reader, writer = await asyncio.open_connection(*gate.address)
        writer.write(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
        async with asyncio.timeout(20):
            assert (await reader.readline()).split()[1] == b"404"
        writer.close()


async def test_a_pool_that_fails_closed_answers_503_without_a_picker(kit, upstreams) -> None:
    one = await upstreams.start("one")
    pools = [kit.pool("default/closed", one, failure_mode=FailureMode.FAIL_CLOSE), kit.pool("default/open", one)]
    arms = ("default/closed", 10_000)
    rules = (
        kit.rule("headers", arms, match=at("/headers"), profile=PickProfile.HEADERS),
        kit.rule("none", arms, match=at("/none"), profile=PickProfile.NONE),
        kit.rule("open", ("default/open", 10_000), match=at("/open"), profile=PickProfile.HEADERS),
        kit.rule("body", arms),
    )
    async with gateway(kit, kit.plan_of(pools, kit.listener("http", *rules))) as gate:

        async def statuses() -> list[int]:
            paths = ("/v1/x", "/headers", "/none", "/open")
            return [(await gate.ask(path))[0] for path in paths]

        assert await statuses() == [503, 503, 200, 200]
        _, body, reason = await gate.ask()
        assert reason.startswith("ext_proc")
        assert body["error"]["message"] == "the endpoint picker gave no answer"
        assert (await gate.ask(method="GET"))[0] == 200  # without a body there is nothing to pick from


async def test_priorities_and_health_from_the_control_plane_are_obeyed(kit, upstreams) -> None:
    near, drained, far = [await upstreams.start(name) for name in ("near", "drained", "far")]
    groups = (
        SiteGroup(site="here", priority=0, weight=1, endpoints=(near, replace(drained, health=Health.DRAINING))),
        SiteGroup(site="there", priority=3, weight=1, endpoints=(replace(far, site="there"),)),
    )
    pool = replace(kit.pool("default/p", near), groups=groups)
    plan = kit.plan_of([pool], kit.listener("http", kit.rule("r", ("default/p", 10_000))))
    async with gateway(kit, plan) as gate:
        for _ in range(20):
            assert (await gate.ask())[0] == 200
        assert upstreams.served["drained"] == 0
        assert upstreams.served["near"] > upstreams.served["far"]
        upstreams.broken.add("near")
        for _ in range(20):
            assert (await gate.ask())[1]["system_fingerprint"] == "far"


async def test_the_pick_is_honoured_across_priorities_and_retried_in_its_order(kit, upstreams) -> None:
    near, far = await upstreams.start("near"), await upstreams.start("far")
    groups = (
        SiteGroup(site="here", priority=0, weight=1, endpoints=(near,)),
        SiteGroup(site="there", priority=1, weight=1, endpoints=(replace(far, site="there"),)),
    )
    pool = replace(kit.pool("default/p", near), groups=groups)
    plan = kit.plan_of([pool], kit.listener("http", kit.rule("r", ("default/p", 10_000))))
    reply = ext_proc.ProcessingResponse(request_body=ext_proc.BodyResponse())
    metadata = reply.dynamic_metadata.fields[wire.LB_NAMESPACE].struct_value.fields
    metadata[wire.DESTINATION_KEY].string_value = f"{far.key},{near.key}"
    async with picker(reply) as port, gateway(kit, plan, picker_port=port) as gate:
        for _ in range(10):
            assert (await gate.ask(size=2_000_000))[1]["system_fingerprint"] == "far"
        upstreams.broken.add("far")
        assert (await gate.ask())[1]["system_fingerprint"] == "near"


async def test_an_answer_of_the_picker_is_kept_as_it_is(kit, upstreams) -> None:
    one = await upstreams.start("one")
    plan = kit.plan_of([kit.pool("default/p", one)], kit.listener("http", kit.rule("r", ("default/p", 10_000))))
    reply = ext_proc.ProcessingResponse()
    reply.immediate_response.status.code = 429
    reply.immediate_response.body = b'{"error": {"message": "come back later"}}'
    headers = reply.immediate_response.headers.set_headers
    headers.add().header.CopyFrom(base_pb2.HeaderValue(key="content-type", raw_value=b"application/json"))
    headers.add().header.CopyFrom(base_pb2.HeaderValue(key=wire.REASON_HEADER, raw_value=b"shed"))
    async with picker(reply) as port, gateway(kit, plan, picker_port=port) as gate:
        assert await gate.ask() == (429, {"error": {"message": "come back later"}}, "shed")
        assert upstreams.served["one"] == 0
