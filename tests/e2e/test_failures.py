"""What breaks and what a client sees of it: nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from pointsman.extproc.http2 import frames
from pointsman.extproc.http2.header_blocks import HeaderReader, header_block
from support.fleet import Fleet, Layout, running_fleet
from support.load import Load, Outcomes, ask, chat_body
from support.waiting import eventually

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_crash_of_the_picked_replica_fails_nobody(tmp_path: Path, stream: bool) -> None:
    """Connections are reset under load. What had sent nothing yet is tried again elsewhere."""
    async with running_fleet(tmp_path) as fleet, Load(fleet.url, workers=12, stream=stream) as load:
        await load.progressed(100)
        victim = load.outcomes.replicas.most_common(1)[0][0]
        await fleet.set_faults(victim, {"refuse": True})
        await load.progressed(300)
        before = load.outcomes.replicas[victim]
        await load.progressed(100)
        assert load.outcomes.replicas[victim] == before, "nothing more went to the dead replica"
        assert load.outcomes.failed == 0, load.outcomes.failures
    assert load.outcomes.total >= 500


async def test_a_killed_replica_fails_nobody_who_had_no_byte(tmp_path: Path) -> None:
    async with running_fleet(tmp_path) as fleet:
        async with Load(fleet.url, workers=12) as load:
            await load.progressed(36)
            victim = load.outcomes.replicas.most_common(1)[0][0]

            async def received() -> int:
                return int((await fleet.replicas())[victim]["requests_received"])

            await fleet.set_faults(victim, {"latency": {"ms": 60_000}})
            before = await received()

            async def waits() -> bool:
                return await received() > before

            await eventually(waits, what="a request waits for its first byte")
            await fleet.set_faults(victim, {"exit": True})
            await load.progressed(120)
        assert load.outcomes.failed == 0, load.outcomes.failures
        retried = await fleet.envoy_stats("cluster.default/stable.upstream_rq_retry")
        assert retried["cluster.default/stable.upstream_rq_retry_success"] > 0, "requests were running on it"


async def next_frame(reader: asyncio.StreamReader, wanted: int) -> bytes:
    """What stands in the next HTTP/2 frame of this type; others are passed over."""
    async with asyncio.timeout(20):
        while True:
            size, kind, _, _ = frames.head_at(await reader.readexactly(frames.HEAD_BYTES), 0)
            payload = await reader.readexactly(size)
            if kind == wanted:
                return payload


async def sent_in_pieces(fleet: Fleet, trailers: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """The status of a chat whose body comes over HTTP/2 in two pieces, the second after Envoy has read the first."""
    url = urlsplit(fleet.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    body = json.dumps(chat_body("in pieces", max_tokens=1)).encode()
    head = ((b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"), (b":path", b"/v1/chat/completions"))
    writer.write(frames.PREFACE + frames.settings({}))
    writer.write(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, header_block(head)))
    writer.write(frames.frame(frames.DATA, 0, 1, body[:20]) + frames.frame(frames.PING, 0, 0, bytes(8)))
    await next_frame(reader, frames.PING)
    writer.write(frames.frame(frames.DATA, 0 if trailers else frames.END_STREAM, 1, body[20:]))
    if trailers:
        flags = frames.END_HEADERS | frames.END_STREAM
        writer.write(frames.frame(frames.HEADERS, flags, 1, header_block(trailers)))
    payload = await next_frame(reader, frames.HEADERS)
    writer.close()
    return dict(HeaderReader().read(payload))[b":status"]


async def test_trailers_behind_a_body_change_nothing(tmp_path: Path) -> None:
    """The upstream is told the body's true length: what it waits for beyond that would be the next one's request."""
    async with running_fleet(tmp_path) as fleet:
        assert await sent_in_pieces(fleet, [(b"x-checksum", b"1")]) == b"200"


async def test_a_frozen_picker_fails_nobody(tmp_path: Path) -> None:
    async with running_fleet(tmp_path) as fleet, Load(fleet.url, workers=8) as load:
        await load.progressed(60)
        fleet.freeze_control_plane()
        try:
            await load.progressed(80)
            for _ in range(3):
                assert await sent_in_pieces(fleet) == b"200", "no piece of a body is lost"
        finally:
            fleet.thaw_control_plane()
        await load.progressed(80)
        assert load.outcomes.failed == 0, load.outcomes.failures
        stats = await fleet.envoy_stats("http.")
        timeouts = sum(value for name, value in stats.items() if name.endswith(".message_timeouts"))
        assert timeouts > 0, "some requests went on without a pick"


async def test_a_killed_picker_fails_nobody_and_comes_back(tmp_path: Path) -> None:
    async with running_fleet(tmp_path) as fleet, Load(fleet.url, workers=8) as load:
        await load.progressed(60)
        await fleet.kill_control_plane()
        await load.progressed(200)
        await fleet.restart_control_plane()

        async def picking() -> bool:
            async with fleet.session.get(f"{fleet.admin}/metrics") as response:
                return "pointsman_picks_total{" in await response.text()

        await eventually(picking, what="the new picker is asked")
        await load.progressed(60)
        assert load.outcomes.failed == 0, load.outcomes.failures


async def test_a_dead_picker_closes_a_pool_that_wants_it(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Layout(failure_mode="FailClose")) as fleet:
        outcomes = Outcomes()
        await ask(fleet.session, fleet.url, chat_body("open"), outcomes)
        assert outcomes.failed == 0
        await fleet.kill_control_plane()
        for _ in range(10):
            await ask(fleet.session, fleet.url, chat_body("closed"), outcomes)
        assert outcomes.ok == 1
        assert set(outcomes.failures) and all(reason.startswith("503") for reason in outcomes.failures)


async def test_a_lost_site_fails_nobody(tmp_path: Path) -> None:
    """All replicas of a site close at once: every request goes to the other site."""
    async with running_fleet(tmp_path) as fleet, Load(fleet.url, workers=12) as load:
        await load.progressed(100)
        for index in range(3):
            await fleet.set_faults(f"stable-us-east-{index}", {"refuse": True})
        await load.progressed(100)
        load.outcomes.replicas.clear()
        await load.progressed(200)
        assert all("eu-west" in replica for replica in load.outcomes.replicas)
        assert load.outcomes.failed == 0, load.outcomes.failures


async def test_no_endpoint_left_is_a_503_with_a_reason(tmp_path: Path) -> None:
    layout = Layout(stable={"us-east": 1})
    async with running_fleet(tmp_path, layout) as fleet:
        await fleet.set_faults("stable-us-east-0", {"refuse": True})

        async def refused() -> bool:
            async with fleet.session.post(f"{fleet.url}/v1/chat/completions", json=chat_body("hello")) as response:
                return response.status == 503

        await eventually(refused, what="503")
        await fleet.set_faults("stable-us-east-0", None)
        outcomes = Outcomes()

        async def served() -> bool:
            await ask(fleet.session, fleet.url, chat_body("hello again"), outcomes)
            return outcomes.ok > 0

        await eventually(served, what="it serves again")


async def test_a_reset_in_the_middle_of_a_stream_is_never_a_clean_end(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Layout(stable={"us-east": 1})) as fleet:
        await fleet.set_faults("stable-us-east-0", {"reset": {"after_tokens": 5}})
        with pytest.raises(aiohttp.ClientError):
            async with fleet.session.post(
                f"{fleet.url}/v1/chat/completions", json=chat_body("tell me all", stream=True, max_tokens=50)
            ) as response:
                assert response.status == 200
                body = await response.read()
                assert b"[DONE]" not in body, json.dumps(body.decode())
