"""Every fault, as the decision that it is and as a client sees it."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from typing import Any

import aiohttp
import pytest

from pointsman.core.errors import ConfigError
from pointsman.sim.faults import (
    HEALTHY,
    Act,
    ErrorFault,
    Faults,
    LatencyFault,
    Luck,
    Refusal,
    ResetFault,
    StallFault,
    Verdict,
    added_latency_ms,
    draw,
    parse_faults,
    refusal,
    verdict,
)
from support.waiting import eventually

CHAT = "/v1/chat/completions"
LUCK = Luck(error=50.0, latency=50.0, stall=50.0, reset=50.0)
LONG = 5000
"""More tokens than any test waits for at speed 1."""


def chat_body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "llama", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}


def said(events: list[str]) -> str:
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    return "".join(choice["delta"]["content"] for chunk in chunks for choice in chunk["choices"])


# Decisions


def test_a_healthy_replica_just_sends() -> None:
    assert refusal(HEALTHY, LUCK) is None
    assert added_latency_ms(HEALTHY, LUCK) == 0
    assert verdict(HEALTHY, LUCK, 0) == Verdict(act=Act.SEND)
    assert HEALTHY.listening


def test_faults_may_be_of_one_model() -> None:
    faults = Faults(error=ErrorFault(), latency=LatencyFault(ms=5), health="failing", models=("v2",))
    assert faults.of("v2") is faults
    assert faults.of("v1") == Faults(health="failing", models=("v2",))
    assert Faults(error=ErrorFault()).of("v1").error is not None


def test_percentages_hit_by_luck() -> None:
    def some(percent: float) -> Faults:
        return Faults(
            error=ErrorFault(status=429, percent=percent, retry_after_s=3),
            latency=LatencyFault(ms=7, percent=percent),
            stall=StallFault(where="before", percent=percent),
        )

    assert refusal(some(50.0), LUCK) is None
    assert refusal(some(50.1), LUCK) == Refusal(status=429, retry_after_s=3)
    assert [added_latency_ms(some(p), LUCK) for p in (50.0, 50.1)] == [0, 7]
    assert [verdict(some(p), LUCK, 0).act for p in (50.0, 50.1)] == [Act.SEND, Act.HOLD]


def test_percent_is_seeded_and_about_right() -> None:
    fault = Faults(error=ErrorFault(percent=20))
    rng, again = random.Random(1), random.Random(1)
    hits = [refusal(fault, draw(rng)) is not None for _ in range(5000)]
    assert 900 < sum(hits) < 1100
    assert hits == [refusal(fault, draw(again)) is not None for _ in range(5000)]
    everything, nothing = Faults(error=ErrorFault(percent=100)), Faults(error=ErrorFault(percent=0))
    assert all(refusal(everything, draw(rng)) and not refusal(nothing, draw(rng)) for _ in range(500))


@pytest.mark.parametrize(
    ("faults", "sent", "expected"),
    [
        (Faults(blackhole=True), 0, Verdict(act=Act.HOLD)),
        (Faults(stall=StallFault(where="before")), 0, Verdict(act=Act.HOLD)),
        (Faults(stall=StallFault(where="before")), 1, Verdict(act=Act.SEND)),
        (Faults(stall=StallFault(where="mid", after_tokens=3)), 0, Verdict(act=Act.SEND, limit=3)),
        (Faults(stall=StallFault(where="mid", after_tokens=3)), 3, Verdict(act=Act.HOLD)),
        (Faults(stall=StallFault(where="mid", after_tokens=3)), 9, Verdict(act=Act.HOLD)),
        (Faults(reset=ResetFault(after_tokens=0)), 0, Verdict(act=Act.RESET)),
        (Faults(reset=ResetFault(after_tokens=2)), 1, Verdict(act=Act.SEND, limit=2)),
        (Faults(reset=ResetFault(after_tokens=2)), 2, Verdict(act=Act.RESET)),
        (Faults(malformed_sse=True), 0, Verdict(act=Act.SEND, limit=1, malformed=True)),
        (
            Faults(reset=ResetFault(after_tokens=2), malformed_sse=True),
            1,
            Verdict(act=Act.SEND, limit=2, malformed=True),
        ),
        (Faults(reset=ResetFault(after_tokens=2), stall=StallFault(where="mid")), 5, Verdict(act=Act.HOLD)),
    ],
)
def test_verdicts(faults: Faults, sent: int, expected: Verdict) -> None:
    assert verdict(faults, LUCK, sent) == expected


@pytest.mark.parametrize(
    ("body", "field", "what"),
    [
        (b"{", "", "not JSON"),
        (b'{"err": 1}', "", "unknown field `err`"),
        (b'{"error": {"status": 200}}', "error.status", "Invalid enum value 200"),
        (b'{"error": {"percent": 101}}', "error.percent", "<= 100"),
        (b'{"latency": {}}', "latency", "missing required field `ms`"),
        (b'{"latency": {"ms": -1}}', "latency.ms", ">= 0"),
        (b'{"stall": {"where": "end"}}', "stall.where", "Invalid enum value 'end'"),
        (b'{"reset": {"after": 1}}', "reset", "unknown field `after`"),
        (b'{"exit": "yes"}', "exit", "Expected `bool`"),
        (b'{"metrics": "odd"}', "metrics", "Invalid enum value 'odd'"),
    ],
)
def test_wrong_faults_are_refused(body: bytes, field: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_faults(body)
    problem = caught.value.problems[0]
    assert problem.field == field
    assert what in problem.what
    assert "blackhole" in problem.mend or field == ""


def test_a_grpc_replica_has_no_sse_and_no_metrics() -> None:
    assert parse_faults(b'{"error": {}}', protocol="grpc") == Faults(error=ErrorFault())
    with pytest.raises(ConfigError) as caught:
        parse_faults(b'{"malformed_sse": true, "metrics": "slow", "exit": true}', protocol="grpc")
    assert [p.field for p in caught.value.problems] == ["malformed_sse", "metrics"]


# The admin endpoint


async def test_faults_are_shown_set_and_ended(start: Any) -> None:
    sim = await start({"name": "one", "site": "us", "pool": "ns/p"}, {"name": "two"})
    admin = f"http://{sim.running.ready.admin}"
    wanted = {"error": {"percent": 5.0}, "latency": {"ms": 1.0}, "health": "failing"}
    await sim.faults("one", wanted)
    async with sim.session.get(f"{admin}/replicas/one/faults") as response:
        assert await response.json() == wanted
    async with sim.session.get(f"{admin}/replicas") as response:
        replicas = await response.json()
    assert [(r["name"], r["site"], r["pool"], r["address"]) for r in replicas] == [
        ("one", "us", "ns/p", sim.address("one")),
        ("two", "", "", sim.address("two")),
    ]
    assert [r["faults"] for r in replicas] == [wanted, {}]
    await sim.faults("one", None)
    assert (await sim.status("one"))["faults"] == {}


async def test_admin_errors_change_nothing(start: Any) -> None:
    sim = await start({"name": "one"})
    admin = f"http://{sim.running.ready.admin}"
    await sim.faults("one", {"health": "failing"})
    async with sim.session.put(f"{admin}/replicas/one/faults", data=b'{"stall": {"where": "x"}}') as response:
        assert response.status == 400
        answer = await response.json()
        assert answer["problems"][0]["field"] == "stall.where"
    assert (await sim.status("one"))["faults"] == {"health": "failing"}
    async with sim.session.put(f"{admin}/replicas/none/faults", json={}) as response:
        assert response.status == 404
        assert "one" in (await response.json())["error"]


# What a client sees


async def connect(sim: Any, name: str) -> socket.socket:
    host, port = sim.address(name).rsplit(":", 1)
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    return sock


async def send_chat(sock: socket.socket, **more: Any) -> None:
    body = json.dumps(chat_body("hi", **more)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: sim\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    await asyncio.get_running_loop().sock_sendall(sock, head + body)


async def read_until_reset(sock: socket.socket) -> bytes:
    """All bytes until the peer resets the connection; fails if it closes it instead."""
    data = b""
    try:
        while chunk := await asyncio.get_running_loop().sock_recv(sock, 65536):
            data += chunk
    except ConnectionResetError:
        return data
    finally:
        sock.close()
    raise AssertionError(f"closed without a reset after {data!r}")


async def refused(sim: Any, name: str) -> bool:
    try:
        (await connect(sim, name)).close()
    except ConnectionRefusedError:
        return True
    return False


async def round_trips(sim: Any, name: str, count: int = 20) -> None:
    """Enough work of the same loop that an answer which was on its way would have arrived."""
    for _ in range(count):
        assert (await sim.chat(name))[0] == 200


async def test_exit_resets_connections_and_comes_back_empty(start: Any) -> None:
    sim = await start({"name": "one"}, speed=1.0)
    replica = sim.replica("one")
    address = sim.address("one")
    await sim.chat("one", "x" * 1000, max_tokens=1)
    before = await sim.status("one")
    busy, idle = await connect(sim, "one"), await connect(sim, "one")
    await send_chat(busy, stream=True, max_tokens=LONG)
    await eventually(lambda: replica.engine.running == 1)
    await sim.faults("one", {"exit": True})
    assert b"200 OK" in await read_until_reset(busy)
    assert await read_until_reset(idle) == b""
    assert await refused(sim, "one")
    status = await sim.status("one")
    assert (status["listening"], status["restarts"], status["requests_running"]) == (False, 1, 0)
    await eventually(lambda: replica.counts.requests_aborted == 1)
    await sim.faults("one", None)
    assert sim.address("one") == address
    _, body = await sim.chat("one", "x" * 1000, max_tokens=1)
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 0  # a new process has an empty cache
    after = await sim.status("one")
    assert after["prefix_query_tokens"] == 2 * before["prefix_query_tokens"] + 13  # totals go on
    assert after["address"] == before["address"]


async def test_a_restart_is_seen_in_the_metrics(start: Any) -> None:
    sim = await start({"name": "one"})
    await sim.chat("one")
    first = (await sim.get("one", "/metrics"))[1].decode()
    await sim.faults("one", {"exit": True})
    await sim.faults("one", None)
    second = (await sim.get("one", "/metrics"))[1].decode()

    def value(page: str, name: str) -> float:
        return float(next(line for line in page.splitlines() if line.startswith(name)).rsplit(" ", 1)[1])

    assert value(first, "vllm:generation_tokens_total") == 4
    assert value(second, "vllm:generation_tokens_total") == 0
    assert value(second, "process_start_time_seconds") > value(first, "process_start_time_seconds")


async def test_refuse_lets_running_requests_finish(start: Any) -> None:
    sim = await start({"name": "one"}, speed=1.0)
    idle = await connect(sim, "one")
    body = chat_body("hi", stream=True, max_tokens=30)
    async with sim.session.post(sim.url("one", CHAT), json=body) as response:
        await sim.faults("one", {"refuse": True})
        assert await refused(sim, "one")
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    assert await asyncio.get_running_loop().sock_recv(idle, 1) == b""  # idle connections end in order
    idle.close()
    with pytest.raises(aiohttp.ClientConnectionError):  # the connection that was busy has ended, too
        await sim.chat("one")
    await sim.faults("one", None)
    assert (await sim.chat("one"))[0] == 200


async def test_error_with_retry_after(start: Any) -> None:
    sim = await start()
    await sim.faults("one", {"error": {"status": 429, "retry_after_s": 2}})
    async with sim.session.post(sim.url("one", CHAT), json=chat_body("hi")) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == "2"
        assert (await response.json())["error"]["code"] == 429
    await sim.faults("one", {"error": {}})
    assert (await sim.chat("one"))[0] == 503
    assert (await sim.get("one", "/health"))[0] == 200
    assert (await sim.status("one"))["requests_failed"] == 2


async def test_a_percentage_of_errors_is_the_same_for_the_same_seed(start: Any) -> None:
    async def statuses() -> list[int]:
        sim = await start({"name": "one"}, seed=7)
        await sim.faults("one", {"error": {"percent": 30}})
        return [(await sim.chat("one", max_tokens=1))[0] for _ in range(60)]

    first = await statuses()
    assert first == await statuses()
    assert 5 < first.count(503) < 35


async def test_latency_holds_the_first_token_not_the_headers(start: Any) -> None:
    sim = await start({"name": "one"}, {"name": "two"})
    await sim.faults("one", {"latency": {"ms": 3_000_000}})
    async with sim.session.post(sim.url("one", CHAT), json=chat_body("hi", stream=True)) as response:
        await eventually(lambda: sim.replica("one").engine.counters.finished["length"] == 1)
        await round_trips(sim, "two")
        assert (await sim.status("one"))["tokens_sent"] == 0
        await sim.faults("one", {"latency": {"ms": 1}})
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    assert (await sim.chat("one"))[0] == 200  # a millisecond late


async def test_stall_before_and_mid_stream(start: Any) -> None:
    sim = await start({"name": "one"}, {"name": "two"})
    for fault, tokens in (({"where": "before"}, 0), ({"where": "mid", "after_tokens": 3}, 3)):
        sent = (await sim.status("one"))["tokens_sent"]
        await sim.faults("one", {"stall": fault})
        stream = asyncio.ensure_future(sim.events("one", max_tokens=8))
        await eventually(lambda t=sent + tokens: sim.replica("one").counts.tokens_sent == t)
        await eventually(lambda: sim.replica("one").engine.running == 0)
        await round_trips(sim, "two")
        assert not stream.done()
        assert (await sim.status("one"))["tokens_sent"] == sent + tokens
        await sim.faults("one", None)
        events = await stream
        assert events[-1] == "[DONE]"
        assert len(said(events)) == 8 * 4  # nothing was lost


async def test_a_stall_hits_streams_that_run_already(start: Any) -> None:
    sim = await start({"name": "one"}, {"name": "two", "speed": 200.0}, speed=1.0)
    replica = sim.replica("one")
    async with sim.session.post(sim.url("one", CHAT), json=chat_body("hi", stream=True, max_tokens=LONG)) as response:
        await response.content.readuntil(b"\n\n")
        await sim.faults("one", {"stall": {"where": "mid"}})
        sent = replica.counts.tokens_sent
        steps = replica.engine.counters.steps
        await eventually(lambda: replica.engine.counters.steps > steps + 5)
        assert replica.counts.tokens_sent == sent
    await eventually(lambda: replica.engine.kv.used == 0, what="the client left")


async def test_blackhole_accepts_and_answers_nothing(start: Any) -> None:
    sim = await start({"name": "one"}, {"name": "two"})
    await sim.faults("one", {"blackhole": True})
    sock = await connect(sim, "one")
    await send_chat(sock)
    waiting = [asyncio.ensure_future(sim.get("one", path)) for path in ("/health", "/metrics", "/v1/models")]
    await round_trips(sim, "two")
    assert not any(task.done() for task in waiting)
    with pytest.raises(BlockingIOError):
        sock.recv(1)  # neither bytes nor an end
    await sim.faults("one", None)
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200, 200, 200]
    assert (await asyncio.get_running_loop().sock_recv(sock, 65536)).startswith(b"HTTP/1.1 200 OK")
    sock.close()


async def test_blackhole_swallows_running_streams(start: Any) -> None:
    sim = await start({"name": "one"}, speed=1.0)
    replica = sim.replica("one")
    async with sim.session.post(sim.url("one", CHAT), json=chat_body("hi", stream=True, max_tokens=LONG)) as response:
        await response.content.readuntil(b"\n\n")
        await sim.faults("one", {"blackhole": True})
        sent, steps = replica.counts.tokens_sent, replica.engine.counters.steps
        await eventually(lambda: replica.engine.counters.steps > steps + 5)
        assert replica.counts.tokens_sent == sent


@pytest.mark.parametrize("after_tokens", [0, 3])
async def test_reset_after_tokens(start: Any, after_tokens: int) -> None:
    sim = await start({"name": "one"})
    await sim.faults("one", {"reset": {"after_tokens": after_tokens}})
    sock = await connect(sim, "one")
    await send_chat(sock, stream=True, max_tokens=50)
    data = await read_until_reset(sock)
    assert b"[DONE]" not in data
    status = await sim.status("one")
    assert status["tokens_sent"] == after_tokens
    assert (status["requests_failed"], status["requests_aborted"]) == (1, 0)
    await eventually(lambda: sim.replica("one").engine.kv.used == 0)


async def test_reset_of_an_answer_that_is_not_streamed(start: Any) -> None:
    sim = await start({"name": "one"})
    await sim.faults("one", {"reset": {"after_tokens": 2}})
    sock = await connect(sim, "one")
    await send_chat(sock, max_tokens=5)
    assert await read_until_reset(sock) == b""


@pytest.mark.parametrize("speed", [20.0, 1e6])
async def test_malformed_sse(start: Any, speed: float) -> None:
    sim = await start({"name": "one"}, speed=speed)
    await sim.faults("one", {"malformed_sse": True})
    events = await sim.events("one", max_tokens=12)
    assert "[DONE]" not in events
    json.loads(events[0])
    with pytest.raises(json.JSONDecodeError):
        json.loads(events[-1])


async def test_metrics_missing_garbage_and_huge(start: Any) -> None:
    sim = await start()
    await sim.faults("one", {"metrics": "missing"})
    assert (await sim.get("one", "/metrics"))[0] == 404
    await sim.faults("one", {"metrics": "garbage"})
    status, page = await sim.get("one", "/metrics")
    assert status == 200
    with pytest.raises(UnicodeDecodeError):
        page.decode()
    await sim.faults("one", {"metrics": "huge"})
    async with sim.session.get(sim.url("one", "/metrics")) as response:
        assert len(await response.content.readexactly(4_000_000)) == 4_000_000
    assert (await sim.chat("one"))[0] == 200


async def test_metrics_slow(start: Any) -> None:
    sim = await start({"name": "one"}, {"name": "two"})
    await sim.faults("one", {"metrics": "slow"})
    page = asyncio.ensure_future(sim.get("one", "/metrics"))
    await round_trips(sim, "two")
    assert not page.done()
    await sim.faults("one", None)
    assert (await page)[0] == 200


async def test_health_failing_and_model_unloaded(start: Any) -> None:
    sim = await start({"loras": ["adapter"]})
    await sim.faults("one", {"health": "failing"})
    assert (await sim.get("one", "/health"))[0] == 503
    assert (await sim.chat("one"))[0] == 200
    await sim.faults("one", {"model_unloaded": True})
    assert (await sim.get("one", "/health"))[0] == 200
    assert json.loads((await sim.get("one", "/v1/models"))[1])["data"] == []
    for model in ("llama", "adapter", None):
        assert (await sim.chat("one", model=model))[0] == 404
    await sim.faults("one", None)
    assert (await sim.chat("one", model="adapter"))[0] == 200


async def test_faults_combine(start: Any) -> None:
    sim = await start()
    await sim.faults("one", {"health": "failing", "metrics": "missing", "error": {"status": 503}})
    assert (await sim.get("one", "/health"))[0] == 503
    assert (await sim.get("one", "/metrics"))[0] == 404
    assert (await sim.chat("one"))[0] == 503


async def test_exit_of_one_replica_leaves_the_others(start: Any) -> None:
    sim = await start({"name": "one"}, {"name": "two"})
    await sim.faults("one", {"exit": True})
    await round_trips(sim, "two", 3)
    assert await refused(sim, "one")
