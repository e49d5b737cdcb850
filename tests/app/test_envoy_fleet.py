"""The keeper of the embedded Envoys: what it does about one that cannot be started."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pointsman.app import up
from pointsman.app.control_plane_options import ControlPlaneOptions
from pointsman.app.envoy import EnvoyError
from pointsman.app.up import EnvoyFleet, UpOptions
from pointsman.core.model import Gateway, Listener, Plan
from support.waiting import eventually

PLAN = Plan(gateways=(Gateway(name="default/main"),))


class FakeChild:
    """A process that runs until it is stopped."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def wait(self) -> int:
        await self.ended.wait()
        return 0


class FakeEnvoy:
    def __init__(self) -> None:
        self.child = FakeChild()

    async def wait_ready(self, _timeout_s: float) -> None:
        return

    async def stop(self) -> None:
        self.child.ended.set()


class Starts:
    """Stands for `start_envoy`: fails as often as it has errors."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.started: list[FakeEnvoy] = []

    async def __call__(self, *_: Any, **__: Any) -> FakeEnvoy:
        if self.errors:
            raise self.errors.pop(0)
        self.started.append(FakeEnvoy())
        return self.started[-1]


def fleet(folder: Path, monkeypatch: pytest.MonkeyPatch, starts: Starts) -> EnvoyFleet:
    monkeypatch.setattr(up, "start_envoy", starts)
    monkeypatch.setattr(up, "RESTART_DELAY_S", 0.01)
    return EnvoyFleet(UpOptions(control_plane=ControlPlaneOptions(config=folder), state=folder), 18_000)


@pytest.mark.parametrize("error", [EnvoyError("no port"), PermissionError("no right to run it")])
async def test_a_failed_first_start_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    starts = Starts(error)
    envoys = fleet(tmp_path, monkeypatch, starts)
    try:
        with pytest.raises(EnvoyError, match=str(error)):
            async with asyncio.timeout(10):
                await envoys.reconcile(PLAN)
        await eventually(lambda: len(starts.started) == 1)
    finally:
        await envoys.stop()
    assert starts.started[0].child.ended.is_set()


async def test_one_gateway_that_fails_leaves_the_others_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = Starts(EnvoyError("one"), EnvoyError("two"))
    envoys = fleet(tmp_path, monkeypatch, starts)
    three = Plan(gateways=tuple(Gateway(name=f"default/{name}") for name in ("a", "b", "c")))
    try:
        with pytest.raises(EnvoyError, match="one"):
            await envoys.reconcile(three)
        await eventually(lambda: len(starts.started) == 3)
        await envoys.reconcile(Plan())
        assert all(envoy.child.ended.is_set() for envoy in starts.started)
    finally:
        await envoys.stop()


def test_addresses_of_ipv6_are_urls() -> None:
    listeners = tuple(Listener(name=address, address=address, port=8080) for address in ("127.0.0.1", "::1"))
    plan = Plan(gateways=(Gateway(name="default/main", listeners=listeners),))
    assert up.gateway_urls(plan) == {"default/main": ["http://127.0.0.1:8080", "http://[::1]:8080"]}
