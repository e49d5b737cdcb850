"""Logs: one JSON object a line, limited when they repeat, and never a prompt or a secret in them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from pointsman.app.log_limit import RepeatLimit
from pointsman.app.logs import configure_logs
from support.planes import rails
from support.waiting import eventually


@pytest.fixture
def as_before() -> Iterator[None]:
    config = structlog.get_config()
    yield
    structlog.configure(**config)


def said(limit: RepeatLimit, text: str) -> dict[str, Any] | None:
    try:
        return dict(limit(None, "info", {"event": text}))
    except structlog.DropEvent:
        return None


def test_a_text_that_repeats_is_cut_and_says_so_later() -> None:
    now_s = 0.0
    limit = RepeatLimit(lines=3, window_s=10, now_s=lambda: now_s)
    assert [said(limit, "a") is not None for _ in range(5)] == [True, True, True, False, False]
    assert said(limit, "b") == {"event": "b"}
    now_s = 9.9
    assert said(limit, "a") is None
    now_s = 10.0
    assert said(limit, "a") == {"event": "a", "dropped_lines": 3}
    assert said(limit, "a") == {"event": "a"}


def test_texts_without_end_do_not_fill_the_memory() -> None:
    limit = RepeatLimit(lines=1)
    assert all(said(limit, str(number)) is not None for number in range(5_000))
    assert len(limit._windows) <= 1_000


@pytest.mark.parametrize("format_", ["json", "console"])
def test_a_log_that_nobody_reads_any_more_stops_nothing(
    format_: Any, monkeypatch: pytest.MonkeyPatch, as_before: None
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "w", buffering=1) as out:
        monkeypatch.setattr("sys.stderr", out)
        configure_logs(level="info", format_=format_)
        log = structlog.get_logger()
        for tell in (log.debug, log.info, log.warning, log.error, log.critical):
            tell("a site is left")
        try:
            raise KeyError("what became of it")
        except KeyError:
            log.exception("a part ended")
    log.warning("and when the stream is closed")


def test_lines_are_written_again_once_the_disk_has_room(monkeypatch: pytest.MonkeyPatch, as_before: None) -> None:
    class Disk(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    out = Disk()
    monkeypatch.setattr("sys.stderr", out)
    configure_logs(level="info", format_="json")
    log = structlog.get_logger()
    log.warning("this one is lost")
    out.full = False
    log.warning("this one is not")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["this one is not"]


@pytest.mark.parametrize(("format_", "is_json"), [("json", True), ("auto", True), ("console", False)])
def test_json_where_nobody_reads_and_words_for_people(
    format_: Any, is_json: bool, monkeypatch: pytest.MonkeyPatch, as_before: None
) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    configure_logs(level="info", format_=format_)
    log = structlog.get_logger()
    log.debug("not this")
    log.warning("a peer is odd", peer="10.0.0.1\ninjected=line")
    lines = out.getvalue().splitlines()
    if is_json:
        assert len(lines) == 1
        found = json.loads(lines[0])
        assert (found["event"], found["level"], found["peer"]) == (
            "a peer is odd",
            "warning",
            "10.0.0.1\ninjected=line",
        )
        assert found["timestamp"].endswith("Z")
    else:
        assert "a peer is odd" in out.getvalue()
        with pytest.raises(json.JSONDecodeError):
            json.loads(lines[0])


@pytest.mark.e2e
async def test_no_prompt_and_no_secret_is_ever_written(tmp_path: Path) -> None:
    """Marked prompts, credentials and tokens, good and bad requests; our processes log all that they can."""
    marks = {
        name: f"mark-{name}-{secrets.token_hex(8)}" for name in ("prompt", "key", "user", "token", "wrong", "tail")
    }
    token_file = tmp_path / "token"
    token_file.write_text(marks["token"])
    token_file.chmod(0o600)
    async with rails(tmp_path) as parts:
        plane = await parts.control_plane(
            parts.reserve(), "--log-level", "debug", "--admin-token-file", token_file, "--picker-workers", "1"
        )
        await parts.gateway(await parts.bootstrap("--xds", plane.target))
        for body in _bodies(marks):
            await _post(parts.session, parts.url, body, marks)
        for token in (marks["token"], marks["wrong"]):
            headers = {"authorization": f"Bearer {token}"}
            async with parts.session.get(f"{plane.admin}/api/v1/status", headers=headers) as answer:
                status = await answer.text()
            assert (answer.status == 200) == (token == marks["token"])
        metrics = ""

        async def heard() -> bool:
            nonlocal metrics
            headers = {"authorization": f"Bearer {marks['token']}"}
            async with parts.session.get(f"{plane.admin}/metrics", headers=headers) as answer:
                metrics = await answer.text()
            return 'pointsman_feedback_total{kind="end"}' in metrics and "pointsman_picks_total{" in metrics

        await eventually(heard, what="picks and their outcomes are counted")
        written = {
            path: path.read_text(errors="replace") for path in tmp_path.rglob("*") if _is_written(path, token_file)
        }
        written[Path("metrics")] = metrics
        written[Path("status")] = status
    assert any("plane" in path.name for path in written)
    assert any(path.name == "envoy.log" for path in written)
    for line in plane.log.splitlines():
        assert {"event", "level", "timestamp"} <= json.loads(line).keys()
    for path, text in written.items():
        for name, mark in marks.items():
            assert mark not in text, f"{path} holds the {name}"


def _is_written(path: Path, token_file: Path) -> bool:
    return path.is_file() and path != token_file and path.stat().st_size < 10_000_000


def _bodies(marks: dict[str, str]) -> Iterator[bytes]:
    message = {"role": "user", "content": f"{marks['prompt']} and so on"}
    good: dict[str, Any] = {"model": "llama-3-8b", "messages": [message], "max_tokens": 2}
    yield json.dumps(good).encode()
    yield json.dumps({**good, "stream": True, "user": marks["user"]}).encode()
    yield json.dumps({**good, "model": "no-such-model"}).encode()
    yield json.dumps(good).encode()[:-7]  # cut off
    yield json.dumps({**good, "messages": marks["prompt"]}).encode()
    yield json.dumps({"prompt": [marks["prompt"]] * 3, "model": 7}).encode()
    yield b"[" * 5_000 + marks["prompt"].encode()
    yield b"\xff\xfe" + marks["prompt"].encode()
    yield json.dumps({**good, "messages": [message] * 2_000, "tail": marks["tail"]}).encode()


async def _post(session: aiohttp.ClientSession, url: str, body: bytes, marks: dict[str, str]) -> None:
    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {marks['key']}",
        "x-user-id": marks["user"],
        "cookie": f"session={marks['key']}",
    }
    async with asyncio.timeout(30), session.post(f"{url}/v1/chat/completions", data=body, headers=headers) as answer:
        await answer.read()
