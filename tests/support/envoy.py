"""A real Envoy for a test: started with a bootstrap, ended with the block."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pointsman.app.envoy import Envoy, start_envoy

ADMIN = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}


@asynccontextmanager
async def running_envoy(
    bootstrap: Mapping[str, Any], *, ready: bool = True, concurrency: int = 1, timeout_s: float = 60
) -> AsyncIterator[Envoy]:
    """Run Envoy with `bootstrap`; an `admin` section with a free port is added where it has none.

    With `ready` the block starts once `/ready` answers, else once the admin server listens. `envoy.admin_url`,
    `envoy.listener_addresses()` and `envoy.child.pid` are what tests need most.
    """
    with tempfile.TemporaryDirectory(prefix="pointsman-envoy-") as folder:
        envoy = await start_envoy({"admin": ADMIN, **bootstrap}, Path(folder), concurrency=concurrency)
        try:
            if ready:
                await envoy.wait_ready(timeout_s)
            else:
                await envoy.wait_started(timeout_s)
            yield envoy
        finally:
            await envoy.stop()
