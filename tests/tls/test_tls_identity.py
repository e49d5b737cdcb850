"""Which names in a certificate say what, and what their bearers may call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from pointsman.app.identity import SERVICES, Caller, Guard, Identity, identity
from pointsman.app.trial_certificates import SERVER_NAME, TrialCa
from pointsman.extproc.peers import GOSSIP_SERVICE
from pointsman.xds.server import AGGREGATED
from pointsman.xds.server import SERVICES as XDS_SERVICES
from pointsman.xds.views import NodeIdentity

HEALTH = "grpc.health.v1.Health"
ADS = AGGREGATED[0]
CSDS = "envoy.service.status.v3.ClientStatusDiscoveryService"
NEW = "some.Service"
"""What the guard has never heard of."""
EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"


@pytest.mark.parametrize(
    ("uri", "dns", "gateways", "operator"),
    [
        ("spiffe://td/ns/default/gateway/main", "", {"default/main"}, False),
        ("", "main.default.gateway.pointsman", {"default/main"}, False),
        ("", "MAIN.Default.gateway.POINTSMAN", {"default/main"}, False),
        ("", "a.b.default.gateway.pointsman", {"default/a.b"}, False),
        ("spiffe://td/ns/a/gateway/b", "d.c.gateway.pointsman", {"a/b", "c/d"}, False),
        ("spiffe://td/operator/anna", "", set(), True),
        ("", "anna.operator.pointsman", set(), True),
        ("", "*.default.gateway.pointsman", set(), False),
        ("", "default.gateway.pointsman", set(), False),
        ("", "main.default.gateway.pointsman.example.org", set(), False),
        ("", "spiffe://td/ns/default/gateway/main", set(), False),
        ("spiffe://td/ns/default/gateway/main/more", "", set(), False),
        ("spiffe://td/x/ns/default/gateway/main", "", set(), False),
        ("spiffe://td/ns/default/sa/main", "", set(), False),
        ("https://td/ns/default/gateway/main", "", set(), False),
        ("spiffe://td/ns/default/gateway/main\n", "", set(), False),
        ("spiffe://td/ns/default/gateway/*", "", set(), False),
        ("", "", set(), False),
    ],
)
def test_names(uri: str, dns: str, gateways: set[str], operator: bool) -> None:
    found = identity({"peer_uri": [uri.encode()], "peer_dns": [dns.encode()], "x509_common_name": [b"default/main"]})
    assert found == Identity(gateways=frozenset(gateways), operator=operator)


def test_only_the_own_trust_domain_counts() -> None:
    names = {"peer_uri": [b"spiffe://ours/ns/a/gateway/b", b"spiffe://theirs/ns/c/gateway/d"]}
    assert identity(names, trust_domain="ours").gateways == {"a/b"}
    assert identity(names).gateways == {"a/b", "c/d"}


@given(st.dictionaries(st.sampled_from(["peer_uri", "peer_dns", "x509_subject"]), st.lists(st.binary(max_size=300))))
def test_whatever_a_certificate_holds_is_read(names: dict[str, list[bytes]]) -> None:
    found = identity(names)
    assert all(name.count("/") == 1 for name in found.gateways)


def test_a_proxy_is_only_what_its_certificate_names() -> None:
    mine = frozenset({"default/mine"})
    good = NodeIdentity(id="proxy-1", cluster="default/mine", allowed=mine)
    assert (good.proven(), good.names()) == (True, ("default/mine",))
    # No second claim opens another gateway's configuration.
    sly = NodeIdentity(id="default/other", cluster="default/mine", allowed=mine)
    assert (sly.proven(), sly.names()) == (True, ("default/mine",))
    sly = NodeIdentity(id="x", cluster="default/mine", metadata={"gateway": "default/other"}, allowed=mine)
    assert not sly.proven()
    assert not NodeIdentity(id="default/other", cluster="default/mine2", allowed=mine).proven()
    assert not NodeIdentity(id="x", cluster="default/mine", allowed=frozenset()).proven()
    open_to_all = NodeIdentity(id="x", cluster="default/other")
    assert (open_to_all.proven(), open_to_all.names()) == (True, ("default/other", "x"))


def test_every_xds_service_is_for_gateways() -> None:
    for service, _ in [*XDS_SERVICES.values(), AGGREGATED]:
        assert SERVICES[service] is Caller.GATEWAY


class Server:
    """All kinds of methods on one server behind a guard."""

    def __init__(self, ca: TrialCa) -> None:
        self.ca = ca
        self.registry = CollectorRegistry()
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        guard = Guard(self.registry)
        certificate, key = self.ca.server()
        credentials = grpc.ssl_server_credentials(
            [(key.read_bytes(), certificate.read_bytes())], self.ca.certificate.read_bytes(), require_client_auth=True
        )
        server = grpc.aio.server(interceptors=[guard])
        for service in (HEALTH, ADS, CSDS, EXT_PROC, NEW, GOSSIP_SERVICE):
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers()),))
        self.port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)

    async def call(self, pair: tuple[Path, Path], service: str, shape: str = "unary_unary") -> list[bytes]:
        certificate, key = pair
        credentials = grpc.ssl_channel_credentials(
            self.ca.certificate.read_bytes(), key.read_bytes(), certificate.read_bytes()
        )
        options = [("grpc.ssl_target_name_override", SERVER_NAME)]
        async with grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options) as channel:
            method: Any = getattr(channel, shape)(f"/{service}/{shape}")
            call = method(iter([b"x"]) if shape.startswith("stream") else b"x", timeout=60)
            return [answer async for answer in call] if shape.endswith("stream") else [await call]


def handlers() -> dict[str, Any]:
    async def one(request: Any, context: Any) -> bytes:
        return b"one"

    async def many(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async def written(request: Any, context: Any) -> None:
        await context.write(b"one")
        await context.write(b"two")

    return {
        "unary_unary": grpc.unary_unary_rpc_method_handler(one),
        "stream_unary": grpc.stream_unary_rpc_method_handler(one),
        "unary_stream": grpc.unary_stream_rpc_method_handler(many),
        "stream_stream": grpc.stream_stream_rpc_method_handler(written),
    }


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Server(TrialCa(tmp_path)).running() as running:
        yield running


@pytest.mark.parametrize("shape", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
async def test_each_service_is_for_its_callers(server: Server, shape: str) -> None:
    pairs = {
        "gateway": server.ca.gateway(["default/main"], trust_domain="td"),
        "operator": server.ca.operator("anna", trust_domain="td"),
        "nobody": server.ca.client("nobody", "nobody.example.org"),
        "control plane": server.ca.server(name="other"),
    }
    allowed = {
        HEALTH: {"gateway", "operator", "nobody", "control plane"},
        ADS: {"gateway"},
        EXT_PROC: {"gateway"},
        GOSSIP_SERVICE: {"control plane"},
        CSDS: {"operator"},
        NEW: {"operator"},
    }
    for service, who in allowed.items():
        for name, pair in pairs.items():
            if name in who:
                assert (
                    await server.call(pair, service, shape) == [b"one", b"two"][: 2 if shape.endswith("stream") else 1]
                )
                continue
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await server.call(pair, service, shape)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    refused = {
        service: server.registry.get_sample_value("pointsman_tls_refused_calls_total", {"service": service})
        for service in (ADS, CSDS, EXT_PROC, GOSSIP_SERVICE)
    }
    assert refused == {ADS: 3, EXT_PROC: 3, CSDS: 3, GOSSIP_SERVICE: 3}
