"""Changes by manifests stand in the audit log, too."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import aiohttp

from pointsman.app.config_changes import config_changes
from pointsman.app.control_plane import ControlPlane
from pointsman.app.control_plane_options import ControlPlaneOptions
from pointsman.core.compile import compile_plan
from pointsman.core.config import load
from pointsman.core.model import Plan
from support.waiting import eventually

EXAMPLE = Path(__file__).parents[2] / "examples" / "two-sites"


def test_nothing_changed_is_nothing() -> None:
    plan = compile_plan(load(EXAMPLE))
    assert config_changes(plan, plan) == {}


def test_what_changed_is_told_by_subject() -> None:
    plan = compile_plan(load(EXAMPLE))
    drained = replace(plan, sites=tuple(replace(s, draining=s.name == "us-east") for s in plan.sites))
    assert config_changes(plan, drained) == {"sites drained": ["us-east"]}
    assert config_changes(drained, plan) == {"sites active again": ["us-east"]}
    first = config_changes(Plan(), plan)
    assert first["pools added"] == sorted(pool.name for pool in plan.pools)
    assert first["endpoints added"] == sum(len(pool.endpoints()) for pool in plan.pools)
    fewer = replace(plan, pools=plan.pools[1:])
    assert config_changes(plan, fewer)["pools removed"] == [plan.pools[0].name]


async def test_an_edit_of_a_weight_is_in_the_audit_log(tmp_path: Path) -> None:
    folder = tmp_path / "config"
    shutil.copytree(EXAMPLE, folder)
    options = ControlPlaneOptions(config=folder, state=tmp_path / "state", grpc_port=0, admin_port=0)
    async with ControlPlane(options) as plane, aiohttp.ClientSession() as session:
        routes = next(path for path in folder.glob("*.yaml") if "weight: 95" in path.read_text())
        draft = tmp_path / "draft.yaml"
        draft.write_text(routes.read_text().replace("weight: 95", "weight: 45"))
        draft.replace(routes)

        async def told() -> bool:
            async with session.get(f"{plane.admin_url}/api/v1/audit") as response:
                records = (await response.json())["records"]
            found = [one for one in records if one["action"] == "configuration"]
            return bool(found) and found[0]["via"] == "file" and "weights" in found[0]["after"]

        await eventually(told, what="the edit is in the audit log")
