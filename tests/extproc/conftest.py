"""A gateway for the picker's tests: a static Envoy in the one-message profile, small upstreams, the picker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from extproc.fleet import POOL, make_plan
from pointsman.core import wire
from pointsman.core.clock import SystemClock
from pointsman.core.model import Health
from pointsman.extproc import Feedback, Picker, add_services
from support.envoy import running_envoy

TYPE = "type.googleapis.com/envoy.extensions"
BUFFERS = ("pointsman.whole_body", "envoy.filters.http.buffer")  # before and behind ext_proc


class Upstream:
    """A model server in miniature. It says its name; streams wait for `first` before and for `gate` after the first
    chunk; `status` is that of its answers."""

    def __init__(self) -> None:
        self.key = ""
        self.received = 0
        self.bodies: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.first = asyncio.Event()
        self.first.set()
        self.status = 200
        app = web.Application(client_max_size=128 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)

    async def start(self) -> None:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.key = f"{host}:{port}"

    async def stop(self) -> None:
        self.gate.set()
        self.first.set()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.received += 1
        self.bodies.append(body)
        response = web.StreamResponse(
            status=self.status, headers={"x-served-by": self.key, "content-type": "text/event-stream"}
        )
        await response.prepare(request)
        await self.first.wait()
        await response.write(b"data: one\n\n")
        await self.gate.wait()
        await response.write(b"data: two\n\n")
        await response.write_eof()
        return response


class Recorder(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Keeps the bytes of every message that reaches the server, by method."""

    def __init__(self) -> None:
        self.messages: dict[str, list[bytes]] = {"Process": [], "StreamAccessLogs": []}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        kept = self.messages[details.method.rsplit("/", 1)[1]]
        decode = handler.request_deserializer

        def record(data: bytes) -> Any:
            kept.append(data)
            return decode(data)

        return handler._replace(request_deserializer=record)


def duplex_filter(picker: dict[str, Any]) -> dict[str, Any]:
    """ext_proc as other gateways use it: the Endpoint Picker Protocol, full duplex both ways, no attributes."""
    sent = {f"{side}_{part}_mode": "SEND" for side in ("request", "response") for part in ("header", "trailer")}
    duplex = {f"{side}_body_mode": "FULL_DUPLEX_STREAMED" for side in ("request", "response")}
    return {
        "@type": f"{TYPE}.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": picker,
        "processing_mode": {**sent, **duplex},
        "metadata_options": {
            "forwarding_namespaces": {"untyped": [wire.SUBSET_NAMESPACE, wire.LB_NAMESPACE]},
            "receiving_namespaces": {"untyped": [wire.LB_NAMESPACE]},
        },
    }


