"""How requests count, and what the analysis makes of them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.app.rollout_words import FIRST_REPORT_MS, sample_of
from pointsman.extproc.feedback import Feedback
from pointsman.rollout import buckets
from pointsman.rollout.analysis import Verdict, analyse, due_for_restart
from pointsman.rollout.evidence import MAX_OPEN, SILENT_S, Arm, Evidence, EvidenceRecord, Outcome, Sample, outcome
from pointsman.rollout.spec import Check, Comparison, Limit, Metric, RolloutSpec


def sample(**given: Any) -> Sample:
    return Sample(**{"key": "", "ended": True, "status": 200, "ttft_ms": 100.0, "duration_ms": 400.0, **given})


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({}, Outcome.OK),
        ({"status": 500}, Outcome.SERVER_ERROR),
        ({"status": 503, "failed": True}, Outcome.SERVER_ERROR),
        ({"status": 200, "failed": True}, Outcome.BROKEN),
        ({"status": 0, "failed": True}, Outcome.BROKEN),
        ({"status": 429}, Outcome.THROTTLED),
        ({"status": 404}, Outcome.CLIENT_ERROR),
        ({"status": 0}, Outcome.CANCELLED),
        ({"status": 499}, Outcome.CANCELLED),
        ({"grpc_status": 0}, Outcome.OK),
        ({"grpc_status": 14}, Outcome.GRPC_ERROR),
        ({"grpc_status": 13}, Outcome.GRPC_ERROR),
        ({"grpc_status": 8}, Outcome.THROTTLED),
        ({"grpc_status": 1}, Outcome.CANCELLED),
        ({"grpc_status": 5}, Outcome.CLIENT_ERROR),
    ],
)
def test_outcomes(given_: dict[str, Any], expected: Outcome) -> None:
    assert outcome(sample(**given_)) is expected


def test_what_counts_as_an_error() -> None:
    arm = Arm()
    for status in (200, 200, 500, 503, 429, 404, 0):
        arm.add(sample(status=status))
    assert arm.rate(Metric.ERROR_RATE) == (2, 6), "429 and 404 are requests, not errors; who left is neither"
    assert arm.rate(Metric.CLIENT_ERROR_RATE) == (1, 6)


def test_retries_count_though_the_user_saw_none() -> None:
    arm = Arm()
    arm.add(sample(attempts=2))
    arm.add(sample(attempts=1))
    assert arm.rate(Metric.RETRY_RATE) == (1, 2)
    assert arm.rate(Metric.ERROR_RATE) == (0, 2)


def test_failures_are_not_fast_answers() -> None:
    arm = Arm()
    arm.add(sample(status=503, ttft_ms=0.3, duration_ms=0.4))
    assert arm.times(Metric.TTFT).sum() == 0


def test_who_left_had_waited() -> None:
    arm = Arm()
    arm.add(sample(status=0, ttft_ms=None, duration_ms=30_000.0))
    assert buckets.quantile_ms(arm.times(Metric.TTFT), 0.5) == pytest.approx(30_000, rel=0.03)


def test_who_still_waits_counts_with_his_age() -> None:
    arm = Arm()
    for age_ms in (1_000.0, 2_000.0):
        assert not arm.add(sample(key="p-1", ended=False, status=0, ttft_ms=None, duration_ms=age_ms))
    assert (arm.waiting, arm.requests) == (1, 0)
    assert buckets.quantile_ms(arm.times(Metric.TTFT), 0.5) == pytest.approx(2_000, rel=0.03)
    arm.add(sample(key="p-1", ended=False, ttft_ms=2_100.0, duration_ms=3_000.0))
    assert arm.waiting == 0
    assert arm.add(sample(key="p-1", ttft_ms=2_100.0, duration_ms=9_000.0))
    assert buckets.quantile_ms(arm.times(Metric.TTFT), 0.5) == pytest.approx(2_100, rel=0.03)


def test_reports_without_a_duration_age_by_the_time_that_they_come() -> None:
    """Envoy tells the duration at the end only: each report has the least that it can be."""
    arm = Arm()
    for heard_s in (100.0, 100.5, 103.0):
        arm.add(sample(key="p-1", ended=False, status=0, ttft_ms=None, duration_ms=500.0, heard_s=heard_s))
    assert buckets.quantile_ms(arm.times(Metric.TTFT), 0.5) == pytest.approx(3_500, rel=0.03)
    arm.add(sample(key="p-2", heard_s=104.0))  # what another request tells is the time, too
    assert buckets.quantile_ms(arm.times(Metric.TTFT), 0.99) == pytest.approx(4_500, rel=0.03)


def test_a_running_request_is_as_old_as_its_first_report() -> None:
    entry = Feedback(pick_id="p-1", ended=False)
    assert sample_of(entry, 7.0) == Sample(
        key="p-1", ended=False, status=0, duration_ms=FIRST_REPORT_MS, heard_s=7.0, attempts=0
    )
    assert FIRST_REPORT_MS > 0


def test_who_is_not_reported_any_more_does_not_wait_for_ever() -> None:
    arm = Arm()
    arm.add(sample(key="p-1", ended=False, ttft_ms=None, duration_ms=500.0, heard_s=100.0))
    arm.add(sample(key="p-2", heard_s=100.0 + SILENT_S + 1.0))
    assert arm.waiting == 0
    assert buckets.quantile_ms(arm.times(Metric.TTFT), 0.99) == pytest.approx(100, rel=0.03)


def test_requests_whose_end_got_lost_make_way_for_others() -> None:
    arm = Arm()
    for number in range(MAX_OPEN):
        arm.add(sample(key=f"p-{number}", ended=False, ttft_ms=None, heard_s=1.0))
    arm.add(sample(key="new", ended=False, ttft_ms=None, heard_s=1.0 + SILENT_S + 1.0))
    assert arm.waiting == 1


def test_memory_is_bounded() -> None:
    arm = Arm()
    for number in range(MAX_OPEN + 100):
        arm.add(sample(key=f"p-{number}", ended=False, ttft_ms=None))
    assert arm.waiting == MAX_OPEN


def test_pace_of_long_answers_only() -> None:
    arm = Arm()
    arm.add(sample(ttft_ms=100.0, duration_ms=1_100.0, response_bytes=25_600))
    arm.add(sample(response_bytes=100))
    assert arm.times(Metric.ITL).sum() == 1
    assert buckets.quantile_ms(arm.times(Metric.ITL), 0.5) == pytest.approx(10.0, rel=0.03)


samples = st.builds(
    Sample,
    key=st.sampled_from(["", "a", "b"]),
    ended=st.booleans(),
    status=st.sampled_from([0, 200, 404, 429, 500, 503]),
    grpc_status=st.none() | st.integers(0, 16),
    failed=st.booleans(),
    ttft_ms=st.none() | st.floats(0, 1e12),
    duration_ms=st.floats(0, 1e12),
    response_bytes=st.integers(0, 10**12),
    attempts=st.integers(0, 5),
)


@given(st.lists(st.tuples(samples, st.booleans()), max_size=30))
def test_saved_evidence_is_the_same_evidence(entries: list[tuple[Sample, bool]]) -> None:
    evidence = Evidence()
    for entry, canary in entries:
        evidence.add(entry, canary=canary)
    record = msgspec.json.decode(msgspec.json.encode(evidence.record()), type=EvidenceRecord)
    assert Evidence.restored(record).record() == evidence.record()
    for arm in (evidence.canary, evidence.stable):
        for metric in (Metric.ERROR_RATE, Metric.RETRY_RATE, Metric.CLIENT_ERROR_RATE):
            hits, total = arm.rate(metric)
            assert 0 <= hits <= total


@given(st.floats(0, 1e9))
def test_a_time_lies_in_its_bucket(value_ms: float) -> None:
    index = buckets.bucket(value_ms)
    assert buckets.LOWER_MS[index] <= value_ms
    assert value_ms < buckets.UPPER_MS[index]


ERRORS = Check(
    name="errors",
    limit=Limit(comparison=Comparison.DIFFERENCE, value=0.01),
    must_catch=Limit(comparison=Comparison.DIFFERENCE, value=0.05),
)
ABSOLUTE = Check(
    name="absolute",
    limit=Limit(comparison=Comparison.ABSOLUTE, value=0.02),
    must_catch=Limit(comparison=Comparison.ABSOLUTE, value=0.1),
)
RATIO = Check(
    name="ratio",
    metric=Metric.TTFT,
    quantile=0.9,
    limit=Limit(comparison=Comparison.RATIO, value=1.2),
    must_catch=Limit(comparison=Comparison.RATIO, value=2.0),
)
BOUND = Check(
    name="bound",
    metric=Metric.E2E,
    quantile=0.5,
    limit=Limit(comparison=Comparison.ABSOLUTE, value=500.0),
    must_catch=Limit(comparison=Comparison.ABSOLUTE, value=1_000.0),
)


def spec(*checks: Check) -> RolloutSpec:
    return RolloutSpec(name="d/r", rules=("x",), stable="d/s", canary="d/c", checks=checks, window_s=60.0)


def filled(canary: int, stable: int, *, errors: int = 0, slower: float = 1.0) -> Evidence:
    evidence = Evidence()
    random = np.random.default_rng(3)
    for is_canary, count, factor in ((True, canary, slower), (False, stable, 1.0)):
        for number in range(count):
            ttft_ms = float(100 * factor * np.exp(0.3 * random.standard_normal()))
            status = 500 if is_canary and number < errors else 200
            evidence.add(sample(status=status, ttft_ms=ttft_ms, duration_ms=3 * ttft_ms), canary=is_canary)
    return evidence


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        (filled(0, 0), (Verdict.NO_DATA,) * 4),
        (filled(0, 500), (Verdict.NO_DATA,) * 4),
        (filled(500, 0), (Verdict.NO_DATA, Verdict.GOOD, Verdict.NO_DATA, Verdict.GOOD)),
        (filled(5, 500), (Verdict.TOO_FEW,) * 4),
        (filled(500, 500), (Verdict.GOOD,) * 4),
        (filled(500, 500, errors=60), (Verdict.BAD, Verdict.BAD, Verdict.GOOD, Verdict.GOOD)),
        (filled(500, 500, slower=3.0), (Verdict.GOOD, Verdict.GOOD, Verdict.BAD, Verdict.BAD)),
    ],
    ids=["nothing", "no canary", "no stable", "few", "good", "errors", "slow"],
)
def test_verdicts(evidence: Evidence, expected: tuple[Verdict, ...]) -> None:
    found = analyse(spec(ERRORS, ABSOLUTE, RATIO, BOUND), evidence, stable_serves=True)
    assert tuple(result.verdict for result in found) == expected, found


def test_without_stable_traffic_its_last_is_what_counts() -> None:
    evidence = filled(500, 500)
    evidence.restart(0.0, new_step=True)
    for _ in range(300):
        evidence.add(sample(status=500), canary=True)
    (result,) = analyse(spec(ERRORS), evidence, stable_serves=False)
    assert result.verdict is Verdict.BAD
    assert (evidence.look, evidence.step_look, evidence.step_requests) == (2, 1, 300)


def test_old_evidence_makes_way_once_it_was_judged() -> None:
    evidence = filled(500, 500)
    wanted = spec(ERRORS)
    good = analyse(wanted, evidence, stable_serves=True)
    assert not due_for_restart(wanted, evidence, good, 59.0)
    assert due_for_restart(wanted, evidence, good, 60.0)
    few = analyse(wanted, filled(5, 500), stable_serves=True)
    assert not due_for_restart(wanted, evidence, few, 3_600.0), "a trickle is collected for as long as it takes"
