"""Admission by objective, adapters that must be loaded, and `Retry-After`: in the picker and on the wire."""

from __future__ import annotations

import json

import pytest
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc

from extproc.fleet import POOL, make_plan
from pointsman.core import wire
from pointsman.core.clock import ManualClock
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.extproc import Admission, Exchange, Feedback, Objective, Picker, PickRequest
from pointsman.extproc.adapters import KEPT_S, MAX_RECENT, Adapters
from pointsman.extproc.feedback import from_entry
from pointsman.extproc.penalties import MAX_RETRY_AFTER_S
from pointsman.extproc.request import read_body
from pointsman.extproc.scrape import model_names

NEAR = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]
STRICT = Admission(
    objectives={"chat": Objective(priority=1, ttft_ms=2_000), "batch": Objective(priority=-1)}, shed_ms=5_000
)


def picker_of(admission: Admission | None = None) -> tuple[Picker, ManualClock]:
    clock = ManualClock()
    picker = Picker(clock, admission=admission)
    picker.apply(make_plan({"near": NEAR}))
    return picker, clock


def asking(text: str = "hi", *, model: str = "m", objective: str = "", **fields: object) -> PickRequest:
    body = read_body(json.dumps({"model": model, "prompt": text, **fields}).encode())
    return PickRequest(pool=POOL, body=body, objective=objective)


def fill(picker: Picker, seconds: float) -> None:
    """Queues of about this length everywhere."""
    while float(picker.table.pending_ms[: len(NEAR)].min()) < seconds * 1000.0:
        picker.pick(asking(f"{picker.stats().picks} " + "word " * 6_000))


# Admission


@pytest.mark.parametrize(
    ("expected_ms", "objective", "body_priority", "wait_s"),
    [
        (1_999, "chat", 0, 0),
        (2_001, "chat", 0, 1),
        (4_500, "chat", 0, 3),
        (1e9, "chat", 0, 60),
        (4_999, "batch", 0, 0),
        (5_001, "batch", 0, 1),
        (1e9, "", 0, 0),  # no objective: always let in
        (1e9, "unknown", 0, 0),
        (6_000, "", 5, 1),  # vLLM's priority: higher goes later, so it can be shed
        (6_000, "", -5, 0),
        (6_000, "chat", -5, 4),  # a known objective decides alone
    ],
)
def test_who_waits(expected_ms: float, objective: str, body_priority: int, wait_s: int) -> None:
    assert STRICT.retry_after_s(expected_ms, objective=objective, body_priority=body_priority) == wait_s


def test_off_by_default_everything_is_let_in() -> None:
    picker, _ = picker_of()
    fill(picker, 20)
    assert picker.pick(asking(objective="chat", priority=9)).endpoints


def test_when_no_endpoint_can_meet_the_objective_the_request_is_refused_and_counts_nowhere() -> None:
    picker, _ = picker_of(STRICT)
    assert picker.pick(asking(objective="chat")).endpoints
    fill(picker, 4)
    in_flight, blocks = picker.stats().in_flight, picker.stats().prefix_blocks
    refused = picker.pick(asking("word " * 1_000, objective="chat"))
    assert (refused.endpoints, refused.status, refused.reason) == ((), 429, "over-objective")
    assert 2 <= refused.retry_after_s <= 4
    assert (picker.stats().in_flight, picker.stats().prefix_blocks) == (in_flight, blocks)
    assert picker.pick(asking(objective="batch")).endpoints, "it can wait"
    fill(picker, 6)
    assert picker.pick(asking(objective="batch")).status == 429
    assert picker.pick(asking(priority=3)).status == 429
    assert picker.pick(asking()).endpoints
    assert refused.explain()["retry_after_s"] == refused.retry_after_s


def test_one_endpoint_that_can_is_enough() -> None:
    picker, _ = picker_of(STRICT)
    fill(picker, 4)
    picker.apply(make_plan({"near": [*NEAR, "10.0.0.4:80"]}))
    assert picker.pick(asking(objective="chat")).endpoints[0] == "10.0.0.4:80"


def test_on_the_wire_it_is_429_with_retry_after_and_a_reason() -> None:
    picker, _ = picker_of(STRICT)
    fill(picker, 10)
    message = ext_proc.ProcessingRequest()
    message.request_body.body = b'{"prompt": "hi"}'
    message.request_body.end_of_stream = True
    fields = message.attributes["envoy.filters.http.ext_proc"].fields
    fields[wire.ATTRIBUTE_CLUSTER].string_value = POOL
    fields[wire.ATTRIBUTE_OBJECTIVE].string_value = "chat"
    (reply,) = Exchange(picker).receive(message)
    immediate = reply.immediate_response
    headers = {edit.header.key: edit.header.raw_value for edit in immediate.headers.set_headers}
    assert immediate.status.code == 429
    assert headers[wire.REASON_HEADER] == b"over-objective"
    assert 7 <= int(headers["retry-after"]) <= 10
    assert json.loads(immediate.body)["error"]["type"] == "rate_limit_error"


