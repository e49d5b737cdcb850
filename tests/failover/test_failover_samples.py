"""What an access log entry says of the endpoints that it is about, and of the second in which it ended."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman.app.failover_samples import Seconds, samples
from pointsman.extproc import Feedback
from pointsman.failover.model import Member, Sample

SITE = Member(pool="default/llama", site="a")
MEMBERS = {("default/llama", key): SITE for key in ("10.0.0.1:80", "10.0.0.2:80")}


def entry(*, status: int, ttft_ms: float | None = None, **more: Any) -> Feedback:
    fields: dict[str, Any] = {
        "pick_id": "p-1",
        "ended": True,
        "cluster": "default/llama",
        "upstream": "10.0.0.1:80",
        **more,
    }
    return Feedback(status=status, ttft_ms=ttft_ms, **fields)


def samples_of(given: Feedback) -> list[Sample]:
    return [sample for _, sample in samples(given, MEMBERS, 5.0)]


@pytest.mark.parametrize("status", [0, 499])
def test_a_client_that_left_is_no_answer_and_makes_no_good_second(status: int) -> None:
    gone = entry(status=status, duration_ms=90.0)
    (sample,) = samples_of(gone)
    assert (sample.waited_ms, sample.failed) == (90.0, False)
    seconds = Seconds()
    seconds.take(100.0)
    seconds.add(gone)
    second = seconds.take(101.0)
    assert second is not None
    assert not second.good


def test_an_answer_makes_a_good_second_and_a_failure_does_not() -> None:
    for given, good in ((entry(status=200, ttft_ms=20.0), True), (entry(status=0, failed=True), False)):
        (sample,) = samples_of(given)
        assert (sample.waited_ms, sample.failed) == (None, not good)
        seconds = Seconds()
        seconds.take(100.0)
        seconds.add(given)
        second = seconds.take(101.0)
        assert second is not None
        assert (second.requests, second.good) == (1, good)


def test_each_attempt_counts_where_it_failed() -> None:
    told = entry(status=200, ttft_ms=20.0, upstream="10.0.0.2:80", attempted=("10.0.0.1:80", "10.0.0.2:80"), attempts=2)
    assert [(one.endpoint, one.failed) for one in samples_of(told)] == [("10.0.0.1:80", True), ("10.0.0.2:80", False)]
