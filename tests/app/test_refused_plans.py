"""A Plan that a gateway would refuse is refused before the picker follows it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pointsman.app.control_plane import ControlPlane
from pointsman.app.control_plane_options import ControlPlaneOptions
from pointsman.core.model import Gateway
from pointsman.xds import views
from support.waiting import eventually

EXAMPLE = Path(__file__).parents[2] / "examples" / "two-sites"


async def test_the_picker_keeps_the_plan_that_gateways_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "config"
    shutil.copytree(EXAMPLE, folder)
    file, address = next(
        (path, found[1])
        for path in sorted(folder.glob("*.yaml"))
        if (found := re.search(r"addresses: \[\"?([0-9.]+)", path.read_text()))
    )

    def refuse(gateway: Gateway) -> list[str]:
        new = any(e.address == "127.0.9.9" for pool in gateway.pools for e in pool.endpoints())
        return ["EDS: a fault that manifests do not show"] if new else []

    options = ControlPlaneOptions(config=folder, state=tmp_path / "state", grpc_port=0, admin_port=0)
    async with ControlPlane(options) as plane:
        before = plane.holder.plan
        assert before is not None
        text = file.read_text()
        with monkeypatch.context() as patched:
            patched.setattr(views, "check_gateway", refuse)
            file.write_text(text.replace(address, "127.0.9.9", 1))
            await eventually(lambda: not plane.status.accepted, what="the edit is refused")
            assert plane.holder.plan is before
            assert not any(key.startswith("127.0.9.9:") for pool in before.pools for key in _keys(plane, pool.name))
        file.write_text(text.replace(address, "127.0.9.8", 1))
        await eventually(lambda: plane.status.accepted, what="the edit is in force")
        assert any(key.startswith("127.0.9.8:") for pool in before.pools for key in _keys(plane, pool.name))


def _keys(plane: ControlPlane, pool: str) -> list[str]:
    rows = plane.picker.table.pool(pool)
    return [] if rows is None else list(rows.keys)
