"""Every number that the control plane writes into Envoy's configuration, with the reason for its value."""

from __future__ import annotations

from dataclasses import dataclass

from pointsman.core import wire
from pointsman.core.model import HealthPolicy, RetryPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayTls:
    """How a gateway speaks TLS to the picker.

    `folder` holds its secrets (`wire.GATEWAY_CERTIFICATE`, `wire.GATEWAY_TRUST`), which also say whom it trusts;
    `server_name` is sent as SNI ("" for none).
    """

    folder: str = "/etc/pointsman"
    server_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayTracing:
    """Where a gateway sends the spans of requests (OTLP over gRPC, plaintext), and how many.

    `ratio` (0 to 1) is the share of traces that are sampled; with `follow_parent` only of those that begin here, while
    a request that brings a `traceparent` keeps what its sender decided.
    """

    collector_address: str
    collector_port: int
    service_name: str = "pointsman-gateway"
    ratio: float = 1.0
    follow_parent: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Settings of the generated Envoy configuration. Times are milliseconds, sizes are bytes.

    Picker:
        `picker_address`, `picker_port`: where ext_proc and ALS are served; a host name is resolved by DNS.
        `picker_standbys`: further pickers, asked in this order while those before them fail their health check.
        `picker_tls`: pickers are reached by TLS; a gateway whose node metadata does not say where its secrets are is
        told these values. None: plaintext.
        `message_timeout_ms`: longest wait for a pick; a frozen picker costs each request this much, then Envoy
        balances by itself. 200 ms is 100 times a normal pick and a tenth of a usual time to first token.
        `closed_message_timeout_ms`: the same for pools that fail closed. Nothing goes on without a pick there, so a
        wait is better than an error: a picker on a busy machine needs half a second at times, and two for 64 MiB. One
        that is frozen is not asked any more after 2 s, when its health check has failed twice.
        `picker_health_check`: probe the picker by `grpc.health.v1`, so that a frozen one costs nothing after ~1 s.
        Only for pickers that serve it.
        `picker_max_requests`: Envoy's default breaker (1,024) overflows under load; 40,000 streams are more than one
        picker can serve, so that the picker and not the breaker sets the limit.

    Requests:
        `max_prompt_bytes`: largest body, past it the answer is 413.
        `max_connections`: breaker of a pool (connections, pending and running requests); admission is the picker's
        work, so this only guards Envoy's own memory.
        `num_retries`: tries after the first one: one endpoint at home, one elsewhere, two more. The picker lists more.
        `retry_on_reset`: also retry when the endpoint died after it got the request but before it answered. A
        completion is computed twice then, which costs GPU time but no correctness. Without it a crash is seen by
        every request that waits for its first token.
        `retry_budget_percent`, `retry_min_concurrency`: retries allowed at a time, in relation to running requests and
        at least. A dying site takes all its requests at once and each must get its retry. Envoy counts a retry from
        the failure until its request has ended, and at that moment nothing else runs: a share of it is nothing, so the
        least number must hold all that one gateway has at one site (50 lost 13 requests at 100 req/s on a busy
        machine, Envoy's own 3 lost 13 of 16). Not the budget but `num_retries` and the ejection of an endpoint after
        two to five failures end a storm: with every endpoint ejected nothing is tried again.
        `per_try_idle_timeout_ms`: 0 is off. A try without a byte for this long is given up; answers that are not
        streamed send no byte until they are complete, so there is no safe general value.
        `connect_timeout_ms`: a lost SYN is sent again after 1 s; another endpoint is faster than that wait, and the
        farthest site is some 250 ms away.

    Health:
        `health_interval_ms`, `health_timeout_ms`, `health_edge_interval_ms`, `unhealthy_threshold`: a black hole is
        found after at most 400 + 600 + 100 + 600 = 1,700 ms (2 s required), a crash after 500 ms (1 s required), and
        300 ms of extra delay, or a model server busy for half a second, never trips.
        `healthy_threshold`: two good probes in a row before a failed endpoint is used again.
        `ejection_interval_ms`: how often failure rates are judged and ejections end.
        `base_ejection_ms`, `max_ejection_ms`: first and longest time out; a model server restarts in minutes, a
        network blip ends in seconds.
        `http_idle_timeout_ms`: below the 5 s after which uvicorn (vLLM, SGLang) closes an idle connection, so that
        Envoy never sends a request into a closing one.

    Feedback:
        `als_flush_ms`: how long finished requests wait for others before they are reported to the picker.
        `access_log_flush_interval_ms`: how often a request that still runs is reported. A site that stalls is known
        by these reports alone: with 1 s it was left after 1.7 to 2.4 s (2 s required). A thousand running requests are
        2,000 entries a second, some 6 % of a core.

    Rest:
        `tracing`: gateways trace requests; None: they don't.
        `initial_fetch_timeout_ms`: how long Envoy waits for an assignment or a route configuration before it goes on
        without (Envoy's own default, written out because a longer wait would let one bad resource hold up the rest).
        `stream_idle_timeout_ms`: for requests that match no rule.
        `receive_timeout_ms`: how long a client may take to send a request, so that one that trickles in does not hold
        its buffers for ever; an answer, once begun, may take any time. A prompt of 64 MiB at 2 Mbit/s just fits. 0 is
        off. A Gateway may say otherwise.
        `max_concurrent_streams`: HTTP/2 streams of one client connection.
        `http2_window_bytes`, `http2_connection_window_bytes`: flow-control windows, large enough for a prompt to
        arrive in few round trips, small enough that one client holds no more than this in Envoy's memory.
    """

    picker_address: str = "127.0.0.1"
    picker_port: int = 9002
    picker_standbys: tuple[tuple[str, int], ...] = ()
    picker_tls: GatewayTls | None = None
    message_timeout_ms: int = 200
    closed_message_timeout_ms: int = 5_000
    picker_health_check: bool = False
    picker_max_requests: int = 40_000

    max_prompt_bytes: int = wire.MAX_PROMPT_BYTES
    max_connections: int = 40_000
    num_retries: int = 3
    retry_on_reset: bool = True
    retry_budget_percent: float = 100.0
    retry_min_concurrency: int = 10_000
    per_try_idle_timeout_ms: int = 0
    connect_timeout_ms: int = 500

    health_interval_ms: int = 400
    health_timeout_ms: int = 600
    health_edge_interval_ms: int = 100
    unhealthy_threshold: int = 2
    healthy_threshold: int = 2
    ejection_interval_ms: int = 1_000
    base_ejection_ms: int = 5_000
    max_ejection_ms: int = 60_000
    http_idle_timeout_ms: int = 4_000

    als_flush_ms: int = 50
    access_log_flush_interval_ms: int = 500

    tracing: GatewayTracing | None = None
    initial_fetch_timeout_ms: int = 15_000
    stream_idle_timeout_ms: int = 300_000
    receive_timeout_ms: int = 300_000
    max_concurrent_streams: int = 1_024
    http2_window_bytes: int = 1024 * 1024
    http2_connection_window_bytes: int = 16 * 1024 * 1024

    def health(self) -> HealthPolicy:
        """What holds for pools without a policy of their own."""
        return HealthPolicy(
            interval_ms=self.health_interval_ms,
            timeout_ms=self.health_timeout_ms,
            edge_interval_ms=self.health_edge_interval_ms,
            unhealthy_threshold=self.unhealthy_threshold,
            healthy_threshold=self.healthy_threshold,
            ejection_interval_ms=self.ejection_interval_ms,
            base_ejection_ms=self.base_ejection_ms,
            max_ejection_ms=self.max_ejection_ms,
            retry_budget_percent=self.retry_budget_percent,
            retry_min_concurrency=self.retry_min_concurrency,
        )

    def retry(self) -> RetryPolicy:
        """What holds for rules without a policy of their own."""
        return RetryPolicy(
            num_retries=self.num_retries,
            on_reset=self.retry_on_reset,
            stall_timeout_ms=self.per_try_idle_timeout_ms,
        )
