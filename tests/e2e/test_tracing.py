"""One trace from the client through gateway and picker to the model server, with a real Envoy; a dead collector."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pointsman.app import control_plane
from pointsman.app.control_plane import ControlPlane
from pointsman.app.control_plane_options import ControlPlaneOptions
from pointsman.app.envoy import start_envoy
from pointsman.app.tracing_options import TracingOptions
from pointsman.core.model import Locality
from pointsman.xds import bootstrap
from support.collector import Collector, Received, running_collector
from support.fleet import Layout, Loopback, Manifests, backend
from support.load import chat_body
from support.waiting import eventually

pytestmark = pytest.mark.e2e

PROMPT = "a secret about the junction at Clapham"
SERVER, CLIENT = 2, 3


class Upstream:
    """A model server that keeps the traceparent of each request."""

    def __init__(self) -> None:
        self.parents: list[str] = []

    async def serve(self, address: str, port: int, stack: AsyncExitStack) -> None:
        application = web.Application()
        application.add_routes([web.get("/health", self._health), web.post("/v1/chat/completions", self._answer)])
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, address, port).start()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _answer(self, request: web.Request) -> web.Response:
        self.parents.append(request.headers.get("traceparent", ""))
        return web.json_response({})


async def test_one_trace_from_client_to_model_server_and_one_of_each_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy test machine is not a slow picker.
    monkeypatch.setattr(control_plane, "BuildOptions", partial(control_plane.BuildOptions, message_timeout_ms=5_000))
    manifests = Manifests(tmp_path / "config", Loopback())
    manifests.write(Layout(stable={"us-east": 1}, canary={}))
    upstream = Upstream()
    async with AsyncExitStack() as stack:
        await upstream.serve(*manifests.endpoint("stable-us-east-0"), stack)
        collecting = AsyncExitStack()
        stack.push_async_callback(collecting.aclose)
        collector = await collecting.enter_async_context(running_collector())
        host, _, port = collector.target.rpartition(":")
        plane = await stack.enter_async_context(
            ControlPlane(
                ControlPlaneOptions(
                    config=manifests.folder,
                    state=tmp_path / "state",
                    grpc_port=0,
                    admin_port=0,
                    tracing=TracingOptions(host=host, port=int(port), ratio=0.0),
                )
            )
        )
        config = bootstrap("node-1", "default/main", Locality(), [("127.0.0.1", plane.grpc_port)], "127.0.0.1", 0)
        envoy = await start_envoy(config, tmp_path / "envoy", concurrency=1)
        stack.push_async_callback(envoy.stop)
        await envoy.wait_ready(20)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        url = f"http://{manifests.gateway_address}:{manifests.http_port}/v1/chat/completions"

        async def ask(traceparent: str = "") -> int:
            headers = {"traceparent": traceparent, "x-user-id": "mallory"} if traceparent else {}
            async with session.post(f"{url}?key=hush-hush", json=chat_body(PROMPT), headers=headers) as response:
                return response.status

        await eventually(lambda: _is_ok(ask))
        traces = [secrets.token_hex(16) for _ in range(3)]  # Envoy sends five spans and more at once
        client = secrets.token_hex(8)
        unsampled = secrets.token_hex(16)
        assert await ask(f"00-{unsampled}-{client}-00") == 200
        for trace in traces:
            assert await ask(f"00-{trace}-{client}-01") == 200
        for trace, parent in zip(traces, upstream.parents[-3:], strict=True):
            await _seen(collector, trace)
            _is_one_trace(collector.spans(trace), client, parent)
        assert upstream.parents[-4].startswith(f"00-{unsampled}-")  # handed on, and not more
        requests = {span.trace for span in collector.spans() if span.service != "pointsman-control-plane"}
        assert requests == set(traces)  # nothing that a client did not ask for, at a ratio of 0

        manifests.write(Layout(stable={"us-east": 1}, canary={}, rules=[{"backendRefs": [backend("stable")]}]))
        await eventually(lambda: any(span.name == "configuration change" for span in collector.spans()))
        _is_change([span for span in collector.spans() if span.service == "pointsman-control-plane"])

        for data in collector.raw:
            assert not any(secret in data for secret in (PROMPT.encode(), b"mallory", b"hush-hush"))

        await collecting.aclose()
        assert [await ask(f"00-{traces[0]}-{client}-01") for _ in range(5)] == [200] * 5


async def _is_ok(ask: Any) -> bool:
    try:
        return await ask() == 200
    except aiohttp.ClientError:
        return False


async def _seen(collector: Collector, trace: str) -> None:
    await eventually(lambda: len(collector.spans(trace)) == 4, what="three spans of the gateway and one of the picker")


def _is_one_trace(spans: list[Received], client: str, upstream_parent: str) -> None:
    by_parent = {(span.parent, span.name.split()[0]): span for span in spans}
    gateway = by_parent[client, "ingress"]
    assert (gateway.service, gateway.kind) == ("pointsman-gateway", SERVER)
    to_picker, to_endpoint = by_parent[gateway.id, "async"], by_parent[gateway.id, "router"]
    assert to_picker.kind == to_endpoint.kind == CLIENT
    pick = by_parent[to_picker.id, "pick"]
    assert (pick.service, pick.kind, pick.error) == ("pointsman-picker", SERVER, "")
    assert 0 < pick.end_ns - pick.start_ns < 10_000_000_000
    assert upstream_parent == f"00-{gateway.trace}-{to_endpoint.id}-01"
    found = pick.attributes
    assert (found["pointsman.pool"], found["pointsman.outcome"]) == ("default/stable", "picked")
    assert (found["pointsman.policy"], found["pointsman.candidates"]) == ("joint", 1)
    assert found["pointsman.prompt_tokens"] > 0
    assert found["pointsman.cost_ms"] > 0
    for span in (gateway, to_endpoint):
        assert span.attributes["pointsman.pool"] == "default/stable"
        assert span.attributes["pointsman.site"] == "us-east"
        assert span.attributes["pointsman.endpoint"] == "stable-us-east-0"
        for same in ("pointsman.pick", "pointsman.rule", "pointsman.request_id"):
            assert span.attributes[same] == found[same]
    assert gateway.attributes["node_id"] == "node-1"
    assert gateway.attributes["url.path"] == "/v1/chat/completions"
    assert to_endpoint.attributes["upstream_address"] == found["pointsman.endpoint"]


def _is_change(spans: list[Received]) -> None:
    (root,) = [span for span in spans if span.name == "configuration change"]
    parts = {span.name: span for span in spans if span.trace == root.trace and span.id != root.id}
    assert list(parts) == ["read", "compile", "build", "push"]
    assert {span.parent for span in parts.values()} == {root.id}
    assert {span.error for span in (root, *parts.values())} == {""}
    push = parts["push"]
    assert push.attributes == {"pointsman.gateway": "default/main", "pointsman.node": "node-1"}
    assert root.start_ns == parts["read"].start_ns <= parts["read"].end_ns <= parts["compile"].start_ns
    assert parts["build"].end_ns == push.start_ns <= push.end_ns == root.end_ns