def bootstrap(
    upstreams: dict[str, list[str]], picker_port: int, *, duplex: bool = False, promise: bool = True
) -> dict[str, Any]:
    """A static Envoy in the one-message profile (ADR 0002); paths below /headers use the headers profile.

    `duplex`: a gateway that speaks the Endpoint Picker Protocol instead. `promise`: it says that one message is all.
    """

    def address(key: str) -> dict[str, Any]:
        host, port = key.rsplit(":", 1)
        return {"address": {"socket_address": {"address": host, "port_value": int(port)}}}

    picker = {"envoy_grpc": {"cluster_name": wire.PICKER_CLUSTER}}
    skip = {"response_header_mode": "SKIP", "request_trailer_mode": "SKIP", "response_trailer_mode": "SKIP"}
    single = [{"key": wire.PROFILE_HEADER, "value": wire.PROFILE_SINGLE}] if promise else []
    ext_proc = {
        "@type": f"{TYPE}.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {**picker, "initial_metadata": single},
        "failure_mode_allow": True,
        "message_timeout": "5s",  # a busy test machine is not a slow picker
        "processing_mode": {"request_header_mode": "SKIP", "request_body_mode": "BUFFERED", **skip},
        "request_attributes": list(wire.REQUEST_ATTRIBUTES),
        "metadata_options": {"receiving_namespaces": {"untyped": [wire.LB_NAMESPACE, wire.PICK_NAMESPACE]}},
    }
    buffer = {"@type": f"{TYPE}.filters.http.buffer.v3.Buffer", "max_request_bytes": wire.MAX_PROMPT_BYTES}
    route = {
        "cluster": POOL,
        "timeout": "0s",
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset-before-request,retriable-status-codes",
            "retriable_status_codes": [503],
            "num_retries": 2,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": f"{TYPE}.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
                }
            ],
            "host_selection_retry_max_attempts": 5,
        },
    }
    no_buffer = {"@type": f"{TYPE}.filters.http.buffer.v3.BufferPerRoute", "disabled": True}
    headers_profile = {
        "envoy.filters.http.ext_proc": {
            "@type": f"{TYPE}.filters.http.ext_proc.v3.ExtProcPerRoute",
            "overrides": {"processing_mode": {"request_header_mode": "SEND", "request_body_mode": "NONE", **skip}},
        },
        **dict.fromkeys(BUFFERS, no_buffer),
    }
    small = {"@type": f"{TYPE}.filters.http.buffer.v3.BufferPerRoute", "buffer": {"max_request_bytes": 65536}}
    small_buffer = dict.fromkeys(BUFFERS, small)
    failed_attempts = {
        "name": "envoy.access_loggers.http_grpc",
        "filter": {"response_flag_filter": {"flags": ["UF", "UC"]}},
        "typed_config": {
            "@type": f"{TYPE}.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            "common_config": {
                "log_name": wire.ALS_LOG_NAME,
                "transport_api_version": "V3",
                "grpc_service": picker,
                "buffer_size_bytes": 0,
            },
        },
    }
    manager = {
        "@type": f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "gateway",
        "access_log_options": {"access_log_flush_interval": "0.5s"},
        "access_log": [
            {
                "name": "envoy.access_loggers.http_grpc",
                "typed_config": {
                    "@type": f"{TYPE}.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
                    "common_config": {
                        "log_name": wire.ALS_LOG_NAME,
                        "transport_api_version": "V3",
                        "grpc_service": picker,
                        "buffer_flush_interval": "0.05s",
                        "custom_tags": [
                            {"tag": wire.TAG_PICK, "value": wire.PICK_FORMAT},
                            {"tag": wire.TAG_TTFT, "value": wire.TTFT_FORMAT},
                            {"tag": wire.TAG_ATTEMPTED, "value": wire.ATTEMPTED_FORMAT},
                        ],
                    },
                },
            }
        ],
        "route_config": {
            "name": "llm",
            "virtual_hosts": [
                {
                    "name": "llm",
                    "domains": ["*"],
                    "request_headers_to_remove": [wire.DESTINATION_KEY],
                    "routes": [
                        {"match": {"prefix": "/small"}, "route": route, "typed_per_filter_config": small_buffer},
                        {"match": {"prefix": "/headers"}, "route": route, "typed_per_filter_config": headers_profile},
                        {"match": {"prefix": "/"}, "route": route},
                    ],
                }
            ],
        },
        "http_filters": [
            *([] if duplex else [{"name": BUFFERS[0], "typed_config": buffer}]),
            {"name": "envoy.filters.http.ext_proc", "typed_config": duplex_filter(picker) if duplex else ext_proc},
            *([] if duplex else [{"name": BUFFERS[1], "typed_config": buffer}]),
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{TYPE}.filters.http.router.v3.Router", "upstream_log": [failed_attempts]},
            },
        ],
    }
    destination = [{"key": wire.DESTINATION_KEY}]
    override = {
        "@type": f"{TYPE}.load_balancing_policies.override_host.v3.OverrideHost",
        "override_host_sources": [{"metadata": {"key": wire.LB_NAMESPACE, "path": destination}}],
        "selected_host_key": {"key": wire.LB_NAMESPACE, "path": [{"key": wire.SERVED_KEY}]},
        "fallback_policy": {
            "policies": [
                {
                    "typed_extension_config": {
                        "name": "envoy.load_balancing_policies.round_robin",
                        "typed_config": {"@type": f"{TYPE}.load_balancing_policies.round_robin.v3.RoundRobin"},
                    }
                }
            ]
        },
    }
    http2 = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": f"{TYPE}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "gateway",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "envoy.filters.network.http_connection_manager",
                                    "typed_config": manager,
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": POOL,
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_balancing_policy": {
                        "policies": [
                            {
                                "typed_extension_config": {
                                    "name": "envoy.load_balancing_policies.override_host",
                                    "typed_config": override,
                                }
                            }
                        ]
                    },
                    "load_assignment": {
                        "cluster_name": POOL,
                        "policy": {"overprovisioning_factor": 100},
                        "endpoints": [
                            {
                                "locality": {"region": site},
                                "priority": priority,
                                "lb_endpoints": [{"endpoint": address(key)} for key in keys],
                            }
                            for priority, (site, keys) in enumerate(upstreams.items())
                        ],
                    },
                },
                {
                    "name": wire.PICKER_CLUSTER,
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": http2,
                    "load_assignment": {
                        "cluster_name": wire.PICKER_CLUSTER,
                        "endpoints": [{"lb_endpoints": [{"endpoint": address(f"127.0.0.1:{picker_port}")}]}],
                    },
                },
            ],
        }
    }


