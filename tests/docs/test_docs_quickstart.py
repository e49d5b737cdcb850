"""The quickstart, typed: every command of the page in its order, on other ports, and what comes back."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.fleet import POINTSMAN, Loopback
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
MARK = "@@"


@dataclass(frozen=True, slots=True)
class Step:
    """A command and the transcript below it."""

    command: str
    expected: tuple[str, ...]


def steps(page: str) -> list[Step]:
    """What stands behind `$` in blocks of the language `console`."""
    found: list[Step] = []
    for block in re.findall(r"^```console\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.rstrip("\n").split("\n")
            found.append(Step(command, tuple(lines)))
    return found


def pattern(line: str) -> re.Pattern[str]:
    """A line of a transcript as what any run prints: other numbers and hashes, other spaces, anything for `…`."""
    parts = []
    for word in re.split(r"(…|[0-9]+(?:\.[0-9]+)?|\s+)", line.strip()):
        if word == "…":
            parts.append(".*")
        elif re.fullmatch(r"[0-9]+(\.[0-9]+)?", word):
            parts.append(r"[0-9]+(?:\.[0-9]+)?")
        elif word.isspace():
            parts.append(r"\s+")
        else:
            parts.append(re.escape(word))
    return re.compile("".join(parts))


def compare(step: Step, output: str) -> None:
    """Every line of the transcript is there, in its order; other lines only where the transcript has `…`."""
    lines = iter(output.strip("\n").split("\n"))
    skips = False
    for wanted in step.expected:
        if wanted.strip() == "…":
            skips = True
            continue
        told = pattern(wanted)
        for line in lines:
            if told.fullmatch(line.strip()):
                break
            assert skips, f"$ {step.command}\nexpected {wanted!r}\nfound    {line!r}"
        else:
            raise AssertionError(f"$ {step.command}\nno line is like {wanted!r} in\n{output}")
        skips = False


def test_a_transcript_that_differs_is_noticed() -> None:
    step = Step("x", ("a 12 ms", "…", "  z"))
    compare(step, "a 7.5 ms\nb\nz\n")
    for output in ("a ms\nz", "b\na 1 ms\nz", "a 1 ms\ny"):
        with pytest.raises(AssertionError):
            compare(step, output)


def test_make_run_starts_what_the_page_says() -> None:
    assert "```sh\nmake run\n```" in PAGE
    said = subprocess.run(["make", "-n", "run"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
    assert "pointsman up --config examples/two-sites --simulate" in said.stdout


async def test_every_command_of_the_quickstart_does_what_the_page_shows(tmp_path: Path) -> None:
    wanted = steps(PAGE)
    assert len(wanted) >= 12
    async with make_run(tmp_path) as run:
        outputs = await _typed(wanted, run, tmp_path)
    assert len(outputs) == len(wanted), "the shell ended before the page did"
    for step, (output, code) in zip(wanted, outputs, strict=True):
        assert code == 0, f"$ {step.command}\nexit code {code}\n{output}"
        compare(step, output)


@pytest.mark.observability
async def test_the_query_of_the_quickstart_has_an_answer(tmp_path: Path) -> None:
    block, transcript = re.findall(r"^```sh\n(prometheus .*?)^```\n```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[
        0
    ]
    server, query = block.strip().split("\n")
    async with make_run(tmp_path) as run:
        run.places["127.0.0.1:9090"] = f"{run.address}:{run.net.free_port(run.address)}"
        shutil.copytree(ROOT / "deploy" / "prometheus", tmp_path / "deploy" / "prometheus")
        config = tmp_path / "deploy" / "prometheus" / "prometheus.yaml"
        config.write_text(run.here(config.read_text(encoding="utf-8")), encoding="utf-8")
        await _typed(
            [Step("for i in $(seq 10); do ask; done", ()), Step("ask -H 'x-model-variant: canary'", ())], run, tmp_path
        )
        process = await asyncio.create_subprocess_exec(
            *shlex.split(run.here(server)), cwd=tmp_path, stderr=asyncio.subprocess.DEVNULL
        )
        try:

            async def answered() -> bool:
                found = await _typed([Step(query, tuple(transcript.strip().split("\n")))], run, tmp_path)
                lines = found[0][0].strip().split("\n")
                return all(
                    any(pattern(told).fullmatch(line) for line in lines) for told in transcript.split("\n") if told
                )

            await eventually(answered, timeout_s=60, what="Prometheus has what the page shows")
        finally:
            process.kill()
            await process.wait()


@dataclass(frozen=True, slots=True)
class Run:
    """What `make run` starts. `places`: an address of the page → the one that is used instead."""

    net: Loopback
    address: str
    places: dict[str, str]

    def here(self, text: str) -> str:
        """A text of the page for this run."""
        for written, taken in self.places.items():
            text = text.replace(written, taken)
        return text


@asynccontextmanager
async def make_run(folder: Path) -> AsyncIterator[Run]:
    """The example as `make run` starts it, on addresses that no other test uses, twenty times as fast."""
    net = Loopback()
    address = net.address()
    http, grpc, admin = (net.free_port(address) for _ in range(3))
    _examples(folder, net, address, (http, grpc))
    ready = folder / "ready.json"
    process = await asyncio.create_subprocess_exec(
        POINTSMAN, "up", "--config", "examples/two-sites", "--simulate", "--speed", "20", "--ready-file", ready,
        "--grpc-address", address, "--grpc-port", "0", "--admin-address", address, "--admin-port", str(admin),
        cwd=folder, start_new_session=True, stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await eventually(lambda: ready.exists() or process.returncode is not None, timeout_s=90, what="ready")
        assert process.returncode is None
        yield Run(net, address, {"127.0.0.1:8080": f"{address}:{http}", "127.0.0.1:18001": f"{address}:{admin}"})
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _examples(folder: Path, net: Loopback, address: str, ports: tuple[int, int]) -> None:
    """The example on addresses that no other test uses."""
    shutil.copytree(ROOT / "examples" / "two-sites", folder / "examples" / "two-sites")
    for path in (folder / "examples" / "two-sites").glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"addresses: \[127\.0\.[12]\.\d+\]", lambda _: f"addresses: [{net.address()}]", text)
        text = text.replace("value: 127.0.0.1", f"value: {address}")
        text = text.replace("port: 8080", f"port: {ports[0]}").replace("port: 8081", f"port: {ports[1]}")
        path.write_text(text, encoding="utf-8")


async def _typed(wanted: list[Step], run: Run, folder: Path) -> list[tuple[str, int]]:
    """Output and exit code of each command, all typed into one shell, after the page's own preparations."""
    prepared = [step.command for step in steps(PAGE)[:2]] if wanted[0] != steps(PAGE)[0] else []
    script = "\n".join([*prepared, *(f"{step.command}\nprintf '\\n{MARK}%d\\n' $?" for step in wanted)])
    admin = f"http://{run.places['127.0.0.1:18001']}"
    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", run.here(script),
        cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "POINTSMAN_ADMIN": admin, "PATH": f"{POINTSMAN.parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    try:
        told, _ = await asyncio.wait_for(shell.communicate(), 150)
    finally:
        if shell.returncode is None:
            shell.kill()
            await shell.wait()
    return list(_split(told.decode()))


def _split(told: str) -> Iterator[tuple[str, int]]:
    parts = re.split(rf"\n{MARK}(\d+)\n", told)
    for output, code in zip(parts[::2], parts[1::2], strict=False):
        yield output, int(code)
