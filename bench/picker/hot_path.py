"""CPU of a pick in the picker's own shell without sockets: bytes of HTTP/2 in, bytes of HTTP/2 out.

    python bench/picker/hot_path.py [--endpoints N] [--picks N] [--rounds N] [--profile]

One connection as Envoy has it: each pick is a HEADERS frame with the block of its encoder, without a dynamic table, and
DATA frames of 16 KB; the answers are thrown away. After each `--batch` picks comes an access log message with one entry
for each of them, as its reports end. Bodies are those of `bench/picker`. Figures are CPU of the process in µs for each
pick, the lowest and the median of the rounds; the share of the access log is told apart. No socket is read or written:
what the kernel and the event loop take comes on top (`bench/picker` has it all).
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import os
import pstats
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import hpack
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from prometheus_client import CollectorRegistry
from texts import BODIES, bodies_of, plan_of

from pointsman.core import wire
from pointsman.core.clock import SystemClock
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.core.grpc_health import GrpcHealth
from pointsman.extproc import Picker
from pointsman.extproc.http2 import frames
from pointsman.extproc.http2.calls import Calls
from pointsman.extproc.metrics import PickerMetrics
from pointsman.extproc.pick_calls import PickCalls

POOL: Final = "bench/pool"
"""As in `plan_of`."""

TRACEPARENT: Final = "traceparent"


class Wire:
    """The gateway's side of one connection: bytes of calls, with headers as Envoy sends them."""

    def __init__(self, *, traced: bool) -> None:
        self._encoder = hpack.Encoder()
        self._encoder.header_table_size = 0  # as the picker's settings ask
        self._stream = -1
        self._traced = traced
        self._rng = random.Random(1)
        self.log_stream = 0

    def greeting(self) -> bytes:
        """Preface, settings with a large window, and the call of the access log."""
        windows = frames.settings({frames.INITIAL_WINDOW_SIZE: 2**28})
        begin = frames.PREFACE + windows + frames.window_update(0, 2**30)
        headers = self._headers("/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs")
        self.log_stream = self._stream
        return begin + headers

    def pick(self, message: bytes) -> bytes:
        """One unary call."""
        headers = self._headers("/envoy.service.ext_proc.v3.ExternalProcessor/Process")
        return headers + self._data(self._stream, message, ended=True)

    def log(self, message: bytes) -> bytes:
        """A message of the access log."""
        return self._data(self.log_stream, message, ended=False)

    def _headers(self, path: str) -> bytes:
        self._stream += 2
        found = [
            (":method", "POST"),
            (":path", path),
            (":authority", wire.PICKER_CLUSTER),
            (":scheme", "http"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            (wire.PROFILE_HEADER, wire.PROFILE_SINGLE),
            ("x-envoy-internal", "true"),
            ("x-forwarded-for", "10.0.0.1"),
        ]
        block = self._encoder.encode(found)
        if self._traced:
            value = f"00-{self._rng.getrandbits(128):032x}-{self._rng.getrandbits(64):016x}-00"
            block += self._encoder.encode([(TRACEPARENT, value)])
        return frames.frame(frames.HEADERS, frames.END_HEADERS, self._stream, block)

    def _data(self, stream: int, message: bytes, *, ended: bool) -> bytes:
        whole = b"\x00" + len(message).to_bytes(4, "big") + message
        pieces = [
            whole[at : at + frames.DEFAULT_FRAME_BYTES] for at in range(0, len(whole), frames.DEFAULT_FRAME_BYTES)
        ]
        flags = [0] * (len(pieces) - 1) + [frames.END_STREAM if ended else 0]
        return b"".join(
            frames.frame(frames.DATA, flag, stream, piece) for flag, piece in zip(flags, pieces, strict=True)
        )


def message_of(body: bytes, rng: random.Random) -> bytes:
    """The one message of a pick."""
    message = ext_proc.ProcessingRequest()
    message.request_body.body = body
    message.request_body.end_of_stream = True
    attributes = message.attributes["envoy.filters.http.ext_proc"].fields
    attributes[wire.ATTRIBUTE_CLUSTER].string_value = POOL
    attributes[wire.ATTRIBUTE_ROUTE].string_value = "default/llm/0/0"
    attributes[wire.ATTRIBUTE_REQUEST_ID].string_value = f"{rng.getrandbits(128):032x}"
    attributes[wire.ATTRIBUTE_PATH].string_value = "/v1/chat/completions"
    message.protocol_config.request_body_mode = 2
    message.metadata_context.SetInParent()
    return message.SerializeToString()


def log_of(pick_ids: Sequence[str], keys: Sequence[str]) -> bytes:
    """The ends of some picks, with the fields that Envoy fills in."""
    message = als_pb2.StreamAccessLogsMessage()
    for number, pick_id in enumerate(pick_ids):
        entry = message.http_logs.log_entry.add()
        common = entry.common_properties
        for address in (common.downstream_remote_address, common.downstream_local_address):
            address.socket_address.address, address.socket_address.port_value = "127.0.0.1", 40_000
        host, _, port = keys[number % len(keys)].rpartition(":")
        common.upstream_remote_address.socket_address.address = host
        common.upstream_remote_address.socket_address.port_value = int(port)
        common.start_time.GetCurrentTime()
        for field in (
            "time_to_last_rx_byte",
            "time_to_first_upstream_tx_byte",
            "time_to_last_upstream_tx_byte",
            "time_to_first_upstream_rx_byte",
            "time_to_last_upstream_rx_byte",
            "time_to_first_downstream_tx_byte",
            "time_to_last_downstream_tx_byte",
            "duration",
        ):
            getattr(common, field).FromMicroseconds(12_345)
        common.upstream_cluster, common.route_name = POOL, "default/llm/0/0"
        common.access_log_type = accesslog_pb2.DownstreamEnd
        common.upstream_request_attempt_count = 1
        common.custom_tags[wire.TAG_PICK] = pick_id
        common.custom_tags[wire.TAG_TTFT] = "52345"
        common.custom_tags[wire.TAG_GRPC] = "-"
        common.custom_tags[wire.TAG_ADDED] = "1234"
        entry.request.request_method = 3
        entry.request.path, entry.request.authority = "/v1/chat/completions", "bench"
        entry.request.request_id = f"{number:032x}"
        entry.response.response_code.value = 200
        entry.response.response_body_bytes = 27
    return message.SerializeToString()


def picker_of(keys: Sequence[str]) -> Picker:
    """A picker with signals of all endpoints."""
    picker = Picker(SystemClock())
    picker.apply(plan_of(keys, POOL))
    rng = random.Random(7)
    for key in keys:
        load = EngineMetrics(
            waiting=0, running=rng.randrange(30), kv_usage=rng.random() / 2, block_tokens=16, capacity_tokens=400_000
        )
        picker.signals(key, load, rtt_ms=1.0)
        picker.models(key, frozenset({"llama"}))
    return picker


def measure(endpoints: int, body: str, picks: int, *, batch: int, traced: bool, profile: bool) -> tuple[float, float]:
    """µs of CPU for each pick: the call, and its entry in the access log."""
    keys = [f"127.1.{n // 250}.{n % 250 + 1}:8000" for n in range(endpoints)]
    picker = picker_of(keys)
    readers = ThreadPoolExecutor(1)
    services = PickCalls(picker, PickerMetrics(CollectorRegistry(), picker), GrpcHealth(), readers=readers)
    calls = Calls(services.methods(), wake=lambda: None, on_defect=_raise)
    gateway, rng, texts = Wire(traced=traced), random.Random(3), bodies_of(BODIES[body])
    messages = [message_of(rng.choice(texts), rng) for _ in range(64)]
    calls.receive(gateway.greeting())
    warm = picks // 5
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    spent_ns = logged_ns = 0
    profiler = cProfile.Profile()
    for first in range(0, warm + picks, batch):
        ids = [f"p-{first + n + 1:x}" for n in range(batch)]
        arriving = [gateway.pick(messages[(first + n) % len(messages)]) for n in range(batch)]
        began_ns = time.process_time_ns()
        if profile and first >= warm:
            profiler.enable()
        for data in arriving:
            for at in range(0, len(data), 65_536):  # as much as the kernel gives at a time
                calls.receive(data[at : at + 65_536])
            calls.output()
        profiler.disable()
        ended_ns = time.process_time_ns()
        chosen = [decision.endpoints[0] for decision in map(picker.explain, ids) if decision is not None]
        entries = gateway.log(log_of(ids, chosen))
        log_began_ns = time.process_time_ns()
        if profile and first >= warm:
            profiler.enable()
        calls.receive(entries)
        profiler.disable()
        log_ended_ns = time.process_time_ns()
        if first >= warm:
            spent_ns += ended_ns - began_ns
            logged_ns += log_ended_ns - log_began_ns
    readers.shutdown()
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
    rest = picker.stats()
    if rest.in_flight or rest.unmatched_feedback:
        raise SystemExit(f"{rest.in_flight} picks are still open, {rest.unmatched_feedback} reports had none")
    done = -(-picks // batch) * batch
    return spent_ns / done / 1000, logged_ns / done / 1000


def _raise(error: BaseException) -> None:
    raise error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, default=100)
    parser.add_argument("--bodies", default="4 KB,32 KB,220 KB", help="comma-separated")
    parser.add_argument("--picks", type=int, default=1_000, help="of each round (default 1000)")
    parser.add_argument("--batch", type=int, default=20, help="access log entries in a message (default 20)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--traced", action="store_true", help="each call has a traceparent of its own")
    parser.add_argument("--profile", action="store_true", help="one round by cProfile: who calls what how often")
    chosen = parser.parse_args()
    bodies = chosen.bodies.split(",")
    found: dict[str, list[tuple[float, float]]] = {body: [] for body in bodies}
    for _ in range(1 if chosen.profile else chosen.rounds):
        for body in bodies:
            found[body].append(
                measure(
                    chosen.endpoints,
                    body,
                    chosen.picks,
                    batch=chosen.batch,
                    traced=chosen.traced,
                    profile=chosen.profile,
                )
            )
    print(f"{'body':>8} {'pick':>14} {'access log':>14}   (lowest, median of {len(found[bodies[0]])}; µs)")
    for body, rounds in found.items():
        columns = [[one[side] for one in rounds] for side in (0, 1)]
        texts = [f"{min(column):.0f}, {statistics.median(column):.0f}" for column in columns]
        print(f"{body:>8} {texts[0]:>14} {texts[1]:>14}")
    print(f"{chosen.endpoints} endpoints, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
