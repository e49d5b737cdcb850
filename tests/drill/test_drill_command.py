"""`pointsman drill`: exit codes, limits, and what is never asked of a real site."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner

from pointsman.app.cli import main
from pointsman.app.commands import drill as command
from pointsman.app.drill.kinds import KINDS
from pointsman.app.drill.session import Series
from pointsman.failover.outcome import Counts
from pointsman.failover.report import Run
from support.fleet import POINTSMAN

MET = Run(kind="crash", site="us-east", rto_s=0.1, counts=Counts(requests=10, ok=10))
MISSED = Run(kind="crash", site="us-east", rto_s=0.1, counts=Counts(requests=10, ok=9, failed=1))
ABORTED = Run(kind="crash", site="us-east", aborted="3 requests failed, more than 2")


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """What the runs give, instead of a set-up that is started."""
    found: list[Run] = []

    async def drills(_: Series) -> AsyncIterator[tuple[Run, str]]:
        for run in found:
            yield run, "<svg/>"

    monkeypatch.setattr(command, "drills", drills)
    return found


@pytest.mark.parametrize(("runs", "code"), [([MET], 0), ([MISSED], 2), ([ABORTED], 3), ([], 3)])
def test_the_exit_code_says_whether_the_bars_were_met(outcomes: list[Run], runs: list[Run], code: int) -> None:
    outcomes += runs
    done = CliRunner().invoke(main, ["drill", "run", "crash"])
    assert done.exit_code == code, done.output


def test_json_is_all_that_is_printed(outcomes: list[Run], tmp_path: Path) -> None:
    outcomes += [MET, MISSED]
    done = CliRunner().invoke(main, ["drill", "run", "crash", "--runs", "2", "-o", "json", "--report", str(tmp_path)])
    assert done.exit_code == 2
    value = json.loads(done.stdout)
    assert [drill["kind"] for drill in value["drills"]] == ["crash"]
    assert value["drills"][0]["runs"][1]["missed"] == ["1 failed"]
    again = CliRunner().invoke(main, ["drill", "report", str(tmp_path), "-o", "json"])
    assert (again.exit_code, json.loads(again.stdout)) == (2, value)


def test_list_tells_every_drill() -> None:
    done = CliRunner().invoke(main, ["drill", "list", "-o", "json"])
    assert [entry["kind"] for entry in json.loads(done.stdout)] == list(KINDS)
    assert {entry["kind"] for entry in json.loads(done.stdout) if entry["real"]} == {"evacuate", "control-plane"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["crash", "--real", "--reason", "drill"], "crash would harm its users"),
        (["evacuate", "--real"], "a drill at a real site needs a --reason"),
        (["evacuate", "--reason", "drill"], "--reason and --gateway belong to --real"),
        (["crash", "--site", "mars"], "the set-up has the sites us-east and eu-west"),
        (["earthquake"], "'earthquake' is not one of"),
        (["evacuate", "--real", "--reason", "x", "--gateway", "here"], "'here' is not SITE=URL"),
    ],
)
def test_what_cannot_be_asked_is_refused(words: list[str], complaint: str) -> None:
    done = CliRunner().invoke(main, ["drill", "run", *words])
    assert done.exit_code == 2
    assert complaint in " ".join(done.output.split())


def test_a_folder_without_runs_is_no_success(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["drill", "report", str(tmp_path)])
    assert done.exit_code == 2
    assert "holds no runs" in done.output


async def test_a_real_site_is_asked_and_taken_back() -> None:
    """The control plane is a stand-in that notes what it is asked, and refuses the evacuation of another site."""
    heard: list[tuple[str, Any]] = []

    async def act(request: web.Request) -> web.Response:
        body = await request.json()
        heard.append((request.match_info["action"], body))
        if body["site"] == "last":
            return web.json_response({"error": "last is the last active site"}, status=409)
        return web.json_response({"policies": []})

    async def show(_: web.Request) -> web.Response:
        return web.json_response({"policies": []})

    app = web.Application()
    app.add_routes([web.post("/api/v1/failover/{action}", act), web.get("/api/v1/failover", show)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def drill(name: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            POINTSMAN, "drill", "run", "evacuate", "--real", "--site", name, "--reason", "monthly",
            "--admin", address, "--max-duration", "1",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        return process.returncode, said.decode()

    try:
        _, said = await drill("eu-west")
        assert [action for action, _ in heard] == ["evacuate", "activate"], said
        assert heard[0][1] == {"site": "eu-west", "actor": "drill", "reason": "drill: monthly"}
        code, said = await drill("last")
        assert (code, "last is the last active site" in said) == (1, True), said
        assert [action for action, _ in heard[2:]] == ["evacuate"], "what was refused is not taken back"
    finally:
        await runner.cleanup()
