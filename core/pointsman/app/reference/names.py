"""Our own annotations and labels, with what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pointsman.core.config import gateway_annotations, meta, pool_annotations, route_annotations
from pointsman.core.config.kinds import GROUPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """An annotation or label: its values, the default, and what it does."""

    values: str
    default: str = ""
    text: str


NAMES: Final[dict[str, Name]] = {
    meta.SITE: Name(
        values="name of a Site",
        text="Gateway: where its proxies stand; endpoints there come first, then the nearer sites. EndpointSlice: "
        "where its endpoints stand.",
    ),
    meta.BIND_ADDRESS: Name(
        values="IP address", default="`spec.addresses`, else 127.0.0.1", text="The address that its listeners bind."
    ),
    gateway_annotations.RECEIVE_TIMEOUT: Name(
        values="duration",
        default="`5m`",
        text="How long a client may take to send a request before it gets 408; an answer that has begun may take any "
        "time. `0s`: no limit, for client streams that are longer than that before the server says anything.",
    ),
    gateway_annotations.TRUSTED_HOPS: Name(
        values="number",
        default="`0`",
        text="Proxies in front of the gateway whose `x-forwarded-for` is believed: 1 behind one load balancer that "
        "adds it. Too many, and clients say who they are.",
    ),
    meta.POOL: Name(values="name", text="The InferencePool, in the same namespace, that its endpoints belong to."),
    meta.MODEL: Name(values="name of a model", text="The model that its endpoints serve."),
    meta.HEALTH_PATH: Name(values="path", default="`/health`", text="Path of Envoy's active health check."),
    meta.FAILOVER: Name(
        values="`Auto`, `Off`",
        default="`Auto`",
        text="`Off`: the pool is not led by failover where no [FailoverPolicy](failover-policy.md) names it.",
    ),
    pool_annotations.SHED_AFTER: Name(
        values="duration",
        default="`10s`",
        text="Expected time to the first token past which requests of negative priority are refused with 429.",
    ),
    pool_annotations.KV_EVENTS_PORT: Name(
        values="port", text="Where each engine publishes its KV events ([picker](picker.md#kv-events))."
    ),
    pool_annotations.KV_REPLAY_PORT: Name(values="port", text="Where the engine repeats events that were lost."),
    pool_annotations.TTFT: Name(
        values="duration",
        default="no bound",
        text="Budget for the first token; a request that no endpoint can answer within it is refused with 429.",
    ),
    route_annotations.STICKY_HEADER: Name(
        values="header name", text="Requests with equal values of it get the same arm of a split."
    ),
    route_annotations.STICKY_COOKIE: Name(values="cookie name", text="The same, by a cookie."),
    route_annotations.STICKY_SALT: Name(values="label value", text="Another salt draws other users."),
    route_annotations.ON_UNAVAILABLE: Name(
        values="`Fail`, `Redistribute`, `Fallback`",
        default="`Fail`",
        text="What the share of an arm gets that can't serve: 503; the other arms; the next wider rule.",
    ),
    route_annotations.VARIANT_HEADER: Name(values="header name", text="The header by which clients choose a variant."),
    route_annotations.ON_UNKNOWN_VARIANT: Name(
        values="`Split`, `Reject`",
        default="`Split`",
        text="What a value of it gets that no rule matches: the rule without the header; 400.",
    ),
    route_annotations.RESIDENCY: Name(
        values="`EU` or `EU,GDPR`", text="Requests only go to sites that have all of these jurisdictions."
    ),
    route_annotations.RESIDENCY_HEADER: Name(
        values="header name", text="A request only goes to sites with the jurisdiction that the header names."
    ),
    route_annotations.RESIDENCY_REQUIRED: Name(
        values="`true`, `false`", default="`false`", text="Requests without that header are refused with 451."
    ),
}


def places() -> dict[str, list[str]]:
    """Name → what it is on: "Gateway, annotation", by the kinds' own lists."""
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    for group in GROUPS.values():
        for kind, struct in group.kinds.items():
            if kind in seen:
                continue
            seen.add(kind)
            for name in sorted(struct.own_annotations):
                found.setdefault(name, []).append(f"{kind}, annotation")
            for name in sorted(struct.own_labels):
                found.setdefault(name, []).append(f"{kind}, label")
    return found
