"""The engine model: by hand-computed cases, and by properties over random histories."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.sim.engine import Engine, EngineConfig
from pointsman.sim.kv_cache import Hit, KvCache
from pointsman.sim.sequence import Event, EventKind, Phase, Sequence
from pointsman.sim.step_time import StepTime, batch_ms


def config(**changes: Any) -> EngineConfig:
    sizes: dict[str, Any] = {
        "block_size": 4,
        "num_gpu_blocks": 64,
        "max_num_batched_tokens": 16,
        "max_num_seqs": 8,
        "api_overhead_ms": 0.0,
    }
    return EngineConfig(**{**sizes, **changes})


def sequence(number: int, prompt: int, output: int, *, hashes: list[int] | None = None, **more: Any) -> Sequence:
    own = [1000 * number + i for i in range((prompt + output) // 4)]
    return Sequence(
        id=number,
        block_hashes=own if hashes is None else hashes,
        prompt_tokens=prompt,
        output_tokens=output,
        **more,
    )


def kinds(events: list[Event]) -> list[tuple[str, int]]:
    return [(e.kind.value, e.sequence.id) for e in events]


# Step time


def test_step_time_matches_the_published_points() -> None:
    model = StepTime()
    assert [model.linear(n) for n in (1, 128, 512, 1024, 2048, 4096)] == [14.3, 15.9, 30.0, 62.0, 114.0, 222.0]
    assert model.linear(6144) == pytest.approx(330.0)  # the last slope goes on
    # An idle replica prefills about 12.9k tokens a second at a context of 6k.
    chunk_ms = batch_ms(model, 2048)[2048] + model.prefill_attention_ms * 2048 * (6000 + 1024)
    assert 2048 / chunk_ms * 1000 == pytest.approx(12_900, rel=0.05)
    # A decode step of 16 sequences with 12k tokens of context takes about 26 ms.
    decode_ms = batch_ms(model, 2048)[16] + model.decode_attention_ms * 16 * 12_000 + model.decode_sequence_ms * 16
    assert decode_ms == pytest.approx(26.0, rel=0.05)


def test_step_time_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="linear_ms"):
        StepTime(linear_ms=((1, 2.0), (1, 3.0)))
    with pytest.raises(ValueError, match="slowdown"):
        StepTime(slowdown=0)


def test_host_load_costs_a_share_of_recompute() -> None:
    model = StepTime()
    recompute_ms = 222.0 / 4096 * 4096 + 160 * 0.0745e-3 * 4096 + 1.32e-6 * 4096 * 2048
    assert model.host_load_ms(4096, 0) == pytest.approx(0.08 * recompute_ms)


# Engine, by hand


def test_a_lone_request_takes_its_prefill_then_one_step_per_token() -> None:
    engine = Engine(config())
    one = sequence(1, prompt=10, output=3)
    engine.submit(5.0, one)
    assert kinds(engine.advance(math.inf)) == [("first_token", 1), ("finished", 1)]
    model, table = StepTime(), batch_ms(StepTime(), 16)
    prefill_ms = table[10] + model.prefill_attention_ms * 10 * 5
    decode_ms = [table[1] + model.decode_attention_ms * context + model.decode_sequence_ms for context in (11, 12)]
    assert one.first_token_ms == pytest.approx(5.0 + prefill_ms)
    assert one.finished_ms == pytest.approx(5.0 + prefill_ms + sum(decode_ms))
    assert (engine.running, engine.waiting, engine.kv.used) == (0, 0, 0)
    assert engine.counters.generation_tokens == 3
    assert engine.counters.prompt_tokens == 10
    assert engine.counters.finished["length"] == 1


def test_api_overhead_delays_the_queue_not_the_arrival() -> None:
    engine = Engine(config(api_overhead_ms=15.6))
    engine.submit(100.0, sequence(1, prompt=4, output=1))
    assert engine.next_event_ms() == pytest.approx(115.6)
    assert engine.advance(115.0) == []
    assert engine.running == 0
    engine.advance(116.0)
    assert engine.running == 1


def test_long_prompts_are_cut_into_chunks_and_decodes_go_first() -> None:
    seen: list[tuple[int, int]] = []
    engine = Engine(config(), observer=lambda _ms, prefill, decodes: seen.append((prefill, decodes)))
    engine.submit(0.0, sequence(1, prompt=4, output=4))
    engine.submit(0.0, sequence(2, prompt=40, output=2))
    engine.advance(math.inf)
    assert seen == [(16, 0), (15, 1), (13, 1), (0, 2)]


def test_waiting_is_first_come_first_served_within_max_num_seqs() -> None:
    engine = Engine(config(max_num_seqs=2))
    for number in (1, 2, 3):
        engine.submit(0.0, sequence(number, prompt=4, output=3))
    engine.advance(1.0)
    assert (engine.running, engine.waiting) == (2, 1)
    order = [number for kind, number in kinds(engine.advance(math.inf)) if kind == "first_token"]
    assert order == [1, 2, 3]


def test_generated_counts_only_finished_steps() -> None:
    engine = Engine(config())
    one = sequence(1, prompt=4, output=5)
    engine.submit(0.0, one)
    made = [engine.generated(one)]
    while engine.next_event_ms() < math.inf:
        engine.advance(engine.next_event_ms())
        made.append(engine.generated(one))
    assert made == [0, 0, 1, 2, 3, 4, 5]  # the first advance only begins the step


def test_pooling_request_ends_with_its_prefill() -> None:
    engine = Engine(config())
    engine.submit(0.0, sequence(1, prompt=9, output=0, finish_reason="stop"))
    assert kinds(engine.advance(math.inf)) == [("finished", 1)]
    assert engine.counters.generation_tokens == 0
    assert engine.counters.finished["stop"] == 1


def test_second_request_hits_the_prefix_but_computes_at_least_one_token() -> None:
    engine = Engine(config())
    engine.submit(0.0, sequence(1, prompt=12, output=1, hashes=[7, 8, 9]))
    engine.advance(math.inf)
    again = sequence(2, prompt=12, output=1, hashes=[7, 8, 9])
    longer = sequence(3, prompt=14, output=1, hashes=[7, 8, 9])
    other = sequence(4, prompt=12, output=1, hashes=[7, 80, 9])
    for late in (again, longer, other):
        engine.submit(engine.now_ms, late)
        engine.advance(math.inf)
    assert (again.cached_tokens, longer.cached_tokens, other.cached_tokens) == (8, 12, 4)
    assert engine.counters.prefix_queries == 12 + 12 + 14 + 12
    assert engine.counters.prefix_hits == 8 + 12 + 4


def test_an_answer_is_hit_by_the_next_turn_when_its_hashes_are_known() -> None:
    engine = Engine(config())
    engine.submit(0.0, sequence(1, prompt=8, output=9, hashes=[1, 2, 3, 4]))  # 16 tokens with KV: 4 full blocks
    engine.advance(math.inf)
    turn = sequence(2, prompt=20, output=1, hashes=[1, 2, 3, 4, 5])
    engine.submit(engine.now_ms, turn)
    engine.advance(math.inf)
    assert turn.cached_tokens == 16


def test_cancel_gives_the_blocks_back_and_keeps_what_was_computed() -> None:
    engine = Engine(config())
    one = sequence(1, prompt=40, output=5, hashes=list(range(10)))
    engine.submit(0.0, one)
    engine.advance(60.0)  # two chunks of 16 tokens done, the third is going on
    assert one.computed_tokens == 32
    assert engine.kv.used == 10
    assert engine.cancel(one)
    assert not engine.cancel(one)
    assert (engine.kv.used, engine.kv.cached, engine.running) == (0, 8, 0)
    assert engine.advance(math.inf) == []
    assert engine.counters.finished["abort"] == 1
    again = sequence(2, prompt=40, output=1, hashes=list(range(10)))
    engine.submit(engine.now_ms, again)
    engine.advance(math.inf)
    assert again.cached_tokens == 32


def test_cancel_in_a_decode_step() -> None:
    engine = Engine(config())
    one, two = sequence(1, prompt=4, output=20), sequence(2, prompt=4, output=20)
    engine.submit(0.0, one)
    engine.submit(0.0, two)
    while engine.generated(one) < 6:
        engine.advance(engine.next_event_ms())
    assert engine.cancel(one)
    assert one.made_tokens == 6
    engine.kv.check()
    assert kinds(engine.advance(math.inf)) == [("finished", 2)]
    assert engine.kv.used == 0
    assert engine.counters.generation_tokens == 26


def test_cancel_while_waiting() -> None:
    engine = Engine(config(max_num_seqs=1, api_overhead_ms=5.0))
    first, queued, pending = (sequence(n, prompt=4, output=9) for n in (1, 2, 3))
    engine.submit(0.0, first)
    engine.submit(0.0, queued)
    engine.advance(6.0)
    engine.submit(6.0, pending)
    assert engine.cancel(pending)
    assert engine.cancel(queued)
    assert kinds(engine.advance(math.inf)) == [("first_token", 1), ("finished", 1)]


def test_newest_is_preempted_and_computed_again() -> None:
    engine = Engine(config(num_gpu_blocks=6, max_num_batched_tokens=64))
    old, new = sequence(1, prompt=8, output=13), sequence(2, prompt=8, output=13)
    engine.submit(0.0, old)
    engine.submit(0.0, new)
    events = kinds(engine.advance(math.inf))
    assert events[:3] == [("first_token", 1), ("first_token", 2), ("preempted", 2)]
    assert events[-2:] == [("finished", 1), ("finished", 2)]
    assert new.preemptions == engine.counters.preemptions == 1
    assert engine.counters.generation_tokens == 26
    assert engine.counters.prefix_queries == 16  # a second admission is no query
    assert engine.kv.used == 0


def test_admission_needs_room_for_the_whole_prompt() -> None:
    engine = Engine(config(num_gpu_blocks=8))
    first, second = sequence(1, prompt=20, output=2), sequence(2, prompt=20, output=2)
    engine.submit(0.0, first)
    engine.submit(0.0, second)
    engine.advance(1.0)
    assert (engine.running, engine.waiting, engine.kv.used) == (1, 1, 5)
    engine.advance(math.inf)
    assert second.phase is Phase.ENDED
    assert second.scheduled_ms >= first.finished_ms


def test_shared_blocks_let_a_second_prompt_in() -> None:
    engine = Engine(config(num_gpu_blocks=8))
    shared = [1, 2, 3, 4]
    engine.submit(0.0, sequence(1, prompt=20, output=12, hashes=shared))
    second = sequence(2, prompt=20, output=1, hashes=shared)
    engine.advance(1.0)
    engine.submit(1.0, second)
    engine.advance(math.inf)
    assert second.cached_tokens == 16
    assert engine.counters.preemptions == 0


def test_host_tier_keeps_what_the_device_evicts() -> None:
    def ttft_ms(host_blocks: int) -> tuple[float, int, int]:
        engine = Engine(config(num_gpu_blocks=8, num_host_blocks=host_blocks))
        engine.submit(0.0, sequence(1, prompt=24, output=1, hashes=[1, 2, 3, 4, 5, 6]))
        engine.advance(math.inf)
        engine.submit(engine.now_ms, sequence(2, prompt=32, output=0))
        engine.advance(math.inf)
        third = sequence(3, prompt=24, output=1, hashes=[1, 2, 3, 4, 5, 6])
        engine.submit(engine.now_ms, third)
        engine.advance(math.inf)
        engine.kv.check()
        return third.first_token_ms - third.arrived_ms, third.cached_tokens, third.host_tokens

    cold_ms, cold_cached, _ = ttft_ms(0)
    warm_ms, warm_cached, warm_host = ttft_ms(16)
    assert (cold_cached, warm_cached, warm_host) == (0, 20, 20)
    assert warm_ms < cold_ms


def test_bad_requests_and_sizes_are_refused() -> None:
    engine = Engine(config())
    with pytest.raises(ValueError, match="more than 256"):
        engine.submit(0.0, sequence(1, prompt=250, output=7))
    with pytest.raises(ValueError, match="1 token or more"):
        engine.submit(0.0, sequence(2, prompt=0, output=7))
    engine.advance(10.0)
    with pytest.raises(ValueError, match="does not go back"):
        engine.submit(9.0, sequence(3, prompt=4, output=1))
    twice = sequence(4, prompt=4, output=1)
    engine.submit(10.0, twice)
    with pytest.raises(ValueError, match="before"):
        engine.submit(10.0, twice)
    for bad in ({"block_size": 0}, {"max_num_seqs": 17}, {"api_overhead_ms": -1.0}, {"num_host_blocks": -1}):
        with pytest.raises(ValueError, match="must"):
            config(**bad)


# KV cache


def test_lru_evicts_the_tail_of_the_oldest_first() -> None:
    kv = KvCache(6)
    first = kv.acquire([1, 2, 3], Hit(0, 0, 0), 3)
    kv.register([1, 2, 3], 0, 3, first)
    second = kv.acquire([4, 5, 6], Hit(0, 0, 0), 3)
    kv.register([4, 5, 6], 0, 3, second)
    kv.release(first, 0)
    kv.release(second, 0)
    kv.take(2)
    assert kv.lookup([1, 2, 3], 9).blocks == 1
    assert kv.lookup([4, 5, 6], 9).blocks == 3
    kv.take(2)
    assert kv.lookup([1, 2, 3], 9).blocks == 0
    assert kv.lookup([4, 5, 6], 9).blocks == 2
    kv.check()


def test_two_that_compute_the_same_block_hold_one_each() -> None:
    kv = KvCache(4)
    one, two = kv.acquire([1], Hit(0, 0, 0), 1), kv.acquire([1], Hit(0, 0, 0), 1)
    kv.register([1], 0, 1, one)
    kv.register([1], 0, 1, two)
    assert (kv.used, kv.cached) == (2, 1)
    kv.release(one, 0)
    kv.release(two, 1)
    assert (kv.used, kv.cached) == (0, 1)
    kv.clear()
    assert kv.cached == 0
    kv.check()


# Properties

PROMPTS = st.tuples(
    st.integers(0, 3),  # which of four trees of prefixes
    st.integers(0, 12),  # shared blocks
    st.integers(1, 60),  # prompt tokens
    st.integers(0, 20),  # output tokens
    st.floats(0, 200),  # pause before it, ms
    st.one_of(st.none(), st.floats(0, 400)),  # cancelled so long after its arrival, or never
)
SIZES = st.fixed_dictionaries(
    {
        "num_gpu_blocks": st.integers(20, 40),
        "num_host_blocks": st.sampled_from([0, 4, 30]),
        "max_num_batched_tokens": st.integers(8, 40),
        "max_num_seqs": st.integers(1, 8),
        "api_overhead_ms": st.sampled_from([0.0, 15.6]),
    }
)


def history(prompts: list[Any]) -> tuple[list[Sequence], list[tuple[float, str, Sequence]]]:
    now_ms, made, actions = 0.0, [], []
    for number, (tree, shared, prompt, output, pause_ms, cancel_ms) in enumerate(prompts):
        now_ms += pause_ms
        full = (prompt + output) // 4
        hashes = [100 * tree + i if i < shared else 10_000 * (number + 1) + i for i in range(full)]
        made.append(sequence(number, prompt, output, hashes=hashes))
        actions.append((now_ms, "submit", made[-1]))
        if cancel_ms is not None:
            actions.append((now_ms + cancel_ms, "cancel", made[-1]))
    return made, sorted(actions, key=lambda a: a[0])


def check_books(engine: Engine, sequences: list[Sequence]) -> None:
    engine.kv.check()
    in_batch = [s for s in sequences if s.phase in (Phase.PREFILL, Phase.DECODE)]
    assert engine.running == len(in_batch)
    held = {block for s in in_batch for block in s.held}
    step = engine._decode_step
    total = [s.base_tokens + (step - s.decode_start if s.phase is Phase.DECODE else 0) for s in in_batch]
    private = sum(-(-tokens // 4) - len(s.held) for tokens, s in zip(total, in_batch, strict=True))
    assert engine.kv.used == len(held) + private
    assert engine.decode_context_tokens == sum(
        tokens for tokens, s in zip(total, in_batch, strict=True) if s.phase is Phase.DECODE
    )


@settings(max_examples=150, deadline=None)
@given(prompts=st.lists(PROMPTS, min_size=1, max_size=25), sizes=SIZES)
def test_books_balance_and_every_sequence_ends(prompts: list[Any], sizes: dict[str, Any]) -> None:
    engine = Engine(config(**sizes))
    sequences, actions = history(prompts)
    events: list[Event] = []
    for at_ms, action, target in actions:
        while engine.next_event_ms() <= at_ms:
            events += engine.advance(engine.next_event_ms())
            check_books(engine, sequences)
        events += engine.advance(at_ms)
        if action == "submit":
            engine.submit(at_ms, target)
        else:
            engine.cancel(target)
        check_books(engine, sequences)
    events += engine.advance(math.inf)
    check_books(engine, sequences)
    assert engine.kv.used == 0
    assert all(s.phase is Phase.ENDED for s in sequences)
    finished = [e.sequence for e in events if e.kind is EventKind.FINISHED]
    aborted = [s for s in sequences if s.finish_reason == "abort"]
    assert len(finished) == len(set(finished))
    assert set(finished) | set(aborted) == set(sequences)
    assert sum(engine.counters.finished.values()) == len(sequences)
    assert engine.counters.generation_tokens == sum(s.made_tokens for s in sequences)
    assert all(s.made_tokens == s.output_tokens for s in finished)
    assert engine.counters.prefix_hits + engine.counters.host_hits == sum(s.cached_tokens for s in sequences)
    for s in sequences:
        assert 0 <= s.cached_tokens < s.prompt_tokens
        assert s.cached_tokens % 4 == 0
        assert s.host_tokens <= s.cached_tokens
    times = [e.at_ms for e in events]
    assert times == sorted(times)


@settings(max_examples=60, deadline=None)
@given(prompts=st.lists(PROMPTS, min_size=1, max_size=15), sizes=SIZES, cut_ms=st.floats(1, 500))
def test_how_time_is_cut_makes_no_difference(prompts: list[Any], sizes: dict[str, Any], cut_ms: float) -> None:
    def run(cut: bool) -> list[tuple[str, float, int]]:
        engine = Engine(config(**{**sizes, "api_overhead_ms": 15.6}))
        events: list[Event] = []
        _, actions = history([(*p[:5], None) for p in prompts])
        for at_ms, _action, target in actions:
            while cut and engine.now_ms + cut_ms < at_ms:
                events += engine.advance(engine.now_ms + cut_ms)
            engine.submit(at_ms, target)
        events += engine.advance(math.inf)
        return [(e.kind.value, e.at_ms, e.sequence.id) for e in events]

    assert run(cut=False) == run(cut=True)
