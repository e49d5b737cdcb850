"""The specification, the ports, and the program around them."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.core.errors import ConfigError
from pointsman.sim.main import main, read_spec
from pointsman.sim.server import serve, simulation
from pointsman.sim.spec import SimSpec, parse_spec


def spec(*replicas: dict[str, Any], **more: Any) -> SimSpec:
    return parse_spec(json.dumps({"replicas": list(replicas), **more}).encode())


def test_defaults() -> None:
    (one,) = spec({"name": "one"}).replicas
    assert (one.address, one.port, one.protocol, one.speed) == ("127.0.0.1", 0, "http", 1.0)
    assert one.engine.num_gpu_blocks * one.engine.block_size == 400_000


def test_engine_overrides() -> None:
    engine = {"num_gpu_blocks": 10, "block_size": 512, "max_num_batched_tokens": 8192, "step_time": {"slowdown": 1.7}}
    (one,) = spec({"name": "one", "engine": engine}).replicas
    assert one.engine.context_limit == 5120
    assert one.engine.step_time.slowdown == 1.7
    assert one.engine.max_num_seqs == 256


@pytest.mark.parametrize(
    ("body", "field", "what"),
    [
        ("{", "", "not JSON"),
        ('{"replicas": []}', "replicas", "length >= 1"),
        ('{"replicas": [{"name": "a", "port": 70000}]}', "replicas[0].port", "<= 65535"),
        ('{"replicas": [{"name": "a", "prot": 1}]}', "replicas[0]", "unknown field `prot`"),
        ('{"replicas": [{"name": "a"}, {"name": "a"}]}', "replicas[1].name", "name of replicas[0]"),
        ('{"replicas": [{"name": "a/b"}]}', "replicas[0].name", "'a/b' is no name"),
        ('{"replicas": [{"name": "a", "address": "host"}]}', "replicas[0].address", "no IP address"),
        ('{"replicas": [{"name": "a", "port": 9}, {"name": "b", "port": 9}]}', "replicas[1].port", "taken by a"),
        ('{"replicas": [{"name": "a", "port": 9}], "admin_port": 9}', "replicas[0].port", "the admin endpoint"),
        ('{"replicas": [{"name": "a", "model": "m", "loras": ["m"]}]}', "replicas[0].loras", "share a name"),
        ('{"replicas": [{"name": "a", "engine": {"block_size": 0}}]}', "replicas[0].engine", "block_size"),
        ('{"replicas": [{"name": "a", "engine": {"kv": 1}}]}', "replicas[0].engine", "unknown field `kv`"),
        ('{"replicas": [{"name": "a", "speed": 0}]}', "replicas[0].speed", "> 0"),
    ],
)
def test_wrong_specifications_say_where_and_what(body: str, field: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_spec(body.encode(), "sim.json")
    (problem,) = caught.value.problems
    assert (problem.file, problem.field) == ("sim.json", field)
    assert what in problem.what


def test_every_problem_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        spec({"name": "-", "address": "x"}, {"name": "b", "model": ""})
    assert len(caught.value.problems) == 3


@given(st.binary(max_size=60))
def test_no_bytes_break_the_reader(body: bytes) -> None:
    try:
        parse_spec(body)
    except ConfigError as error:
        assert error.problems


async def test_bound_ports_are_reported() -> None:
    async with simulation(spec({"name": "one", "site": "us"}, {"name": "two", "address": "::1"})) as running:
        one, two = running.ready.replicas
        assert (one.name, one.site, one.protocol) == ("one", "us", "http")
        assert one.address.startswith("127.0.0.1:")
        assert two.address.startswith("[::1]:")
        async with aiohttp.ClientSession() as session:
            for address in (one.address, two.address, running.ready.admin):
                async with session.get(f"http://{address}/health") as response:
                    assert response.status == 200


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_a_taken_port_names_replica_address_and_port(protocol: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            async with simulation(spec({"name": "one"}, {"name": "us-0", "port": port, "protocol": protocol})):
                pass
    (problem,) = caught.value.problems
    assert "us-0" in problem.field
    assert f"port {port} on address 127.0.0.1 is in use" in problem.what


async def test_nothing_listens_afterwards() -> None:
    async with simulation(spec({"name": "one"}, {"name": "two", "protocol": "grpc"})) as running:
        addresses = [r.address for r in running.ready.replicas] + [running.ready.admin]
    for address in addresses:
        host, port = address.rsplit(":", 1)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))


async def test_serve_ends_when_it_is_told_to() -> None:
    stop = asyncio.Event()
    seen = []

    def on_ready(ready: Any) -> None:
        seen.append(ready)
        stop.set()

    await serve(spec({"name": "one"}), on_ready=on_ready, stop=stop)
    assert [r.name for r in seen[0].replicas] == ["one"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_program_runs_until_a_signal(tmp_path: Path, number: int) -> None:
    file = tmp_path / "sim.json"
    file.write_text(json.dumps({"replicas": [{"name": "one"}, {"name": "two", "protocol": "grpc"}]}), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pointsman.sim.main", "--spec", str(file)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        ready = msgspec.json.decode(await process.stdout.readline())
        assert ready["ready"] is True
        assert [r["name"] for r in ready["replicas"]] == ["one", "two"]
        url = f"http://{ready['replicas'][0]['address']}/v1/completions"
        async with aiohttp.ClientSession() as session:
            request = {"prompt": "x", "max_tokens": 5000, "stream": True}
            async with session.post(url, json=request) as response:  # a stream that is open at the end
                assert response.status == 200
                process.send_signal(number)
                _, errors = await process.communicate()
        assert (process.returncode, errors) == (0, b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_the_program_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sim.json"
    assert main(["--spec", str(file)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        file.write_text(json.dumps({"replicas": [{"name": "us-0", "port": port}]}), encoding="utf-8")
        assert read_spec(file).replicas[0].port == port
        assert main(["--spec", str(file)]) == 2
    error = capsys.readouterr().err
    assert "us-0" in error
    assert str(port) in error
