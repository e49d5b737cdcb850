"""What keeps the control plane working in the background: if it ends, somebody hears of it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from pointsman.app.control_plane import ControlPlane
from pointsman.app.control_plane_options import ControlPlaneOptions
from pointsman.core.model import Plan, Site
from pointsman.core.snapshot import PlanHolder
from support.waiting import eventually

EXAMPLE = Path(__file__).parents[2] / "examples" / "two-sites"


async def test_a_part_that_fails_makes_the_process_unready(tmp_path: Path) -> None:
    async def failing() -> None:
        raise ValueError("broken")

    options = ControlPlaneOptions(config=EXAMPLE, state=tmp_path, grpc_port=0, admin_port=0)
    async with ControlPlane(options) as plane, aiohttp.ClientSession() as session, AsyncExitStack() as stack:
        async with session.get(f"{plane.admin_url}/readyz") as response:
            assert response.status == 200
        plane._run_beside(stack, "a part", failing())

        async def unready() -> bool:
            async with session.get(f"{plane.admin_url}/readyz") as response:
                return response.status == 503

        await eventually(unready, what="not ready any more")
        async with session.get(f"{plane.admin_url}/metrics") as response:
            page = await response.text()
        assert 'pointsman_background_task_up{task="a part"} 0.0' in page
        assert 'pointsman_background_task_up{task="configuration watcher"} 1.0' in page


def test_every_listener_hears_of_a_plan_when_one_fails() -> None:
    heard: list[str] = []

    def broken(_: Plan) -> None:
        heard.append("broken")
        raise ValueError("no")

    holder = PlanHolder()
    holder.subscribe(lambda _: heard.append("first"))
    holder.subscribe(broken)
    holder.subscribe(lambda _: heard.append("last"))
    with pytest.raises(ValueError, match="no"):
        holder.publish(Plan(sites=(Site(name="a"),)))
    assert heard == ["first", "broken", "last"]
