"""Webhooks and Prometheus as they answer, and as they do not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from pointsman.app.outside_checks import MAX_ANSWER_BYTES, ask, number_of
from pointsman.rollout import machine
from pointsman.rollout.analysis import Verdict
from pointsman.rollout.spec import Check, Comparison, Limit, RolloutSpec, Source
from pointsman.rollout.state import State

STATE: State = machine.begin(RolloutSpec(name="d/r", rules=("x",), stable="d/s", canary="d/c"), 0.0)[0]


class Outside:
    """A server that answers what it is told to, and notes what it was asked."""

    def __init__(self) -> None:
        self.status, self.body = 200, b""
        self.slow = False
        self.asked: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.path_qs} {(await request.read()).decode()}".strip())
        if self.slow:
            await asyncio.Event().wait()
        headers = {"location": "/elsewhere"} if self.status == 302 else {}
        return web.Response(status=self.status, body=self.body, headers=headers)


@pytest.fixture
async def outside() -> AsyncIterator[Outside]:
    found = Outside()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", found.answer)
    async with TestServer(application) as server:
        found.url = str(server.make_url("/")).rstrip("/")
        yield found


async def asked(check: Check) -> tuple[Verdict, str]:
    async with aiohttp.ClientSession() as session:
        result = await ask(session, check, STATE)
    assert result.name == check.name
    return result.verdict, result.why


def webhook(outside: Outside, timeout_s: float = 10.0) -> Check:
    return Check(name="judge", source=Source.WEBHOOK, url=f"{outside.url}/verdict", timeout_s=timeout_s)


def query(outside: Outside, *, at_least: bool = False) -> Check:
    limit = Limit(comparison=Comparison.ABSOLUTE, value=0.5)
    return Check(
        name="q", source=Source.PROMETHEUS, url=f"{outside.url}/", query="sum(x)", limit=limit, at_least=at_least
    )


async def test_a_webhook_is_told_what_it_is_about_and_answers(outside: Outside) -> None:
    outside.body = b'{"verdict": "Bad", "why": "answers are rude", "more": 1}'
    assert await asked(webhook(outside)) == (Verdict.BAD, "answers are rude")
    path, _, body = outside.asked[0].partition(" ")
    assert path == "/verdict"
    assert json.loads(body) == {
        "policy": "d/r", "check": "judge", "step": 1, "steps": 1, "weight": 1.0,
        "stable": "d/s", "canary": "d/c", "attempt": 1,
    }  # fmt: skip
    outside.body = b'{"verdict": "Good"}'
    assert await asked(webhook(outside)) == (Verdict.GOOD, "")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"fine"),
        (200, b'{"verdict": "Maybe"}'),
        (200, b'{"why": "?"}'),
        (200, b"[" * 10_000),
        (200, b'{"verdict": "Good", "why": "' + b"x" * MAX_ANSWER_BYTES + b'"}'),
        (500, b'{"verdict": "Good"}'),
        (302, b'{"verdict": "Good"}'),
        (204, b""),
    ],
)
async def test_anything_else_is_no_data(outside: Outside, status: int, body: bytes) -> None:
    outside.status, outside.body = status, body
    verdict, why = await asked(webhook(outside))
    assert verdict is Verdict.NO_DATA
    assert 0 < len(why) <= 200
    assert len(outside.asked) == 1, "no redirect was followed"


async def test_late_is_no_data(outside: Outside) -> None:
    outside.slow = True
    assert await asked(webhook(outside, timeout_s=0.05)) == (Verdict.NO_DATA, "no answer within 0.05 s")


async def test_nobody_there_is_no_data() -> None:
    check = Check(name="judge", source=Source.WEBHOOK, url="http://127.0.0.1:1/", timeout_s=10)
    assert (await asked(check))[0] is Verdict.NO_DATA


def vector(*values: str) -> bytes:
    series = [{"metric": {"pod": str(i)}, "value": [1700000000.1, value]} for i, value in enumerate(values)]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": series}}).encode()


async def test_a_query_against_its_limit(outside: Outside) -> None:
    outside.body = vector("0.4")
    assert await asked(query(outside)) == (Verdict.GOOD, "0.4, allowed at most 0.5")
    assert await asked(query(outside, at_least=True)) == (Verdict.BAD, "0.4, allowed at least 0.5")
    assert outside.asked[0] == "/api/v1/query?query=sum(x)"
    outside.body = vector("+Inf")
    assert (await asked(query(outside)))[0] is Verdict.BAD


@pytest.mark.parametrize(
    "body",
    [vector(), vector("NaN"), vector("1", "2"), vector("one"), b'{"status": "error"}', b"{}", b"<html>"],
    ids=["empty", "nan", "two series", "no number", "error", "nothing", "html"],
)
async def test_a_query_without_one_number_is_no_data(outside: Outside, body: bytes) -> None:
    outside.body = body
    assert (await asked(query(outside)))[0] is Verdict.NO_DATA


def test_numbers() -> None:
    assert number_of(b'{"status":"success","data":{"resultType":"scalar","result":[1.5,"7"]}}') == 7
    with pytest.raises(msgspec.ValidationError):
        number_of(b'{"status":"success","data":{"resultType":"matrix","result":[]}}')
