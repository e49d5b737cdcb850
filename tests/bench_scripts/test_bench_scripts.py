"""The benchmark scripts under `bench/` work: run as a user runs them, small, against simulated replicas."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pointsman.replay.trace import TraceRequest
from pointsman.sim.server import Ready, serve
from pointsman.sim.spec import ReplicaSpec, SimSpec

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
TRACE = ROOT / "examples" / "traces" / "multi-turn-small.jsonl"

pytestmark = pytest.mark.story


async def run_script(script: Path, *arguments: str) -> str:
    """The output of a script that must succeed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.e2e
async def test_real_vllm_script_finds_more_hits_with_our_pick_than_with_round_robin(tmp_path: Path) -> None:
    """The servers are simulated here; the script cannot tell."""
    stop = asyncio.Event()
    replicas = tuple(ReplicaSpec(name=f"replica-{i}", model="tiny") for i in range(2))
    told: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve(SimSpec(replicas=replicas, speed=20.0), on_ready=told.set_result, stop=stop))
    try:
        urls = [f"http://{replica.address}" for replica in (await told).replicas]
        figures = tmp_path / "figures.json"
        words = [word for url in urls for word in ("--url", url)]
        words += ["--runs", "1", "--conversations", "8", "--users", "3", "--turns", "4", "--wire"]
        output = await run_script(BENCH / "real_vllm" / "run.py", *words, "--json", str(figures))
    finally:
        stop.set()
        await server
    found = json.loads(figures.read_text())
    assert found["hits"]["ratio"] > 1.0, output
    assert found["hits"]["prompt tokens agree"] is True, output
    assert [line.split(":")[0] for line in found["wire"]] == ["same", "same"], output


@pytest.mark.e2e
@pytest.mark.parametrize("contender", ["pointsman joint", "envoy least_request"])
async def test_peers_script_measures_a_contender(contender: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    words = ["--trace", str(TRACE), "--limit", "6", "--replicas", "2", "--fault-rate", "0", "--only", contender]
    output = await run_script(BENCH / "peers" / "run.py", *words, "--json", str(figures))
    score = json.loads(figures.read_text())[contender]
    assert [outcome["failure"] for outcome in score["outcomes"]] == [""] * 6, output
    assert score["query_tokens"] > 0
    assert score["cpu_s"]["envoy"] >= 0


def test_peers_that_are_not_installed_are_skipped_with_a_line(tmp_path: Path) -> None:
    words = ["--trace", str(TRACE), "--limit", "1", "--router-bin", str(tmp_path), "--only", "router"]
    result = subprocess.run(
        [sys.executable, str(BENCH / "peers" / "run.py"), *words], capture_output=True, text=True, check=True
    )
    skipped = [line for line in result.stdout.splitlines() if line.startswith("skipped: ")]
    assert [line.split(": ")[1] for line in skipped] == [
        "vllm-router cache_aware",
        "vllm-router power_of_two",
        "vllm-router consistent_hash",
        "sglang-router cache_aware",
    ]


def test_sessions_follow_conversations_and_not_system_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from peers.load import sessions

    # Blocks 10 and 0 are a system prompt of two blocks.
    prompts = [(10, 0, 1), (10, 0, 2), (10, 0, 1, 3), (10, 0, 2, 4, 5), (10, 0, 1, 3, 6), (9, 8)]
    requests = [
        TraceRequest(arrival_ms=float(n), input_tokens=1, output_tokens=1, hash_ids=ids)
        for n, ids in enumerate(prompts)
    ]
    names = sessions(requests)
    assert names[0] == names[2] == names[4]
    assert names[1] == names[3]
    assert len(set(names)) == 3


def test_requests_under_way_when_the_fault_begins_count_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from peers.run import CALM_S, FAULT_S, meets_fault

    assert [meets_fault(due_s) for due_s in (0.0, CALM_S - 0.9, CALM_S, CALM_S + FAULT_S - 0.1)] == [
        False,
        True,
        True,
        True,
    ]
    assert not meets_fault(CALM_S + FAULT_S)


def test_conversations_have_the_same_lengths_and_other_text_for_each_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from real_vllm.workload import Shape, conversations

    shape = Shape(conversations=5, turns=3)
    one, again, other = (conversations(shape, salt) for salt in ("a", "a", "b"))
    assert one == again
    assert [len(m) for c in one for m in c.messages] == [len(m) for c in other for m in c.messages]
    texts = [m for c in (*one, *other) for m in c.messages]
    assert len({text[:40] for text in texts}) == len(texts)
