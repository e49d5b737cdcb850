"""Bodies that nobody should send, through a real Envoy, while others ask: what the sender gets, and that nobody else
notices.

The pool fails closed, so a request without a pick would be an error, and its models are renamed, so every body is
looked into twice and goes back to the gateway.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from urllib.parse import urlsplit

import pytest

from support.fleet import MODEL, Fleet, Layout, running_fleet
from support.load import Load, chat_body

pytestmark = [pytest.mark.e2e, pytest.mark.story, pytest.mark.timeout(240)]

RENAMED = {
    "apiVersion": "llm-d.ai/v1alpha2",
    "kind": "InferenceModelRewrite",
    "metadata": {"name": "review"},
    "spec": {
        "poolRef": {"name": "stable"},
        "rules": [{"matches": [{"model": {"value": "review"}}], "targets": [{"modelRewrite": MODEL}]}],
    },
}
LAYOUT = Layout(stable={"us-east": 2}, documents=[RENAMED], failure_mode="FailClose")

CHAT = b'{"messages":[{"role":"user","content":%s}],"max_tokens":4,"model":"review"}'
PIECES = 12


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A body, and what its sender gets: the status, and the reason where it is ours and not the model server's.

    `problem`: why the pick was made without affinity; None: there was no pick.
    """

    body: bytes
    status: int
    reason: str | None = None
    problem: str | None = ""
    encoding: str = ""


