"""A whole replay: model, upstreams with their counters, progress, and the notes on what could not be learnt."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from pointsman.core.errors import ConfigError, PeerError, UpstreamError
from pointsman.replay import run
from pointsman.replay.generate import trace_lines
from pointsman.replay.load import Tally
from pointsman.replay.progress import LineProgress
from pointsman.replay.report import make_report
from pointsman.replay.run import ReplayOptions, base_url, replay
from pointsman.replay.trace import Selection
from pointsman.replay.upstreams import Counters, parse_counters, upstream_of_url
from replay.fake_gateway import FakeGateway, requests_at

PAGE = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="a b"}} 0.0
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{{engine="0",model_name="a b"}} {queries}
vllm:prefix_cache_queries_total{{engine="1",model_name="a b"}} 1000.0
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{{engine="0",model_name="a b"}} {hits}
"""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"".join(trace_lines(requests_at(0, 1, 2, 3))))
    return path


def counting(gateway: FakeGateway) -> Callable[[], str]:
    """Metrics as if each request had looked up 600 tokens and found 512."""
    return lambda: PAGE.format(queries=600.0 * len(gateway.bodies), hits=512.0 * len(gateway.bodies))


async def test_a_replay_with_the_upstreams_of_the_admin_api(gateway: FakeGateway, trace: Path) -> None:
    gateway.metrics = counting(gateway)
    key = gateway.url.removeprefix("http://")
    gateway.endpoints = [
        {"key": key, "name": "us-east-0", "site": "us-east", "pool": "default/stable", "health": "HEALTHY"},
        {"key": "127.0.0.1:1", "name": "grpc-0", "site": "us-east", "pool": "default/grpc"},
        {"key": "127.0.0.1:1", "name": "grpc-0", "site": "us-east", "pool": "default/grpc"},
    ]
    known = upstream_of_url(gateway.url)  # the admin API lists it with its name and site
    options = ReplayOptions(trace=trace, gateway=gateway.url + "/v1/", admin=gateway.url, upstreams=(known,))
    result = await replay(options)
    report = make_report(result)
    assert (report.planned, report.sent, report.succeeded, report.interrupted) == (4, 4, 4, False)
    assert (report.model, report.gateway) == ("llama-3-8b", gateway.url)
    assert {body["model"] for body in gateway.bodies} == {"llama-3-8b"}
    assert report.prefix_by_upstreams is not None
    assert (report.prefix_by_upstreams.hit_tokens, report.prefix_by_upstreams.query_tokens) == (2048, 2400)
    assert [(s.name, s.requests, s.share) for s in report.sites] == [("us-east", 4, 1.0)]
    assert [(s.name, s.requests) for s in report.replicas] == [("grpc-0", 0), ("us-east-0", 4)]
    (note,) = report.notes
    assert note.startswith("no counters of grpc-0 (1): http://127.0.0.1:1/metrics cannot be reached")


async def test_a_replay_with_named_upstreams_asks_no_admin_api(gateway: FakeGateway, trace: Path) -> None:
    gateway.metrics = counting(gateway)
    options = ReplayOptions(
        trace=trace, gateway=gateway.url, model="mine", upstreams=(upstream_of_url(gateway.url + "/"),)
    )
    result = await replay(options)
    assert {body["model"] for body in gateway.bodies} == {"mine"}
    assert result.notes == ()
    key = gateway.url.removeprefix("http://")
    assert result.after[key].since(result.before[key]) == Counters(query_tokens=2400, hit_tokens=2048)


