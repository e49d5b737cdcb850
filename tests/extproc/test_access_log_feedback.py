"""Feedback from access log messages that a real Envoy 1.40 sent, and from entries made here."""

from __future__ import annotations

from pathlib import Path

import pytest
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from extproc.fleet import POOL, make_plan
from pointsman.core.clock import ManualClock
from pointsman.core.wire import TAG_PICK, TAG_TTFT
from pointsman.extproc import Exchange, Picker
from pointsman.extproc.feedback import Feedback, entries, from_entry

FIXTURES = Path(__file__).parent / "fixtures"


def recorded(name: str) -> list[Feedback]:
    found = []
    for path in sorted(FIXTURES.glob(f"envoy-1.40-{name}-als-*.binpb")):
        found += entries(als_pb2.StreamAccessLogsMessage.FromString(path.read_bytes()))
    assert found
    return found


def test_a_finished_request_as_envoy_logs_it() -> None:
    (entry,) = recorded("body")
    assert (entry.pick_id, entry.ended, entry.cluster, entry.status) == ("test-1", True, POOL, 200)
    assert entry.upstream.startswith("127.0.0.1:")
    assert entry.ttft_ms is not None
    assert 0 < entry.ttft_ms < entry.duration_ms
    assert entry.response_bytes == 22
    assert entry.attempts == 1
    assert not entry.failed


def test_a_long_stream_is_logged_while_it_runs() -> None:
    entries_seen = recorded("long")
    assert [entry.ended for entry in entries_seen] == [False, True]
    assert entries_seen[0].ttft_ms == entries_seen[1].ttft_ms is not None
    assert {entry.pick_id for entry in entries_seen} == {"test-1"}


def test_a_retry_names_the_endpoint_that_served() -> None:
    entry = recorded("retry")[0]
    assert entry.attempts == 2
    assert entry.status == 200
    assert not entry.broken


@pytest.mark.parametrize("name", ["body", "headers", "retry", "long"])
def test_recorded_requests_get_a_pick_and_their_logs_end_it(name: str) -> None:
    picker = Picker(ManualClock(), instance="test")
    logs = recorded(name)
    picker.apply(make_plan({"near": ["127.0.0.9:1"], "far": sorted({entry.upstream for entry in logs})}))
    for path in sorted(FIXTURES.glob(f"envoy-1.40-{name}-process-*.binpb")):
        exchange = Exchange(picker)
        (reply,) = exchange.receive(ext_proc.ProcessingRequest.FromString(path.read_bytes()))
        assert reply.dynamic_metadata.fields["pointsman"].struct_value.fields["pick"].string_value
        assert exchange.finished
        assert exchange.decision is not None
        assert exchange.decision.pool == POOL
        assert exchange.decision.request_id
        exchange.closed()
    picks = len(picker.inflight)
    assert picks >= 1
    for entry in logs:
        assert picker.feedback(entry) is not None
    assert len(picker.inflight) == picks - sum(entry.ended for entry in logs)


def made(**fields: object) -> accesslog_pb2.HTTPAccessLogEntry:
    entry = accesslog_pb2.HTTPAccessLogEntry()
    for name, value in fields.items():
        if name in ("pick", "ttft_us"):
            entry.common_properties.custom_tags[{"pick": TAG_PICK, "ttft_us": TAG_TTFT}[name]] = str(value)
        elif name == "status":
            entry.response.response_code.value = int(str(value))
        elif name == "flag":
            setattr(entry.common_properties.response_flags, str(value), True)
        elif name == "upstream":
            host, port = str(value).rsplit(":", 1)
            entry.common_properties.upstream_remote_address.socket_address.address = host.strip("[]")
            entry.common_properties.upstream_remote_address.socket_address.port_value = int(port)
        else:
            setattr(entry.common_properties, name, value)
    return entry


@pytest.mark.parametrize("text", ["-", "", "abc", "-5", "1.5", "9" * 40, "٣"])
def test_values_that_are_none(text: str) -> None:
    found = from_entry(made(pick="-", ttft_us=text))
    assert found.pick_id == ""
    assert found.ttft_ms is None


def test_ipv6_upstreams_are_keyed_with_brackets() -> None:
    assert from_entry(made(upstream="[fd00::1]:8000")).upstream == "[fd00::1]:8000"
    assert from_entry(made()).upstream == ""


@pytest.mark.parametrize(
    ("fields", "overloaded", "broken"),
    [
        ({"status": 200}, False, False),
        ({"status": 404}, False, False),
        ({"status": 429}, True, False),
        ({"status": 503}, True, False),
        ({"status": 500}, False, True),
        ({"status": 504}, False, True),
        ({"status": 503, "flag": "upstream_connection_failure"}, True, True),
        ({"status": 200, "flag": "upstream_remote_reset"}, False, True),
        ({"status": 0, "flag": "downstream_connection_termination"}, False, False),
    ],
)
def test_whose_fault_it_was(fields: dict[str, object], overloaded: bool, broken: bool) -> None:
    entry = from_entry(made(**fields))
    assert (entry.overloaded, entry.broken) == (overloaded, broken)


def test_only_the_downstream_end_ends() -> None:
    for kind, name in accesslog_pb2.AccessLogType.items():
        ended = from_entry(made(access_log_type=name)).ended
        assert ended == (kind in ("NotSet", "DownstreamEnd"))
    assert not from_entry(made(intermediate_log_entry=True)).ended


def test_an_attempt_that_failed_is_told_apart_and_names_its_request() -> None:
    entry = made(access_log_type="UpstreamEnd", upstream="10.0.0.1:80", flag="upstream_connection_failure")
    entry.request.request_id = "abc"
    found = from_entry(entry)
    assert (found.attempt, found.ended, found.upstream, found.request_id) == (True, False, "10.0.0.1:80", "abc")
    entry.common_properties.access_log_type = accesslog_pb2.DownstreamEnd
    assert (from_entry(entry).attempt, from_entry(entry).request_id) == (False, "")


@given(st.binary(max_size=300))
def test_any_message_that_decodes_is_read(data: bytes) -> None:
    try:
        message = als_pb2.StreamAccessLogsMessage.FromString(data)
    except DecodeError:  # what protobuf refuses never reaches us
        return
    assert len(list(entries(message))) == len(message.http_logs.log_entry)
