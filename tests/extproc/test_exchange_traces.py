"""Conversations with the ext_proc exchange, as text: `traces/*.txt`.

A block is a command, `----`, and exactly what came of it:

    fleet ready | drained | none      what the picker knows: two endpoints at two sites; the same, draining; no pool
    fleet renaming                    two endpoints; "review" is renamed to "review-v2", other models stay
    stream                            a new ext_proc stream (`stream pool=NAME`: with a default pool)
    body TEXT | body-cut TEXT         a buffered body, whole or cut by the proxy
    headers MODE NAME=VALUE…          request headers; MODE is none, buffered or duplex, `+end` when no body follows
    chunk TEXT | last TEXT            a piece of a full-duplex body; `@N` is N bytes
    trailers                          the request's trailers
    subset KEY… | subset-text KEYS    the gateway's subset hint, for the next message
    response STATUS | response+end    response headers (`served=KEY`: the endpoint that Envoy says served)
    response-body TEXT | response-last TEXT | response-trailers
    close                             the peer ends the stream

What comes of it: the replies, an error, and then the picker's accounts: requests in flight and pending tokens.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc

from extproc.fleet import POOL, make_plan
from pointsman.core import wire
from pointsman.core.clock import ManualClock
from pointsman.core.errors import PeerError
from pointsman.core.model import Health, ModelRewrite, Plan
from pointsman.extproc import Exchange, Picker

TRACES = sorted((Path(__file__).parent / "traces").glob("*.txt"))
MODES = processing_mode_pb2.ProcessingMode
REVIEW = ModelRewrite(model="review", targets=(("review-v2", 10_000),))
FLEET = {"near": ["10.0.0.1:80"], "far": ["10.1.0.1:80"]}


class Conversation:
    """Runs the commands of one trace."""

    def __init__(self) -> None:
        self.picker = Picker(ManualClock(), instance="t")
        self.exchange = Exchange(self.picker)
        self.subset: ext_proc.ProcessingRequest | None = None

    def run(self, command: str) -> list[str]:
        verb, _, rest = command.partition(" ")
        match verb:
            case "fleet":
                health = {key: Health.DRAINING for keys in FLEET.values() for key in keys} if rest == "drained" else {}
                rewrites = (REVIEW,) if rest == "renaming" else ()
                self.picker.apply(Plan() if rest == "none" else make_plan(FLEET, health=health, rewrites=rewrites))
                for rtt_ms, keys in zip((1.0, 80.0), FLEET.values(), strict=True):
                    self.picker.signals(keys[0], rtt_ms=rtt_ms)
                return []
            case "stream":
                self.exchange = Exchange(self.picker, default_pool=rest.removeprefix("pool="), max_body_bytes=200_000)
                return []
            case "subset" | "subset-text":
                self.subset = ext_proc.ProcessingRequest()
                hint = self.subset.metadata_context.filter_metadata[wire.SUBSET_NAMESPACE].fields[wire.SUBSET_KEY]
                if verb == "subset-text":
                    hint.string_value = rest
                else:
                    hint.list_value.SetInParent()
                    for key in rest.split():
                        hint.list_value.values.add().string_value = key
                return []
            case "close":
                self.exchange.closed()
                return [self.accounts()]
        message = self.message(verb, rest)
        if self.subset is not None:
            message.MergeFrom(self.subset)
            self.subset = None
        try:
            replies = self.exchange.receive(ext_proc.ProcessingRequest.FromString(message.SerializeToString()))
        except PeerError as error:
            return [f"refused: {error}"]
        lines = [shown(reply) for reply in replies]
        decision = self.exchange.decision
        if decision is not None and decision.problem:
            lines.append(f"without affinity: {decision.problem}")
        return [*lines, self.accounts() + (", finished" if self.exchange.finished else "")]

    def message(self, verb: str, rest: str) -> ext_proc.ProcessingRequest:
        message = ext_proc.ProcessingRequest()
        text = b"x" * int(rest[1:]) if rest.startswith("@") else rest.encode()
        match verb:
            case "body" | "body-cut":
                message.request_body.body = text
                message.request_body.end_of_stream = verb == "body"
                message.protocol_config.request_body_mode = MODES.BUFFERED_PARTIAL
                message.attributes["envoy.filters.http.ext_proc"].fields[wire.ATTRIBUTE_CLUSTER].string_value = POOL
            case "headers":
                mode, *pairs = rest.split()
                kind, _, end = mode.partition("+")
                message.request_headers.end_of_stream = bool(end)
                modes = {"none": MODES.NONE, "buffered": MODES.BUFFERED, "duplex": MODES.FULL_DUPLEX_STREAMED}
                message.protocol_config.request_body_mode = modes[kind]
                message.protocol_config.response_body_mode = modes[kind]
                for name, value in (pair.split("=", 1) for pair in pairs):
                    header = message.request_headers.headers.headers.add()
                    header.key, header.raw_value = name, value.encode()
                if kind == "none":
                    fields = message.attributes["envoy.filters.http.ext_proc"].fields
                    fields[wire.ATTRIBUTE_CLUSTER].string_value = POOL
            case "chunk" | "last":
                message.request_body.body = text
                message.request_body.end_of_stream = verb == "last"
            case "trailers":
                message.request_trailers.SetInParent()
            case "response" | "response+end":
                status, _, served = rest.partition(" served=")
                header = message.response_headers.headers.headers.add()
                header.key, header.raw_value = ":status", status.encode()
                message.response_headers.end_of_stream = verb == "response+end"
                if served:
                    lb = message.metadata_context.filter_metadata[wire.LB_NAMESPACE]
                    lb.fields[wire.SERVED_KEY].string_value = served
            case "response-body" | "response-last":
                message.response_body.body = text
                message.response_body.end_of_stream = verb == "response-last"
            case "response-trailers":
                message.response_trailers.SetInParent()
            case "empty":
                pass
            case _:
                raise ValueError(f"unknown command {verb}")
        return message

    def accounts(self) -> str:
        table = self.picker.table
        return f"{int(table.requests.sum())} in flight, {int(table.pending_tokens.sum())} tokens pending"


def shown(reply: ext_proc.ProcessingResponse) -> str:
    """One reply as a line."""
    kind = reply.WhichOneof("response")
    words = [f"-> {kind}"]
    if kind == "immediate_response":
        immediate = reply.immediate_response
        headers = [f"{e.header.key}: {e.header.raw_value.decode()}" for e in immediate.headers.set_headers]
        grpc = [f"grpc-status {immediate.grpc_status.status}"] if immediate.HasField("grpc_status") else []
        return " | ".join([f"-> {immediate.status.code}", *grpc, *headers, immediate.body.decode()])
    if kind in ("request_headers", "request_body", "response_body"):
        common = getattr(reply, kind).response
        words += [f"header {e.header.key}={e.header.raw_value.decode()}" for e in common.header_mutation.set_headers]
        if common.body_mutation.HasField("streamed_response"):
            streamed = common.body_mutation.streamed_response
            body = streamed.body.decode()
            words.append(f"streamed {body if len(body) < 40 else f'{len(body)} bytes'}")
            words += ["end"] if streamed.end_of_stream else []
        elif common.HasField("body_mutation"):
            words.append(f"body {common.body_mutation.body.decode()}")
    for namespace, value in sorted(reply.dynamic_metadata.fields.items()):
        words += [f"{namespace}:{k}={v.string_value}" for k, v in sorted(value.struct_value.fields.items())]
    return " ".join(words)


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_trace(path: Path, request: pytest.FixtureRequest) -> None:
    conversation = Conversation()
    expected, actual = path.read_text(encoding="utf-8"), []
    for block in expected.rstrip("\n").split("\n\n"):
        head, separator, _ = block.partition("\n----")
        command = next((line for line in reversed(head.splitlines()) if not line.startswith("#")), "")
        if not command:
            actual.append(head)
            continue
        assert separator, f"{path.name}: no ---- after {head!r}"
        actual.append("\n".join([head, "----", *conversation.run(command)]))
    text = "\n\n".join(actual) + "\n"
    if request.config.getoption("--rewrite", default=False):
        path.write_text(text, encoding="utf-8")
    assert text == expected
