"""What became of a pick, read from Envoy's gRPC access log (ALS).

Envoy logs a request when it ends and, with `access_log_flush_interval`, while it runs. The pick id and the time to the
first body byte are custom tags that our control plane configures (`pointsman.core.wire`). An absent value is `-`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from envoy.config.core.v3 import address_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from google.protobuf import duration_pb2

from pointsman.core.wire import DESTINATION_KEY, LB_NAMESPACE, TAG_ADDED, TAG_ATTEMPTED, TAG_GRPC, TAG_PICK, TAG_TTFT

OVERLOAD_STATUS = frozenset({429, 503})
"""Answers of an engine that has too much to do."""

BROKEN_STATUS = frozenset({500, 502, 504})
"""Answers of an engine, or of Envoy on its behalf, that is broken or does not answer."""

MAX_ATTEMPTED_BYTES = 4_096
"""Length of a list of endpoints that is read: eighty attempts, and none retries so often."""

_ENDS = frozenset({accesslog_pb2.NotSet, accesslog_pb2.DownstreamEnd})
_ATTEMPTS = frozenset({accesslog_pb2.UpstreamEnd})
_UPSTREAM_FLAGS = (
    "upstream_connection_failure",
    "upstream_connection_termination",
    "upstream_remote_reset",
    "upstream_request_timeout",
    "upstream_protocol_error",
    "upstream_retry_limit_exceeded",
    "no_healthy_upstream",
)
_ABSENT = ("", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One access log entry. `upstream` is the endpoint (`ip:port`) that served or failed last, empty for none.

    `status` 0: no response yet. `ttft_ms` is None until the first body byte. `failed` says that the upstream (not the
    client) broke the request off, `no_endpoint` that the gateway had no healthy one (left); `attempts` counts upstream
    requests, 0 unknown. `retry_after_s` is what the upstream asked for with a 429 or 503, 0 unknown (the access log
    must have the header `retry-after`).
    `route` names the Plan's rule, `gateway` the Gateway whose proxy logged it ("" unknown); `grpc_status` is None for
    what is not gRPC. `added_ms` is the time from the request's last byte in to its first byte to the endpoint, None
    where it never got that far. `attempted` are the endpoints that a retried request was sent to, in order; the last
    is `upstream`.

    What the picker adds from its account (`InFlight.told`): `expected_ms`, what the pick expected until the first byte,
    only on the entry that tells of it first, or of the end without one, and only where the first choice served an
    answer that streams; `streaming`, whether it comes in pieces, None: not known; `first_choice`, the endpoint that the
    pick named first where another served. `forwarded`: another picker heard the entry and told of its outcome already;
    what the account adds to it is all the news, and whoever counts outcomes leaves it out.

    `attempt`: the entry is not about a request but about one attempt, for which `upstream` was not there. It comes at
    once, and names the request (`request_id`) and not its pick; what became of it comes in an entry of its own.
    """

    pick_id: str
    ended: bool
    cluster: str = ""
    upstream: str = ""
    status: int = 0
    ttft_ms: float | None = None
    duration_ms: float = 0.0
    response_bytes: int = 0
    attempts: int = 0
    failed: bool = False
    no_endpoint: bool = False
    retry_after_s: float = 0.0
    route: str = ""
    grpc_status: int | None = None
    gateway: str = ""
    added_ms: float | None = None
    attempted: tuple[str, ...] = ()
    expected_ms: float | None = None
    streaming: bool | None = None
    first_choice: str = ""
    forwarded: bool = False
    attempt: bool = False
    request_id: str = ""

    @property
    def overloaded(self) -> bool:
        """The upstream refused for lack of capacity."""
        return self.status in OVERLOAD_STATUS

    @property
    def broken(self) -> bool:
        """The upstream failed."""
        return self.failed or self.status in BROKEN_STATUS


def entries(message: als_pb2.StreamAccessLogsMessage, gateway: str = "") -> Iterator[Feedback]:
    """The entries of one message, in order; those of requests that never had a pick have an empty pick id."""
    for entry in message.http_logs.log_entry:
        yield from_entry(entry, gateway)


def from_entry(entry: accesslog_pb2.HTTPAccessLogEntry, gateway: str = "") -> Feedback:
    """Read one entry; fields that are absent or make no sense count as unknown."""
    common = entry.common_properties
    tags = common.custom_tags
    pick_id = tags.get(TAG_PICK, "")
    flags = common.response_flags
    attempts = common.upstream_request_attempt_count
    attempt = common.access_log_type in _ATTEMPTS
    return Feedback(
        pick_id="" if pick_id in _ABSENT else pick_id,
        ended=common.access_log_type in _ENDS and not common.intermediate_log_entry,
        cluster=common.upstream_cluster,
        upstream=_address(common.upstream_remote_address),
        status=entry.response.response_code.value,
        ttft_ms=_microseconds(tags.get(TAG_TTFT, "")),
        duration_ms=_milliseconds(common.duration) or _milliseconds(common.time_to_last_downstream_tx_byte),
        response_bytes=entry.response.response_body_bytes,
        attempts=attempts,
        no_endpoint=common.HasField("response_flags") and flags.no_healthy_upstream,
        failed=common.HasField("response_flags") and any(getattr(flags, name) for name in _UPSTREAM_FLAGS),
        retry_after_s=_seconds(entry.response.response_headers.get("retry-after", "")),
        route=common.route_name,
        grpc_status=_grpc_status(tags.get(TAG_GRPC, "")),
        gateway=gateway,
        added_ms=_microseconds(tags.get(TAG_ADDED, "")),
        attempted=_attempted(common, attempts) if attempts > 1 else (),
        attempt=attempt,
        request_id=entry.request.request_id if attempt else "",
    )


def _address(address: address_pb2.Address) -> str:
    found = address.socket_address
    if not found.port_value:
        return ""
    host = f"[{found.address}]" if ":" in found.address else found.address
    return f"{host}:{found.port_value}"


def _microseconds(text: str) -> float | None:
    """A count of microseconds as milliseconds; None when it is none."""
    return int(text) / 1000.0 if text.isascii() and text.isdecimal() and len(text) <= 15 else None


def _attempted(common: accesslog_pb2.AccessLogCommon, attempts: int) -> tuple[str, ...]:
    """Where a request was sent to, in order. Envoy's list lacks the endpoints that it could not connect to; they are
    those of the pick that it did not reach."""
    reached = _endpoints(common.custom_tags.get(TAG_ATTEMPTED, ""))
    missing = attempts - len(reached)
    balancer = common.metadata.filter_metadata
    if missing <= 0 or LB_NAMESPACE not in balancer or DESTINATION_KEY not in balancer[LB_NAMESPACE].fields:
        return reached
    picked = _endpoints(balancer[LB_NAMESPACE].fields[DESTINATION_KEY].string_value)
    return (*[endpoint for endpoint in picked if endpoint not in reached][:missing], *reached)


def _endpoints(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part not in _ABSENT) if len(text) <= MAX_ATTEMPTED_BYTES else ()


def _grpc_status(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 3 else None


def _seconds(text: str) -> float:
    """A count of seconds; 0 when it is none (the other form of Retry-After, a date, is not read)."""
    return float(text) if text.isascii() and text.isdecimal() and len(text) <= 6 else 0.0


def _milliseconds(duration: duration_pb2.Duration) -> float:
    return duration.seconds * 1000.0 + duration.nanos / 1e6
