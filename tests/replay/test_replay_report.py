"""Figures of the report, and the report as text."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pointsman.replay.load import Failure, RequestRecord
from pointsman.replay.report import Quantiles, ReplayResult, make_report, quantiles, report_json
from pointsman.replay.table import render
from pointsman.replay.upstreams import Counters, Upstream

FINITE = st.floats(0, 1e9)


def record(index: int, **fields: Any) -> RequestRecord:
    defaults: dict[str, Any] = {
        "index": index,
        "due_ms": 100.0 * index,
        "late_ms": 1.0,
        "ttft_ms": 100.0 * (index + 1),
        "e2e_ms": 1000.0 * (index + 1),
        "status": 200,
        "prompt_tokens": 1000,
        "cached_tokens": 600,
        "output_tokens": 50,
        "replica": f"us-{index % 2}",
    }
    return RequestRecord(**(defaults | fields))


UPSTREAMS = (
    Upstream(name="us-0", url="http://127.0.0.1:1", site="us-east", pool="default/stable"),
    Upstream(name="us-1", url="http://127.0.0.1:2", site="us-east", pool="default/canary"),
    Upstream(name="eu-0", url="http://127.0.0.1:3", site="eu-west", pool="default/stable"),
)

RESULT = ReplayResult(
    trace="t.jsonl",
    gateway="http://127.0.0.1:8080",
    model="llama-3-8b",
    speed=1.0,
    seed=0,
    jitter_ms=0.0,
    planned=6,
    sent=6,
    records=(
        record(1),
        record(0),
        record(2, replica="eu-0"),
        record(3, replica="stranger", cached_tokens=None),
        record(5, status=503, failure=Failure.STATUS, detail="no-endpoint", ttft_ms=None, replica=""),
        record(4, status=0, failure=Failure.CONNECT, detail="refused", ttft_ms=None, replica=""),
    ),
    wall_s=10.0,
    upstreams=UPSTREAMS,
    before={"127.0.0.1:1": Counters(query_tokens=100, hit_tokens=10), "127.0.0.1:3": Counters()},
    after={
        "127.0.0.1:1": Counters(query_tokens=1100, hit_tokens=510),
        "127.0.0.1:2": Counters(query_tokens=7, hit_tokens=7),
        "127.0.0.1:3": Counters(query_tokens=1000, hit_tokens=200),
    },
)


@given(st.lists(FINITE, min_size=1, max_size=50))
def test_quantiles_are_ordered_and_inside_the_values(values: list[float]) -> None:
    found = quantiles(values)
    assert found is not None
    assert min(values) <= found.p50 <= found.p95 <= found.p99 <= found.max == max(values)
    assert min(values) <= found.mean * (1 + 1e-9)
    assert found.mean <= max(values) * (1 + 1e-9)


@given(st.lists(FINITE, min_size=1, max_size=30), st.integers(0, 3))
def test_quantiles_do_not_depend_on_order_and_scale_with_the_values(values: list[float], power: int) -> None:
    factor = 2.0**power
    found, scaled = quantiles(values), quantiles([v * factor for v in reversed(values)])
    assert found is not None
    assert scaled is not None
    for name in ("mean", "p50", "p95", "p99", "max"):
        assert getattr(scaled, name) == pytest.approx(getattr(found.scaled(factor), name), rel=1e-9)


def test_quantiles_of_known_values() -> None:
    assert quantiles(range(101)) == Quantiles(mean=50.0, p50=50.0, p95=95.0, p99=99.0, max=100)
    assert quantiles([7.0]) == Quantiles(mean=7.0, p50=7.0, p95=7.0, p99=7.0, max=7.0)
    found = quantiles([1.0, 2.0])
    assert found is not None
    assert (found.p50, found.p95, found.p99) == pytest.approx((1.5, 1.95, 1.99))
    assert quantiles([]) is None


def test_requests_failures_and_latencies() -> None:
    report = make_report(RESULT)
    assert (report.planned, report.sent, report.succeeded, report.failed, report.unfinished) == (6, 6, 4, 2, 0)
    assert report.failures == {"connect": 1, "status 503": 1}
    assert report.failure_examples == ["request 4: connect: refused", "request 5: status 503: no-endpoint"]
    assert report.ttft_ms is not None
    assert report.ttft_ms.wall == quantiles([100, 200, 300, 400])
    assert report.ttft_ms.trace is None
    assert report.e2e_ms is not None
    assert report.e2e_ms.wall == quantiles([1000, 2000, 3000, 4000])
    assert (report.output_tokens, report.output_tokens_per_s, report.prompt_tokens_per_s) == (200, 20, 400)


def test_trace_times_are_given_at_other_speeds() -> None:
    report = make_report(replace(RESULT, speed=4.0))
    assert report.ttft_ms is not None
    assert report.ttft_ms.wall.p50 == 250
    assert report.ttft_ms.trace == report.ttft_ms.wall.scaled(4.0)
    assert report.ttft_ms.trace is not None
    assert report.ttft_ms.trace.p50 == 1000


def test_shares_of_sites_pools_and_replicas() -> None:
    report = make_report(RESULT)
    assert [(s.name, s.site, s.pool, s.requests, s.share) for s in report.replicas] == [
        ("eu-0", "eu-west", "default/stable", 1, 0.25),
        ("us-1", "us-east", "default/canary", 1, 0.25),
        ("us-0", "us-east", "default/stable", 1, 0.25),
        ("stranger", "", "", 1, 0.25),
    ]
    assert [(s.name, s.requests, s.share) for s in report.sites] == [("eu-west", 1, 0.25), ("us-east", 2, 0.5)]
    assert [(s.name, s.requests) for s in report.pools] == [("default/canary", 1), ("default/stable", 2)]


def test_prefix_hits_count_what_was_gained_and_only_where_both_readings_are_there() -> None:
    report = make_report(RESULT)
    assert report.prefix_by_upstreams is not None
    assert (report.prefix_by_upstreams.hit_tokens, report.prefix_by_upstreams.query_tokens) == (700, 2000)
    assert report.prefix_by_upstreams.ratio == 0.35
    by_name = {s.name: s.prefix for s in report.replicas}
    assert by_name["us-1"] is None
    assert by_name["us-0"] is not None
    assert by_name["us-0"].ratio == 0.5
    assert report.prefix_by_clients is not None
    assert (report.prefix_by_clients.hit_tokens, report.prefix_by_clients.query_tokens) == (1800, 3000)


@pytest.mark.parametrize(
    "after",
    [
        Counters(query_tokens=50, hit_tokens=5),
        Counters(query_tokens=500, hit_tokens=5),
        Counters(query_tokens=500, hit_tokens=50, start_time_s=7.0),
    ],
)
def test_a_restarted_upstream_counts_from_zero(after: Counters) -> None:
    assert after.since(Counters(query_tokens=100, hit_tokens=10)) == after


def test_a_name_of_two_upstreams_is_given_to_neither() -> None:
    twins = (UPSTREAMS[0], replace(UPSTREAMS[0], url="http://127.0.0.1:9", site="eu-west"))
    report = make_report(replace(RESULT, upstreams=twins))
    assert [s.requests for s in report.replicas[:2]] == [0, 0]
    assert ("us-0", "", 1) in [(s.name, s.site, s.requests) for s in report.replicas[2:]]


def test_a_late_generator_is_told() -> None:
    assert make_report(RESULT).notes == []
    (note,) = make_report(replace(RESULT, records=(record(0, late_ms=400.0),))).notes
    assert note == "the generator itself was late (p99 400 ms): latencies contain its lateness"


def test_a_replay_without_any_answer_has_a_report() -> None:
    report = make_report(replace(RESULT, records=(), sent=2, interrupted=True, upstreams=(), wall_s=0.0))
    assert (report.succeeded, report.unfinished, report.ttft_ms, report.generator_late_ms) == (0, 2, None, None)
    assert "2 not finished; interrupted" in text_of(report)


def test_json_holds_every_figure() -> None:
    data = report_json(make_report(replace(RESULT, speed=2.0)))
    assert data.endswith(b"}\n")
    found = json.loads(data)
    assert found["failures"] == {"connect": 1, "status 503": 1}
    assert found["ttft_ms"]["wall"]["p50"] == 250
    assert found["ttft_ms"]["trace"]["p50"] == 500
    assert found["prefix_by_upstreams"] == {"hit_tokens": 700, "query_tokens": 2000, "ratio": 0.35}
    assert found["sites"][1] == {
        "name": "us-east",
        "requests": 2,
        "share": 0.5,
        "prefix": {"hit_tokens": 500, "query_tokens": 1000, "ratio": 0.5},
        "site": "",
        "pool": "",
    }


def text_of(report: Any) -> str:
    console = Console(file=io.StringIO(), width=110, highlight=False)
    console.print(render(report))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def test_the_table() -> None:
    assert text_of(make_report(replace(RESULT, speed=2.0, jitter_ms=3000.0, notes=("no counters of us-1",)))) == GOLDEN


GOLDEN = """\
t.jsonl → http://127.0.0.1:8080, model llama-3-8b, speed 2, arrivals + U(0, 3 s), seed 0
6 requests sent in 10.0 s: 4 succeeded, 2 failed
  1 × connect
  1 × status 503
  request 4: connect: refused
  request 5: status 503: no-endpoint
