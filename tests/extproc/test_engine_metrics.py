"""The scanner of /metrics pages against a page of a real vLLM 0.32.0, both engines' names, and hostile pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.core.engine_metrics import MAX_PAGE_BYTES, EngineMetrics, parse
from pointsman.core.errors import UpstreamError

REAL_PAGE = (Path(__file__).parent / "fixtures" / "vllm-0.32.0-metrics.txt").read_bytes()


def test_real_vllm_page() -> None:
    assert parse(REAL_PAGE) == EngineMetrics(
        waiting=0.0,
        running=0.0,
        kv_usage=0.0,
        block_tokens=128,
        capacity_tokens=128 * 8192,
        prompt_tokens_total=3091.0,
        generation_tokens_total=52.0,
        prefix_queries_total=3091.0,
        prefix_hits_total=1792.0,
        preemptions_total=0.0,
        start_time_s=1.79529041068e9,
    )


def test_data_parallel_ranks_add_up_and_fractions_are_averaged() -> None:
    page = b"""# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3
vllm:num_requests_waiting{engine="1",model_name="m"} 4.0 1700000000000
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 0.1
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="100"} 1.0
"""
    found = parse(page)
    assert found.waiting == 7.0
    assert found.running is None
    assert found.kv_usage == pytest.approx(0.3)
    assert (found.block_tokens, found.capacity_tokens) == (16, 3200)


def test_sglang_names_and_repeated_tensor_parallel_ranks() -> None:
    page = b"""sglang:num_running_reqs{dp_rank="0",model_name="m",tp_rank="0"} 5.0
sglang:num_running_reqs{dp_rank="0",model_name="m",tp_rank="1"} 5.0
sglang:num_running_reqs{dp_rank="1",model_name="m",tp_rank="0"} 2.0
sglang:num_queue_reqs{tp_rank="0"} 1.0
sglang:token_usage{tp_rank="0"} 0.25
sglang:max_total_num_tokens{tp_rank="0"} 400000.0
sglang:cached_tokens_total{tp_rank="0"} 77.0
"""
    found = parse(page)
    assert (found.running, found.waiting, found.kv_usage) == (7.0, 1.0, 0.25)
    assert found.capacity_tokens == 400_000
    assert found.prefix_hits_total == 77.0


def test_host_tier_is_read_where_the_engine_tells_it() -> None:
    page = b'vllm:cache_config_info{block_size="16",num_cpu_blocks="%s",num_gpu_blocks="100"} 1.0\n'
    assert parse(page % b"400").host_tokens == 6_400
    assert parse(page % b"None").host_tokens is None


def test_labels_with_quotes_braces_and_commas() -> None:
    page = (
        b'vllm:num_requests_running{model_name="a\\"}b{, 9"} 2\n'
        b'vllm:lora_requests_info{max_lora="4",running_lora_adapters="alpha,be\\"ta",waiting_lora_adapters=""} 1.7\n'
    )
    found = parse(page)
    assert found.running == 2.0
    assert found.running_loras == frozenset({"alpha", 'be"ta'})


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "abc", "", "1e999"])
def test_unusable_values_are_absent_and_not_zero(value: str) -> None:
    page = f"vllm:num_requests_waiting {value}\nvllm:num_requests_running 1\n".encode()
    found = parse(page)
    assert found.waiting is None
    assert found.running == 1.0


def test_names_that_only_begin_alike_are_not_taken() -> None:
    page = (
        b'vllm:num_requests_waiting_by_reason{reason="capacity"} 9\n# vllm:num_requests_waiting 8\n'
        b"vllm:num_requests_running 1"
    )
    found = parse(page)
    assert found.waiting is None
    assert found.running == 1.0


@pytest.mark.parametrize("page", [b"", b"<html>502</html>", b"\x00\xff" * 500, b"x" * (MAX_PAGE_BYTES + 1)])
def test_pages_that_are_none(page: bytes) -> None:
    with pytest.raises(UpstreamError):
        parse(page)


@given(st.data())
def test_a_damaged_page_gives_metrics_or_upstream_error(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(REAL_PAGE)))
    cut = data.draw(st.integers(0, 2000))
    junk = data.draw(st.binary(max_size=60))
    try:
        found = parse(REAL_PAGE[:start] + junk + REAL_PAGE[start + cut :])
    except UpstreamError:
        return
    for value in (found.waiting, found.running, found.kv_usage, found.prompt_tokens_total):
        assert value is None or value >= 0.0
