"""Names that the control plane writes into Envoy's configuration and the picker reads back: the one-message profile.

`pointsman.xds` and `pointsman.extproc` never import each other; what they must agree on stands here.
Sources: Endpoint Picker Protocol (Gateway API Inference Extension, proposal 004), Envoy ext_proc and ALS v3.
"""

from __future__ import annotations

from typing import Final

DESTINATION_KEY: Final = "x-gateway-destination-endpoint"
"""Header and `envoy.lb` metadata key with the ordered list `ip:port,ip:port,…` of the pick."""

SERVED_KEY: Final = "x-gateway-destination-endpoint-served"
"""`envoy.lb` metadata key in which Envoy notes the endpoint that served."""

SUBSET_KEY: Final = "x-gateway-destination-endpoint-subset"
"""Metadata key in `envoy.lb.subset_hint`: the endpoints that a foreign gateway allows."""

LB_NAMESPACE: Final = "envoy.lb"
SUBSET_NAMESPACE: Final = "envoy.lb.subset_hint"

PICK_NAMESPACE: Final = "pointsman"
PICK_KEY: Final = "pick"
"""Dynamic metadata `pointsman: {pick: ID}`: our own id of the pick, which comes back in the access log."""

TAG_PICK: Final = "pick"
TAG_TTFT: Final = "ttft_us"
"""ALS custom tags: the pick id, and microseconds from the request's first byte in to the first body byte out."""

TAG_GRPC: Final = "grpc_status"
"""ALS custom tag: the number of the gRPC status, `-` for what is not gRPC (its HTTP status is 200 in any case)."""

TAG_ADDED: Final = "added_us"
"""ALS custom tag: microseconds from the request's last byte in to its first byte to the endpoint."""

TAG_ATTEMPTED: Final = "attempted"
ATTEMPTED_FORMAT: Final = "%UPSTREAM_HOSTS_ATTEMPTED%"
"""ALS custom tag: every endpoint that a request was sent to, `ip:port,ip:port,…`. The log names the last one only, but
an attempt that failed is a failure of the endpoint where it did."""

ADDED_FORMAT: Final = "%COMMON_DURATION(DS_RX_END:US_TX_BEG:us)%"
TTFT_FORMAT: Final = "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us)%"
GRPC_FORMAT: Final = "%GRPC_STATUS_NUMBER%"
PROFILE_HEADER: Final = "x-pointsman-profile"
PROFILE_SINGLE: Final = "single"
"""gRPC metadata (`grpc_service.initial_metadata`) with which a gateway promises one message and one answer for each
ext_proc stream, so that the picker can serve it as a unary call, which costs gRPC a tenth less than a stream."""

MAX_PICK_WAIT_MS: Final = 30_000
"""Longest wait for a pick that a picker may ask a gateway for (`override_message_timeout`)."""

PICK_FORMAT: Final = f"%DYNAMIC_METADATA({PICK_NAMESPACE}:{PICK_KEY})%"

ATTRIBUTE_CLUSTER: Final = "xds.cluster_name"
ATTRIBUTE_ROUTE: Final = "xds.route_name"
ATTRIBUTE_REQUEST_ID: Final = "request.id"
ATTRIBUTE_PATH: Final = "request.path"
AFFINITY_HEADER: Final = "x-user-id"
ATTRIBUTE_AFFINITY: Final = f"request.headers['{AFFINITY_HEADER}']"
OBJECTIVE_HEADER: Final = "x-gateway-inference-objective"
ATTRIBUTE_OBJECTIVE: Final = f"request.headers['{OBJECTIVE_HEADER}']"
"""The InferenceObjective that a request names (Endpoint Picker Protocol)."""

MODEL_REWRITE_HEADERS: Final = ("x-gateway-model-name-rewrite", "x-llm-d-model-name-rewrite")
"""Request headers that say which model a request is renamed to (Endpoint Picker Protocol; the newer name is llm-d's).
A filter of a route that sets one chooses the target; what clients send in them is not heeded."""

REQUEST_ATTRIBUTES: Final = (
    ATTRIBUTE_CLUSTER,
    ATTRIBUTE_ROUTE,
    ATTRIBUTE_REQUEST_ID,
    ATTRIBUTE_PATH,
    ATTRIBUTE_AFFINITY,
    ATTRIBUTE_OBJECTIVE,
)
"""CEL attributes that Envoy sends with the body; `xds.cluster_name` is the arm that the weighted split chose."""

REASON_HEADER: Final = "x-pointsman-reason"
"""Response header of every answer that Pointsman (not a model server) gives: why."""

NO_READY_ENDPOINT: Final = "no-ready-endpoint"
"""Reason of the picker's 503 when no endpoint of the pool may serve."""

VARIANT_UNAVAILABLE: Final = "variant-unavailable"
"""Reason of a 503 when the arm that a client chose, or was assigned to, has no endpoint."""

PICKER_CLUSTER: Final = "pointsman-picker"
"""Name of the Envoy cluster that reaches ext_proc and ALS."""

COLLECTOR_CLUSTER: Final = "pointsman-collector"
"""Name of the Envoy cluster that reaches the collector of traces."""

XDS_CLUSTER: Final = "pointsman-xds"
"""Name of the bootstrap's cluster that reaches the control plane."""

TLS_FOLDER_KEY: Final = "pointsman.tls"
SERVER_NAME_KEY: Final = "pointsman.server-name"
"""Node metadata of a gateway that uses TLS: the folder with its secrets, and the name that it expects of servers."""

GATEWAY_CERTIFICATE: Final = "pointsman-client"
GATEWAY_TRUST: Final = "pointsman-ca"
"""Names of a gateway's secrets: its own certificate, and whom it trusts. Each is the file NAME.json in its folder."""

HOPS_HEADER: Final = "x-pointsman-hops"
"""Request header that says that a request came through a gateway of ours: it is not sent to a further one."""

LOOP: Final = "loop"
"""Reason of the 508 for a request that came through a gateway, where no other endpoint is than a further gateway."""

HOP_MATCH_KEY: Final = "site"
"""Metadata key in `envoy.transport_socket_match` of an endpoint that is a gateway: whose TLS settings hold."""

ALS_LOG_NAME: Final = "pointsman"
MAX_PROMPT_BYTES: Final = 64 * 1024 * 1024
"""Default of the largest request body; past it Envoy answers 413. 64 MiB is ten million tokens of English."""
