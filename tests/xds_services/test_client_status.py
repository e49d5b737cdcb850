"""Client status: what each gateway runs with, by CSDS, from a real Envoy and from a plain gRPC client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.status.v3 import csds_pb2
from envoy.type.matcher.v3 import node_pb2
from google.protobuf import json_format

from pointsman.core.errors import PeerError
from pointsman.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE
from pointsman.xds.services import ClientStatus
from pointsman.xds.services.node_matcher import matches_any
from support.envoy import running_envoy
from support.waiting import eventually

SYNCED, NOT_SENT, STALE, ERROR = csds_pb2.SYNCED, csds_pb2.NOT_SENT, csds_pb2.STALE, csds_pb2.ERROR
GOOD, BAD, NEW = "default/good", "default/bad", "default/new"
REFUSED_PROBE = "/health\nnot-a-header"  # a constraint of the message: Envoy drops the whole response

Entries = dict[tuple[str, str], csds_pb2.ClientConfig.GenericXdsConfig]


async def fetch(channel: grpc.aio.Channel, **fields: Any) -> csds_pb2.ClientStatusResponse:
    call: Any = channel.unary_unary(
        "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus",
        request_serializer=csds_pb2.ClientStatusRequest.SerializeToString,
        response_deserializer=csds_pb2.ClientStatusResponse.FromString,
    )
    response: csds_pb2.ClientStatusResponse = await call(json_format.ParseDict(fields, csds_pb2.ClientStatusRequest()))
    return response


def entries(config: csds_pb2.ClientConfig) -> Entries:
    return {(entry.type_url, entry.name): entry for entry in config.generic_xds_configs}


class Client:
    """A delta client that answers when it is told to."""

    def __init__(self, plane: Any, node: str, gateway: str = "default/gw", **metadata: Any) -> None:
        self._call: Any = plane.channel.stream_stream(
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )()
        self._node = base_pb2.Node(id=node, cluster=gateway, user_agent_name="plain")
        self._node.metadata.update(metadata)
        self._node.extensions.add(name="one.of.hundreds")
        self._responses: asyncio.Queue[discovery_pb2.DeltaDiscoveryResponse] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read())

    async def subscribe(self, type_url: str) -> None:
        await self._call.write(discovery_pb2.DeltaDiscoveryRequest(node=self._node, type_url=type_url))

    async def read(self) -> discovery_pb2.DeltaDiscoveryResponse:
        return await self._responses.get()

    async def answer(self, response: discovery_pb2.DeltaDiscoveryResponse, error: str = "") -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
        if error:
            request.error_detail.message = error
        await self._call.write(request)

    async def acknowledge_until(self, done: Callable[[], bool]) -> None:
        """Accept everything that comes."""

        async def settled() -> bool:
            while not self._responses.empty():
                await self.answer(self._responses.get_nowait())
            return done()

        await eventually(settled)

    async def _read(self) -> None:
        while (response := await self._call.read()) is not grpc.aio.EOF:
            self._responses.put_nowait(response)

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


async def seen(plane: Any, condition: Callable[[Entries], bool]) -> Entries:
    """The entries of the only client, once they fulfil the condition."""
    found: Entries = {}

    async def there() -> bool:
        configs = (await fetch(plane.channel)).config
        found.clear()
        found.update(entries(configs[0]) if configs else {})
        return condition(found)

    await eventually(there)
    return found


# with a real Envoy


@pytest.mark.e2e
@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
async def test_an_operator_reads_what_envoy_runs_with_and_what_it_refused(plane: Any, kit: Any, delta: bool) -> None:
    before_s = time.time()
    async with kit.upstream("east-1", "east") as upstream:
        good = kit.pool(GOOD, upstream.endpoint)
        plane.holder.publish(kit.plan(good, serve=GOOD))
        async with running_envoy(plane.bootstrap(delta=delta)):
            assert (await plane.xds.wait_acked("default/gw", 20, nodes=1)).done
            (config,) = (await fetch(plane.channel)).config
            assert (config.node.id, config.node.cluster) == ("node-1", "default/gw")
            assert config.node.user_agent_name == "envoy"
            assert not config.node.extensions
            found = entries(config)
            assert {type_url for type_url, _ in found} == {CLUSTER, ENDPOINT, LISTENER, ROUTE}
            assert {entry.config_status for entry in found.values()} == {SYNCED}
            for (type_url, name), entry in found.items():
                assert entry.xds_config.type_url == type_url
                assert before_s - 1 < entry.last_updated.seconds <= time.time() + 1
                assert entry.version_info, name
                assert not entry.HasField("error_state")
            cluster = cluster_pb2.Cluster.FromString(found[CLUSTER, GOOD].xds_config.value)
            assert cluster.name == GOOD

            bad = kit.pool(BAD, upstream.endpoint, health_path=REFUSED_PROBE)
            plane.holder.publish(kit.plan(good, bad, kit.pool(NEW, upstream.endpoint), serve=GOOD))
            await plane.xds.wait_acked("default/gw", 20, nodes=1)
            (config,) = (await fetch(plane.channel)).config
            found = entries(config)
            refused = found[CLUSTER, BAD]
            assert refused.config_status == ERROR
            assert "health" in refused.error_state.details.lower(), "Envoy's own words"
            assert refused.error_state.version_info
            assert refused.error_state.last_update_attempt.seconds >= before_s - 1
            assert cluster_pb2.Cluster.FromString(refused.error_state.failed_configuration.value).name == BAD
            assert not refused.HasField("xds_config"), "it never had a good version"
            assert found[CLUSTER, NEW].config_status == SYNCED

            # A good version that is there stays readable next to the refusal of the next one.
            worse = kit.pool(GOOD, upstream.endpoint, health_path=REFUSED_PROBE)
            version = found[CLUSTER, GOOD].version_info
            plane.holder.publish(kit.plan(worse, serve=GOOD))
            await plane.xds.wait_acked("default/gw", 20, nodes=1)
            (config,) = (await fetch(plane.channel)).config
            entry = entries(config)[CLUSTER, GOOD]
            assert (entry.config_status, entry.version_info) == (ERROR, version)
            assert entry.error_state.version_info not in {"", version}
            assert "not-a-header" not in str(cluster_pb2.Cluster.FromString(entry.xds_config.value))


# with a plain client


async def test_each_state_on_the_way_of_a_resource(plane: Any, kit: Any) -> None:
    plane.holder.publish(kit.plan(kit.pool(GOOD), serve=GOOD))
    client = Client(plane, "plain-1")
    await client.subscribe(CLUSTER)
    response = await client.read()
    found = await seen(plane, lambda entries: (CLUSTER, GOOD) in entries)
    assert found[CLUSTER, GOOD].config_status == STALE, "sent and not answered"
    assert not found[CLUSTER, GOOD].version_info
    await client.answer(response)
    found = await seen(plane, lambda entries: entries[CLUSTER, GOOD].config_status == SYNCED)
    assert found[CLUSTER, GOOD].version_info == {r.name: r.version for r in response.resources}[GOOD]

    # While one change is on its way the next one is not sent.
    plane.holder.publish(kit.plan(kit.pool(GOOD, health_path="/one"), serve=GOOD))
    response = await client.read()
    plane.holder.publish(kit.plan(kit.pool(GOOD, health_path="/one"), kit.pool(NEW), serve=GOOD))
    found = await seen(plane, lambda entries: (CLUSTER, NEW) in entries)
    assert (found[CLUSTER, GOOD].config_status, found[CLUSTER, NEW].config_status) == (STALE, NOT_SENT)
    old = found[CLUSTER, GOOD].version_info
    assert old, "what it holds is shown while the next version is on its way"
    await client.answer(response, error=f"{GOOD}: no thanks")
    found = await seen(plane, lambda entries: entries[CLUSTER, GOOD].config_status == ERROR)
    assert found[CLUSTER, GOOD].error_state.details == f"{GOOD}: no thanks"
    assert found[CLUSTER, GOOD].version_info == old
    await client.close()
    await eventually(lambda: not plane.xds.streams())
    assert not (await fetch(plane.channel)).config, "only connected clients are told"


async def test_a_removal_that_waits_is_not_sent(plane: Any, kit: Any) -> None:
    plane.holder.publish(kit.plan(kit.pool(GOOD), kit.pool(NEW), serve=GOOD))
    client = Client(plane, "plain-1")
    for type_url in (CLUSTER, LISTENER, ROUTE, ENDPOINT):
        await client.subscribe(type_url)
    await eventually(lambda: [len(stream.session.channels) for stream in plane.xds.streams()] == [4])
    await client.acknowledge_until(lambda: plane.xds.convergence("default/gw").done)
    await seen(plane, lambda entries: {e.config_status for e in entries.values()} == {SYNCED})
    plane.holder.publish(kit.plan(kit.pool(NEW), serve=NEW))
    response = await client.read()
    assert response.type_url == ROUTE, "the route leaves the cluster first"
    found = await seen(plane, lambda entries: entries[ROUTE, "default/gw/http"].config_status == STALE)
    assert found[CLUSTER, GOOD].config_status == NOT_SENT
    await client.answer(response)
    response = await client.read()
    assert list(response.removed_resources) == [GOOD]
    found = await seen(plane, lambda entries: entries[CLUSTER, GOOD].config_status == STALE)
    await client.answer(response)
    await seen(plane, lambda entries: (CLUSTER, GOOD) not in entries)
    await client.close()


async def test_what_is_asked_for_is_answered(plane: Any, kit: Any) -> None:
    plane.holder.publish(kit.plan(kit.pool(GOOD), serve=GOOD))
    clients = [Client(plane, f"node-{n}", site=site) for n, site in ((1, "east"), (2, "west"), (3, "west"))]
    for client in clients:
        await client.subscribe(CLUSTER)
        await client.answer(await client.read())

    async def names(*matchers: Any) -> list[str]:
        return [c.node.id for c in (await fetch(plane.channel, node_matchers=list(matchers))).config]

    await eventually(lambda: len(plane.xds.streams()) == 3)
    assert await names() == ["node-1", "node-2", "node-3"]
    west = {"path": [{"key": "site"}], "value": {"string_match": {"exact": "west"}}}
    assert await names({"node_metadatas": [west]}) == ["node-2", "node-3"]
    third = {"node_id": {"suffix": "-3"}}
    assert await names(third) == ["node-3"]
    assert await names(third, {"node_id": {"exact": "node-1"}}) == ["node-1", "node-3"], "one of them"
    assert await names({"node_id": {"exact": "node-1"}, "node_metadatas": [west]}) == [], "all parts of one"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await names(third, {"node_id": {"safe_regex": {"regex": "(a+)+$"}}})
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    (bare, *_) = (await fetch(plane.channel, exclude_resource_contents=True)).config
    assert bare.generic_xds_configs
    assert all(e.version_info and not e.HasField("xds_config") for e in bare.generic_xds_configs)
    for client in clients:
        await client.close()


async def test_the_streamed_form_answers_each_request(plane: Any, kit: Any) -> None:
    plane.holder.publish(kit.plan(kit.pool(GOOD), serve=GOOD))
    client = Client(plane, "node-1")
    await client.subscribe(CLUSTER)
    await client.answer(await client.read())
    call: Any = plane.channel.stream_stream(
        "/envoy.service.status.v3.ClientStatusDiscoveryService/StreamClientStatus",
        request_serializer=csds_pb2.ClientStatusRequest.SerializeToString,
        response_deserializer=csds_pb2.ClientStatusResponse.FromString,
    )()
    for _ in range(2):
        await call.write(csds_pb2.ClientStatusRequest())
        assert [config.node.id for config in (await call.read()).config] == ["node-1"]
    nobody = json_format.ParseDict({"node_matchers": [{"node_id": {"exact": "x"}}]}, csds_pb2.ClientStatusRequest())
    await call.write(nobody)
    assert not (await call.read()).config
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    await client.close()


async def test_an_answer_that_is_too_large_says_how_to_ask(plane: Any, kit: Any) -> None:
    plane.holder.publish(kit.plan(kit.pool(GOOD), serve=GOOD))
    server = grpc.aio.server()
    ClientStatus(plane.xds.streams, limit_bytes=1_000).add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = Client(plane, "node-1")
    await client.subscribe(CLUSTER)
    await client.answer(await client.read())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await fetch(channel)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "exclude_resource_contents" in (refused.value.details() or "")
        assert (await fetch(channel, exclude_resource_contents=True)).config
    await client.close()
    await server.stop(None)


# matchers

METADATA = {"site": "east", "weight": 3, "spot": True, "none": None, "tags": ["a", "b"], "deep": {"er": "x"}}


def value(path: str, **match: Any) -> dict[str, Any]:
    return {"node_metadatas": [{"path": [{"key": key} for key in path.split(".")], "value": match}]}


@pytest.mark.parametrize(
    ("matcher", "fits"),
    [
        ({"node_id": {"exact": "Node-1"}}, True),
        ({"node_id": {"exact": "node-1"}}, False),
        ({"node_id": {"exact": "node-1", "ignore_case": True}}, True),
        ({"node_id": {"prefix": "Node"}}, True),
        ({"node_id": {"contains": "de-"}}, True),
        ({"node_id": {"suffix": "2"}}, False),
        (value("site", string_match={"exact": "east"}), True),
        (value("weight", string_match={"exact": ""}), False),
        (value("weight", double_match={"exact": 3}), True),
        (value("weight", double_match={"range": {"start": 1, "end": 3}}), False),
        (value("weight", double_match={"range": {"start": 3, "end": 4}}), True),
        (value("site", double_match={"exact": 0}), False),
        (value("spot", bool_match=True), True),
        (value("spot", bool_match=False), False),
        (value("none", null_match={}), True),
        (value("site", null_match={}), False),
        (value("site", present_match=True), True),
        (value("absent", present_match=True), False),
        (value("tags", list_match={"one_of": {"string_match": {"exact": "b"}}}), True),
        (value("tags", list_match={"one_of": {"string_match": {"exact": "c"}}}), False),
        (value("site", list_match={"one_of": {"present_match": True}}), False),
        (value("deep.er", string_match={"exact": "x"}), True),
        (value("site.er", string_match={"exact": "x"}), False),
        (value("site", or_match={"value_matchers": [{"bool_match": True}, {"string_match": {"prefix": "ea"}}]}), True),
    ],
    ids=str,
)
def test_node_matchers(matcher: dict[str, Any], fits: bool) -> None:
    node = base_pb2.Node(id="Node-1")
    node.metadata.update(METADATA)
    assert matches_any(node, [json_format.ParseDict(matcher, node_pb2.NodeMatcher())]) is fits


@pytest.mark.parametrize(
    "matcher",
    [
        {"node_id": {"safe_regex": {"regex": ".*"}}},
        {"node_id": {}},
        value("site", string_match={"safe_regex": {"regex": ".*"}}),
        value("site"),
    ],
    ids=str,
)
def test_matchers_that_are_not_supported_are_told(matcher: dict[str, Any]) -> None:
    node = base_pb2.Node(id="node")
    node.metadata.update(METADATA)
    everybody = node_pb2.NodeMatcher()
    with pytest.raises(PeerError):
        matches_any(node, [everybody, json_format.ParseDict(matcher, node_pb2.NodeMatcher())])
