"""How our gRPC servers are set up, whichever services they have."""

from __future__ import annotations

from typing import Final

CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 128 * 1024 * 1024),  # the largest prompt (64 MiB) in one message, and room
    ("grpc.max_send_message_length", -1),
    # Envoy pings idle connections every 10 s; gRPC's default takes more than one ping in 5 minutes for an attack.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)

GRPC_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share its traffic
    *CHANNEL_OPTIONS,
)

SHARED_PORT_OPTIONS: Final = (
    ("grpc.so_reuseport", 1),  # several processes listen on the port, and the kernel deals out the connections
    *CHANNEL_OPTIONS,
)

STOP_GRACE_S: Final = 0.5
"""How long running gRPC streams may take to end; xDS streams never end by themselves."""
