"""Generated traces: sessions that grow, shared system prompts, and the example that ships."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.replay.generate import MultiTurn, describe, generate, trace_lines
from pointsman.replay.trace import TraceRequest, blocks_of, read_requests

EXAMPLE = Path(__file__).parents[2] / "examples" / "traces" / "multi-turn-small.jsonl"
SMALL = MultiTurn(
    duration_s=60,
    rate=5,
    turns=5,
    think_s=6,
    system_prompts=4,
    system_blocks=1,
    first_tokens=120,
    user_tokens=60,
    output_tokens=40,
    max_input_tokens=4000,
    seed=2,
)


def sessions(requests: list[TraceRequest], shared_blocks: int) -> dict[int, list[TraceRequest]]:
    """Requests by the first block of their own, in the order of arrival."""
    found: dict[int, list[TraceRequest]] = {}
    for request in requests:
        found.setdefault(request.hash_ids[shared_blocks], []).append(request)
    return found


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        MultiTurn,
        duration_s=st.floats(1, 60),
        rate=st.floats(0.1, 5),
        turns=st.floats(1, 8),
        think_s=st.floats(0.1, 20),
        system_prompts=st.integers(0, 4),
        system_blocks=st.integers(0, 3),
        sigma=st.floats(0, 2),
        seed=st.integers(0, 2**32),
    )
)
def test_every_generated_trace_is_a_valid_trace_in_order(spec: MultiTurn) -> None:
    requests = generate(spec)
    assert requests == generate(spec)
    if not requests:
        return
    assert read_requests(io.BytesIO(b"".join(trace_lines(requests))), "t") == requests
    arrivals = [r.arrival_ms for r in requests]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] >= 0
    assert arrivals[-1] < spec.duration_s * 1000
    for request in requests:
        assert 1 <= request.input_tokens <= spec.max_input_tokens
        assert 1 <= request.output_tokens <= spec.max_output_tokens
        assert len(request.hash_ids) == len(set(request.hash_ids)) == blocks_of(request.input_tokens)
    assert {i for r in requests for i in r.hash_ids} == set(range(max(max(r.hash_ids) for r in requests) + 1))
    assert 0 <= describe(requests).reuse < 1


def test_each_turn_sends_the_history_again() -> None:
    grown = 0
    for turns in sessions(generate(SMALL), shared_blocks=1).values():
        for before, after in pairwise(turns):
            assert after.hash_ids[: len(before.hash_ids)] == before.hash_ids
            assert after.input_tokens > before.input_tokens + before.output_tokens
            grown += 1
    assert grown > 100


def test_sessions_share_as_many_system_prompts_as_said() -> None:
    requests = generate(SMALL)
    assert len({r.hash_ids[0] for r in requests}) == 4
    assert len(sessions(requests, 1)) > 20
    alone = generate(replace(SMALL, system_prompts=0))
    assert len(sessions(alone, 0)) == len({r.hash_ids[0] for r in alone}) > 20


def test_reuse_of_a_known_trace() -> None:
    def request(tokens: int, *ids: int) -> TraceRequest:
        return TraceRequest(arrival_ms=0, input_tokens=tokens, output_tokens=1, hash_ids=ids)

    known = [request(600, 0, 1), request(700, 0, 1), request(1200, 0, 2, 1), request(512, 0)]
    # 0; 512 and the 88 tokens of the partial block; 512, block 2 is new and ends the prefix; the whole block.
    assert describe(known).reuse == pytest.approx((600 + 512 + 512) / (600 + 700 + 1200 + 512))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_defaults_resemble_what_was_published(seed: int) -> None:
    stats = describe(generate(MultiTurn(seed=seed)))
    assert stats.input_p50 == pytest.approx(5_800, rel=0.1)
    assert stats.input_mean == pytest.approx(7_000, rel=0.1)
    assert stats.input_p95 == pytest.approx(21_000, rel=0.15)
    assert stats.reuse == pytest.approx(0.776, abs=0.02)
    assert stats.requests / stats.span_s == pytest.approx(5.0, rel=0.1)


def test_the_example_is_what_its_readme_says() -> None:
    with EXAMPLE.open("rb") as file:
        requests = read_requests(file, EXAMPLE.name)
    assert requests == generate(SMALL)
    stats = describe(requests)
    assert (stats.requests, stats.input_p50, stats.input_max, f"{stats.reuse:.1%}") == (295, 910, 2689, "85.0%")
