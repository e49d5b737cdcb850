"""How a drill is judged, as text: `traces/*.txt`.

A block is a list of requests and what is to be avoided, `----`, and the verdict of the clients:

    drill [avoid REPLICA…] [until SECONDS] [looks SECONDS…] [others-only]
      START END WHAT [REPLICA] [stream] [at GATEWAY] [first SECONDS]

The fault is made at 0 s; requests that end before it are the steady state. WHAT is `ok`, `cut` (a broken answer),
`silent` (a cut answer without an error), `late` (the client gave up) or a status. `every STEP from START until END
WHAT …` is one request each STEP seconds, 0.05 s long.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.app.drill.judge import Evidence, judge, over
from pointsman.failover.outcome import Outcome, Seen, baseline, count, outcome, recovery, switches
from support.traces import check_trace

TRACES = sorted((Path(__file__).parent / "traces").glob("*.txt"))
SITE_OF = {f"{site}-{i}": site for site in ("a", "b") for i in range(2)}


def request(start_s: float, end_s: float, words: list[str]) -> Seen:
    what, *rest = words
    found: dict[str, Any] = {"source": "load", "gateway": "a", "stream": False, "start_s": start_s, "end_s": end_s}
    fields = {
        "ok": {"status": 200, "complete": True},
        "cut": {"status": 200, "error": "reset"},
        "silent": {"status": 200},
        "late": {"status": 200, "late": True, "error": "no end"},
    }
    found |= fields.get(what) or {"status": int(what), "error": f"status {what}"}
    while rest:
        word = rest.pop(0)
        if word == "stream":
            found["stream"] = True
        elif word == "at":
            found["gateway"] = rest.pop(0)
        elif word == "first":
            found["first_s"] = float(rest.pop(0))
        else:
            found["replica"] = word
    return Seen(**found)


def requests(lines: list[str]) -> list[Seen]:
    found = []
    for line in lines:
        words = line.split()
        if words[0] != "every":
            found.append(request(float(words[0]), float(words[1]), words[2:]))
            continue
        step_ms, from_ms, until_ms = (round(1000 * float(words[i])) for i in (1, 3, 5))
        moments = range(from_ms, until_ms, step_ms)
        found += [request(at_ms / 1000, at_ms / 1000 + 0.05, words[6:]) for at_ms in moments]
    return sorted(found, key=lambda seen: seen.start_s)


def run(command: str, lines: list[str]) -> list[str]:
    verb, *words = command.split()
    assert verb == "drill"
    options: dict[str, list[str]] = {}
    for word in words:
        if word in {"avoid", "until", "looks", "others-only"}:
            options[word] = []
        else:
            options[list(options)[-1]].append(word)
    seen = requests(lines)
    evidence = Evidence(
        kind="crash",
        site="a",
        number=1,
        began_s=0,
        fault_s=0,
        end_s=float(options.get("until", ["5"])[0]),
        before=[one for one in seen if one.end_s < 0],
        after=[one for one in seen if one.end_s >= 0],
        looks=[float(text) for text in options.get("looks", [])],
        avoid=options.get("avoid", []),
        record={},
        site_of=SITE_OF,
        others_only="others-only" in options,
    )
    found, _ = judge(evidence)
    counts = found.counts
    rto = "never" if found.rto_s is None else f"{found.rto_s:.2f} s"
    said = [
        f"RTO {rto}, {found.relapses} relapses, {found.switches} switches, {'over' if over(evidence) else 'goes on'}"
    ]
    said.append(
        f"{counts.requests} requests: {counts.ok} ok, {counts.failed} failed ({counts.failed_streamed} streamed), "
        f"{counts.truncated} truncated ({counts.silent} silent), {counts.rejected} rejected, {counts.slow} slow"
    )
    return [*said, *(f"{times} × {reason}" for reason, times in counts.reasons)]


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_trace(path: Path, pytestconfig: pytest.Config) -> None:
    check_trace(path, run, rewrite=bool(pytestconfig.getoption("--rewrite")))


def test_silence_is_no_success() -> None:
    assert recovery([], [0.1] * 4, fault_s=0, end_s=2).recovered_s is None
    assert recovery([], [0.1] * 5, fault_s=0, end_s=2).recovered_s == 0


times = st.floats(min_value=0, max_value=10, allow_nan=False)


@given(st.lists(times, max_size=30), times)
def test_nothing_went_wrong_in_the_window_that_ends_it(bad: list[float], end_s: float) -> None:
    bad.sort()
    found = recovery(bad, [], fault_s=0, end_s=end_s, least=0)
    if found.recovered_s is None:
        edges = [0.0, *[at_s for at_s in bad if at_s < end_s], end_s]
        assert all(later - earlier < 1 for earlier, later in itertools.pairwise(edges))
        return
    start_s = found.recovered_s
    assert start_s + 1 <= end_s
    assert not any(start_s < at_s < start_s + 1 for at_s in bad)
    assert start_s == 0 or start_s in bad, "it begins with the fault or when something went wrong"
    assert found.relapses == sum(at_s > start_s for at_s in bad) or start_s == 0


seen_requests = st.builds(
    Seen,
    source=st.just("load"),
    gateway=st.sampled_from(["a", "b"]),
    stream=st.booleans(),
    start_s=times,
    end_s=times,
    status=st.sampled_from([0, 200, 429, 500, 503, 504, 404]),
    complete=st.booleans(),
    late=st.booleans(),
    error=st.sampled_from(["", "reset"]),
    replica=st.sampled_from(["", *SITE_OF]),
)


@settings(max_examples=40)
@given(st.lists(seen_requests))
def test_each_request_is_counted_once(found: list[Seen]) -> None:
    counts = count(found, baseline(found))
    assert counts.requests == len(found)
    assert counts.requests == counts.ok + counts.failed + counts.truncated + counts.rejected
    assert sum(times for _, times in counts.reasons) == len(found) - counts.ok
    assert counts.failed_streamed <= counts.failed
    assert counts.silent <= counts.truncated
    assert counts.ok == sum(outcome(seen) is Outcome.OK for seen in found)


@settings(max_examples=40)
@given(st.lists(seen_requests), times)
def test_switches_do_not_depend_on_the_order_of_the_answers(found: list[Seen], end_s: float) -> None:
    forward = switches(found, SITE_OF, fault_s=0, end_s=end_s)
    assert 0 <= forward <= max(0, len(found) - 1)


def test_only_what_ended_well_says_what_is_usual() -> None:
    well = [request(0, 0.1, ["ok", "a-0"]) for _ in range(99)]
    base = baseline([*well, request(0, 3, ["503"]), request(0, 0.3, ["ok", "a-0"])])
    assert base.plain_p99_ms == pytest.approx(100)
    assert not base.slow(request(0, 0.59, ["ok", "a-0"]))
    assert base.slow(request(0, 0.61, ["ok", "a-0"]))
    assert not base.slow(request(0, 3, ["503"])), "it failed, that is counted elsewhere"
