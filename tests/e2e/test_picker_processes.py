"""`pointsman up --picker-workers`: several processes pick, each is killed under load, and nobody notices."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from support.fleet import Fleet, running_fleet
from support.load import Load, chat_body
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.story]


def workers_of(fleet: Fleet) -> list[int]:
    """Process ids of the control plane's picker workers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if int(parent) == fleet.control_plane.pid and b"pointsman.app.workers.process" in command:
            found.append(int(folder.name))
    return sorted(found)


async def metric(fleet: Fleet, name: str) -> float:
    """Sum of a metric's series as the admin server tells it."""
    async with fleet.session.get(f"{fleet.admin}/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)


async def test_workers_pick_and_one_that_is_killed_is_replaced_unnoticed(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, extra=["--picker-workers", "2"]) as fleet:
        before = workers_of(fleet)
        assert len(before) == 2
        async with fleet.session.post(f"{fleet.url}/v1/chat/completions", json=chat_body("why here?")) as response:
            assert response.status == 200
            request_id = response.headers["x-request-id"]
        decision = await fleet.get(f"{fleet.admin}/api/v1/picks/{request_id}")
        assert decision["endpoints"]
        (last,) = (await fleet.get(f"{fleet.admin}/api/v1/picks?limit=1"))["picks"]
        assert last["request_id"] == request_id
        assert last["endpoint"] == decision["endpoints"][0]
        assert last["age_s"] >= 0
        async with Load(fleet.url, workers=8) as load:
            await load.progressed(60)
            for pid in before:  # one after the other, so that the one that Envoy is connected to is among them
                os.kill(pid, signal.SIGKILL)
                await eventually(lambda gone=pid: len(workers_of(fleet)) == 2 and gone not in workers_of(fleet))
                await load.progressed(60)
            picked = await metric(fleet, "pointsman_picks_total")

            async def picking() -> bool:
                return await metric(fleet, "pointsman_picks_total") > picked + 20

            await eventually(picking, what="the new workers pick")
        assert load.outcomes.failed == 0, load.outcomes.failures

        async def all_ended() -> bool:
            status = await fleet.get(f"{fleet.admin}/api/v1/status")
            endpoints = [e for pool in status["pools"] for site in pool["sites"] for e in site["endpoints"]]
            return sum(endpoint["in_flight"] for endpoint in endpoints) == 0

        # The account of a pick that came too late for its gateway lasts a minute.
        await eventually(all_ended, timeout_s=90, what="what the dead workers had in flight is forgotten")
