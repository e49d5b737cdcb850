"""The description of the routes in `pointsman.app.admin` (OpenAPI 3.1)."""

from __future__ import annotations

from typing import Any, Final

from pointsman.app.openapi import OPENAPI_PATH, error, operation, parameter

Json = dict[str, Any]

_TEXT: Final[Json] = {"type": "string"}
_FLAG: Final[Json] = {"type": "boolean"}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0}
_NUMBER: Final[Json] = {"type": "number"}
_KNOWN: Final[Json] = {"type": ["number", "null"], "description": "null: not known."}
_TEXTS: Final[Json] = {"type": "array", "items": _TEXT}
_OBJECTS: Final[Json] = {"type": "array", "items": {"type": "object"}}


def _object(properties: Json, *, optional: tuple[str, ...] = ()) -> Json:
    """An object all of whose properties are there, but for the optional ones."""
    return {
        "type": "object",
        "required": [name for name in properties if name not in optional],
        "properties": properties,
    }


def _list(properties: Json, *, optional: tuple[str, ...] = ()) -> Json:
    return {"type": "array", "items": _object(properties, optional=optional)}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _plain(summary: str, **more: Any) -> Json:
    return {"get": operation(summary, _TEXT, media_type="text/plain", **more)}


STATUS_PATHS: Final[dict[str, Json]] = {
    "/healthz": _plain("200 while the process lives.", security=[]),
    "/readyz": _plain(
        "200 once a configuration is in force.",
        security=[],
        responses={"503": {"description": "No configuration yet, or a part of the process has ended."}},
    ),
    "/metrics": _plain("Metrics for Prometheus."),
    "/api/v1/status": {
        "get": operation("Gateways, pools, endpoints, configuration, connected proxies.", _ref("Status"))
    },
    "/api/v1/endpoints": {
        "get": operation("All endpoints of all pools.", {"type": "array", "items": _ref("Endpoint")})
    },
    "/api/v1/picks/{id}": {
        "get": operation(
            "A recent pick with its candidates and reasons.",
            _ref("Decision"),
            parameters=[parameter("id", "path", _TEXT, "Our pick id, or the request id.")],
            responses={"404": error("It is not remembered.")},
        )
    },
    OPENAPI_PATH: {"get": operation("This description.", {"type": "object", "required": ["openapi", "paths"]})},
}

_CONFIGURATION: Final = _object(
    {
        "folder": _TEXT,
        "state": {**_TEXT, "description": "The folder for what survives a restart."},
        "accepted": {**_FLAG, "description": "The folder as it is now is in force."},
        "loaded_at": {**_TEXT, "description": "RFC 3339, in UTC."},
        "problems": _list({"file": _TEXT, "line": _COUNT, "field": _TEXT, "what": _TEXT, "mend": _TEXT}),
        "tls": {"type": ["object", "null"], "description": "Certificates in force, null without TLS."},
    }
)

_NODE: Final = _object(
    {
        "node": _TEXT,
        "gateway": {"type": ["string", "null"], "description": "null: it belongs to none."},
        "peer": _TEXT,
        "agent": _TEXT,
        "protocol": {"enum": ["delta", "sotw"]},
        "connected_s": _NUMBER,
        "generation": _COUNT,
        "settled": {**_FLAG, "description": "It has all that it is to have, but for what it rejected."},
        "types": _list({"type": _TEXT, "acked": _COUNT, "pending": _TEXTS, "version": _TEXT, "since_ack_s": _KNOWN}),
        "rejected": _list(
            {"type": _TEXT, "name": _TEXT, "version": _TEXT, "message": _TEXT, "retries": _COUNT, "retry": _FLAG}
        ),
        "unsupported": _TEXTS,
        "waiting": _TEXTS,
    }
)

_XDS: Final = _object(
    {
        "identifier": _TEXT,
        "gateways": _list({"name": _TEXT, "problems": _TEXTS, "generation": _COUNT, "rejected": _OBJECTS}),
        "nodes": {"type": "array", "items": _NODE},
    }
)

_LOAD: Final[Json] = dict.fromkeys(("in_flight", "waiting", "running", "kv_usage", "rtt_ms", "signal_age_s"), _KNOWN)

