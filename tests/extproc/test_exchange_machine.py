"""The exchange under any sequence of messages: only `PeerError`, replies in the protocol's order, accounts that end."""

from __future__ import annotations

import pytest
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from hypothesis import given
from hypothesis import strategies as st

from extproc.fleet import POOL, make_plan
from pointsman.core.clock import ManualClock
from pointsman.core.errors import PeerError
from pointsman.core.model import Plan
from pointsman.extproc import Exchange, Picker
from pointsman.extproc.exchange import Phase

MODES = processing_mode_pb2.ProcessingMode
KINDS = (
    "request_headers",
    "request_body",
    "request_trailers",
    "response_headers",
    "response_body",
    "response_trailers",
)


@st.composite
def messages(draw: st.DrawFn) -> ext_proc.ProcessingRequest:
    message = ext_proc.ProcessingRequest()
    kind = draw(st.sampled_from((*KINDS, "")))
    if kind:
        content = getattr(message, kind)
        content.SetInParent()
        if kind.endswith("_body"):
            content.body = draw(st.binary(max_size=20))
        if not kind.endswith("_trailers"):
            content.end_of_stream = draw(st.booleans())
    message.protocol_config.request_body_mode = draw(st.sampled_from(list(MODES.BodySendMode.values())))
    message.protocol_config.response_body_mode = draw(st.sampled_from(list(MODES.BodySendMode.values())))
    return message


@given(st.lists(messages(), max_size=12), st.sampled_from(["ready", "empty", "unknown"]))
def test_any_conversation(conversation: list[ext_proc.ProcessingRequest], state: str) -> None:
    picker = Picker(ManualClock())
    plans = {"ready": make_plan({"near": ["10.0.0.1:80"]}), "empty": make_plan({"near": []}), "unknown": Plan()}
    picker.apply(plans[state])
    exchange = Exchange(picker, default_pool=POOL)
    said: list[str] = []
    relayed = False
    for message in conversation:
        before = exchange.finished
        try:
            replies = exchange.receive(message)
        except PeerError:
            continue
        assert not before  # nothing is answered after the end
        relayed = relayed or exchange.phase is Phase.RELAY
        said += [str(reply.WhichOneof("response")) for reply in replies]
    if "immediate_response" in said:
        assert state == "empty"
        assert said[-1] == "immediate_response"
        assert exchange.finished
    requests = [KINDS.index(kind) for kind in said if kind in KINDS[:3]]
    assert requests == sorted(requests)  # headers, body, trailers
    assert said.count("request_headers") <= 1
    exchange.closed()
    assert exchange.finished
    picked = exchange.decision is not None and bool(exchange.decision.endpoints)
    assert len(picker.inflight) == int(picked and not relayed)  # unless it was relayed, the access log ends it
    with pytest.raises(PeerError):
        exchange.receive(ext_proc.ProcessingRequest(request_headers=ext_proc.HttpHeaders()))