async def test_an_upstream_that_speaks_no_http_1_is_a_short_note(gateway: FakeGateway, trace: Path) -> None:
    async def settings(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes.fromhex("000018040000000000") + bytes(24))  # how an HTTP/2 server begins
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(settings, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        options = ReplayOptions(trace=trace, gateway=gateway.url, upstreams=(upstream_of_url(url),))
        result = await replay(options)
    name = url.removeprefix("http://")
    # It may also be seen as a lost connection, when the close comes first.
    assert result.notes[0].startswith(f"no counters of {name} (1): {url}/metrics ")
    assert "\n" not in result.notes[0]


async def test_metrics_of_something_else_are_a_note(gateway: FakeGateway, trace: Path) -> None:
    gateway.metrics = lambda: "go_goroutines 7\n"
    options = ReplayOptions(trace=trace, gateway=gateway.url, upstreams=(upstream_of_url(gateway.url),))
    report = make_report(await replay(options))
    assert report.prefix_by_upstreams is None
    assert report.prefix_by_clients is not None
    assert "no counters of" in report.notes[0]


async def test_a_named_admin_api_must_answer(gateway: FakeGateway, trace: Path) -> None:
    with pytest.raises(PeerError, match="cannot be reached"):
        await replay(ReplayOptions(trace=trace, gateway=gateway.url, admin="http://127.0.0.1:1"))
    gateway.endpoints = {"endpoints": []}
    with pytest.raises(PeerError, match=r"/api/v1/endpoints is no list of endpoints: Expected `array`"):
        await replay(ReplayOptions(trace=trace, gateway=gateway.url, admin=gateway.url))
    assert gateway.bodies == []


async def test_the_local_admin_api_is_used_when_it_is_there(
    gateway: FakeGateway, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.metrics = counting(gateway)
    gateway.endpoints = [{"key": gateway.url.removeprefix("http://"), "name": "us-east-0", "site": "s", "pool": "p"}]
    options = ReplayOptions(trace=trace, gateway=gateway.url)
    monkeypatch.setattr(run, "DEFAULT_ADMIN", gateway.url)
    assert [s.name for s in make_report(await replay(options)).sites] == ["s"]
    monkeypatch.setattr(run, "DEFAULT_ADMIN", "http://127.0.0.1:1")
    result = await replay(options)
    assert result.upstreams == ()
    assert result.notes[0].endswith("without --admin or --upstream only what clients see is reported")


async def test_a_gateway_that_is_not_there_is_told_before_anything_is_sent(trace: Path) -> None:
    with pytest.raises(ConfigError, match=r"--gateway: .* cannot be reached.*is the gateway up"):
        await replay(ReplayOptions(trace=trace, gateway="http://127.0.0.1:1"))


async def test_a_bad_trace_is_told_before_anything_is_sent(gateway: FakeGateway, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        await replay(ReplayOptions(trace=tmp_path / "no", gateway=gateway.url))


async def test_stop_gives_the_partial_result(gateway: FakeGateway, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"".join(trace_lines(requests_at(0, 1, 3_600_000))))
    stop = asyncio.Event()

    class StopAfterTwo:
        def update(self, tally: Tally, elapsed_s: float) -> None:
            if tally.done == 2:
                stop.set()

    options = ReplayOptions(trace=path, gateway=gateway.url, admin=gateway.url, selection=Selection(jitter_s=0))
    result = await asyncio.wait_for(replay(options, progress=StopAfterTwo(), stop=stop), 60)
    report = make_report(result)
    assert (report.planned, report.sent, report.succeeded, report.interrupted) == (3, 2, 2, True)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://gw:8080/v1/", "http://gw:8080"),
        ("https://gw/llm/v1", "https://gw/llm"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
    ],
)
def test_base_urls(url: str, base: str) -> None:
    assert base_url(url, "--gateway") == base


@pytest.mark.parametrize("url", ["", "gw:8080", "ftp://gw", "http://", "http://gw:x", "http://gw:0", "http://gw/?a=1"])
def test_what_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--gateway: .*expected a URL like"):
        base_url(url, "--gateway")


def test_counters_are_summed_over_engines() -> None:
    assert parse_counters(PAGE.format(queries=10.0, hits=4.0).encode()) == Counters(query_tokens=1010, hit_tokens=4)
    with pytest.raises(UpstreamError, match="no prefix cache counters"):
        parse_counters(b"vllm:num_requests_running 1\n")


def test_plain_progress_comes_every_tenth_and_every_five_seconds() -> None:
    out = io.StringIO()
    progress = LineProgress(out)
    tally = Tally(planned=10)
    progress.update(tally, 1.0)
    progress.update(tally, 4.9)
    assert out.getvalue() == ""
    progress.update(tally, 5.0)
    progress.update(tally, 9.0)
    tally.sent = 3
    tally.failed = 1
    tally.records = [None, None]  # type: ignore[list-item]
    progress.update(tally, 9.5)
    progress.update(tally, 9.6)
    assert out.getvalue() == (
        "  0 %: 0 of 10 done, 0 running, 0 failed, 5 s\n 20 %: 2 of 10 done, 1 running, 1 failed, 10 s\n"
    )
