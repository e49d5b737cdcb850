"""Accounts of what is in flight: never negative, equal to the sum of the open ones, zero when all have ended."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from extproc.fleet import make_plan
from pointsman.extproc.inflight import FIRST_MEAN_MS, Account, InFlight
from pointsman.extproc.table import EndpointTable

COLUMNS = ("requests", "pending_ms", "pending_tokens", "context_tokens", "fresh_kv_tokens")


def fleet(count: int = 3) -> EndpointTable:
    table = EndpointTable()
    table.sync(make_plan({"here": [f"10.0.0.{n + 1}:8000" for n in range(count)]}), 0.0)
    return table


def account(row: int = 0, at_s: float = 0.0, *, uncached: int = 100, context: int = 300, ms: float = 7.3) -> Account:
    return Account(
        row=row,
        opened_at_s=at_s,
        heard_at_s=at_s,
        prefill_ms=ms,
        uncached_tokens=uncached,
        context_tokens=context,
    )


def sums(table: EndpointTable, row: int = 0) -> list[float]:
    return [float(getattr(table, name)[row]) for name in COLUMNS]


def test_the_way_of_one_request() -> None:
    table = fleet()
    inflight = InFlight(table)
    inflight.open("a", account())
    assert sums(table) == [1, 7.3, 100, 300, 100]
    inflight.first_token("a")
    assert sums(table) == [1, 0, 0, 300, 100]
    inflight.first_token("a")
    assert sums(table) == [1, 0, 0, 300, 100]
    closed = inflight.close("a")
    assert closed is not None
    assert sums(table) == [0, 0, 0, 0, 0]
    assert inflight.close("a") is None
    assert inflight.heard("a", 1.0) is None


def test_the_backlog_drains_and_the_oldest_is_due_first() -> None:
    table = fleet()
    inflight = InFlight(table)
    inflight.open("a", account(at_s=10.0, ms=500.0))
    inflight.open("b", account(at_s=10.2, ms=1000.0))
    assert np.isclose(table.backlog_ms[0], 1300.0)
    assert np.isclose(table.due_at_s[0], 10.5)
    inflight.heard("a", 10.4)
    inflight.first_token("a")  # sooner than we believed: only the other one is left
    assert np.isclose(table.backlog_ms[0], 1000.0)
    assert np.isclose(table.due_at_s[0], 11.5)
    inflight.heard("b", 11.0)
    inflight.close("b")
    assert table.backlog_ms[0] == 0.0
    assert np.isinf(table.due_at_s[0])


def test_a_retry_moves_the_account() -> None:
    table = fleet()
    inflight = InFlight(table)
    inflight.open("a", account(0))
    inflight.move("a", 2)
    assert sums(table, 0) == [0, 0, 0, 0, 0]
    assert sums(table, 2) == [1, 7.3, 100, 300, 100]


def test_silence_expires_and_a_sign_of_life_does_not() -> None:
    table = fleet()
    inflight = InFlight(table, expiry_s=10.0)
    inflight.open("quiet", account(0, 0.0))
    inflight.open("alive", account(1, 0.0))
    inflight.heard("alive", 5.0)
    assert inflight.expire(9.9) == 0
    assert inflight.expire(10.0) == 1
    assert inflight.get("quiet") is None
    assert inflight.get("alive") is not None
    assert inflight.expire(15.0) == 1
    assert sums(table, 0) == sums(table, 1) == [0, 0, 0, 0, 0]


def test_the_mean_prefill_follows_recent_picks() -> None:
    inflight = InFlight(fleet())
    assert inflight.mean_prefill_ms == FIRST_MEAN_MS
    for number in range(200):
        inflight.open(str(number), account(ms=500.0))
    assert 490.0 < inflight.mean_prefill_ms <= 500.0
    before = inflight.mean_prefill_ms
    inflight.open("headers only", account(uncached=0, context=0, ms=0.0))
    assert inflight.mean_prefill_ms == before


PICK = st.sampled_from("abcdef")
STEP = st.tuples(
    st.sampled_from(["open", "first", "close", "move", "heard", "tick"]),
    PICK,
    st.integers(0, 2),
    st.integers(0, 5_000),
    st.floats(0, 1e4, allow_nan=False),
)


@given(st.lists(STEP, max_size=80))
def test_sums_always_equal_the_open_accounts(steps: list[tuple[str, str, int, int, float]]) -> None:
    table = fleet()
    inflight = InFlight(table, expiry_s=20.0)
    known: dict[str, Account] = {}
    now_s = 0.0
    for verb, pick, row, tokens, ms in steps:
        match verb:
            case "open":
                known[pick] = account(row, now_s, uncached=tokens, context=2 * tokens, ms=ms)
                inflight.open(pick, known[pick])
            case "first":
                inflight.first_token(pick)
            case "close":
                inflight.close(pick)
            case "move":
                inflight.move(pick, row)
            case "heard":
                inflight.heard(pick, now_s)
            case _:
                now_s += tokens / 500
                inflight.expire(now_s)
        live = [a for name, a in known.items() if inflight.get(name) is a]
        assert len(inflight) == len(live)
        for number in range(3):
            here = [a for a in live if a.row == number]
            assert table.requests[number] == len(here)
            assert table.context_tokens[number] == sum(a.context_tokens for a in here)
            assert table.fresh_kv_tokens[number] == sum(a.uncached_tokens for a in here)
            assert table.pending_tokens[number] == sum(a.uncached_tokens for a in here if a.pending)
            assert table.pending_ms[number] >= 0.0
            assert table.backlog_ms[number] >= 0.0
            assert np.isinf(table.due_at_s[number]) == (not any(a.pending for a in here))
            pending_ms = sum(a.prefill_ms for a in here if a.pending and a.uncached_tokens)
            if table.pending_tokens[number] and all(a.uncached_tokens for a in here):
                assert np.isclose(table.pending_ms[number], pending_ms, atol=1e-6)
    inflight.expire(now_s + 20.1)
    assert len(inflight) == 0
    for name in COLUMNS:
        assert not getattr(table, name)[:3].any()


def reported(at_s: float) -> Account:
    return Account(
        row=0,
        opened_at_s=at_s,
        heard_at_s=at_s,
        prefill_ms=10.0,
        uncached_tokens=100,
        context_tokens=100,
        reported=True,
    )


def test_while_reports_flow_what_no_gateway_tells_of_is_soon_dropped() -> None:
    """A pick that came too late for Envoy has no entry at all: its endpoint must not look late for a minute."""
    inflight = InFlight(EndpointTable())
    inflight.open("unused", reported(0.0))
    inflight.open("runs", reported(0.0))
    for second in range(12):
        inflight.heard("runs", float(second))
        inflight.expire(float(second))
        assert (inflight.get("unused") is None) == (second >= 6)
    assert inflight.get("runs") is not None


def test_after_a_pause_of_all_reports_nothing_is_dropped_early() -> None:
    """They are queued behind each other when a frozen process goes on."""
    inflight = InFlight(EndpointTable())
    inflight.open("a", reported(0.0))
    inflight.open("b", reported(0.0))
    for second in range(8):
        inflight.heard("a", float(second))
        inflight.heard("b", float(second))
    inflight.heard("a", 30.0)
    assert inflight.expire(30.1) == 0
    inflight.heard("b", 30.2)
    assert inflight.expire(30.3) == 0
