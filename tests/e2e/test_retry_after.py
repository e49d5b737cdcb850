"""What a replica asks for with Retry-After reaches the picker, by the access log of a real Envoy."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from pointsman.app.control_plane import ControlPlane
from pointsman.app.control_plane_options import ControlPlaneOptions
from pointsman.app.envoy import start_envoy
from pointsman.core.model import Locality
from pointsman.extproc.feedback import Feedback
from pointsman.xds import bootstrap
from support.fleet import Layout, Loopback, Manifests
from support.load import chat_body
from support.waiting import eventually

pytestmark = pytest.mark.e2e


async def _health(_: web.Request) -> web.Response:
    return web.Response()


async def _too_many(_: web.Request) -> web.Response:
    return web.json_response({"error": {}}, status=429, headers={"retry-after": "7"})


async def test_the_picker_hears_how_long_a_replica_wants_to_be_spared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = Manifests(tmp_path / "config", Loopback())
    manifests.write(Layout(stable={"us-east": 1}, canary={}))
    heard: list[Feedback] = []
    async with AsyncExitStack() as stack:
        application = web.Application()
        application.add_routes([web.get("/health", _health), web.post("/v1/chat/completions", _too_many)])
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, *manifests.endpoint("stable-us-east-0")).start()
        plane = ControlPlane(
            ControlPlaneOptions(config=manifests.folder, state=tmp_path / "state", grpc_port=0, admin_port=0)
        )
        learn = plane.picker.feedback

        def listen(entry: Feedback, *, forwarded: bool = False) -> object:
            heard.append(entry)
            return learn(entry, forwarded=forwarded)

        monkeypatch.setattr(plane.picker, "feedback", listen)
        await stack.enter_async_context(plane)
        config = bootstrap("n", "default/main", Locality(), [("127.0.0.1", plane.grpc_port)], "127.0.0.1", 0)
        envoy = await start_envoy(config, tmp_path / "envoy", concurrency=1)
        stack.push_async_callback(envoy.stop)
        await envoy.wait_ready(20)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        url = f"http://{manifests.gateway_address}:{manifests.http_port}/v1/chat/completions"

        async def refused() -> bool:
            async with session.post(url, json=chat_body("hello")) as response:
                return response.status == 429

        await eventually(refused)
        await eventually(lambda: any(entry.ended and entry.status == 429 for entry in heard))
    assert {entry.retry_after_s for entry in heard if entry.status == 429} == {7.0}
