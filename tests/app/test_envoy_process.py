"""Envoy as a child: it starts, tells its addresses, and never outlives its parent."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from pointsman.app.envoy import EnvoyError, find_envoy, validate_bootstrap
from support.envoy import ADMIN, running_envoy
from support.pids import runs
from support.waiting import eventually

pytestmark = pytest.mark.e2e

LISTENER = {
    "name": "hello",
    "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
    "filter_chains": [
        {
            "filters": [
                {
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network."
                        "http_connection_manager.v3.HttpConnectionManager",
                        "stat_prefix": "hello",
                        "route_config": {
                            "virtual_hosts": [
                                {
                                    "name": "all",
                                    "domains": ["*"],
                                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 204}}],
                                }
                            ]
                        },
                        "http_filters": [
                            {
                                "name": "envoy.filters.http.router",
                                "typed_config": {
                                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                                },
                            }
                        ],
                    },
                }
            ]
        }
    ],
}


async def test_envoy_starts_and_tells_its_addresses() -> None:
    async with running_envoy({"static_resources": {"listeners": [LISTENER]}}) as envoy:
        addresses = await envoy.listener_addresses()
        assert addresses["hello"].startswith("127.0.0.1:")
        assert not addresses["hello"].endswith(":0")
    assert envoy.child.returncode is not None


async def test_a_refused_bootstrap_is_told_in_envoys_own_words(tmp_path: Path) -> None:
    with pytest.raises(EnvoyError, match="no_such_field"):
        await validate_bootstrap({"no_such_field": 1}, tmp_path)
    await validate_bootstrap({"admin": ADMIN}, tmp_path)


def test_envoy_bin_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVOY_BIN", "/nowhere/envoy")
    with pytest.raises(EnvoyError, match="ENVOY_BIN=/nowhere/envoy: no such file"):
        find_envoy()


async def test_a_child_dies_with_a_killed_parent() -> None:
    script = (
        "import asyncio, sys\n"
        "from pointsman.app.processes import start_child\n"
        "async def main():\n"
        "    child = await start_child(['/bin/sleep', '600'], name='sleep')\n"
        "    print(child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    try:
        pid = int(await parent.stdout.readline())
        await eventually(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/bin/sleep"), what="sleep runs")
    finally:
        parent.kill()
        await parent.wait()
    await eventually(lambda: not runs(pid), what="the child is gone")
