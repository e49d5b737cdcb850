"""Load reports: from a real Envoy, from a plain gRPC client, and the table by itself."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from envoy.service.load_stats.v3 import lrs_pb2
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from pointsman.core.errors import PeerError
from pointsman.core.model import Locality
from pointsman.xds.services import Load, LoadReport, LoadReports, LoadTable, Place
from pointsman.xds.services.load import ROWS_PER_REPORT, LoadConversation, interval_for, read_report
from support.envoy import running_envoy
from support.waiting import eventually

POOL = "default/llama"


def stream_load_stats(channel: grpc.aio.Channel) -> Any:
    return channel.stream_stream(
        "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats",
        request_serializer=lrs_pb2.LoadStatsRequest.SerializeToString,
        response_deserializer=lrs_pb2.LoadStatsResponse.FromString,
    )()


def request(node: str = "", gateway: str = "default/gw", **loads: tuple[int, int, int]) -> lrs_pb2.LoadStatsRequest:
    """`site=(succeeded, failed, in_progress)`, all of it at one endpoint of the site."""
    made = lrs_pb2.LoadStatsRequest()
    if node:
        made.node.id, made.node.cluster = node, gateway
    if not loads:
        return made
    cluster = made.cluster_stats.add(cluster_name=POOL)
    cluster.load_report_interval.FromMilliseconds(500)
    for number, (site, (succeeded, failed, running)) in enumerate(loads.items(), 1):
        locality = cluster.upstream_locality_stats.add()
        locality.locality.sub_zone = site
        endpoint = locality.upstream_endpoint_stats.add()
        endpoint.address.socket_address.address = f"10.0.0.{number}"
        endpoint.address.socket_address.port_value = 8000
        for stats in (locality, endpoint):
            stats.total_successful_requests, stats.total_error_requests = succeeded, failed
            stats.total_issued_requests, stats.total_requests_in_progress = succeeded + failed, running
    return made


# with a real Envoy


@pytest.mark.e2e
async def test_envoy_reports_each_locality_and_each_endpoint(plane: Any, kit: Any) -> None:
    async with kit.upstream("east-1", "east") as near, kit.upstream("west-1", "west") as far:
        plane.holder.publish(kit.plan(kit.pool(POOL, near.endpoint, far.endpoint), serve=POOL))
        heard: list[LoadReport] = []
        unsubscribe = plane.loads.subscribe(heard.append)
        async with running_envoy(plane.bootstrap()) as envoy:
            url = await kit.base_url(envoy)
            assert (await plane.xds.wait_acked("default/gw", 20, nodes=1)).done
            # What happens before Envoy knows what to report is not counted.
            await eventually(lambda: [node.reports for node in plane.loads.table.nodes()] > [1], what="first reports")
            assert await kit.ask(url, 20) == [200] * 20
            near.status = 500
            assert await kit.ask(url, 2) == [500, 500]

            def ended(site: str = "east") -> tuple[int, int]:
                totals = plane.loads.table.totals().get(("default/gw", POOL, site))
                return (totals.succeeded, totals.failed) if totals else (0, 0)

            await eventually(lambda: ended() == (20, 2), what="22 requests reported")
            assert ended("west") == (0, 0), "the second priority saw nothing"
            rows = {row.place.endpoint: row for row in plane.loads.table.rows("node-1") if row.place.cluster == POOL}
            assert set(rows) == {"", near.endpoint.key}
            for row in rows.values():
                assert (row.total.succeeded, row.total.failed, row.total.issued) == (20, 2, 22)
                assert (row.gateway, row.place.site, row.place.priority) == ("default/gw", "east", 0)
            # Each count was handed on once.
            counts = [load for report in heard for place, load in report.loads if place.endpoint == near.endpoint.key]
            assert (sum(c.succeeded for c in counts), sum(c.failed for c in counts)) == (20, 2)
            assert {(report.gateway, report.node) for report in heard} == {("default/gw", "node-1")}
            requests = plane.samples("pointsman_upstream_requests_total")
            assert requests["default/gw", POOL, "east", "succeeded"] == 20
            assert requests["default/gw", POOL, "east", "failed"] == 2
            assert plane.samples("pointsman_load_reporting_nodes") == {("default/gw",): 1}
            status = plane.loads.status()
            (load,) = [entry for entry in status["loads"] if entry["cluster"] == POOL]
            assert load["total"] == {"succeeded": 20, "failed": 2, "issued": 22}
            assert [entry["endpoint"] for entry in load["endpoints"]] == [near.endpoint.key]
            assert status["nodes"][0]["node"] == "node-1"
            unsubscribe()
            known = len(heard)
            reports = status["nodes"][0]["reports"]
            await eventually(
                lambda: plane.loads.table.nodes()[0].reports > reports, what="Envoy goes on without traffic"
            )
            assert len(heard) == known
        await eventually(lambda: not plane.loads.table.nodes(), what="the proxy is gone")
        assert plane.samples("pointsman_upstream_requests_total") == requests, "counters only grow"


# with a plain client


async def test_the_first_request_is_answered_with_what_to_report(plane: Any, kit: Any) -> None:
    plane.holder.publish(kit.plan(kit.pool(POOL), serve=POOL))
    call = stream_load_stats(plane.channel)
    await call.write(request("node-7"))
    answer = await call.read()
    assert answer.send_all_clusters
    assert answer.report_endpoint_granularity
    assert answer.load_reporting_interval.ToMilliseconds() == 200
    await call.write(request(east=(5, 1, 3), west=(2, 0, 0)))  # only the first request must name the node
    await eventually(lambda: len(list(plane.loads.table.rows())) == 4)
    assert plane.samples("pointsman_upstream_requests_in_progress") == {
        ("default/gw", POOL, "east"): 3,
        ("default/gw", POOL, "west"): 0,
    }
    await call.write(request(west=(1, 0, 1)))
    await eventually(lambda: plane.samples("pointsman_upstream_requests_in_progress")["default/gw", POOL, "west"] == 1)
    assert plane.samples("pointsman_upstream_requests_in_progress")["default/gw", POOL, "east"] == 0, "not mentioned"
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    await eventually(lambda: not list(plane.loads.table.rows()))


async def test_a_proxy_that_reconnects_is_not_forgotten_with_its_old_stream(plane: Any) -> None:
    first, second = stream_load_stats(plane.channel), stream_load_stats(plane.channel)
    for call in (first, second):
        await call.write(request("node-7"))
        await call.read()
    await second.write(request(east=(1, 0, 0)))
    await eventually(plane.loads.table.nodes)
    await first.done_writing()
    assert await first.read() is grpc.aio.EOF
    assert [node.node for node in plane.loads.table.nodes()] == ["node-7"]
    await second.done_writing()
    assert await second.read() is grpc.aio.EOF
    await eventually(lambda: not plane.loads.table.nodes())


async def test_a_proxy_of_no_gateway_counts_under_none(plane: Any) -> None:
    call = stream_load_stats(plane.channel)
    await call.write(request("stranger", "nobody/knows"))
    await call.read()
    await call.write(request(east=(1, 0, 0)))
    await eventually(lambda: ("", POOL, "east") in plane.loads.table.totals())
    call.cancel()


async def test_a_stream_that_names_no_node_is_refused(plane: Any) -> None:
    call = stream_load_stats(plane.channel)
    await call.write(request(east=(1, 0, 0)))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not plane.loads.table.nodes()


async def test_a_proxy_reports_only_for_the_gateways_that_its_certificate_names() -> None:
    loads = LoadReports(lambda identity: identity.names()[0], CollectorRegistry(), allowed=lambda _: frozenset({"a/b"}))
    server = grpc.aio.server()
    loads.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = stream_load_stats(channel)
        await call.write(request("node-1", "default/gw"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        call = stream_load_stats(channel)
        await call.write(request("node-1", "a/b"))
        await call.read()
        await call.write(request(east=(1, 0, 0)))
        await eventually(loads.table.nodes)
        assert [node.gateway for node in loads.table.nodes()] == ["a/b"]
    await server.stop(None)


# pure


def test_a_conversation_answers_once() -> None:
    conversation = LoadConversation(1.0)
    with pytest.raises(PeerError):
        conversation.receive(request())
    assert conversation.receive(request("node")) is not None
    assert conversation.receive(request("node")) is None
    assert conversation.receive(request()) is None


def test_large_fleets_report_less_often() -> None:
    assert [interval_for(nodes, 1.0) for nodes in (1, 100, 101, 1_000)] == [1.0, 1.0, 2.0, 10.0]


def test_reading_a_report_is_bounded() -> None:
    huge = lrs_pb2.LoadStatsRequest()
    locality = huge.cluster_stats.add(cluster_name=POOL).upstream_locality_stats.add()
    for number in range(ROWS_PER_REPORT + 5):
        locality.upstream_endpoint_stats.add().address.socket_address.address = f"10.0.{number >> 8}.{number & 255}"
    report = read_report(huge, gateway="g", node="n")
    assert report.cut
    assert len(report.loads) == ROWS_PER_REPORT
    assert report.loads[0][0].endpoint == ""


def test_addresses_are_the_keys_of_endpoints() -> None:
    made = request("n", east=(1, 0, 0))
    stats = made.cluster_stats[0].upstream_locality_stats[0].upstream_endpoint_stats
    stats[0].address.socket_address.address = "fd00::1"
    stats.add().address.pipe.path = "socket"
    places = [place for place, _ in read_report(made, gateway="g", node="n").loads]
    assert [place.endpoint for place in places] == ["", "[fd00::1]:8000"]


def place(endpoint: str = "", site: str = "east", cluster: str = POOL) -> Place:
    return Place(cluster=cluster, locality=Locality(sub_zone=site), endpoint=endpoint)


def report(node: str, *loads: tuple[Place, Load], gateway: str = "g") -> LoadReport:
    return LoadReport(gateway=gateway, node=node, interval_s=1.0, loads=loads)


def test_one_proxy_never_pushes_out_the_rows_of_another() -> None:
    table = LoadTable(rows_kept=4)
    table.take(report("quiet", (place(), Load(issued=1)), (place("a:1"), Load(issued=1))), 0.0)
    for number in range(10):
        table.take(report("loud", (place(f"b:{number}"), Load(issued=1))), 1.0)
    assert [row.place.endpoint for row in table.rows("quiet")] == ["", "a:1"]
    assert [row.place.endpoint for row in table.rows("loud")] == ["b:8", "b:9"]
    assert table.evicted == 8


def test_label_values_are_bounded() -> None:
    table = LoadTable(series_kept=2)
    for number in range(5):
        load = Load(succeeded=1, in_progress=1)
        table.take(report("n", (place(cluster=f"c{number}"), load)), 0.0)
    assert set(table.totals()) == {("g", "c0", "east"), ("g", "c1", "east"), ("other", "other", "other")}
    assert table.totals()["other", "other", "other"].succeeded == 3
    assert table.in_progress() == {("g", "c0", "east"): 0, ("g", "c1", "east"): 0, ("other", "other", "other"): 1}


def test_a_proxy_that_changes_its_gateway_starts_anew() -> None:
    table = LoadTable()
    table.take(report("n", (place(), Load(succeeded=1))), 0.0)
    table.take(report("n", (place(), Load(succeeded=2)), gateway="h"), 1.0)
    assert [(row.gateway, row.total.succeeded) for row in table.rows()] == [("h", 2)]
    assert table.totals()["g", POOL, "east"].succeeded == 1


def test_drops_are_counted_per_cluster() -> None:
    table = LoadTable()
    table.take(LoadReport(gateway="g", node="n", interval_s=1.0, dropped=((POOL, 4),)), 0.0)
    assert table.totals()["g", POOL, ""].dropped == 4


counts = st.builds(Load, succeeded=st.integers(0, 9), failed=st.integers(0, 9), in_progress=st.integers(0, 9))
places = st.builds(place, endpoint=st.sampled_from(["", "a:1", "a:2"]), site=st.sampled_from(["east", "west"]))
loads = st.dictionaries(places, counts, max_size=4).map(lambda found: tuple(found.items()))
steps = st.lists(st.tuples(st.sampled_from(["n", "m"]), loads | st.none()), max_size=20)


@given(steps)
def test_totals_are_the_sum_of_all_reports_and_rows_of_those_since_the_proxy_came(script: Any) -> None:
    table = LoadTable()
    overall: dict[str, int] = {}
    since: dict[tuple[str, Place], int] = {}
    latest: dict[tuple[str, Place], Load] = {}
    for node, found in script:
        since_node = {key: value for key, value in since.items() if key[0] != node}
        latest = {key: value for key, value in latest.items() if key[0] != node}
        if found is None:
            table.forget(node)
            since = since_node
            continue
        table.take(report(node, *found), 0.0)
        for where, load in found:
            since[node, where] = since.get((node, where), 0) + load.succeeded
            latest[node, where] = load
            if not where.endpoint:
                overall[where.site] = overall.get(where.site, 0) + load.succeeded
    assert {series[2]: totals.succeeded for series, totals in table.totals().items()} == overall
    assert {(row.node, row.place): row.total.succeeded for row in table.rows()} == since
    running = {(row.node, row.place): row.latest for row in table.rows() if row.latest != Load()}
    assert running == {key: load for key, load in latest.items() if load != Load()}
    assert all(row.total.in_progress == row.latest.in_progress for row in table.rows())
