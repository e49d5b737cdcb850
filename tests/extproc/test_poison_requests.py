"""Requests that no endpoint can answer: one client's must not cost the others their endpoints."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.fleet import POOL, make_plan
from pointsman.core.clock import ManualClock
from pointsman.extproc import Feedback, Picker, PickRequest
from pointsman.extproc.penalties import BROKEN_RUN, REMEMBERED_PROMPTS, Blame
from pointsman.extproc.request import read_body

NEAR = [f"10.0.0.{n}:8000" for n in range(1, 4)]
FAR = [f"10.1.0.{n}:8000" for n in range(1, 4)]
SECONDS = 6
TALK = "Tell me more about the railways of the north, and do not leave anything out. " * 40


def asking(text: str) -> PickRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return PickRequest(pool=POOL, body=read_body(json.dumps(body).encode()))


class Traffic:
    """A hundred good requests a second, of sixty conversations, and ten bad ones: each step is 10 ms. Good ones take
    half a second; `broken` endpoints answer 500 to everything."""

    def __init__(self, *, broken: frozenset[str] = frozenset()) -> None:
        self.clock = ManualClock()
        self.picker = Picker(self.clock)
        self.picker.apply(make_plan({"near": NEAR, "far": FAR}))
        for key, rtt_ms in [(key, 1.0) for key in NEAR] + [(key, 80.0) for key in FAR]:
            self.picker.signals(key, rtt_ms=rtt_ms)
        self.good: Counter[str] = Counter()
        self.moves = 0
        self._homes: dict[int, str] = {}
        self._running: list[tuple[int, str, str]] = []
        self._broken = broken

    def run(self, poison: str) -> None:
        """`poison`: nothing bad, the "same" request again and again, or "other" ones with the same beginning."""
        for step in range(SECONDS * 100):
            self.clock.advance(0.01)
            talk = step % 60
            decision = self.picker.pick(asking(f"talk {talk}: {TALK}"))
            endpoint = decision.endpoints[0]
            self.good[endpoint] += 1
            self.moves += self._homes.get(talk, endpoint) != endpoint
            self._homes[talk] = endpoint
            self._running.append((step + 50, decision.pick_id, endpoint))
            if poison and step % 10 == 0:
                text = TALK + (f"number {step}" * 40 if poison == "other" else "")
                bad = self.picker.pick(asking(text))
                self._ended(bad.pick_id, bad.endpoints[0], 500)
            while self._running and self._running[0][0] <= step:
                _, pick_id, key = self._running.pop(0)
                self._ended(pick_id, key, 500 if key in self._broken else 200)

    def _ended(self, pick_id: str, key: str, status: int) -> None:
        ttft_ms = 200.0 if status == 200 else None
        self.picker.feedback(Feedback(pick_id=pick_id, ended=True, upstream=key, status=status, ttft_ms=ttft_ms))


@pytest.mark.parametrize("poison", ["same", "other"])
def test_one_client_whose_requests_fail_changes_nothing_for_the_others(poison: str) -> None:
    calm, poisoned = Traffic(), Traffic()
    calm.run("")
    poisoned.run(poison)
    assert not poisoned.picker.table.penalty_ms.any(), "no endpoint is to blame"
    for key in NEAR + FAR:
        assert abs(poisoned.good[key] - calm.good[key]) <= 10
    assert poisoned.moves <= calm.moves + 6, "conversations stay where their caches are"


def test_an_endpoint_that_fails_at_everything_is_left_all_the_same() -> None:
    """It answers at once and looks idle: without a penalty it would draw all requests."""
    traffic = Traffic(broken=frozenset(NEAR[:1]))
    traffic.run("same")
    assert traffic.good[NEAR[0]] < sum(traffic.good.values()) / 10
    assert not traffic.picker.table.penalty_ms[[traffic.picker.table.row(key) for key in NEAR[1:]]].any()


@pytest.mark.parametrize("body", [b'{"model":"m","prompt":"short"}', json.dumps({"prompt": TALK}).encode(), b"no JSON"])
def test_who_repeats_one_prompt_gets_away_from_a_broken_endpoint(body: bytes) -> None:
    clock = ManualClock()
    picker = Picker(clock)
    picker.apply(make_plan({"near": NEAR}))
    first = picker.preview(PickRequest(pool=POOL, body=read_body(body))).endpoints[0]
    met = 0
    for _ in range(60):
        clock.advance(0.1)
        decision = picker.pick(PickRequest(pool=POOL, body=read_body(body)))
        broken = decision.endpoints[0] == first
        met += broken
        ended = Feedback(
            pick_id=decision.pick_id, ended=True, upstream=decision.endpoints[0], status=500 if broken else 200
        )
        picker.feedback(ended)
    assert met <= 20, "its requests try another endpoint before they try this one again"


def entry(status: int, *, failed: bool = False) -> Feedback:
    return Feedback(pick_id="p", ended=True, status=status, failed=failed)


def test_only_many_prompts_in_a_row_make_an_endpoint_broken() -> None:
    blame, prompts = Blame(), itertools.count()
    for _ in range(BROKEN_RUN - 1):
        assert not blame.falls_on(0, entry(500), next(prompts))
        assert not blame.falls_on(1, entry(500), None if next(prompts) % 2 else next(prompts))
    assert not blame.falls_on(0, entry(500), 0), "one of those that failed already"
    assert blame.falls_on(0, entry(500), next(prompts))
    assert blame.falls_on(1, entry(500), None)
    assert not blame.falls_on(0, entry(200), next(prompts))
    assert not blame.falls_on(0, entry(500), next(prompts)), "it has answered since"
    blame.forget(1)
    assert not blame.falls_on(1, entry(500), None), "another endpoint"


def test_a_prompt_that_another_endpoint_could_answer_counts_again() -> None:
    blame = Blame()
    for prompt in range(BROKEN_RUN - 1):
        blame.falls_on(0, entry(500), prompt)
    assert not blame.falls_on(1, entry(200), 0)
    assert blame.falls_on(0, entry(500), 0)


@pytest.mark.parametrize(("status", "failed"), [(429, False), (503, False), (502, False), (504, False), (500, True)])
def test_what_is_never_the_requests_fault_counts_at_once(status: int, failed: bool) -> None:
    assert Blame().falls_on(0, entry(status, failed=failed), 1)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([200, 400, 500]), st.integers(0, 5)), max_size=60))
def test_as_many_prompts_as_one_client_repeats_blame_nobody(ended: list[tuple[int, int, int]]) -> None:
    blame = Blame()
    assert not any(blame.falls_on(row, entry(status), prompt) for row, status, prompt in ended if status != 200)


def test_what_is_remembered_is_bounded() -> None:
    blame = Blame()
    for prompt in range(3 * REMEMBERED_PROMPTS):
        blame.falls_on(0, entry(500), prompt)
    assert len(blame._failed) == REMEMBERED_PROMPTS
