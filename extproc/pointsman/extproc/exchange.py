"""One ext_proc stream as a state machine without I/O: messages in, replies out.

Which profile a peer speaks shows in its first message:

    first message                        profile         replies
    request_body                         one message     one body reply with the pick, then the stream ends
    request_headers, no body to come     headers         one headers reply with the pick, then the stream ends
    request_headers, body buffered       buffered        headers reply at once, body reply with the pick, end
    request_headers, full duplex         EPP             nothing until the body (or its trailers) ended, then headers
                                                         with the pick as header and metadata, body, trailers; the
                                                         response is handed back as it comes

A pool that we do not know (yet) is passed through without a pick, so that the proxy balances by itself; a known pool
without a ready endpoint is refused. A body whose model is renamed goes back changed. In the first two profiles the
outcome comes by the access log, in full duplex by the response on this stream.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Protocol

from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from google.protobuf import struct_pb2

from pointsman.core.errors import PeerError
from pointsman.core.wire import (
    AFFINITY_HEADER,
    ATTRIBUTE_AFFINITY,
    ATTRIBUTE_CLUSTER,
    ATTRIBUTE_OBJECTIVE,
    ATTRIBUTE_PATH,
    ATTRIBUTE_REQUEST_ID,
    ATTRIBUTE_ROUTE,
    LB_NAMESPACE,
    MAX_PROMPT_BYTES,
    OBJECTIVE_HEADER,
    SERVED_KEY,
    SUBSET_KEY,
    SUBSET_NAMESPACE,
)
from pointsman.extproc import replies
from pointsman.extproc.decision import NO_BODY, Decision, PickRequest
from pointsman.extproc.feedback import Feedback
from pointsman.extproc.inflight import Account
from pointsman.extproc.model_rules import ModelRules, Renaming
from pointsman.extproc.request import Body, Crowd, bounded_name, read_body

Request = ext_proc.ProcessingRequest
Response = ext_proc.ProcessingResponse

_MODE = processing_mode_pb2.ProcessingMode
_BUFFERED_MODES = frozenset({_MODE.BUFFERED, _MODE.BUFFERED_PARTIAL})


class Picks(Protocol):
    """What the exchange needs of the picker."""

    @property
    def model_rules(self) -> ModelRules: ...

    def pick(self, request: PickRequest) -> Decision: ...

    def feedback(self, entry: Feedback) -> Account | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DueBody:
    """A request body that is whole, or was cut (`partial`), and the pool and user or request that it belongs to."""

    raw: bytes
    partial: bool
    pool: str
    identity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBody:
    """What reading a body gave: what it asks for, and what it becomes where its model is renamed."""

    raw: bytes
    body: Body
    renaming: Renaming | None


class Phase(Enum):
    """Where a stream stands."""

    START = auto()
    AWAIT_BODY = auto()  # buffered profile: headers answered, the body decides
    COLLECT = auto()  # full duplex: nothing answered until the request is whole
    RELAY = auto()  # full duplex: picked; the response passes through
    DONE = auto()  # the shell ends the stream with OK


@dataclass(slots=True)
class _Seen:
    """What the headers and attributes of a stream have told so far."""

    pool: str = ""
    request_id: str = ""
    path: str = ""
    affinity: str = ""
    objective: str = ""
    route: str = ""
    subset: frozenset[str] | None = None
    grpc: bool = False
    sized: bool = False  # the length of the body is in its headers


class Exchange:
    """One stream. `default_pool` is used for peers that do not send the attribute `xds.cluster_name`; `reported`: the
    gateway tells of each running request, again and again."""

    def __init__(
        self,
        picker: Picks,
        *,
        default_pool: str = "",
        max_body_bytes: int = MAX_PROMPT_BYTES,
        reported: bool = False,
    ) -> None:
        self._reported = reported
        self.phase = Phase.START
        self.decision: Decision | None = None
        self._picker = picker
        self._max_body_bytes = max_body_bytes
        self._seen = _Seen(pool=default_pool)
        self._chunks: list[bytes] = []
        self._size_bytes = 0
        self._duplex_response = False
        self._status = 0
        self._answered = False

    @property
    def finished(self) -> bool:
        """True when nothing more is to be said; the stream is then closed with status OK."""
        return self.phase is Phase.DONE

    def body_due(self, message: Request) -> DueBody | None:
        """The body that `receive` would read on this message; None when it would read none.

        A shell that reads large bodies elsewhere (`read`) passes what was read to `receive`.
        """
        match (self.phase, message.WhichOneof("request")):
            case (Phase.START | Phase.AWAIT_BODY, "request_body"):
                part = message.request_body
                return self._due(message, part.body, partial=not part.end_of_stream)
            case (Phase.COLLECT, "request_body") if message.request_body.end_of_stream:
                return self._due(message, b"".join([*self._chunks, message.request_body.body]))
            case (Phase.COLLECT, "request_trailers"):
                return self._due(message, b"".join(self._chunks))
        return None

    def read(self, due: DueBody, crowd: Crowd | None = None) -> ReadBody:
        """Read a body; may run in another thread than the rest. `crowd`: as for `read_body`."""
        renaming = self._picker.model_rules.rename(due.pool, due.raw, partial=due.partial, identity=due.identity)
        return ReadBody(raw=due.raw, renaming=renaming, body=read_body(due.raw, partial=due.partial, crowd=crowd))

    def receive(self, message: Request, read: ReadBody | None = None) -> list[Response]:
        """The replies to one message, in order. `read`: its body, where it has been read already (`body_due`).

        Raises `PeerError` for a message that has no place here.
        """
        read = read or self._read_at_once(message)
        kind = message.WhichOneof("request")
        match (self.phase, kind):
            case (Phase.START | Phase.AWAIT_BODY, "request_body") if read is not None:
                answers = self._body(read)
            case (Phase.START, "request_headers"):
                answers = self._headers(message)
            case (Phase.COLLECT, "request_body"):
                answers = self._chunk(message.request_body, read)
            case (Phase.COLLECT, "request_trailers") if read is not None:
                answers = self._whole(read, trailers=True)
            case (Phase.AWAIT_BODY, "request_trailers"):
                answers = self._bodyless()
            case (Phase.RELAY, "request_trailers"):
                answers = [replies.request_trailers_reply()]
            case (Phase.RELAY, "response_headers"):
                answers = self._response_headers(message)
            case (Phase.RELAY, "response_body"):
                answers = self._response_body(message.response_body)
            case (Phase.RELAY, "response_trailers"):
                self._end()
                answers = [replies.response_trailers_reply()]
            case _:
                raise PeerError(f"ext_proc message {kind or 'without content'} in phase {self.phase.name}")
        return answers

    def closed(self) -> None:
        """The peer ended or broke the stream; mostly a client that went away, so no endpoint is blamed for it."""
        if self.phase is Phase.RELAY:
            self._end()
        self.phase = Phase.DONE

    # Requests

    def _read_at_once(self, message: Request) -> ReadBody | None:
        due = self.body_due(message)
        if due is None:
            self._note(message)
            return None
        return self.read(due)

    def _due(self, message: Request, raw: bytes, *, partial: bool = False) -> DueBody:
        self._note(message)
        seen = self._seen
        return DueBody(raw=raw, partial=partial, pool=seen.pool, identity=seen.affinity or seen.request_id)

    def _body(self, read: ReadBody) -> list[Response]:
        self.phase = Phase.DONE
        renaming = read.renaming
        if renaming is not None and renaming.unread:
            return [replies.refusal(400, replies.MODEL_UNREAD)]
        decision = self._pick(read.body, renaming)
        return [self._refused(decision) or replies.body_reply(decision, renaming.body if renaming else None)]

    def _bodyless(self) -> list[Response]:
        """Trailers where a body was announced: there was none."""
        decision = self._pick(NO_BODY)
        self.phase = Phase.DONE
        return [self._refused(decision) or replies.request_trailers_reply(decision)]

    def _headers(self, message: Request) -> list[Response]:
        mode = message.protocol_config.request_body_mode
        self._duplex_response = message.protocol_config.response_body_mode == _MODE.FULL_DUPLEX_STREAMED
        if message.request_headers.end_of_stream or mode not in (_MODE.FULL_DUPLEX_STREAMED, *_BUFFERED_MODES):
            decision = self._pick(NO_BODY)
            refused = self._refused(decision)
            duplex = mode == _MODE.FULL_DUPLEX_STREAMED
            self.phase = Phase.RELAY if duplex and not refused else Phase.DONE
            return [refused or replies.headers_reply(decision, with_header=duplex)]
        if mode == _MODE.FULL_DUPLEX_STREAMED:
            self.phase = Phase.COLLECT
            return []
        self.phase = Phase.AWAIT_BODY
        return [replies.headers_reply()]

    def _chunk(self, body: ext_proc.HttpBody, read: ReadBody | None) -> list[Response]:
        self._chunks.append(body.body)
        self._size_bytes += len(self._chunks[-1])
        if self._size_bytes > self._max_body_bytes:
            self.phase = Phase.DONE
            return [replies.refusal(413, replies.TOO_LARGE, grpc=self._seen.grpc)]
        return [] if read is None else self._whole(read, trailers=False)

    def _whole(self, read: ReadBody, *, trailers: bool) -> list[Response]:
        self._chunks.clear()
        body, renaming = read.raw, read.renaming
        if renaming is not None and renaming.unread:
            self.phase = Phase.DONE
            return [replies.refusal(400, replies.MODEL_UNREAD, grpc=self._seen.grpc)]
        decision = self._pick(read.body, renaming)
        refused = self._refused(decision)
        if refused is not None:
            self.phase = Phase.DONE
            return [refused]
        self.phase = Phase.RELAY
        length_bytes = None
        if renaming is not None:
            body = renaming.body
            length_bytes = len(body) if self._seen.sized else None
        answer = [replies.headers_reply(decision, with_header=True, length_bytes=length_bytes)]
        if body or not trailers:
            answer += replies.streamed_request_body(body, end_of_stream=not trailers)
        return [*answer, replies.request_trailers_reply()] if trailers else answer

    def _pick(self, body: Body, renaming: Renaming | None = None) -> Decision:
        seen = self._seen
        if renaming is not None:
            body = replace(body, model=renaming.model, asked_model=bounded_name(renaming.asked))
        self.decision = self._picker.pick(
            PickRequest(
                pool=seen.pool,
                body=body,
                request_id=seen.request_id,
                path=seen.path,
                affinity=seen.affinity,
                objective=seen.objective,
                route=seen.route,
                subset=seen.subset,
                reported=self._reported,
            )
        )
        return self.decision

    def _refused(self, decision: Decision) -> Response | None:
        if decision.endpoints or not decision.status:
            return None
        return replies.refusal(
            decision.status, decision.reason, grpc=self._seen.grpc, retry_after_s=decision.retry_after_s
        )

    # Responses (full duplex)

    def _response_headers(self, message: Request) -> list[Response]:
        for header in message.response_headers.headers.headers:
            if header.key == ":status":
                text = header.raw_value.decode("latin-1") or header.value
                self._status = int(text) if text.isdecimal() and len(text) == 3 else 0
        served = _string(message.metadata_context.filter_metadata.get(LB_NAMESPACE), SERVED_KEY)
        self._tell(Feedback(pick_id=self._pick_id, ended=False, upstream=served, status=self._status))
        if message.response_headers.end_of_stream:
            self._end()
        return [replies.response_headers_reply()]

    def _response_body(self, body: ext_proc.HttpBody) -> list[Response]:
        if body.body and not self._answered:
            self._answered = True
            # The time is the access log's to tell; here only the fact counts.
            self._tell(Feedback(pick_id=self._pick_id, ended=False, status=self._status, ttft_ms=0.0))
        if body.end_of_stream:
            self._end()
        return [replies.response_body_reply(body, streamed=self._duplex_response)]

    def _end(self) -> None:
        self._tell(Feedback(pick_id=self._pick_id, ended=True, status=self._status))
        self.phase = Phase.DONE

    @property
    def _pick_id(self) -> str:
        return self.decision.pick_id if self.decision is not None else ""

    def _tell(self, entry: Feedback) -> None:
        if self.decision is not None and self.decision.endpoints:
            self._picker.feedback(entry)

    # What messages carry beside their content

    def _note(self, message: Request) -> None:
        seen = self._seen
        for attributes in message.attributes.values():
            seen.pool = _string(attributes, ATTRIBUTE_CLUSTER) or seen.pool
            seen.request_id = _string(attributes, ATTRIBUTE_REQUEST_ID) or seen.request_id
            seen.path = _string(attributes, ATTRIBUTE_PATH) or seen.path
            seen.affinity = _string(attributes, ATTRIBUTE_AFFINITY) or seen.affinity
            seen.objective = _string(attributes, ATTRIBUTE_OBJECTIVE) or seen.objective
            seen.route = _string(attributes, ATTRIBUTE_ROUTE) or seen.route
        if message.HasField("metadata_context"):
            hint = message.metadata_context.filter_metadata.get(SUBSET_NAMESPACE)
            if hint is not None and SUBSET_KEY in hint.fields:
                seen.subset = _subset(hint.fields[SUBSET_KEY])
        if message.HasField("request_headers"):
            for header in message.request_headers.headers.headers:
                value = header.value or header.raw_value.decode("latin-1")
                match header.key:
                    case "x-request-id":
                        seen.request_id = seen.request_id or value
                    case ":path":
                        seen.path = seen.path or value
                    case "content-length":
                        seen.sized = True
                    case "content-type":
                        seen.grpc = value.startswith("application/grpc")
                    case name if name == AFFINITY_HEADER:
                        seen.affinity = seen.affinity or value
                    case name if name == OBJECTIVE_HEADER:
                        seen.objective = seen.objective or value


def _string(fields: struct_pb2.Struct | None, name: str) -> str:
    return fields.fields[name].string_value if fields is not None and name in fields.fields else ""


def _subset(hint: struct_pb2.Value) -> frozenset[str]:
    """The endpoints of a subset hint: a list as the protocol says, or a comma-separated text as some gateways send."""
    texts = [hint.string_value] if hint.string_value else [value.string_value for value in hint.list_value.values]
    return frozenset(part.strip() for text in texts for part in text.split(",") if part.strip())
