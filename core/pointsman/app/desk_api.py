"""The description of the routes in `pointsman.app.admin_desk` (OpenAPI 3.1)."""

from __future__ import annotations

from typing import Any, Final

from pointsman.app.openapi import error, operation, parameter

Json = dict[str, Any]

_TEXT: Final[Json] = {"type": "string"}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0}
_NUMBER: Final[Json] = {"type": ["number", "null"]}
_SHARE: Final[Json] = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
_OBJECTS: Final[Json] = {"type": "array", "items": {"type": "object"}}
_TEXTS: Final[Json] = {"type": "array", "items": _TEXT}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _file(summary: str, media_type: str) -> Json:
    return {"get": operation(summary, _TEXT, media_type=media_type, security=[])}


DESK_PATHS: Final[dict[str, Json]] = {
    "/": _file("The live page.", "text/html"),
    "/page/{name}": {
        "get": operation(
            "What the page loads.",
            _TEXT,
            media_type="text/javascript",
            security=[],
            parameters=[parameter("name", "path", _TEXT)],
            responses={"404": error("The page has no such file.")},
        )
    },
    "/api/v1/tree": {
        "get": operation("Fleet → site → pool → endpoint, with share, health, load, rollout, failover.", _ref("Tree"))
    },
    "/api/v1/traffic": {
        "get": operation("Where requests went over the last minutes, in slots of seconds.", _ref("Traffic"))
    },
    "/api/v1/picks": {
        "get": operation(
            "The last decisions, newest first; with picker workers, of all of them.",
            {
                "type": "object",
                "required": ["picks"],
                "properties": {"picks": {"type": "array", "items": _ref("Pick")}},
            },
            parameters=[parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": 200, "default": 20})],
            responses={"400": error("The limit is none.")},
        )
    },
    "/api/v1/explain": {
        "post": operation(
            "What would become of a request: rule, arm, pick. Nothing is sent or counted.",
            _ref("Explanation"),
            requestBody={"required": True, "content": {"application/json": {"schema": _ref("Question")}}},
            responses={
                "400": error("The request does not fit."),
                "415": error("The body is not application/json."),
                "422": error("No gateway or listener fits, or several do."),
            },
        )
    },
    "/api/v1/xds/diff": {
        "get": operation(
            "For every connected proxy the resources that it does not have as they are wanted.",
            {
                "type": "object",
                "required": ["nodes"],
                "properties": {"nodes": {"type": "array", "items": _ref("Diff")}},
            },
        )
    },
    "/api/v1/xds/resources/{namespace}/{name}": {
        "get": operation(
            "What a gateway is to have, as JSON.",
            _ref("Resources"),
            parameters=[
                parameter("namespace", "path", _TEXT, "Namespace of the Gateway."),
                parameter("name", "path", _TEXT, "Its name."),
            ],
            responses={"404": error("There is no such gateway.")},
        )
    },
}

_SERIES: Final[Json] = {"type": "object", "additionalProperties": {"type": "array", "items": _COUNT}}

DESK_SCHEMAS: Final[dict[str, Json]] = {
    "Tree": {
        "type": "object",
        "required": ["version", "health", "reasons", "gateways", "sites", "rollouts", "failover", "endpoints", "ready"],
        "properties": {
            "version": _TEXT,
            "health": {"enum": ["healthy", "degraded", "down"]},
            "reasons": {**_TEXTS, "description": "What an operator should look at."},
            "accepted": {"type": "boolean", "description": "The folder as it is now is in force."},
            "problems": _OBJECTS,
            "gateways": _OBJECTS,
            "endpoints": _COUNT,
            "ready": {**_COUNT, "description": "Endpoints that take requests."},
            "in_flight": _NUMBER,
            "requests": {**_COUNT, "description": "Requests that ended of late; shares are of these."},
            "sites": {"type": "array", "items": _ref("TreeSite")},
            "pools": {
                "type": "array",
                "description": "The same by pool: what each site carries, and where more endpoints are wanted.",
                "items": {
                    "type": "object",
                    "required": ["name", "members", "placement_hints"],
                    "properties": {"name": _TEXT, "members": _OBJECTS, "placement_hints": _TEXTS},
                },
            },
            "weights": _OBJECTS,
            "rollouts": _OBJECTS,
            "failover": {"type": "array", "items": _ref("FailoverStatus")},
            "notes": {"type": "array", "items": _ref("Note")},
        },
    },
    "TreeSite": {
        "type": "object",
        "required": ["name", "health", "share", "endpoints", "ready", "failover", "rto_s", "pools"],
        "properties": {
            "name": _TEXT,
            "health": {"enum": ["healthy", "degraded", "down", "draining"]},
            "share": _SHARE,
            "endpoints": _COUNT,
            "ready": _COUNT,
            "in_flight": _NUMBER,
            "requests": _COUNT,
            "draining": {"type": "boolean"},
            "failover": {**_OBJECTS, "description": "Pool, policy, state, share and why."},
            "rto_s": {**_NUMBER, "description": "Recovery time of its last failover."},
            "pools": {"type": "array", "items": _ref("TreePool")},
        },
    },
    "TreePool": {
        "type": "object",
        "required": ["name", "health", "share", "weights", "rollout", "endpoints", "ready", "count"],
        "properties": {
            "name": _TEXT,
            "model": _TEXT,
            "protocol": _TEXT,
            "health": {"enum": ["healthy", "degraded", "down"]},
            "share": _SHARE,
            "weights": _OBJECTS,
            "rollout": {"type": ["object", "null"]},
            "ready": _COUNT,
            "count": _COUNT,
            "in_flight": _NUMBER,
            "requests": _COUNT,
            "endpoints": {"type": "array", "items": _ref("TreeEndpoint")},
        },
    },
    "TreeEndpoint": {
        "type": "object",
        "required": ["name", "key", "state", "share", "in_flight"],
        "properties": {
            "name": _TEXT,
            "key": {**_TEXT, "description": "ip:port"},
            "state": {"enum": ["healthy", "degraded", "unknown", "silent", "draining", "unhealthy"]},
            "share": _SHARE,
            "requests": _COUNT,
            **dict.fromkeys(("in_flight", "waiting", "running", "kv_usage", "rtt_ms", "signal_age_s"), _NUMBER),
        },
    },
    "Traffic": {
        "type": "object",
        "required": ["slot_s", "ends_at", "requests", "failed", "pools", "sites", "endpoints"],
        "properties": {
            "slot_s": {"type": "number"},
            "ends_at": {"type": "number", "description": "End of the last slot, seconds since the epoch."},
            "requests": {"type": "array", "items": _COUNT},
            "failed": {"type": "array", "items": _COUNT},
            "pools": _SERIES,
            "sites": _SERIES,
            "endpoints": _SERIES,
        },
    },
    "Pick": {
        "type": "object",
        "required": ["pick", "request_id", "age_s", "pool", "endpoint", "status", "reason"],
        "properties": {
            **dict.fromkeys(("pick", "request_id", "pool", "model", "endpoint", "reason"), _TEXT),
            "name": {**_TEXT, "description": "Of the endpoint; empty when it is gone."},
            "age_s": {"type": "number"},
            "status": {"type": "integer"},
            "prompt_tokens": _COUNT,
        },
    },
    "Question": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "gateway": {**_TEXT, "description": "namespace/name; not needed where there is one."},
            "listener": {**_TEXT, "description": "Name or port; not needed where the host has its port or one fits."},
            "host": _TEXT,
            "path": {**_TEXT, "default": "/v1/chat/completions"},
            "method": {**_TEXT, "description": "Default: POST with a body, else GET."},
            "headers": {
                "type": "array",
                "maxItems": 100,
                "items": {"type": "array", "items": _TEXT, "minItems": 2, "maxItems": 2},
            },
            "body": _TEXT,
        },
    },
    "Explanation": {
        "type": "object",
        "required": ["gateway", "listener", "host", "rule", "passed_over", "answer", "arm", "picks"],
        "properties": {
            **dict.fromkeys(("gateway", "listener", "host", "rule", "route", "profile"), _TEXT),
            "request": {"type": "object"},
            "passed_over": _OBJECTS,
            "answer": {"type": ["object", "null"], "description": "What the gateway answers by itself."},
            "arm": {"oneOf": [_ref("Arm"), {"type": "null"}]},
            "picks": {
                "type": "array",
                "items": _ref("Decision"),
                "description": "One decision for each pool that it may go to.",
            },
        },
    },
    "Diff": {
        "type": "object",
        "required": ["node", "gateway", "settled", "resources"],
        "properties": {
            "node": _TEXT,
            "gateway": {"type": ["string", "null"]},
            "settled": {"type": "boolean"},
            "resources": _OBJECTS,
        },
    },
    "Resources": {
        "type": "object",
        "required": ["gateway", "generation", "resources"],
        "properties": {
            "gateway": _TEXT,
            "generation": _COUNT,
            "resources": {"type": "object", "additionalProperties": _OBJECTS},
        },
    },
}
