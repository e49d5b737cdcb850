"""The simulated `/metrics` page against one captured from a real vLLM 0.32."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pointsman.core import engine_metrics
from pointsman.sim.metrics import Histogram, render_labels, token_bounds
from support.waiting import eventually

REAL = (Path(__file__).parent / "fixtures" / "vllm-0.32.0-metrics.txt").read_text(encoding="utf-8")

# What routing reads (README of the captured page), and what dashboards show first.
NEEDED = {
    "vllm:num_requests_waiting",
    "vllm:num_requests_running",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:cache_config_info",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:num_preemptions_total",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:iteration_tokens_total_bucket",
    "process_start_time_seconds",
}

SAMPLE = re.compile(r'^([a-zA-Z_:][\w:]*)(?:\{((?:\w+="[^"]*",?)*)\})? (\S+)$')


def samples(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Value by name and labels; a line that has no vLLM shape fails."""
    found = {}
    for line in page.splitlines():
        if line.startswith("#"):
            continue
        match = SAMPLE.match(line)
        assert match, line
        labels = frozenset(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
        key = (match[1], labels)
        assert key not in found, f"twice: {line}"
        found[key] = float(match[3])
    return found


def types(page: str) -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))


async def page_of(sim: Any, name: str = "one") -> str:
    status, body = await sim.get(name, "/metrics")
    assert status == 200
    return str(body.decode())


# The captured server runs with these sizes; the bounds of its histograms of tokens follow from them.
LIKE_REAL = {"model": "tiny", "engine": {"block_size": 128, "num_gpu_blocks": 8192, "max_model_len": 4096}}


async def test_names_labels_and_types_are_vllms(start: Any) -> None:
    sim = await start(LIKE_REAL)
    await sim.chat("one", model="tiny")
    page = await page_of(sim)
    mine, real = samples(page), samples(REAL)
    config = "vllm:cache_config_info"
    odd = {key for key in mine if key not in real and key[0] != config}
    assert not odd, f"not in the real page: {sorted((n, sorted(labels)) for n, labels in odd)}"
    assert {name for name, _ in mine} >= NEEDED
    real_types = types(REAL)
    assert {k: v for k, v in types(page).items() if real_types.get(k) != v} == {}
    (my_config,) = (dict(labels) for name, labels in mine if name == config)
    (real_config,) = (dict(labels) for name, labels in real if name == config)
    assert set(my_config) <= set(real_config)
    for label in ("block_size", "num_gpu_blocks", "kv_cache_size_tokens", "num_cpu_blocks", "engine"):
        assert my_config[label] == real_config[label]


async def test_every_sample_has_its_type_before_it_and_names_stand_together(start: Any) -> None:
    sim = await start({"loras": ["adapter"]})
    page = await page_of(sim)
    assert page.endswith("\n")
    families = list(text_string_to_metric_families(page))
    assert all(family.type != "unknown" for family in families)
    names = [line.split("{")[0].split(" ")[0] for line in page.splitlines() if not line.startswith("#")]
    changes = [n for i, n in enumerate(names) if i == 0 or names[i - 1] != n]
    assert len(changes) == len(set(changes))


async def test_counts_follow_the_requests(start: Any) -> None:
    sim = await start(speed=50.0)
    for _ in range(2):
        await sim.chat("one", "x" * 2000, max_tokens=10)
    found = samples(await page_of(sim))
    base = {("engine", "0"), ("model_name", "llama")}

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset(base | set(labels.items()))]

    assert value("vllm:request_success_total", finished_reason="length") == 2
    assert value("vllm:generation_tokens_total") == 20
    assert value("vllm:prompt_tokens_total") == value("vllm:prefix_cache_queries_total") == 2 * 513
    hits = value("vllm:prefix_cache_hits_total")
    assert hits == 512
    assert value("vllm:prompt_tokens_by_source_total", source="local_cache_hit") == hits
    assert value("vllm:prompt_tokens_by_source_total", source="local_compute") == 2 * 513 - hits
    assert value("vllm:prompt_tokens_cached_by_source_total", source="device") == hits
    assert value("vllm:time_to_first_token_seconds_count") == 2
    assert value("vllm:inter_token_latency_seconds_count") == 18
    assert value("vllm:iteration_tokens_total_sum") == 2 * 513 - hits + 18
    assert value("vllm:request_generation_tokens_sum") == 20
    assert value("vllm:e2e_request_latency_seconds_bucket", le="+Inf") == 2
    # Engine time is 50 times wall time; the page speaks of wall time. Ten tokens take about 0.2 s at speed 1.
    assert 2 * 0.15 / 50 < value("vllm:e2e_request_latency_seconds_sum") < 2 * 0.6 / 50
    assert value("vllm:kv_cache_usage_perc") == 0


