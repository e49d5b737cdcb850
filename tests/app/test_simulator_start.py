"""The simulator as a child of `pointsman up`: what is said where it cannot be started."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointsman.app.simulate import SimulatorError, start_simulator
from pointsman.core.model import Plan


async def test_a_state_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    taken = tmp_path / "state"
    taken.write_text("not a folder", encoding="utf-8")
    with pytest.raises(SimulatorError, match=r"cannot be started: .*Not a directory"):
        await start_simulator(Plan(), taken / "simulator", speed=1)
