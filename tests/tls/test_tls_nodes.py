"""The picker cluster: stand-bys by priority, and TLS with the files where each process keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2

from pointsman.app.stream_age import ENDLESS, StreamAge
from pointsman.core import wire
from pointsman.core.model import Gateway, Plan
from pointsman.xds import BuildOptions, GatewayTls
from pointsman.xds.node_tls import PLACES_KEPT, tls_of
from pointsman.xds.resources import CLUSTER
from pointsman.xds.session import Snapshot
from pointsman.xds.views import NodeIdentity, Views

SECURE = BuildOptions(picker_tls=GatewayTls(folder="/etc/pointsman"))


def views(options: BuildOptions = SECURE) -> Views:
    made = Views(options)
    made.update(Plan(gateways=(Gateway(name="default/main", site="here"),)))
    return made


def at(folder: str, name: str = "") -> NodeIdentity:
    metadata = {wire.TLS_FOLDER_KEY: folder, wire.SERVER_NAME_KEY: name}
    return NodeIdentity(id="proxy", cluster="default/main", metadata=metadata)


def picker(snapshot: Snapshot | None) -> cluster_pb2.Cluster:
    assert snapshot is not None
    return cluster_pb2.Cluster.FromString(snapshot.resources[CLUSTER][wire.PICKER_CLUSTER].body)


def tls(snapshot: Snapshot | None) -> tls_pb2.UpstreamTlsContext:
    context = tls_pb2.UpstreamTlsContext()
    assert picker(snapshot).transport_socket.typed_config.Unpack(context)
    return context


def folders(snapshot: Snapshot | None) -> set[str]:
    common = tls(snapshot).common_tls_context
    secrets = [*common.tls_certificate_sds_secret_configs, common.validation_context_sds_secret_config]
    assert [secret.name for secret in secrets] == [wire.GATEWAY_CERTIFICATE, wire.GATEWAY_TRUST]
    return {secret.sds_config.path_config_source.path.rpartition("/")[0] for secret in secrets}


def test_each_process_is_told_its_own_files() -> None:
    all_of = views()
    base = all_of.snapshot("default/main")
    here = all_of.snapshot_for("default/main", at("/srv/here/", "planes.example"))
    there = all_of.snapshot_for("default/main", at("/srv/there"))
    assert (folders(base), folders(here), folders(there)) == ({"/etc/pointsman"}, {"/srv/here"}, {"/srv/there"})
    assert (tls(base).sni, tls(here).sni, tls(there).sni) == ("", "planes.example", "")
    assert base is not None and here is not None
    assert here.generation == base.generation
    assert all(here.resources[kind] is base.resources[kind] for kind in base.resources if kind != CLUSTER)
    again = all_of.snapshot_for("default/main", at("/srv/here/", "planes.example"))
    assert again is not None
    assert again.resources[CLUSTER] is here.resources[CLUSTER], "streams see by identity that nothing changed"
    other_server = views().snapshot_for("default/main", at("/srv/here/", "planes.example"))
    assert other_server is not None
    assert (
        other_server.resources[CLUSTER][wire.PICKER_CLUSTER].version
        == here.resources[CLUSTER][wire.PICKER_CLUSTER].version
    )


@pytest.mark.parametrize("folder", ["", "relative", "/" + "x" * 5_000])
def test_a_process_that_says_nothing_usable_gets_the_default(folder: str) -> None:
    all_of = views()
    assert tls_of(at(folder).metadata) is None
    assert all_of.snapshot_for("default/main", at(folder)) is all_of.snapshot("default/main")


def test_without_tls_files_do_not_matter() -> None:
    all_of = views(BuildOptions())
    found = all_of.snapshot_for("default/main", at("/srv/here"))
    assert found is all_of.snapshot("default/main")
    assert not picker(found).HasField("transport_socket")
    assert all_of.snapshot_for("default/unknown", at("/srv/here")) is all_of.snapshot("default/unknown")


def test_a_client_that_invents_places_takes_no_memory() -> None:
    all_of = views()
    for number in range(PLACES_KEPT * 2):
        assert folders(all_of.snapshot_for("default/main", at(f"/srv/{number}"))) == {f"/srv/{number}"}
    assert len(all_of._node_tls._sets) == len(all_of._node_tls._pickers) == PLACES_KEPT


def test_stand_bys_are_priorities_in_order() -> None:
    options = BuildOptions(
        picker_address="10.0.0.1",
        picker_port=1,
        picker_standbys=(("10.0.0.2", 2), ("::1", 3)),
        picker_health_check=True,
    )
    found = picker(views(options).snapshot("default/main"))
    addresses = [
        (group.priority, group.lb_endpoints[0].endpoint.address.socket_address)
        for group in found.load_assignment.endpoints
    ]
    assert [(priority, a.address, a.port_value) for priority, a in addresses] == [
        (0, "10.0.0.1", 1),
        (1, "10.0.0.2", 2),
        (2, "::1", 3),
    ]
    assert found.type == cluster_pb2.Cluster.STATIC
    assert found.health_checks[0].HasField("grpc_health_check")
    assert found.outlier_detection.max_ejection_percent.value == 50
    alone = picker(views(BuildOptions()).snapshot("default/main"))
    assert not alone.HasField("outlier_detection"), "the only picker is never taken out"
    by_name = BuildOptions(picker_address="10.0.0.1", picker_standbys=(("picker.example.org", 2),))
    assert picker(views(by_name).snapshot("default/main")).type == cluster_pb2.Cluster.STRICT_DNS


class Endless:
    """A server with one stream of each kind; they wait for ever."""

    def __init__(self) -> None:
        self.ended = 0

    async def stream(self, request: Any, context: Any) -> None:
        try:
            while await context.read() is not grpc.aio.EOF:
                await context.write(b"told")
        finally:
            self.ended += 1

    async def generate(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[bytes]:
        try:
            async for _ in requests:
                yield b"told"
        finally:
            self.ended += 1

    async def broken(self, request: Any, context: Any) -> None:
        raise TimeoutError("a defect of the service, not its age")


@pytest.fixture
async def old_streams() -> AsyncIterator[tuple[Endless, grpc.aio.Channel]]:
    service = Endless()
    server = grpc.aio.server(interceptors=[StreamAge(1.0)])
    methods: dict[str, dict[str, Any]] = {"other": {"Stream": grpc.stream_stream_rpc_method_handler(service.stream)}}
    for method in sorted(ENDLESS):
        name, _, short = method.strip("/").partition("/")
        kinds = {"StreamAccessLogs": service.broken, "StreamLoadStats": service.generate}
        methods.setdefault(name, {})[short] = grpc.stream_stream_rpc_method_handler(kinds.get(short, service.stream))
    server.add_generic_rpc_handlers(tuple(grpc.method_handlers_generic_handler(*item) for item in methods.items()))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield service, channel
    await server.stop(None)


async def test_old_streams_are_ended_and_others_are_not(old_streams: tuple[Endless, grpc.aio.Channel]) -> None:
    service, channel = old_streams
    other = channel.stream_stream("/other/Stream")()
    await other.write(b"x")
    assert await other.read() == b"told"

    async def grows_old(method: str) -> None:
        call = channel.stream_stream(method)()
        await call.write(b"x")
        if method.endswith("StreamAccessLogs"):
            assert await call.code() is grpc.StatusCode.UNKNOWN, "an error of the service stays one"
            return
        assert await call.read() == b"told"
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert "open another" in await call.details()

    await asyncio.gather(*(grows_old(method) for method in ENDLESS))
    assert service.ended == 3
    await other.write(b"x")
    assert await other.read() == b"told"
    await other.done_writing()
    assert await other.code() is grpc.StatusCode.OK
