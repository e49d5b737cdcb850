"""`pointsman up` as a user runs it: one command, one Ctrl-C, nothing left behind, edits take effect."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from pointsman.app.envoy import validate_bootstrap
from support.fleet import POINTSMAN, Layout, Loopback, Manifests, running_fleet
from support.load import Load, Outcomes, ask, chat_body
from support.pids import runs
from support.waiting import eventually

pytestmark = pytest.mark.e2e


@dataclass
class Up:
    process: asyncio.subprocess.Process
    manifests: Manifests
    children: set[int]
    ready: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://{self.manifests.gateway_address}:{self.manifests.http_port}"


def children_of(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@asynccontextmanager
async def running_up(folder: Path, *words: str) -> AsyncIterator[Up]:
    net = Loopback()
    manifests = Manifests(folder / "config", net)
    manifests.write(Layout(stable={"us-east": 2}))
    ready_file = folder / "ready.json"
    address = net.address()
    process = await asyncio.create_subprocess_exec(
        POINTSMAN, "up", "--config", manifests.folder, "--simulate", "--speed", "50", "--state", folder / "state",
        "--grpc-address", address, "--grpc-port", "0", "--admin-port", "0", "--ready-file", ready_file, *words,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        await eventually(lambda: ready_file.exists() or process.returncode is not None, timeout_s=60, what="ready")
        assert process.returncode is None
        yield Up(process, manifests, children_of(process.pid), json.loads(ready_file.read_text()))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def works(up: Up) -> None:
    outcomes = Outcomes()
    async with aiohttp.ClientSession() as session:
        await ask(session, up.url, chat_body("all aboard", stream=True), outcomes)
    assert outcomes.ok == 1, outcomes.failures


async def works_again(up: Up) -> None:
    async def answers() -> bool:
        try:
            await works(up)
        except AssertionError:
            return False
        return True

    await eventually(answers, what="the gateway answers again")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
async def test_one_signal_stops_everything_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    async with running_up(tmp_path) as up:
        await works(up)
        assert len(up.children) == 2, "the simulator and Envoy"
        up.process.send_signal(number)
        assert await asyncio.wait_for(up.process.wait(), 30) == 0
        assert not any(runs(pid) for pid in up.children)


async def test_a_killed_parent_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running_up(tmp_path) as up:
        await works(up)
        up.process.kill()
        await up.process.wait()
        await eventually(lambda: not any(runs(pid) for pid in up.children), what="Envoy and the simulator are gone")


async def test_the_printed_curl_line_streams_an_answer(tmp_path: Path) -> None:
    async with running_up(tmp_path) as up:
        assert up.process.stdout is not None
        lines = []
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append((await asyncio.wait_for(up.process.stdout.readline(), 20)).decode())
        text = "".join(lines)
        command = text[text.index("curl -N") :].split("\n\n")[0]
        curl = await asyncio.create_subprocess_shell(command + " -sS --fail", stdout=asyncio.subprocess.PIPE)
        output, _ = await curl.communicate()
        assert curl.returncode == 0
        assert output.count(b"data: ") > 2
        assert output.rstrip().endswith(b"data: [DONE]")
        assert up.ready["admin"] in text


async def test_a_simulator_that_dies_is_started_again_with_the_pools_of_now(tmp_path: Path) -> None:
    async with running_up(tmp_path) as up:
        simulator = next(
            pid for pid in up.children if b"pointsman.sim.main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(simulator, signal.SIGKILL)
        up.manifests.write(Layout(stable={"us-east": 3}))

        async def all_three() -> bool:
            try:
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(f"{up.ready['simulator']}/replicas") as answer,
                ):
                    return "stable-us-east-2" in await answer.text()
            except aiohttp.ClientError:
                return False

        await eventually(all_three, timeout_s=40, what="the simulator at its old address, with the new replica")
        await works_again(up)


async def test_an_envoy_that_dies_is_started_again(tmp_path: Path) -> None:
    async with running_up(tmp_path) as up:
        envoy = next(pid for pid in up.children if b"bootstrap.json" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(envoy, signal.SIGKILL)
        await eventually(lambda: children_of(up.process.pid) - up.children, what="another Envoy")
        await works_again(up)


async def refused(config: Path, *words: str | Path) -> str:
    """What `pointsman up` says that does not start."""
    process = await asyncio.create_subprocess_exec(
        POINTSMAN, "up", "--config", config, *words, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 1
    return said.decode()


async def test_a_taken_port_names_the_port_and_its_setting(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        manifests = Manifests(tmp_path / "config", Loopback())
        manifests.write(Layout())
        words = ("--simulate", "--grpc-port", "0", "--admin-port", str(port))
        said = await refused(manifests.folder, "--state", tmp_path / "state", *words)
    assert f"port {port} is in use by another process; set --admin-port" in said


async def test_an_open_address_needs_a_flag(tmp_path: Path) -> None:
    manifests = Manifests(tmp_path / "config", Loopback())
    manifests.write(Layout())
    words = ("--no-envoy", "--grpc-address", "0.0.0.0")
    assert "--allow-plaintext" in await refused(manifests.folder, "--state", tmp_path / "state", *words)


async def test_edits_take_effect_and_broken_ones_do_not(tmp_path: Path) -> None:
    """Weights change under load without a failed request and without a touched listener."""
    async with running_fleet(tmp_path) as fleet:
        before = await fleet.envoy_stats("listener_manager.")
        async with Load(fleet.url, workers=8) as load:
            await load.progressed(50)
            assert "canary-us-east-0" not in load.outcomes.replicas
            fleet.manifests.write(Layout(canary_weight=100, stable_weight=0))

            async def all_canary() -> bool:
                load.outcomes.replicas.clear()
                await load.progressed(30)
                return set(load.outcomes.replicas) == {"canary-us-east-0"}

            await eventually(all_canary, what="the new weights are in force")

            good = (fleet.manifests.folder / "fleet.yaml").read_text()
            broken = good.replace("weight: 100", "wieght: 100", 1)
            assert broken != good
            (fleet.manifests.folder / "fleet.yaml").write_text(broken)

            async def refused() -> bool:
                return not (await fleet.status())["configuration"]["accepted"]

            await eventually(refused, what="the broken edit is told")
            problem = (await fleet.status())["configuration"]["problems"][0]
            line = 1 + broken[: broken.index("wieght")].count("\n")
            assert (problem["file"], problem["line"]) == ("fleet.yaml", line)
            assert problem["field"].endswith("backendRefs[0].wieght")
            assert "weight" in problem["mend"]
            assert await all_canary(), "the last good configuration serves on"

            fleet.manifests.write(Layout())

            async def accepted() -> bool:
                return bool((await fleet.status())["configuration"]["accepted"])

            await eventually(accepted, what="the mended folder is accepted")
            load.outcomes.replicas.clear()

            async def all_stable() -> bool:
                load.outcomes.replicas.clear()
                await load.progressed(30)
                return "canary-us-east-0" not in load.outcomes.replicas

            await eventually(all_stable, what="the mended weights are in force")
        assert load.outcomes.failed == 0, load.outcomes.failures
        after = await fleet.envoy_stats("listener_manager.")
        touched = ("listener_added", "listener_modified", "listener_removed", "listener_in_place_updated")
        assert {name: after[f"listener_manager.{name}"] for name in touched} == {
            name: before[f"listener_manager.{name}"] for name in touched
        }


async def test_a_new_replica_is_served_and_a_removed_one_is_not(tmp_path: Path) -> None:
    async with running_up(tmp_path) as up:
        async with Load(up.url, workers=6) as load:
            await load.progressed(40)
            up.manifests.write(Layout(stable={"us-east": 3}))

            async def newcomer_serves() -> bool:
                await load.progressed(20)
                return "stable-us-east-2" in load.outcomes.replicas

            await eventually(newcomer_serves, what="the new replica gets requests")
            up.manifests.write(Layout(stable={"us-east": 1}))

            async def only_one() -> bool:
                load.outcomes.replicas.clear()
                await load.progressed(30)
                return set(load.outcomes.replicas) == {"stable-us-east-0"}

            await eventually(only_one, what="removed replicas get nothing")
        assert load.outcomes.failed == 0, load.outcomes.failures


async def test_what_render_prints_is_accepted_by_envoy(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "two-sites"
    process = await asyncio.create_subprocess_exec(
        POINTSMAN, "render", example, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    config = json.loads(output)
    assert len(config["static_resources"]["listeners"]) == 2
    await validate_bootstrap(config, tmp_path)