Latency of successful requests, ms
┏━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━┳━━━━━━━┳━━━━━━━┳━━━━━━━┳━━━━━━━┓
┃                                       ┃  mean ┃   p50 ┃   p95 ┃   p99 ┃   max ┃
┡━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━╇━━━━━━━╇━━━━━━━╇━━━━━━━╇━━━━━━━┩
│ TTFT, wall time                       │   250 │   250 │   385 │   397 │   400 │
│ TTFT, trace time (wall × speed)       │   500 │   500 │   770 │   794 │   800 │
│ end to end, wall time                 │ 2,500 │ 2,500 │ 3,850 │ 3,970 │ 4,000 │
│ end to end, trace time (wall × speed) │ 5,000 │ 5,000 │ 7,700 │ 7,940 │ 8,000 │
│ sent after its time (all)             │   1.0 │   1.0 │   1.0 │   1.0 │   1.0 │
└───────────────────────────────────────┴───────┴───────┴───────┴───────┴───────┘
tokens: 4,000 prompt (400/s), 200 output (20/s), per second of wall time
prefix hit ratio by upstreams' counters: 35.0% (700 of 2,000 prompt tokens)
prefix hit ratio by usage in the answers: 60.0% (1,800 of 3,000 prompt tokens)
Who served
┏━━━━━━━━━┳━━━━━━━━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━━━━━━━━┳━━━━━━━━━━┳━━━━━━━┳━━━━━━━━━━━━━┓
┃         ┃ name           ┃ site    ┃ pool           ┃ requests ┃ share ┃ prefix hits ┃
┡━━━━━━━━━╇━━━━━━━━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━━━━━━━━╇━━━━━━━━━━╇━━━━━━━╇━━━━━━━━━━━━━┩
│ site    │ eu-west        │         │                │        1 │ 25.0% │       20.0% │
│         │ us-east        │         │                │        2 │ 50.0% │       50.0% │
├─────────┼────────────────┼─────────┼────────────────┼──────────┼───────┼─────────────┤
│ pool    │ default/canary │         │                │        1 │ 25.0% │           - │
│         │ default/stable │         │                │        2 │ 50.0% │       35.0% │
├─────────┼────────────────┼─────────┼────────────────┼──────────┼───────┼─────────────┤
│ replica │ eu-0           │ eu-west │ default/stable │        1 │ 25.0% │       20.0% │
│         │ us-1           │ us-east │ default/canary │        1 │ 25.0% │           - │
│         │ us-0           │ us-east │ default/stable │        1 │ 25.0% │       50.0% │
│         │ stranger       │         │                │        1 │ 25.0% │           - │
└─────────┴────────────────┴─────────┴────────────────┴──────────┴───────┴─────────────┘
note: no counters of us-1
"""
