"""The ext_proc replies that the picker gives, as protobuf messages."""

from __future__ import annotations

from typing import Final

import msgspec
from envoy.config.core.v3 import base_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from envoy.type.v3 import http_status_pb2

from pointsman.core.wire import (
    DESTINATION_KEY,
    LB_NAMESPACE,
    MAX_PICK_WAIT_MS,
    PICK_KEY,
    PICK_NAMESPACE,
    REASON_HEADER,
)
from pointsman.extproc.decision import NO_READY_ENDPOINT, NOT_IN_SUBSET, OVER_OBJECTIVE, RESIDENCY, Decision

CHUNK_BYTES: Final = 64_000
"""Body bytes in one streamed reply: Envoy recommends at most 64 KiB for each message."""

GRPC_UNAVAILABLE: Final = 14
GRPC_PERMISSION_DENIED: Final = 7
GRPC_RESOURCE_EXHAUSTED: Final = 8
_GRPC_STATUS: Final = {413: GRPC_RESOURCE_EXHAUSTED, 429: GRPC_RESOURCE_EXHAUSTED, 451: GRPC_PERMISSION_DENIED}

WAIT_MS_PER_MIB: Final = 250
"""Added to the wait for the pick of a large body. A MiB takes 10 to 20 ms of CPU time in gateway and picker, there and
back; where ten times as much runs as there are cores, ten times that."""

LARGE_BODY_WAIT_MS: Final = 5_000
"""The least such wait: what requests wait that can't go on without a pick."""

TOO_LARGE: Final = "prompt-too-large"
MODEL_UNREAD: Final = "model-unread"

_TEXTS: Final = {
    TOO_LARGE: "The request body is larger than the picker reads.",
    MODEL_UNREAD: "The model stands too far behind in the request body: put it first.",
    NO_READY_ENDPOINT: "No endpoint of the pool is ready.",
    NOT_IN_SUBSET: "None of the endpoints that the gateway allows is ready.",
    OVER_OBJECTIVE: "No endpoint can answer within the request's objective now.",
    RESIDENCY: "No endpoint inside the jurisdictions that the request may not leave.",
}


def body_reply(decision: Decision, body: bytes | None = None) -> ext_proc.ProcessingResponse:
    """Go on, with the pick in dynamic metadata: the answer of the one-message profile. `body`: instead of the client's;
    Envoy makes the content-length fit."""
    reply = ext_proc.ProcessingResponse()
    common = reply.request_body.response
    common.SetInParent()
    if body is not None:
        common.body_mutation.body = body
    _add_metadata(reply, decision)
    return reply


def wait_reply(length_bytes: int) -> ext_proc.ProcessingResponse:
    """The gateway's wait for this message begins again, and is longer now. Envoy heeds it once for each message, and
    where its configuration allows so long a wait (`wire.MAX_PICK_WAIT_MS`)."""
    reply = ext_proc.ProcessingResponse()
    wait_ms = LARGE_BODY_WAIT_MS + WAIT_MS_PER_MIB * (length_bytes >> 20)
    reply.override_message_timeout.FromMilliseconds(min(wait_ms, MAX_PICK_WAIT_MS))
    return reply


def headers_reply(
    decision: Decision | None = None, *, with_header: bool = False, length_bytes: int | None = None
) -> ext_proc.ProcessingResponse:
    """Go on after the request headers. `with_header`: the pick as a header, too (Endpoint Picker Protocol).
    `length_bytes`: of the body, where that has changed."""
    reply = ext_proc.ProcessingResponse()
    common = reply.request_headers.response
    common.SetInParent()
    if decision is not None and decision.endpoints:
        _add_metadata(reply, decision)
        if with_header:
            common.clear_route_cache = True
            _overwrite(common.header_mutation, DESTINATION_KEY, decision.destination)
    if length_bytes is not None:
        _overwrite(common.header_mutation, "content-length", str(length_bytes))
    return reply


def _add_metadata(reply: ext_proc.ProcessingResponse, decision: Decision) -> None:
    if not decision.endpoints:
        return
    namespaces = reply.dynamic_metadata.fields
    namespaces[LB_NAMESPACE].struct_value.fields[DESTINATION_KEY].string_value = decision.destination
    namespaces[PICK_NAMESPACE].struct_value.fields[PICK_KEY].string_value = decision.pick_id


def streamed_request_body(body: bytes, *, end_of_stream: bool) -> list[ext_proc.ProcessingResponse]:
    """The request body given back, in chunks; at least one message."""
    last = max(0, (len(body) - 1) // CHUNK_BYTES)
    replies = []
    for number in range(last + 1):
        reply = ext_proc.ProcessingResponse()
        streamed = reply.request_body.response.body_mutation.streamed_response
        streamed.body = body[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        streamed.end_of_stream = end_of_stream and number == last
        replies.append(reply)
    return replies


def request_trailers_reply(decision: Decision | None = None) -> ext_proc.ProcessingResponse:
    """Go on after the request trailers, with the pick when it was made only now."""
    reply = ext_proc.ProcessingResponse()
    reply.request_trailers.SetInParent()
    if decision is not None:
        _add_metadata(reply, decision)
    return reply


def response_headers_reply() -> ext_proc.ProcessingResponse:
    """Go on after the response headers."""
    reply = ext_proc.ProcessingResponse()
    reply.response_headers.response.SetInParent()
    return reply


def response_body_reply(body: ext_proc.HttpBody, *, streamed: bool) -> ext_proc.ProcessingResponse:
    """A piece of the response given back unchanged (`streamed`: full duplex, where the picker must send it on)."""
    reply = ext_proc.ProcessingResponse()
    common = reply.response_body.response
    common.SetInParent()
    if streamed:
        common.body_mutation.streamed_response.body = body.body
        common.body_mutation.streamed_response.end_of_stream = body.end_of_stream
    return reply


def response_trailers_reply() -> ext_proc.ProcessingResponse:
    """Go on after the response trailers."""
    reply = ext_proc.ProcessingResponse()
    reply.response_trailers.SetInParent()
    return reply


def refusal(status: int, reason: str, *, grpc: bool = False, retry_after_s: int = 0) -> ext_proc.ProcessingResponse:
    """Answer the client ourselves: OpenAI's error shape and the reason header, or a gRPC status for gRPC clients.

    `retry_after_s`: when the client may try again, 0 is not said.
    """
    reply = ext_proc.ProcessingResponse()
    immediate = reply.immediate_response
    immediate.status.code = http_status_pb2.StatusCode.ValueType(status)
    immediate.details = f"pointsman_{reason.replace('-', '_')}"
    _set_header(immediate, REASON_HEADER, reason)
    if retry_after_s:
        _set_header(immediate, "retry-after", str(retry_after_s))
    message = _TEXTS.get(reason, reason)
    if grpc:
        immediate.grpc_status.status = _GRPC_STATUS.get(status, GRPC_UNAVAILABLE)
        immediate.body = message.encode()  # Envoy makes it grpc-message
        return reply
    _set_header(immediate, "content-type", "application/json")
    error = {"message": message, "type": _openai_type(status), "param": None, "code": reason}
    immediate.body = msgspec.json.encode({"error": error})
    return reply


def _openai_type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if 400 <= status < 500 else "service_unavailable_error"


def _set_header(immediate: ext_proc.ImmediateResponse, name: str, value: str) -> None:
    _overwrite(immediate.headers, name, value)


def _overwrite(mutation: ext_proc.HeaderMutation, name: str, value: str) -> None:
    edit = mutation.set_headers.add()
    edit.header.key = name
    edit.header.raw_value = value.encode()
    edit.append_action = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
