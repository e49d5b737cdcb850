"""The way of a request through the real Envoy: picked, streamed, and never through the picker on the way back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from envoy.service.status.v3 import csds_pb2

from support.fleet import MODEL, Fleet, Layout, running_fleet
from support.load import Load, Outcomes, ask, chat_body
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path_factory.mktemp("fleet")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(shared: Fleet) -> Fleet:
    """One fleet for all tests here; nothing of the test before is under way in it."""
    await released(shared)
    return shared


async def released(fleet: Fleet) -> None:
    """Wait until nothing is in flight, by the picker's accounts. That of a pick which came too late for its gateway, on
    a machine that is very busy, ends by itself after a minute."""

    async def idle() -> bool:
        pools = (await fleet.status())["pools"]
        return all(e["in_flight"] == 0 for pool in pools for site in pool["sites"] for e in site["endpoints"])

    await eventually(idle, timeout_s=90, what="the access log has released every account")


async def metric(fleet: Fleet, name: str) -> float:
    """Sum of a metric's series as the admin server tells it."""
    async with fleet.session.get(f"{fleet.admin}/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def text_of(stream: bytes) -> str:
    """The text of the whole events of an SSE answer so far."""
    events = stream.decode().split("\n\n")[:-1]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if event != "data: [DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


async def messages_to_picker(fleet: Fleet) -> int:
    """Messages that Envoy has sent over ext_proc, by its own count."""
    stats = await fleet.envoy_stats("http.")
    return sum(value for name, value in stats.items() if name.endswith(".stream_msgs_sent"))


async def test_a_conversation_stays_where_its_prefix_is(fleet: Fleet) -> None:
    outcomes = Outcomes()
    picks, replicas = await metric(fleet, "pointsman_picks_total"), await fleet.replicas()
    prompt = "The Flying Scotsman left at ten. " * 60
    for turn in range(6):
        prompt += f"And then, in turn {turn}, it went on to the next station. " * 10
        await ask(fleet.session, fleet.url, chat_body(prompt), outcomes)
    assert outcomes.failed == 0, outcomes.failures
    assert len(outcomes.replicas) == 1, "every turn went to the replica that has the prefix"
    (name,) = outcomes.replicas
    before, served = replicas[name], (await fleet.replicas())[name]
    hits, asked = (served[f"prefix_{what}_tokens"] - before[f"prefix_{what}_tokens"] for what in ("hit", "query"))
    assert hits > asked / 2
    assert await metric(fleet, "pointsman_picks_total") == picks + 6


async def test_many_conversations_are_spread(fleet: Fleet) -> None:
    async with Load(fleet.url, workers=12, limit=240) as load:
        await load.progressed(240)
    assert load.outcomes.failed == 0, load.outcomes.failures
    assert len(load.outcomes.replicas) >= 3


async def test_tokens_arrive_while_they_are_made_and_never_pass_the_picker(fleet: Fleet) -> None:
    """The first token is read while the answer is still being held back; the picker then still holds the account."""
    before = await messages_to_picker(fleet)
    for replica in (name for name in await fleet.replicas() if name.startswith("stable")):
        await fleet.set_faults(replica, {"stall": {"where": "mid", "after_tokens": 3}})
    async with fleet.session.post(
        f"{fleet.url}/v1/chat/completions", json=chat_body("a long story", stream=True, max_tokens=200)
    ) as response:
        assert response.status == 200
        received = b""
        while not text_of(received):
            received += await response.content.readany()
        assert b"[DONE]" not in received, "the first tokens came while the rest was not made yet"
        assert len(text_of(received)) < 100
        for replica in (name for name in await fleet.replicas() if name.startswith("stable")):
            await fleet.set_faults(replica, None)
        received += await response.content.read()
    assert received.rstrip().endswith(b"data: [DONE]")
    assert len(text_of(received)) == 800, "200 tokens of four letters each"
    assert await messages_to_picker(fleet) - before == 1, "one message for the request, none for 200 tokens"


async def test_in_flight_returns_to_zero(fleet: Fleet) -> None:
    async with Load(fleet.url, workers=8, limit=80, stream=True) as load:
        await load.progressed(80)
    assert load.outcomes.failed == 0
    await released(fleet)


async def test_header_and_split(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Layout(canary_weight=50, stable_weight=50)) as fleet:
        async with Load(fleet.url, workers=8, limit=60, headers={"x-model-variant": "canary"}) as load:
            await load.progressed(60)
        assert load.outcomes.failed == 0
        assert set(load.outcomes.replicas) == {"canary-us-east-0"}
        async with Load(fleet.url, workers=8, limit=200) as load:
            await load.progressed(200)
        assert load.outcomes.failed == 0
        canary = load.outcomes.replicas["canary-us-east-0"]
        assert 60 <= canary <= 140, "half of 200, six standard deviations wide"


async def test_a_client_cannot_choose_an_endpoint(fleet: Fleet) -> None:
    address, port = fleet.manifests.endpoint("canary-us-east-0")
    outcomes = Outcomes()
    headers = {"x-gateway-destination-endpoint": f"{address}:{port}"}
    for turn in range(5):
        await ask(fleet.session, fleet.url, chat_body(f"{turn}: let me in"), outcomes, headers)
    assert outcomes.failed == 0
    assert "canary-us-east-0" not in outcomes.replicas


async def test_what_is_no_chat_request_gets_a_clear_answer(fleet: Fleet) -> None:
    url = f"{fleet.url}/v1/chat/completions"
    for body in (b"{", b"\xff\xfe", b"[" * 100_000, b"", b'{"model": 7}'):
        async with fleet.session.post(url, data=body, headers={"content-type": "application/json"}) as response:
            assert 400 <= response.status < 500, (body[:20], response.status)
            error = json.loads(await response.text())
            assert error["error"]["message"] if "error" in error else error["message"]
    async with fleet.session.post(url, json={**chat_body("x"), "model": "no-such-model"}) as response:
        assert response.status == 404
    outcomes = Outcomes()
    await ask(fleet.session, fleet.url, chat_body("and all is well"), outcomes)
    assert outcomes.failed == 0


async def test_models_are_listed_without_a_pick(fleet: Fleet) -> None:
    before = await metric(fleet, "pointsman_picks_total")
    listed = await fleet.get(f"{fleet.url}/v1/models")
    assert MODEL in {model["id"] for model in listed["data"]}
    assert await metric(fleet, "pointsman_picks_total") == before


async def test_explain_tells_why(fleet: Fleet) -> None:
    async with fleet.session.post(f"{fleet.url}/v1/chat/completions", json=chat_body("why here?")) as response:
        assert response.status == 200
        request_id = response.headers["x-request-id"]
    decision = await fleet.get(f"{fleet.admin}/api/v1/picks/{request_id}")
    assert decision["pool"] == "default/stable"
    assert len(decision["candidates"]) == 6
    assert decision["candidates"][0]["endpoint"] == decision["endpoints"][0]
    sites = {fleet_site(fleet, key) for key in decision["endpoints"]}
    assert sites == {"us-east", "eu-west"}, "the list crosses sites"


def fleet_site(fleet: Fleet, key: str) -> str:
    for site in ("us-east", "eu-west"):
        for index in range(3):
            address, port = fleet.manifests.endpoint(f"stable-{site}-{index}")
            if f"{address}:{port}" == key:
                return site
    raise AssertionError(key)


async def test_two_at_once_do_not_wait_for_each_other(fleet: Fleet) -> None:
    """A client that never finishes its body holds nobody up."""
    host, port = fleet.manifests.gateway_address, fleet.manifests.http_port
    _, writer = await asyncio.open_connection(host, port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 999\r\n\r\n{"
    )
    await writer.drain()
    outcomes = Outcomes()
    await ask(fleet.session, fleet.url, chat_body("next, please"), outcomes)
    writer.close()
    assert outcomes.ok == 1


async def test_gateways_report_their_load_and_operators_can_read_what_they_have(fleet: Fleet) -> None:
    """LRS arrives in the status; CSDS and reflection answer a plain gRPC client."""

    async def reported() -> int:
        loads = (await fleet.status())["load_reports"]["loads"]
        return sum(int(row["total"]["succeeded"]) for row in loads if row["cluster"] == "default/stable")

    before = await reported()
    async with Load(fleet.url, workers=4):

        async def more() -> bool:  # Envoy begins to count with the first answer on the stream
            return await reported() >= before + 20

        await eventually(more, what="the load reports hold requests")

    async with grpc.aio.insecure_channel(fleet.control_plane_target) as channel:
        fetch = channel.unary_unary(
            "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus",
            request_serializer=csds_pb2.ClientStatusRequest.SerializeToString,
            response_deserializer=csds_pb2.ClientStatusResponse.FromString,
        )
        answer = await fetch(csds_pb2.ClientStatusRequest())
    assert len(answer.config) == 1
    states = {
        (entry.type_url.rpartition(".")[2], entry.config_status) for entry in answer.config[0].generic_xds_configs
    }
    assert {kind for kind, _ in states} == {"Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration"}
    assert {status for _, status in states} == {csds_pb2.SYNCED}