STATUS_SCHEMAS: Final[dict[str, Json]] = {
    "Status": _object(
        {
            "version": _TEXT,
            "configuration": _CONFIGURATION,
            "sites": _list({"name": _TEXT, "draining": _FLAG}),
            "gateways": _list(
                {
                    "name": _TEXT,
                    "site": _TEXT,
                    "listeners": _list(
                        {
                            "name": _TEXT,
                            "address": _TEXT,
                            "rules": _list(
                                {"name": _TEXT, "route": _TEXT, "arms": _list({"pool": _TEXT, "weight": _COUNT})}
                            ),
                        }
                    ),
                }
            ),
            "pools": _list(
                {
                    "name": _TEXT,
                    "model": _TEXT,
                    "protocol": _TEXT,
                    "sites": _list(
                        {
                            "site": _TEXT,
                            "endpoints": _list(
                                {
                                    "name": _TEXT,
                                    "key": {**_TEXT, "description": "ip:port"},
                                    "health": {"enum": ["UNKNOWN", "HEALTHY", "DEGRADED", "DRAINING", "UNHEALTHY"]},
                                    **_LOAD,
                                },
                                optional=tuple(_LOAD),
                            ),
                        }
                    ),
                }
            ),
            "weights": _list({"rule": _TEXT, "set_by": _TEXT, "effective": {"type": "object"}}),
            "notes": {"type": "array", "items": _ref("Note")},
            "rollouts": {"type": "array", "items": _ref("Rollout")},
            "failover": {"type": "array", "items": _ref("FailoverStatus")},
            "operations": _OBJECTS,
            "xds": _XDS,
            "load_reports": _object(
                {"nodes": _OBJECTS, "loads": {"type": ["array", "object"]}, "evicted_rows": _COUNT}
            ),
        }
    ),
    "Arm": _object(
        {
            "pool": {**_TEXT, "description": "Empty where chance decides and nothing was sent."},
            "decided_by": {"enum": ["bucket", "weights", "chance"]},
            "sticky_by": {**_TEXT, "description": "Header or cookie of a sticky split, empty: none."},
            "key": {"type": ["string", "null"], "description": "What was hashed; of a real request it is not told."},
            "bucket": {"type": ["integer", "null"], "minimum": 0, "maximum": 9_999},
            "shares": {"type": "object", "additionalProperties": _COUNT, "description": "Pool → weight in 1/10,000."},
        }
    ),
    "Endpoint": _object({"key": _TEXT, "name": _TEXT, "site": _TEXT, "pool": _TEXT, "protocol": _TEXT}),
    "Decision": _object(
        {
            "pick": {**_TEXT, "description": "Our id; empty when nothing was picked for a request."},
            "request_id": _TEXT,
            "route": {**_TEXT, "description": "The rule that the gateway matched."},
            "pool": {**_TEXT, "description": "The arm of the split."},
            "arm": {"oneOf": [_ref("Arm"), {"type": "null"}]},
            "policy": {"enum": ["joint", "round-robin", "least-outstanding", "random"]},
            "at_s": _NUMBER,
            "model": _TEXT,
            "asked_model": {**_TEXT, "description": "What the client called the model; empty: it is not renamed."},
            "prompt_tokens": {**_COUNT, "description": "Estimated from the size of the prompt."},
            "no_affinity_because": _TEXT,
            "endpoints": {**_TEXTS, "description": "Best first; retries walk the list."},
            "names": {"type": "object", "additionalProperties": _TEXT, "description": "ip:port → name of an endpoint."},
            "status": {"type": "integer", "description": "0: the gateway goes on without a pick."},
            "reason": _TEXT,
            "retry_after_s": _COUNT,
            "candidates": _list(
                {
                    "endpoint": _TEXT,
                    "score_ms": _NUMBER,
                    "cached_tokens": _COUNT,
                    "terms_ms": {"type": "object", "additionalProperties": _NUMBER},
                },
                optional=("score_ms", "cached_tokens", "terms_ms"),
            ),
            "filtered": {"type": "object", "additionalProperties": _TEXT, "description": "Endpoint → why not."},
        }
    ),
}