def image(megabytes: int) -> bytes:
    """A chat with an image of that size in base64; the model stands behind it. (The simulator reads no images, and
    passes over fields that it does not know.)"""
    data = b"iVBORw0KGgo/" * (megabytes * 1_000_000 // 12)
    return (CHAT % b'"what?"').replace(b',"model"', b',"image":"data:image/png;base64,%s","model"' % data)


BAD = {
    "no JSON": Sent(body=b"a letter to the editor", status=400, problem="malformed"),
    "empty": Sent(body=b" ", status=400, problem="truncated"),
    "an array": Sent(body=b'[{"model":"review"}]', status=400, problem="Expected `object`"),
    "a string": Sent(body=b'"review"', status=400, problem="Expected `object`"),
    "bad UTF-8": Sent(body=CHAT % b'"\xff\xfe\xc3\x28"', status=400, problem="utf-8"),
    "nested brackets": Sent(
        body=CHAT % (b"[" * 100_000 + b"]" * 100_000), status=400, reason="model-unread", problem=None
    ),
    "brackets that stay open": Sent(body=b'{"model":"review","x":' + b"[" * 100_000, status=400, problem="recursion"),
    "nested objects": Sent(
        body=b'{"model":"review","x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, status=400, problem="no JSON"
    ),
    "a key many times": Sent(
        body=b"{" + b'"model":"review",' * 100_000 + b'"max_tokens":4}', status=400, reason="model-unread", problem=None
    ),
    "a number past all bounds": Sent(body=(CHAT % b'"hi"').replace(b"4", b"1e999999"), status=400, problem="Number"),
    "a number of many digits": Sent(body=(CHAT % b'"hi"').replace(b"4", b"9" * 100_000), status=400, problem="Integer"),
    "gzip": Sent(
        body=gzip.compress(json.dumps(chat_body("hi")).encode()), status=200, encoding="gzip", problem="malformed"
    ),
    "an image of 20 MB": Sent(body=image(20), status=200),
    "a prompt of 60 MB": Sent(body=CHAT % (b'"' + b"a" * 60_000_000 + b'"'), status=400),
    "more than the gateway takes": Sent(
        body=CHAT % (b'"' + b"a" * 70_000_000 + b'"'), status=413, reason="request_payload_too_large", problem=None
    ),
}


async def picker_worker(fleet: Fleet) -> int:
    """Process id of the picker."""
    tasks = Path(f"/proc/{fleet.control_plane.pid}/task")
    found = [pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
    (worker,) = [pid for pid in found if b"pointsman.app.workers" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return int(worker)


async def send(fleet: Fleet, sent: Sent) -> tuple[int, str | None, str | None]:
    """The status, the reason, and the problem of the pick (None: no pick)."""
    headers = {"content-type": "application/json", **({"content-encoding": sent.encoding} if sent.encoding else {})}
    url = f"{fleet.url}/v1/chat/completions"
    async with fleet.session.post(url, data=sent.body, headers=headers) as response:
        answer = await response.json(content_type=None)
        assert response.status == 200 or answer["error"]["message"]
        identity, reason = response.headers["x-request-id"], response.headers.get("x-pointsman-reason")
    async with fleet.session.get(f"{fleet.admin}/api/v1/picks/{identity}") as found:
        problem = (await found.json())["no_affinity_because"] if found.status == 200 else None
    return response.status, reason, problem


def head(length: str) -> bytes:
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{length}\r\n\r\n".encode()
    )


@asynccontextmanager
async def connected(fleet: Fleet) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    url = urlsplit(fleet.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        async with asyncio.timeout(30):
            yield reader, writer
    finally:
        writer.close()


async def lie(fleet: Fleet, length: str, *, more: bool = False) -> str:
    """The status line for a good body behind such a header; `more`: the sender says that nothing else will come."""
    async with connected(fleet) as (reader, writer):
        writer.write(head(length) + json.dumps(chat_body("hi")).encode())
        if more:
            writer.write_eof()
        return (await reader.readline()).decode().rstrip()


async def trickled(fleet: Fleet, load: Load) -> str:
    """The status line for a good body that comes in pieces; others are answered between any two of them."""
    body = json.dumps(chat_body("drop by drop")).encode()
    async with connected(fleet) as (reader, writer):
        writer.write(head(f"content-length: {len(body)}"))
        for start in range(0, len(body), PIECES):
            writer.write(body[start : start + PIECES])
            await writer.drain()
            await load.progressed(1)
        return (await reader.readline()).decode().rstrip()


@contextmanager
def busy_machine() -> Iterator[None]:
    """Twice as many processes that do nothing but compute as there are cores, for a minute at most."""
    loop = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    hogs = [Popen([sys.executable, "-c", loop]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


async def test_whatever_a_client_sends_it_gets_an_answer_and_nobody_else_waits(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, LAYOUT, extra=["--picker-workers", "1"]) as fleet:
        picker = await picker_worker(fleet)
        async with Load(fleet.url, workers=2, model="review") as load:
            await load.progressed(10)
            for name, sent in BAD.items():
                status, reason, problem = await send(fleet, sent)
                assert (status, reason) == (sent.status, sent.reason), name
                assert (problem is None) == (sent.problem is None), name
                assert (sent.problem or "") in (problem or ""), name
                await load.progressed(1)
            size = len(json.dumps(chat_body("hi")))
            assert await lie(fleet, f"content-length: {size - 9}") == "HTTP/1.1 400 Bad Request"
            assert await lie(fleet, f"content-length: {size + 9}", more=True) == "", "it never came whole"
            assert await lie(fleet, "content-length: -1") == "HTTP/1.1 400 Bad Request"
            twice = f"content-length: {size}\r\ncontent-length: {size - 9}"
            assert await lie(fleet, twice) == "HTTP/1.1 400 Bad Request"
            assert await lie(fleet, "transfer-encoding: chunked") == "HTTP/1.1 400 Bad Request"
            assert await trickled(fleet, load) == "HTTP/1.1 200 OK"
            with busy_machine():
                assert await send(fleet, Sent(body=image(20), status=200)) == (200, None, "")
        assert load.outcomes.failed == 0, load.outcomes.failures
        assert await picker_worker(fleet) == picker, "it is still the same process"
        stats = await fleet.envoy_stats("http.")
        assert sum(count for name, count in stats.items() if name.endswith("override_message_timeout_received")) >= 3
