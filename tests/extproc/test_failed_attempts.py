"""What a real Envoy tells of attempts that failed and of requests that wait, and what the picker adds to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from pointsman.core.engine_metrics import EngineMetrics
from pointsman.extproc.feedback import Feedback
from support.waiting import eventually

if TYPE_CHECKING:
    from conftest import Gateway

pytestmark = pytest.mark.e2e

CHAT = {"model": "llama", "messages": [{"role": "user", "content": "tell me about railways " * 40}], "stream": True}


@pytest.fixture
def told(gateway: Gateway) -> list[Feedback]:
    """The entries as they reach whoever listens behind the picker."""
    entries: list[Feedback] = []
    gateway.listeners.append(entries.append)
    return entries


async def test_a_retry_tells_where_the_first_attempt_failed(gateway: Gateway, told: list[Feedback]) -> None:
    dead, second = gateway.near[0], gateway.far[1]
    for waiting, key in enumerate([dead.key, second.key, gateway.near[1].key, gateway.far[0].key]):
        gateway.picker.signals(key, EngineMetrics(waiting=float(waiting)))
    await dead.stop()
    assert (await gateway.post(json=CHAT))[0] == 200
    await eventually(lambda: any(entry.ended for entry in told))
    (entry,) = [entry for entry in told if entry.ended]
    assert entry.attempted == (dead.key, second.key)
    assert entry.first_choice == dead.key
    assert entry.expected_ms is None  # that was the other endpoint's
    assert (entry.upstream, entry.failed) == (second.key, False)

    gateway.only(second.key)
    told.clear()
    assert (await gateway.post(json=CHAT))[0] == 200
    await eventually(lambda: any(entry.ended for entry in told))
    (entry,) = [entry for entry in told if entry.ended]
    assert (entry.attempted, entry.first_choice, entry.streaming) == ((), "", True)
    assert entry.expected_ms is not None
    assert entry.expected_ms > 0.0


async def test_an_endpoint_without_a_listener_is_asked_once_and_not_again(
    gateway: Gateway, told: list[Feedback]
) -> None:
    dead, *others = [*gateway.near, *gateway.far]
    for waiting, upstream in enumerate([dead, *others]):
        gateway.picker.signals(upstream.key, EngineMetrics(waiting=float(waiting)))
    await dead.stop()
    for upstream in others:  # the request does not end: what is known comes from its attempt alone
        upstream.gate.clear()
    asking = asyncio.create_task(gateway.post(json=CHAT))
    table = gateway.picker.table
    row = table.row(dead.key)
    await eventually(lambda: table.suspect_s[row] > table.proven_s[row])
    for upstream in others:
        upstream.gate.set()
    for _ in range(5):
        assert (await gateway.post(json=CHAT))[0] == 200
    assert (await asking)[0] == 200
    await eventually(lambda: sum(entry.ended for entry in told) == 6)
    assert sorted(entry.attempts for entry in told if entry.ended) == [1, 1, 1, 1, 1, 2]
    assert not any(entry.attempt for entry in told)


async def test_a_retry_after_an_answer_tells_who_gave_it(gateway: Gateway, told: list[Feedback]) -> None:
    broken, second = gateway.near[1], gateway.far[0]
    for waiting, key in enumerate([broken.key, second.key, gateway.near[0].key, gateway.far[1].key]):
        gateway.picker.signals(key, EngineMetrics(waiting=float(waiting)))
    broken.status = 503
    assert (await gateway.post(json=CHAT))[:2] == (200, second.key)
    await eventually(lambda: any(entry.ended for entry in told))
    (entry,) = [entry for entry in told if entry.ended]
    assert (entry.attempts, entry.attempted) == (2, (broken.key, second.key))


async def test_a_request_without_a_byte_is_listed_once_the_gateway_says_so(
    gateway: Gateway, told: list[Feedback]
) -> None:
    upstream = gateway.near[0]
    upstream.first.clear()
    gateway.only(upstream.key)
    request = asyncio.create_task(gateway.post(json=CHAT))
    clock_s = asyncio.get_running_loop().time  # the picker's clock: monotonic
    await eventually(lambda: bool(gateway.picker.inflight.silent(clock_s())))
    (silent,) = gateway.picker.inflight.silent(clock_s())
    assert silent.endpoint == upstream.key
    assert silent.silent_ms >= 450.0
    upstream.first.set()
    assert (await request)[0] == 200
    await eventually(lambda: any(entry.ended for entry in told))
    assert not gateway.picker.inflight.silent(clock_s())
    assert [entry.expected_ms is not None for entry in told if entry.ended] == [True]
