"""Prefill rates learnt from TTFT: they converge to the truth, stay within their bounds, and shrug off nonsense."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.fleet import POOL, make_plan
from pointsman.core.clock import ManualClock
from pointsman.extproc import Feedback, Picker, PickRequest
from pointsman.extproc.calibrate import BOUNDS, FIXED_MS, TOLERANCE, Rates, Sample
from pointsman.extproc.request import read_body
from pointsman.extproc.table import PREFILL_MS_PER_TOKEN, PREFILL_MS_PER_TOKEN_SQUARED

NEAR = ["10.0.0.1:80", "10.0.0.2:80"]
LOW, HIGH = BOUNDS[1]


def sample_of(rng: random.Random, slowness: float, *, fixed_ms: float = FIXED_MS, noise: float = 0.0) -> Sample:
    """A request to an engine that is `slowness` times slower than expected."""
    tokens = rng.choice((200, 1_000, 4_000, 16_000, 60_000))
    uncached = rng.randrange(100, tokens + 1)
    own_ms = uncached * (PREFILL_MS_PER_TOKEN + PREFILL_MS_PER_TOKEN_SQUARED * (tokens - uncached / 2))
    ahead_ms = rng.choice((0.0, 0.0, rng.uniform(0, 800)))
    took_ms = (fixed_ms + ahead_ms + slowness * own_ms) * (1.0 + rng.uniform(-noise, noise))
    return Sample(took_ms=took_ms, ahead_ms=ahead_ms, own_ms=own_ms)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.4, 2.5), st.floats(0, 80), st.integers(0, 2**32))
def test_what_is_measured_converges_to_the_engine(slowness: float, fixed_ms: float, seed: int) -> None:
    rng, rates = random.Random(seed), Rates()
    for _ in range(400):
        rates.learn(sample_of(rng, slowness, fixed_ms=fixed_ms))
    assert rates.measured == pytest.approx(slowness, rel=0.1)


@given(st.floats(LOW, HIGH))
def test_rates_are_left_alone_near_the_expected_and_follow_from_there(slowness: float) -> None:
    rng, rates = random.Random(7), Rates()
    for _ in range(60):
        rates.learn(sample_of(rng, slowness))
    measured = rates.measured
    if 1 / TOLERANCE <= measured <= TOLERANCE:
        assert rates.factor == 1.0
    else:
        assert rates.factor == pytest.approx(measured / TOLERANCE if measured > 1.0 else measured * TOLERANCE)
        assert (rates.factor > 1.0) == (measured > 1.0)


def test_replicas_that_are_equal_stay_equal() -> None:
    """Noise of a fifth, decodes of others, other prompts at each: none of it makes one of them look better."""
    factors = set()
    for seed in range(12):
        rng, rates = random.Random(seed), Rates()
        for _ in range(100):
            rates.learn(sample_of(rng, 1.08, noise=0.2))
            factors.add(rates.factor)
    assert factors == {1.0}


def test_noise_and_hidden_queues_move_the_rates_little() -> None:
    rng, rates = random.Random(3), Rates()
    for number in range(2_000):
        good = sample_of(rng, 1.8, noise=0.15)
        late_ms = rng.expovariate(1 / 2_000) if number % 5 == 0 else 0.0  # one in five waits behind what we cannot see
        rates.learn(Sample(took_ms=good.took_ms + late_ms, ahead_ms=good.ahead_ms, own_ms=good.own_ms))
    assert rates.measured == pytest.approx(1.8, rel=0.25)


def test_an_engine_that_changes_is_followed() -> None:
    rng, rates = random.Random(5), Rates()
    for slowness in (2.0, 0.6, 1.5):
        for _ in range(400):
            rates.learn(sample_of(rng, slowness))
        assert rates.measured == pytest.approx(slowness, rel=0.15)


def test_where_the_samples_say_nothing_the_prior_holds() -> None:
    rates = Rates()
    for _ in range(500):  # only short prompts: all their time is the engine's step, none of it shows the prefill
        rates.learn(Sample(took_ms=35.0, ahead_ms=0.0, own_ms=1.0))
    assert rates.factor == 1.0


NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1e6)


@given(st.lists(st.builds(Sample, took_ms=NUMBERS, ahead_ms=NUMBERS, own_ms=NUMBERS)))
def test_any_samples_leave_rates_that_can_be_used(samples: list[Sample]) -> None:
    rates = Rates()
    for sample in samples:
        rates.learn(sample)
        assert LOW <= rates.measured <= HIGH
        assert LOW <= rates.factor <= HIGH


# In the picker


def asking(words: int, number: int, subset: frozenset[str] | None = None, *, stream: bool = True) -> PickRequest:
    text = f"{number} " + "word " * words
    body = b'{"model": "m", "stream": %s, "prompt": "%s"}' % (b"true" if stream else b"false", text.encode())
    return PickRequest(pool=POOL, body=read_body(body), subset=subset)


def run(
    picker: Picker,
    slowness: dict[str, float],
    *,
    attempts: int = 1,
    status: int = 200,
    rtt_ms: float = 0.0,
    stream: bool = True,
) -> None:
    """Each endpoint in turn: a picker that has learnt which one is slow would leave it alone."""
    rng = random.Random(1)
    for number in range(200):
        made = picker.pick(asking(rng.randrange(50, 8_000), number, frozenset({NEAR[number % 2]}), stream=stream))
        account = picker.inflight.get(made.pick_id)
        assert account is not None
        reach = account.context_tokens - account.uncached_tokens / 2
        own_ms = account.uncached_tokens * (PREFILL_MS_PER_TOKEN + PREFILL_MS_PER_TOKEN_SQUARED * reach)
        ttft_ms = rtt_ms + FIXED_MS + (account.ahead_ms or 0.0) + slowness[made.endpoints[0]] * own_ms
        for ended in (False, True):
            picker.feedback(
                Feedback(
                    pick_id=made.pick_id,
                    ended=ended,
                    upstream=made.endpoints[0],
                    status=status,
                    ttft_ms=ttft_ms,
                    attempts=attempts,
                )
            )


def picker_of(*, calibrate: bool = True) -> Picker:
    picker = Picker(ManualClock(), calibrate=calibrate)
    picker.apply(make_plan({"near": NEAR}))
    return picker


def rate(picker: Picker, key: str) -> float:
    row = picker.table.row(key)
    assert row is not None
    return float(picker.table.prefill_ms[row]) / PREFILL_MS_PER_TOKEN


def test_the_picker_learns_which_endpoint_is_slower() -> None:
    picker = picker_of()
    run(picker, {NEAR[0]: 1.0, NEAR[1]: 2.0})
    assert rate(picker, NEAR[0]) == pytest.approx(1.0, rel=0.15)
    assert rate(picker, NEAR[1]) == pytest.approx(2.0 / TOLERANCE, rel=0.1)


def test_the_round_trip_is_no_prefill() -> None:
    picker = picker_of()
    for key in NEAR:
        picker.signals(key, rtt_ms=1_000.0)
    run(picker, dict.fromkeys(NEAR, 1.0), rtt_ms=1_000.0)
    assert rate(picker, NEAR[0]) == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("unusable", [{"attempts": 2}, {"status": 503}, {"status": 0}, {"stream": False}])
def test_what_does_not_show_the_prefill_teaches_nothing(unusable: dict[str, Any]) -> None:
    """A retry, a failure, and an answer in one piece, whose first byte comes with its last token."""
    picker = picker_of()
    run(picker, dict.fromkeys(NEAR, 2.0), **unusable)
    assert [rate(picker, key) for key in NEAR] == [1.0, 1.0]


def test_calibration_is_an_option_and_leaves_with_the_endpoint() -> None:
    picker = picker_of(calibrate=False)
    run(picker, dict.fromkeys(NEAR, 2.0))
    assert rate(picker, NEAR[0]) == 1.0
    picker = picker_of()
    run(picker, dict.fromkeys(NEAR, 2.0))
    picker.apply(make_plan({"near": []}))
    picker.apply(make_plan({"near": NEAR}))
    assert rate(picker, NEAR[0]) == 1.0
    run(picker, dict.fromkeys(NEAR, 1.0))
    assert rate(picker, NEAR[0]) == pytest.approx(1.0, rel=0.1)


def test_what_is_in_flight_adds_up_while_rates_change() -> None:
    picker = picker_of()
    open_picks = [picker.pick(asking(2_000, -n)).pick_id for n in range(1, 9)]
    run(picker, dict.fromkeys(NEAR, 2.5))
    for pick_id in open_picks:
        picker.feedback(Feedback(pick_id=pick_id, ended=True, status=200))
    assert picker.table.pending_ms.sum() == 0.0
    assert picker.table.pending_tokens.sum() == 0
