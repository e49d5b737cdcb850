"""The admin API for weights: statuses, versions, and that its description describes it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from pointsman.app.admin import admin_application
from pointsman.app.admin_rollouts import add_rollout_routes
from pointsman.app.admin_write import ClearQuery, WeightsBody, add_writing_routes
from pointsman.app.cli import main
from pointsman.app.commands.weights import parse_weights
from pointsman.app.openapi import document
from weights.test_weight_changes import RULE, Fleet

Client = TestClient[web.Request, web.Application]
TOKEN = "0123456789abcdef0123"


class NoStatus:
    def ready(self) -> bool:
        return True

    def status(self) -> dict[str, Any]:
        return {}

    def endpoints(self) -> list[dict[str, Any]]:
        return []

    def explain(self, pick_id: str) -> None:
        return None


def application(fleet: Fleet, token_file: Path | None = None) -> web.Application:
    found = admin_application(NoStatus(), CollectorRegistry(), token_file=token_file)
    add_writing_routes(found, fleet.operations)
    add_rollout_routes(found, SimpleNamespace())  # described here, too; nobody asks it
    return found


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    fleet = Fleet(tmp_path).start()
    async with TestClient(TestServer(application(fleet))) as found:
        yield found
    await fleet.operations.stop()


async def put(client: Client, rule: str = "chat", headers: dict[str, str] | None = None, **body: Any) -> Any:
    async with client.put(f"/api/v1/weights/{rule}", json=body, headers=headers) as response:
        return response.status, await response.json(), response.headers.get("etag")


BOTH = {"canary": 10, "stable": 90}


async def test_weights_are_set_read_and_cleared(client: Client) -> None:
    status, answer, etag = await put(client, weights=BOTH, wait=True, reason="r")
    assert (status, etag, answer["version"]) == (200, '"1"', 1)
    assert answer["before"] == {"default/canary": 500, "default/stable": 9_500}
    assert answer["after"] == {"default/canary": 1_000, "default/stable": 9_000}
    assert answer["moved_percent"] == 5
    assert [acks["done"] for acks in answer["acks"]] == [True]
    async with client.get(f"/api/v1/weights/{RULE}") as response:
        rule = await response.json()
        assert response.headers["etag"] == '"1"'
    assert (rule["source"], rule["version"]) == ("operator", 1)
    async with client.get("/api/v1/weights") as response:
        everything = await response.json()
    assert rule in everything["rules"] and everything["revision"] == 1
    async with client.delete("/api/v1/weights/chat", params={"if_version": "1", "wait": "true"}) as response:
        assert response.status == 200
        assert (await response.json())["after"] == answer["before"]
    async with client.get("/api/v1/audit", params={"limit": "2"}) as response:
        found = await response.json()
    assert len(found["records"]) == 2 and len(found["head"]) == 64


async def test_optimistic_writers(client: Client) -> None:
    assert (await put(client, weights=BOTH, if_version=0))[0] == 200
    status, answer, _ = await put(client, weights={"canary": 1, "stable": 1}, if_version=0)
    assert (status, answer["reason"], answer["version"]) == (409, "version", 1)
    status, answer, etag = await put(client, headers={"if-match": '"0"'}, weights=BOTH)
    assert (status, answer["version"], etag) == (412, 1, '"1"')
    for match in ('"1"', "1", "*"):
        assert (await put(client, headers={"if-match": match}, weights=BOTH, dry_run=True))[0] == 200
    assert (await put(client, headers={"if-match": 'W/"1"'}, weights=BOTH))[0] == 400


@pytest.mark.parametrize(
    ("rule", "body", "status", "said"),
    [
        ("nowhere", {"weights": BOTH}, 404, "no rule is called nowhere"),
        ("chat", {"weights": {"canary": 1}}, 422, "no weight for default/stable"),
        ("chat", {"weights": {"canary": 1, "stable": -1}}, 400, "weights"),
        ("chat", {"weights": {"canary": 1, "stable": 0.5}}, 400, "weights"),
        ("chat", {"weights": {}}, 400, "weights"),
        ("chat", {}, 400, "weights"),
        ("chat", {"weights": BOTH, "waits": True}, 400, "waits"),
        ("chat", {"weights": BOTH, "timeout_s": 601}, 400, "timeout_s"),
        ("chat", {"weights": BOTH, "reason": "x" * 1_001}, 400, "reason"),
    ],
)
async def test_requests_that_do_not_fit(
    client: Client, rule: str, body: dict[str, Any], status: int, said: str
) -> None:
    found, answer, _ = await put(client, rule, **body)
    assert found == status
    assert said in answer["error"]


async def test_what_is_no_json_and_what_comes_from_a_browser(client: Client) -> None:
    async with client.put("/api/v1/weights/chat", data=b"{", headers={"content-type": "application/json"}) as response:
        assert response.status == 400
    async with client.put("/api/v1/weights/chat", data=json.dumps({"weights": BOTH})) as response:
        assert response.status == 415
    assert (await put(client, headers={"origin": "http://evil.example"}, weights=BOTH))[0] == 403
    async with client.delete("/api/v1/weights/chat", headers={"origin": "null"}) as response:
        assert response.status == 403
    for query in ("limit=0", "limit=x", "limit=1001", "limit=" + 5_000 * "9"):
        async with client.get(f"/api/v1/audit?{query}") as response:
            assert response.status == 400


async def test_with_a_token_nothing_goes_without_it(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    fleet = Fleet(tmp_path / "state").start()
    async with TestClient(TestServer(application(fleet, token_file))) as client:
        assert (await put(client, weights=BOTH))[0] == 401
        assert fleet.published == []
        assert (await put(client, headers={"authorization": f"Bearer {TOKEN}"}, weights=BOTH, actor="bob"))[0] == 200
        record = (await fleet.operations.records(9))[0]
        assert (record.actor, record.via) == ("bob", "token")
    await fleet.operations.stop()


async def test_the_description_names_every_route_and_no_other(client: Client) -> None:
    async with client.get("/api/v1/openapi.json") as response:
        described = await response.json()
    assert described["openapi"].startswith("3.1")
    app = client.server.app
    real = {
        (route.resource.canonical, route.method.lower())
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    told = {(path, method) for path, item in described["paths"].items() for method in item}
    assert told == real


async def test_bodies_and_queries_have_the_described_fields(client: Client) -> None:
    described = document(client.server.app)
    schema = described["components"]["schemas"]["SetWeights"]
    assert schema["properties"].keys() == set(WeightsBody.__struct_fields__)
    query = described["paths"]["/api/v1/weights/{rule}"]["delete"]["parameters"]
    assert {p["name"] for p in query if p["in"] == "query"} == set(ClearQuery.__struct_fields__)
    answers = {
        "/api/v1/weights": "Weights",
        "/api/v1/weights/chat": "RuleWeights",
        "/api/v1/audit": "Audit",
    }
    for path, name in answers.items():
        async with client.get(path) as response:
            answer = await response.json()
        assert answer.keys() == described["components"]["schemas"][name]["properties"].keys(), path
    _, outcome, _ = await put(client, weights=BOTH, wait=True)
    assert outcome.keys() == described["components"]["schemas"]["Outcome"]["properties"].keys()
    assert outcome["acks"][0].keys() == described["components"]["schemas"]["Acks"]["properties"].keys()


@pytest.mark.parametrize(
    ("words", "weights"),
    [
        (("a=90", "b=10"), {"a": 90, "b": 10}),
        (("a=99.5%", "b=0.5%"), {"a": 995, "b": 5}),
        (("ns/a=1", "b=0.25"), {"ns/a": 100, "b": 25}),
        (("a=0", "b=0"), {"a": 0, "b": 0}),
    ],
)
def test_weights_on_the_command_line(words: tuple[str, ...], weights: dict[str, int]) -> None:
    assert parse_weights(words) == weights


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a"], "is not POOL=WEIGHT"),
        (["a=x"], "is not POOL=WEIGHT"),
        (["a=-1"], "is not POOL=WEIGHT"),
        (["a=1", "a=2"], "named twice"),
        (["a=1%", "b=99"], "some weights are in %"),
        (["a=10%", "b=80%"], "add up to 90"),
    ],
)
def test_wrong_words_on_the_command_line(words: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["weights", "set", "chat", *words])
    assert result.exit_code == 2
    assert said in result.output


def test_no_control_plane_is_told() -> None:
    result = CliRunner().invoke(main, ["weights", "get", "--admin", "http://127.0.0.1:1"])
    assert result.exit_code == 1
    assert "no control plane listens at http://127.0.0.1:1" in result.output
