"""Drills in the embedded set-up: what clients lose when a replica or a whole site is killed. Counts, never times."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from pointsman.app.demo_failover import tell
from pointsman.app.drill.manifests import SITES
from support.fleet import POINTSMAN

pytestmark = [pytest.mark.e2e, pytest.mark.story, pytest.mark.timeout(240)]

MET_OR_LATE = {0, 2}
"""A bar on time may be missed on a busy machine; an aborted drill or a set-up that does not start is something else."""


async def drill(folder: Path, *words: str) -> dict[str, object]:
    """The one run of `pointsman drill run …`, which must not have been aborted."""
    process = await asyncio.create_subprocess_exec(
        POINTSMAN, "drill", "run", *words, "--load", "40", "--report", folder, "-o", "json",
        stdout=asyncio.subprocess.PIPE, stderr=sys.stderr,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode in MET_OR_LATE, said.decode()
    run: dict[str, object] = json.loads(said)["drills"][0]["runs"][0]
    assert (folder / f"{words[0]}-1.svg").read_text().startswith("<svg")
    return run


@pytest.mark.parametrize(
    ("kind", "words"), [("crash-all-primaries", ("--tls",)), ("site", ("--site", "eu-west"))], ids=["replicas", "site"]
)
async def test_killed_and_nobody_noticed(tmp_path: Path, kind: str, words: tuple[str, ...]) -> None:
    """Requests that had no byte yet go elsewhere; answers that had begun are broken, and seen to be."""
    run = await drill(tmp_path, kind, *words)
    counts = run["counts"]
    assert isinstance(counts, dict)
    assert counts["failed"] == 0, counts
    assert counts["silent"] == 0, counts
    assert counts["ok"] == counts["requests"] - counts["truncated"]
    assert counts["requests"] > 50


async def test_the_demo_of_a_lost_site_tells_its_story(tmp_path: Path) -> None:
    """There and back. How long it takes and what a busy machine loses are not asserted."""
    said: list[str] = []
    await tell(tmp_path, said.append)
    a, b = SITES
    lost = said.index(f"All four replicas of {a} are killed:")
    back = next(n for n, line in enumerate(said) if line.startswith(f"  {a} serves again"))
    assert any("RTO " in line and "answer from elsewhere after" in line for line in said[lost:back])
    assert any(b in line for line in said[lost:back]), "the other site serves meanwhile"
    assert said[-1].startswith(f"{a} → {b} → {a}: ")