def test_the_objective_of_a_foreign_gateway_comes_in_a_header() -> None:
    picker, _ = picker_of(STRICT)
    fill(picker, 10)
    message = ext_proc.ProcessingRequest()
    message.request_headers.headers.headers.add(key=wire.OBJECTIVE_HEADER, raw_value=b"chat")
    message.request_headers.end_of_stream = True
    (reply,) = Exchange(picker, default_pool=POOL).receive(message)
    assert reply.immediate_response.status.code == 429


# Adapters


def lora_of(picker: Picker, request: PickRequest) -> dict[str, float]:
    decision = picker.pick(request)
    assert decision.terms is not None
    picker.feedback(Feedback(pick_id=decision.pick_id, ended=True, status=200))
    return dict(zip(decision.pool_keys, decision.terms.lora, strict=True))


def test_an_adapter_goes_where_it_is_loaded() -> None:
    picker, clock = picker_of()
    for key in NEAR:
        picker.models(key, frozenset({"m", "poet"}), frozenset({"poet"}))
    assert not any(lora_of(picker, asking(model="m")).values()), "the base model needs no adapter"
    first = picker.pick(asking("one", model="poet")).endpoints[0]
    costs = lora_of(picker, asking("quite another text", model="poet"))
    assert [key for key, cost in costs.items() if not cost] == [first]
    for number in range(5):
        assert picker.pick(asking(f"text {number}", model="poet")).endpoints[0] == first
    clock.advance(KEPT_S + 1)
    picker.signals(NEAR[1], EngineMetrics(running=1, running_loras=frozenset({"poet"})))
    assert [key for key, cost in lora_of(picker, asking("new", model="poet")).items() if not cost] == [NEAR[1]]


def test_an_engine_that_restarted_has_no_adapter_loaded() -> None:
    picker, _ = picker_of()
    picker.models(NEAR[0], frozenset({"m", "poet"}), frozenset({"poet"}))
    picker.models(NEAR[1], frozenset({"m", "poet"}), frozenset({"poet"}))
    picker.signals(NEAR[0], EngineMetrics(running=1, running_loras=frozenset({"poet"}), start_time_s=1.0))
    assert lora_of(picker, asking(model="poet"))[NEAR[0]] == 0.0
    picker.signals(NEAR[0], EngineMetrics(running=0, start_time_s=2.0))
    assert lora_of(picker, asking(model="poet"))[NEAR[0]] > 0.0


def test_adapters_sent_to_an_endpoint_are_remembered_within_bounds() -> None:
    adapters = Adapters()
    names = frozenset(f"a{n}" for n in range(2 * MAX_RECENT))
    adapters.listed(0, names)
    for name in sorted(names):
        adapters.sent(0, name, 1.0)
        adapters.sent(0, f"no adapter {name}", 1.0)
    assert len(adapters._sent[0]) == MAX_RECENT


def test_adapters_are_the_listed_models_with_a_parent() -> None:
    body = b'{"data": [{"id": "m", "parent": null}, {"id": "poet", "parent": "m", "root": "/x"}, {"id": "n"}]}'
    assert model_names(body) == (frozenset({"m", "n", "poet"}), frozenset({"poet"}))


# Retry-After


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("", 0.0), ("-1", 0.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0), ("9" * 40, 0.0)],
)
def test_the_header_is_read_from_the_access_log(header: str, seconds: float) -> None:
    entry = accesslog_pb2.HTTPAccessLogEntry()
    if header:
        entry.response.response_headers["retry-after"] = header
    assert from_entry(entry).retry_after_s == seconds


def refuse(picker: Picker, key: str, **fields: float) -> None:
    picker.feedback(Feedback(pick_id="", ended=True, upstream=key, status=503, **fields))  # type: ignore[arg-type]


def test_an_endpoint_that_asks_for_time_gets_it() -> None:
    picker, clock = picker_of()
    refuse(picker, NEAR[0], retry_after_s=20.0)
    refuse(picker, NEAR[1])

    def penalties() -> list[float]:
        made = picker.pick(asking())
        picker.feedback(Feedback(pick_id=made.pick_id, ended=True, status=200))
        assert made.terms is not None
        return [round(float(ms)) for ms in made.terms.penalty]

    assert penalties() == [2000, 2000, 0]
    clock.advance(12)
    late, quick, _ = penalties()
    assert late == 2000
    assert quick < 50
    clock.advance(8 + 12)
    assert penalties()[0] < 50


def test_nobody_is_believed_for_ever() -> None:
    picker, clock = picker_of()
    refuse(picker, NEAR[0], retry_after_s=999_999.0)
    refuse(picker, NEAR[0])  # does not shorten what was asked for
    clock.advance(MAX_RETRY_AFTER_S + 12)
    made = picker.pick(asking())
    assert made.terms is not None
    assert made.terms.penalty[0] < 100
