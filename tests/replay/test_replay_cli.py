"""The commands as a user types them: exit codes, clean standard output, Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner

from pointsman.replay.cli import replay_command, trace_group
from pointsman.replay.generate import trace_lines
from replay.fake_gateway import FakeGateway, answer, requests_at

REPLAY = "from pointsman.replay.cli import replay_command; replay_command()"


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", REPLAY, *arguments, stdout=PIPE, stderr=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def run(*arguments: str) -> tuple[int | None, str, str]:
    async with started(*arguments) as process:
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, out.decode(), err.decode()


@pytest.fixture
def trace(tmp_path: Path) -> Callable[..., str]:
    def write(*arrivals_ms: float) -> str:
        path = tmp_path / "t.jsonl"
        path.write_bytes(b"".join(trace_lines(requests_at(*arrivals_ms))))
        return str(path)

    return write


async def test_success_prints_a_table_and_exits_with_0(gateway: FakeGateway, trace: Callable[..., str]) -> None:
    code, out, err = await run(trace(0, 5), "--gateway", gateway.url, "--upstream", gateway.url)
    assert code == 0, err
    assert "2 requests sent" in out
    assert "2 succeeded, 0 failed" in out
    assert "100 %: 2 of 2 done, 0 running, 0 failed" in err


async def test_json_alone_is_on_standard_output_and_failures_exit_with_2(
    gateway: FakeGateway, trace: Callable[..., str]
) -> None:
    async def second_fails(fake: FakeGateway, request: web.Request, response: web.StreamResponse) -> None:
        if len(fake.bodies) == 2:
            raise web.HTTPServiceUnavailable
        await answer(fake, request, response)

    gateway.behave = second_fails
    code, out, err = await run(trace(0, 5, 10), "--gateway", gateway.url, "--admin", gateway.url, "-o", "json")
    assert code == 2, err
    report: dict[str, Any] = json.loads(out)
    assert (report["succeeded"], report["failed"], report["failures"]) == (2, 1, {"status 503": 1})


async def test_nothing_replayed_exits_with_1(trace: Callable[..., str]) -> None:
    code, out, err = await run(trace(0), "--gateway", "http://127.0.0.1:1")
    assert (code, out) == (1, "")
    assert err.startswith("pointsman replay: --gateway: http://127.0.0.1:1/v1/models cannot be reached")
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_prints_the_partial_report(
    gateway: FakeGateway, trace: Callable[..., str], number: signal.Signals
) -> None:
    async def second_hangs(fake: FakeGateway, request: web.Request, response: web.StreamResponse) -> None:
        if len(fake.bodies) == 2:
            await fake.release.wait()
        await answer(fake, request, response)

    gateway.behave = second_hangs
    path = trace(0, 1, 3_600_000)
    async with started(path, "--gateway", gateway.url, "--admin", gateway.url, "-o", "json") as process:
        await gateway.wait_for(2)
        process.send_signal(number)
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130, err
    report = json.loads(out)
    assert (report["planned"], report["sent"], report["interrupted"]) == (3, 2, True)
    assert report["succeeded"] + report["unfinished"] == 2
    assert report["unfinished"] >= 1
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--speed", "0"], "--speed"),
        (["--speed", "nan"], "nan is not a finite number"),
        (["--limit", "0"], "--limit"),
        (["--jitter", "maybe"], "neither 'auto' nor a number of seconds"),
        (["--jitter", "nan"], "not between 0 and 3600 seconds"),
        (["--output", "xml"], "xml"),
    ],
)
def test_bad_options_are_told(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(replay_command, ["t.jsonl", "--gateway", "http://127.0.0.1:1", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_generate_writes_a_trace_that_replay_reads(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    arguments = ["generate", "--duration", "20", "--rate", "3", "--think", "2", "--seed", "4"]
    result = CliRunner().invoke(trace_group, [*arguments, "--out", str(path)])
    assert result.exit_code == 0, result.output
    assert "requests in" in result.stderr
    assert result.stdout == ""
    to_stdout = CliRunner().invoke(trace_group, arguments)
    assert to_stdout.stdout_bytes == path.read_bytes()
    assert len(path.read_bytes().splitlines()) == int(result.stderr.split()[0])


def test_generate_without_requests_says_so() -> None:
    result = CliRunner().invoke(trace_group, ["generate", "--duration", "10", "--max-input-tokens", "100"])
    assert result.exit_code == 1
    assert "no request came in that time" in result.stderr
