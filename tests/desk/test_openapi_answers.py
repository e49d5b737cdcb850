"""The admin API is what its description says: every route is in it, and every answer fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pointsman.app.control_plane import ControlPlane
from pointsman.app.control_plane_options import ControlPlaneOptions
from pointsman.extproc import PickRequest
from pointsman.extproc.request import read_body
from support.fleet import Layout, running_fleet
from support.load import chat_body
from support.openapi import answer_misfits, misfits
from support.waiting import eventually

EXAMPLES = Path(__file__).parents[2] / "examples"

READS = {
    "/api/v1/picks/{id}": "/api/v1/picks/{pick}",
    "/api/v1/weights/{rule}": "/api/v1/weights/chat",
    "/api/v1/rollouts/{namespace}/{name}": "/api/v1/rollouts/default/chat",
    "/api/v1/xds/resources/{namespace}/{name}": "/api/v1/xds/resources/{gateway}",
    "/page/{name}": "/page/main.js",
    "/api/v1/failover/{action}": "/api/v1/failover/freeze",
    "/api/v1/rollouts/{namespace}/{name}/{verb}": "/api/v1/rollouts/default/chat/pause",
}
"""Described path → one that has an answer."""


@dataclass
class Asked:
    """A running control plane and its description."""

    session: aiohttp.ClientSession
    url: str
    document: dict[str, Any]
    pick: str

    async def fits(self, path: str, method: str = "get", *, real: str = "", **more: Any) -> int:
        """Ask, and demand that the answer is as described; its status."""
        async with self.session.request(method, self.url + (real or path), **more) as response:
            text = await response.text()
            is_json = response.content_type == "application/json"
            described = self.document["paths"][path][method]["responses"].get(str(response.status), {})
            assert response.content_type in described.get("content", {response.content_type: 0}) or "page" in path
        wrong = answer_misfits(self.document, path, method, response.status, json.loads(text) if is_json else None)
        assert not wrong, f"{len(wrong)} misfits: {wrong[:8]}"
        return response.status


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    """One with a rollout and failover, without proxies."""
    shutil.copytree(EXAMPLES / "rollout", tmp_path / "config")
    options = ControlPlaneOptions(config=tmp_path / "config", state=tmp_path / "state", grpc_port=0, admin_port=0)
    async with ControlPlane(options) as found:
        yield found


@pytest.fixture
async def asked(plane: ControlPlane) -> AsyncIterator[Asked]:
    assert plane.holder.plan is not None
    body = read_body(json.dumps(chat_body("hello")).encode())
    made = plane.picker.pick(PickRequest(pool=plane.holder.plan.pools[0].name, body=body, request_id="r1"))
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{plane.admin_url}/api/v1/openapi.json") as response:
            document = await response.json()
        yield Asked(session, plane.admin_url, document, made.pick_id)


def real_path(path: str, asked: Asked, gateway: str = "default/main") -> str:
    return READS.get(path, path).replace("{pick}", asked.pick).replace("{gateway}", gateway)


async def test_every_read_fits_its_description(asked: Asked, plane: ControlPlane) -> None:
    assert plane.holder.plan is not None
    gateway = plane.holder.plan.gateways[0].name
    reads = [path for path, methods in asked.document["paths"].items() if "get" in methods]
    assert len(reads) >= 18
    await eventually(plane.status.ready, what="the control plane is ready")
    for path in reads:
        assert await asked.fits(path, real=real_path(path, asked, gateway)) == 200, path


async def test_writes_and_refusals_fit_their_description(asked: Asked) -> None:
    weights = {"json": {"weights": {"llama-v1": 1, "llama-v2": 1}, "force": True, "wait": True}}
    rule, verb = "/api/v1/weights/{rule}", "/api/v1/rollouts/{namespace}/{name}/{verb}"
    chat = "/api/v1/weights/chat"
    assert await asked.fits(verb, "post", real="/api/v1/rollouts/default/chat/pause", json={"reason": "x"}) == 200
    assert await asked.fits(rule, "put", real=chat, **weights) == 200
    assert await asked.fits(rule, "put", real=chat, json={"weights": {"nobody": 1}}) == 422
    assert await asked.fits(rule, "put", real=chat, json={}) == 400
    assert await asked.fits(rule, "put", real=chat, data=b"{}") == 415
    assert await asked.fits(rule, "put", real="/api/v1/weights/nothing", **weights) == 404
    assert await asked.fits(rule, "put", real=chat, headers={"origin": "http://evil.example"}, **weights) == 403
    assert await asked.fits(rule, "delete", real=f"{chat}?force=true") == 200
    assert await asked.fits(verb, "post", real="/api/v1/rollouts/default/chat/jump", json={}) == 404
    explain = {"host": "x", "path": "/v1/chat/completions", "body": json.dumps(chat_body("hi"))}
    assert await asked.fits("/api/v1/explain", "post", json=explain) == 200
    assert await asked.fits("/api/v1/explain", "post", json={"host": 1}) == 400
    assert await asked.fits("/api/v1/explain", "post", json={"gateway": "other"}) == 422
    assert await asked.fits("/api/v1/explain", "post", data=b"x") == 415
    for limit in ("0", 5_000 * "9"):
        assert await asked.fits("/api/v1/picks", real=f"/api/v1/picks?limit={limit}") == 400
    assert await asked.fits("/api/v1/picks/{id}", real="/api/v1/picks/unknown") == 404
    assert await asked.fits("/page/{name}", real="/page/nothing.js") == 404
    assert await asked.fits("/api/v1/xds/resources/{namespace}/{name}", real="/api/v1/xds/resources/a/b") == 404
    failover = "/api/v1/failover/{action}"
    assert (
        await asked.fits(failover, "post", real="/api/v1/failover/freeze", json={"reason": "test"}) == 409
    )  # one site
    assert await asked.fits(failover, "post", real="/api/v1/failover/freeze", json={}) == 400
    assert await asked.fits(failover, "post", real="/api/v1/failover/dance", json={}) == 404


async def test_every_route_is_described_and_nothing_else(asked: Asked, plane: ControlPlane) -> None:
    """Asked from outside: what is described answers, what is not is 404; and the references lead somewhere."""
    schemas = asked.document["components"]["schemas"]
    text = json.dumps(asked.document)
    used = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert used == schemas.keys(), "described and not used, or used and not described"
    for path, methods in asked.document["paths"].items():
        assert methods.keys() <= {"get", "put", "post", "delete"}
        async with asked.session.request("patch", asked.url + real_path(path, asked)) as response:
            assert response.status == 405
            allowed = {method.lower() for method in response.headers["allow"].split(",")}
        assert allowed - {"head"} == methods.keys(), path


@pytest.mark.e2e
async def test_with_a_gateway_the_answers_still_fit(tmp_path: Path) -> None:
    """What only a connected proxy brings: nodes, load reports, traffic, routes of picks."""
    async with running_fleet(tmp_path, Layout(stable={"us-east": 1})) as fleet:
        for _ in range(3):
            async with fleet.session.post(f"{fleet.url}/v1/chat/completions", json=chat_body("hello")) as response:
                pick = response.headers["x-request-id"]
        document = await fleet.get(f"{fleet.admin}/api/v1/openapi.json")
        asked = Asked(fleet.session, fleet.admin, document, pick)
        for path in ("status", "tree", "traffic", "picks", "picks/{id}", "xds/diff", "failover"):
            described = f"/api/v1/{path}"
            assert await asked.fits(described, real=real_path(described, asked)) == 200
        assert (await fleet.get(f"{fleet.admin}/api/v1/picks/{pick}"))["route"].startswith("HTTPRoute/default/chat/")


def test_the_validator_can_fail() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 1}}}
    assert list(misfits({"a": 1}, schema, {})) == []
    assert list(misfits({}, schema, {})) == ["answer.a is missing"]
    assert list(misfits({"a": True}, schema, {})) == ["answer.a: True is no integer"]
    assert list(misfits({"a": 0}, schema, {})) == ["answer.a: 0 is out of range"]
    assert list(misfits({"a": 1, "b": 2}, schema, {})) == ["answer.b is not described"]
    assert list(misfits([], schema, {})) == ["answer: [] is no object"]