@dataclass
class Gateway:
    """What a test holds: a real Envoy in front of `near` (priority 0) and `far` (priority 1) upstreams."""

    url: str
    picker: Picker
    server: grpc.aio.Server
    recorder: Recorder
    registry: CollectorRegistry
    client: aiohttp.ClientSession
    near: list[Upstream] = field(default_factory=list)
    far: list[Upstream] = field(default_factory=list)
    listeners: list[Callable[[Feedback], None]] = field(default_factory=list)

    @property
    def endpoints(self) -> dict[str, list[str]]:
        return {"near": [u.key for u in self.near], "far": [u.key for u in self.far]}

    def only(self, *keys: str) -> None:
        """Let the picker (not Envoy) believe that all other endpoints drain."""
        every = [*self.endpoints["near"], *self.endpoints["far"]]
        self.picker.apply(make_plan(self.endpoints, health={k: Health.DRAINING for k in every if k not in keys}))

    async def post(self, path: str = "/v1/chat/completions", **options: Any) -> tuple[int, str, str]:
        """Status, the endpoint that served, and the body."""
        async with self.client.post(self.url + path, **options) as response:
            return response.status, response.headers.get("x-served-by", ""), await response.text()


@asynccontextmanager
async def _gateway(*, duplex: bool = False, promise: bool = True) -> AsyncIterator[Gateway]:
    async with AsyncExitStack() as stack:
        near, far = [Upstream(), Upstream()], [Upstream(), Upstream()]
        for upstream in (*near, *far):
            await upstream.start()
            stack.push_async_callback(upstream.stop)
        recorder, registry = Recorder(), CollectorRegistry()
        picker = Picker(SystemClock(), instance="test")
        server = grpc.aio.server(
            interceptors=(recorder,), options=(("grpc.max_receive_message_length", 64 * 1024 * 1024),)
        )
        listeners: list[Callable[[Feedback], None]] = []
        add_services(
            server,
            picker,
            registry,
            default_pool=POOL,
            on_feedback=lambda entry: [listener(entry) for listener in listeners] and None,
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        keys = {"near": [u.key for u in near], "far": [u.key for u in far]}
        picker.apply(make_plan(keys))
        envoy = await stack.enter_async_context(running_envoy(bootstrap(keys, port, duplex=duplex, promise=promise)))
        listener = (await envoy.listener_addresses())["gateway"]
        client = await stack.enter_async_context(aiohttp.ClientSession())
        yield Gateway(
            url=f"http://{listener}",
            picker=picker,
            server=server,
            recorder=recorder,
            registry=registry,
            client=client,
            near=near,
            far=far,
            listeners=listeners,
        )


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """A running gateway that fails open."""
    async with _gateway() as running:
        yield running


@pytest.fixture
async def plain_gateway() -> AsyncIterator[Gateway]:
    """A running gateway in the one-message profile that does not say so, as any Envoy may be configured."""
    async with _gateway(promise=False) as running:
        yield running


@pytest.fixture
async def duplex_gateway() -> AsyncIterator[Gateway]:
    """A running gateway that speaks the Endpoint Picker Protocol in full duplex."""
    async with _gateway(duplex=True) as running:
        yield running


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--rewrite` writes what the traces answer now into their files; read the diff before committing."""
    with contextlib.suppress(ValueError):  # another folder with traces has the same option
        parser.addoption("--rewrite", action="store_true", default=False, help="update the expected replies of traces")