async def test_load_shows_while_it_lasts(start: Any) -> None:
    sim = await start({"name": "one", "engine": {"max_num_seqs": 1, "num_gpu_blocks": 1000}}, speed=1.0)
    tasks = [asyncio.ensure_future(sim.chat("one", "x" * 1600, max_tokens=5000)) for _ in range(3)]
    engine = sim.replica("one").engine
    await eventually(lambda: (engine.running, engine.waiting) == (1, 2))
    read = engine_metrics.parse((await page_of(sim)).encode())
    assert (read.running, read.waiting) == (1, 2)
    assert read.kv_usage is not None
    assert 0.02 < read.kv_usage < 0.1
    assert (read.block_tokens, read.capacity_tokens) == (16, 16_000)
    for task in tasks:
        task.cancel()
    await eventually(lambda: (engine.running, engine.waiting) == (0, 0))
    assert engine_metrics.parse((await page_of(sim)).encode()).kv_usage == 0


async def test_loras_show_where_they_run(start: Any) -> None:
    loras = {"loras": ["alpha", "beta"], "max_loras": 2, "engine": {"max_num_seqs": 1}}
    sim = await start({"name": "one", **loras}, speed=1.0)
    tasks = [asyncio.ensure_future(sim.chat("one", model=m, max_tokens=5000)) for m in ("alpha", "beta")]
    engine = sim.replica("one").engine
    await eventually(lambda: (engine.running, engine.waiting) == (1, 1))
    (labels,) = (dict(ls) for name, ls in samples(await page_of(sim)) if name == "vllm:lora_requests_info")
    assert labels["max_lora"] == "2"
    assert {labels["running_lora_adapters"], labels["waiting_lora_adapters"]} == {"alpha", "beta"}
    for task in tasks:
        task.cancel()
    await eventually(lambda: engine.running == 0)


async def test_without_adapters_there_is_no_lora_series(start: Any) -> None:
    sim = await start()
    assert "lora" not in await page_of(sim)


async def test_host_tier_shows_as_external_cache(start: Any) -> None:
    engine = {"num_gpu_blocks": 80, "num_host_blocks": 200, "max_model_len": 1200}
    sim = await start({"engine": engine})
    for text in ("a", "b", "a"):
        await sim.chat("one", text * 4000, max_tokens=1)
    found = samples(await page_of(sim))
    values = {name: v for (name, labels), v in found.items() if len(labels) == 2}
    by_source = {dict(labels)["source"]: v for (n, labels), v in found.items() if n.endswith("cached_by_source_total")}
    assert values["vllm:external_prefix_cache_hits_total"] > 0
    assert by_source["host"] == values["vllm:external_prefix_cache_hits_total"]
    assert values["vllm:prompt_tokens_cached_total"] == by_source["host"] + by_source["device"]


def test_token_bounds() -> None:
    assert token_bounds(4096) == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
    assert token_bounds(1) == (1,)


def test_histogram_counts_by_upper_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    histogram.observe(2.0, times=3)
    assert list(histogram.lines("h", {})) == [
        'h_bucket{le="1.0"} 2.0',
        'h_bucket{le="2.0"} 6.0',
        'h_bucket{le="+Inf"} 7.0',
        "h_count 7.0",
        "h_sum 18.0",
    ]


@pytest.mark.parametrize(
    ("labels", "text"),
    [({}, ""), ({"b": "1", "a": "2"}, '{a="2",b="1"}'), ({"a": 'x"\\\n'}, '{a="x\\"\\\\\\n"}')],
)
def test_labels_are_sorted_and_escaped(labels: dict[str, str], text: str) -> None:
    assert render_labels(labels) == text
