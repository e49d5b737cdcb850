"""Which tries at an endpoint's page prove that nobody is there."""

from __future__ import annotations

from pointsman.core.attention import ATTENTIVE, Attention
from pointsman.extproc.tries import Tries


def test_a_refusal_counts_at_once_and_a_time_out_while_we_look() -> None:
    tries = Tries(1.0, ATTENTIVE)
    assert tries.begin(10.0) == 1.0
    assert tries.failed(10.01, timed_out=False)
    tries.begin(10.5)
    assert tries.failed(11.5, timed_out=True)
    assert (tries.failures, tries.since_s) == (2, None)
    tries.answered()
    assert tries.failures == 0


def test_a_time_out_that_is_noticed_late_is_tried_again_and_the_wait_goes_on() -> None:
    tries = Tries(1.0, ATTENTIVE)
    tries.begin(10.0)
    assert not tries.failed(13.0, timed_out=True)
    assert (tries.failures, tries.since_s) == (0, 10.0)


def test_while_we_are_late_answers_are_awaited_for_longer_and_time_outs_prove_nothing_for_a_while() -> None:
    attention, now_s = Attention(), 10.0
    tries = Tries(1.0, attention)
    for _ in range(10):
        attention.look(now_s)
        now_s += 0.4
    assert tries.begin(now_s) > 2.0
    proven, looks = False, 0
    while not proven:
        patience_s = tries.begin(now_s)
        for _ in range(int(patience_s / 0.4)):
            attention.look(now_s)
            now_s += 0.4
            looks += 1
        proven = tries.failed(now_s, timed_out=True)
    assert looks > 10, "half a second in which we looked"
