"""Workloads: copies of a trace, sessions with a home, slices."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pointsman.bench.fleet import Fleet, Region
from pointsman.bench.kinds import GENERATION, KINDS, TIME_SCALES
from pointsman.bench.scenario import Scenario, Slice
from pointsman.bench.workload import Sessions, TraceCopies
from pointsman.core.errors import ConfigError
from pointsman.replay.generate import MultiTurn, generate, trace_lines
from pointsman.replay.trace import TraceRequest


def request(at_s: float, *ids: int, tokens: int = 0) -> TraceRequest:
    return TraceRequest(
        arrival_ms=at_s * 1000, input_tokens=tokens or 512 * len(ids), output_tokens=3, hash_ids=tuple(ids)
    )


def test_copies_are_turned_round_and_share_only_the_system_prompt() -> None:
    requests = [request(0, 7, 1), request(10, 7, 2), request(20, 7, 1, 3), request(29, 7, 4)]
    copies = TraceCopies(path=Path("unused"), duration_s=30.0, time_scale=2.0, regions=3)
    workload = copies.of_requests(requests)
    assert workload.duration_ms == 60_000
    assert workload.warm_up_ms == 12_000
    assert len(workload.arrivals) == 12
    assert [a.id for a in workload.arrivals] == list(range(12))
    assert [a.at_ms for a in workload.arrivals] == sorted(a.at_ms for a in workload.arrivals)
    assert [a.at_ms / 2000 for a in workload.arrivals if a.gateway == 1] == [0, 9, 10, 20]
    firsts = {a.blocks[0] for a in workload.arrivals}
    assert len(firsts) == 1
    of = [{b for a in workload.arrivals if a.gateway == g for b in a.blocks} - firsts for g in range(3)]
    assert [len(blocks) for blocks in of] == [4, 4, 4]
    assert not of[0] & of[1]
    assert not of[1] & of[2]
    assert len({a.session for a in workload.arrivals}) == 9  # two of the four requests are one session


def test_a_partial_block_is_in_the_prompt_but_not_cacheable() -> None:
    copies = TraceCopies(path=Path("unused"), regions=1)
    (arrival,) = copies.of_requests([request(0, 5, 6, tokens=700)]).arrivals
    assert len(arrival.blocks) == 2
    assert arrival.full_blocks == arrival.blocks[:1]


def test_sessions_stay_with_their_gateway_and_follow_the_shares() -> None:
    workload = Sessions(rate=20.0, duration_s=60.0, shares=(1.6, 1.0, 0.4)).build(1)
    homes: dict[int, set[int]] = {}
    for arrival in workload.arrivals:
        homes.setdefault(arrival.session, set()).add(arrival.gateway)
    assert all(len(home) == 1 for home in homes.values())
    counts = [sum(a.gateway == g for a in workload.arrivals) for g in range(3)]
    assert counts[0] > counts[1] > counts[2] > 0
    assert workload == workload
    again = Sessions(rate=20.0, duration_s=60.0, shares=(1.6, 1.0, 0.4)).build(1)
    assert [(a.at_ms, a.gateway, a.blocks) for a in again.arrivals] == [
        (a.at_ms, a.gateway, a.blocks) for a in workload.arrivals
    ]


def test_slices_do_not_overlap(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b"".join(trace_lines(generate(MultiTurn(duration_s=1800.0, rate=0.2, seed=1)))))
    tune = Scenario(workload="A", part=Slice.TUNE, trace=path)
    report = tune.on(Slice.REPORT)
    blocks = [
        {(a.blocks, a.input_tokens) for a in scenario.build(0).arrivals if a.gateway == 0}
        for scenario in (tune, report)
    ]
    assert blocks[0]
    assert blocks[1]
    assert not blocks[0] & blocks[1]
    assert tune.fleet.host_tokens
    assert not Scenario(workload="C").fleet.host_tokens
    assert all(kind.loads.keys() == TIME_SCALES.keys() for kind in KINDS.values())


def test_a_workload_of_a_trace_needs_one() -> None:
    with pytest.raises(ConfigError, match="workload A replays a trace file and none is named"):
        Scenario(workload="A")


def test_replicas_of_a_region_can_differ() -> None:
    fleet = Fleet(
        regions=(Region(name="east", replicas=3, slowdowns=(1.0, 1.7)), Region(name="west", replicas=1)),
        rtt_ms=((2.0, 80.0), (80.0, 2.0)),
    )
    assert fleet.slowdown_of == (1.0, 1.7, 1.0, 1.0)
    assert [fleet.engine_config(n).step_time.slowdown for n in range(4)] == [1.0, 1.7, 1.0, 1.0]


def test_every_generated_workload_is_what_it_says() -> None:
    for name in "CDHMR":
        scenario = Scenario(workload=name, part=Slice.TUNE, duration_s=60.0)
        workload = scenario.build(0)
        pace = len(workload.arrivals) / 60.0
        assert pace == pytest.approx(scenario.kind.loads[77], rel=0.35)
    hot = Scenario(workload="H", part=Slice.TUNE, duration_s=60.0).build(0).arrivals
    firsts = Counter(arrival.blocks[0] for arrival in hot)
    assert firsts.most_common(1)[0][1] > 0.12 * len(hot)
    documents = Scenario(workload="D", part=Slice.TUNE, duration_s=60.0)
    assert documents.fleet.host_tokens
    assert sum(a.input_tokens for a in documents.build(0).arrivals) > 10_000 * len(documents.build(0).arrivals)
    shares = Counter(
        arrival.gateway for arrival in Scenario(workload="R", part=Slice.TUNE, duration_s=60.0).build(0).arrivals
    )
    assert shares[0] > shares[1] > shares[2]
    assert set(Scenario(workload="M").fleet.slowdown_of) == {1.0, GENERATION}
