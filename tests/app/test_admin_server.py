"""The admin server as a server: it ends at once, whoever still waits for an answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from pointsman.app.admin import AdminServer
from pointsman.app.admin_token import Token


def test_a_token_file_that_cannot_be_read_is_told_once(tmp_path: Path) -> None:
    """Every request reads it: what a scrape asks each second must not fill the log."""
    path = tmp_path / "token"
    path.write_text("a-token-made-by-the-test-0123456789")
    token = Token(path)
    path.unlink()
    with capture_logs() as told:
        assert all(token.is_in("Bearer a-token-made-by-the-test-0123456789") for _ in range(5))
        path.write_text("short")
        assert all(token.is_in("Bearer a-token-made-by-the-test-0123456789") for _ in range(5))
        path.write_text("another-token-made-by-the-test-01234")
        assert not token.is_in("Bearer a-token-made-by-the-test-0123456789")
        assert token.is_in("Bearer another-token-made-by-the-test-01234")
    assert [line["log_level"] for line in told] == ["error", "error", "info"]
    assert "No such file" in told[0]["problem"]
    assert "at least 16 characters" in told[1]["problem"]


async def test_stopping_does_not_wait_for_those_who_wait() -> None:
    """A change with `wait` may be answered after ten minutes; one Ctrl-C must end the process before."""
    asked = asyncio.Event()

    async def wait_for_ever(_: web.Request) -> web.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    application = web.Application()
    application.router.add_get("/wait", wait_for_ever)
    server = AdminServer(application, address="127.0.0.1", port=0)
    await server.start()
    async with aiohttp.ClientSession() as session:
        waiting = asyncio.create_task(session.get(f"{server.url}/wait"))
        await asked.wait()
        async with asyncio.timeout(20):
            await server.stop()
        with pytest.raises(aiohttp.ClientError):
            await waiting
