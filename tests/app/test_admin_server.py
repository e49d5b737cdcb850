"""The admin server as a server: it ends at once, whoever still waits for an answer."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web

from pointsman.app.admin import AdminServer


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
