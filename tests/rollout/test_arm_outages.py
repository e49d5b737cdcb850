"""When an arm counts as gone, and when it is tried again."""

from __future__ import annotations

from pointsman.rollout.outages import APART_S, MAX_TRIAL_S, MISSES, SETTLE_S, TRIAL_S, Outages

A = "default/a"


def never(_: str) -> float:
    return float("-inf")


def watching() -> Outages:
    outages = Outages()
    outages.watch(frozenset({A}))
    return outages


def fall(outages: Outages, now_s: float) -> list[bool]:
    return [outages.missed(A, now_s) for _ in range(MISSES)]


def test_a_few_in_a_row_are_an_outage() -> None:
    outages = watching()
    assert fall(outages, 1.0) == [False] * (MISSES - 1) + [True]
    assert outages.down == {A}
    assert not outages.missed(A, 1.1), "told once"


def test_one_that_was_served_between_and_time_between_are_none() -> None:
    outages = watching()
    for turn in range(20):
        assert not outages.missed(A, float(turn) / 10)
        if turn % 2:
            outages.served(A)
    slow = watching()
    assert not any(slow.missed(A, turn * (APART_S + 0.1)) for turn in range(20))
    assert outages.down == slow.down == frozenset()


def test_who_is_not_watched_is_not_known() -> None:
    outages = watching()
    assert not any(outages.missed("default/b", 1.0) for _ in range(MISSES))
    fall(outages, 1.0)
    outages.watch(frozenset())
    assert outages.down == frozenset()


def test_scrapes_that_answer_bring_it_back() -> None:
    outages = watching()
    fall(outages, 10.0)
    assert not outages.tick(10.5, lambda _: 10.4), "too early: Envoy's probe may not have succeeded"
    assert outages.tick(11.5, lambda _: 10.0 + SETTLE_S) == {A}
    assert outages.down == frozenset()


def test_without_scrapes_it_is_tried_ever_more_seldom() -> None:
    outages, now_s, pauses = watching(), 0.0, []
    for _ in range(7):
        fall(outages, now_s)
        began_s = now_s
        while not outages.tick(now_s, never):
            now_s += 0.5
        pauses.append(now_s - began_s)
    assert pauses == [TRIAL_S, 10, 20, 40, MAX_TRIAL_S, MAX_TRIAL_S, MAX_TRIAL_S]
    now_s += 61
    outages.served(A)
    fall(outages, now_s)
    assert outages.tick(now_s + TRIAL_S, never) == {A}, "a minute of service is forgiven"


def test_a_failed_trial_is_not_repeated_for_the_sake_of_scrapes() -> None:
    outages = watching()
    fall(outages, 0.0)
    assert outages.tick(1.0, lambda _: 1.0) == {A}
    fall(outages, 1.5)
    assert not outages.tick(3.0, lambda _: 3.0)
    assert outages.tick(1.5 + 2 * TRIAL_S, lambda _: 3.0) == {A}
