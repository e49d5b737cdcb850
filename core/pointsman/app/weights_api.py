"""The description of the routes in `pointsman.app.admin_write` (OpenAPI 3.1)."""

from __future__ import annotations

from typing import Any, Final

from pointsman.app.openapi import error, operation, parameter

Json = dict[str, Any]

_TEXT: Final[Json] = {"type": "string"}
_FLAG: Final[Json] = {"type": "boolean", "default": False}
_SHARE: Final[Json] = {"type": "integer", "minimum": 0, "maximum": 10_000, "description": "In 1/10,000."}
_SHARES: Final[Json] = {"type": "object", "additionalProperties": _SHARE}
_VERSION: Final[Json] = {"type": "integer", "description": "0: nobody has set anything for this rule."}

_RULE: Final = parameter(
    "rule",
    "path",
    _TEXT,
    "`[KIND/][NAMESPACE/]ROUTE[/RULE]`, slashes as they are; RULE is the rule's name, or its number in the route.",
)
_IF_MATCH: Final = parameter("If-Match", "header", _TEXT, "The etag of a GET; 412 if the rule has another version.")

_ASKED: Final[dict[str, Json]] = {
    "reason": {**_TEXT, "description": "For the audit log."},
    "actor": {**_TEXT, "description": "Who asks, for the audit log; it is not proven."},
    "if_version": {"type": ["integer", "null"], "description": "409 if the rule has another version."},
    "wait": {**_FLAG, "description": "Answer once every connected gateway has the change, or time is up."},
    "timeout_s": {"type": "number", "default": 10, "minimum": 0, "maximum": 600},
    "dry_run": {**_FLAG, "description": "Only tell what would change."},
    "force": {**_FLAG, "description": "Also if a controller leads the rule."},
}

_ERRORS: Final[Json] = {
    "400": error("The request does not fit."),
    "403": error("It comes from a browser."),
    "404": error("There is no such rule."),
    "409": error("The rule has another version than `if_version`, or a controller leads it."),
    "412": error("The rule has another version than `If-Match`."),
    "422": error("The weights do not fit the rule, or the rule's name may mean several."),
    "503": error("It could not be kept, so it was not done."),
}

_RULE_ANSWER: Final[Json] = {"$ref": "#/components/schemas/RuleWeights"}
_OUTCOME: Final[Json] = {"$ref": "#/components/schemas/Outcome"}

WEIGHTS_PATHS: Final[dict[str, Json]] = {
    "/api/v1/weights": {
        "get": operation("The weights of all rules, and how they came about.", {"$ref": "#/components/schemas/Weights"})
    },
    "/api/v1/weights/{rule}": {
        "get": operation(
            "The weights of one rule; its version is the etag.",
            _RULE_ANSWER,
            parameters=[_RULE],
            responses={"404": _ERRORS["404"], "422": _ERRORS["422"]},
        ),
        "put": operation(
            "Set the weights of a rule, until they are cleared.",
            _OUTCOME,
            parameters=[_RULE, _IF_MATCH],
            requestBody={
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/SetWeights"}}},
            },
            responses={**_ERRORS, "415": error("The body is not application/json.")},
        ),
        "delete": operation(
            "Clear the weights of a rule: its manifest holds again.",
            _OUTCOME,
            parameters=[_RULE, _IF_MATCH, *(parameter(name, "query", schema) for name, schema in _ASKED.items())],
            responses=_ERRORS,
        ),
    },
    "/api/v1/audit": {
        "get": operation(
            "The last records of the audit log, oldest first.",
            {"$ref": "#/components/schemas/Audit"},
            parameters=[
                parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": 1_000, "default": 100})
            ],
            responses={"400": _ERRORS["400"], "503": error("The log cannot be read.")},
        )
    },
}

_NOTE: Final[Json] = {
    "type": "object",
    "required": ["rule", "reason", "message"],
    "properties": {"rule": _TEXT, "reason": _TEXT, "message": _TEXT},
}

WEIGHTS_SCHEMAS: Final[dict[str, Json]] = {
    "Note": _NOTE,
    "RuleWeights": {
        "type": "object",
        "required": ["rule", "version", "source", "owner", "sticky", "arms", "sites", "notes"],
        "properties": {
            "rule": {**_TEXT, "description": "Rule id: KIND/NAMESPACE/ROUTE/RULE."},
            "version": _VERSION,
            "source": {"enum": ["manifest", "operator", "controller"], "description": "Whose weights are decided."},
            "owner": {**_TEXT, "description": "The controller that leads the rule, empty: none."},
            "sticky": {**_TEXT, "description": "What the split is sticky by, empty: random."},
            "arms": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["pool", "declared", "decided", "effective", "unavailable"],
                    "properties": {
                        "pool": _TEXT,
                        "declared": {**_SHARE, "description": "What the manifest says."},
                        "decided": {**_SHARE, "description": "What was set, else what the manifest says."},
                        "effective": {**_SHARE, "description": "What gateways get."},
                        "unavailable": {**_TEXT, "description": "Why the arm cannot serve, empty: it can."},
                    },
                },
            },
            "sites": {
                "type": "object",
                "description": "Where gateways at a site get other weights: site to pool to share.",
                "additionalProperties": {"type": "object", "additionalProperties": _SHARE},
            },
            "notes": {"type": "array", "items": {"$ref": "#/components/schemas/Note"}},
        },
    },
    "Weights": {
        "type": "object",
        "required": ["revision", "rules", "notes"],
        "properties": {
            "revision": {"type": "integer", "description": "Grows with every change."},
            "rules": {"type": "array", "items": _RULE_ANSWER},
            "notes": {"type": "array", "items": {"$ref": "#/components/schemas/Note"}},
        },
    },
    "SetWeights": {
        "type": "object",
        "required": ["weights"],
        "additionalProperties": False,
        "properties": {
            "weights": {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 64,
                "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 1_000_000_000},
                "description": "Every arm's pool and its part, in any unit.",
            },
            **_ASKED,
        },
    },
    "Outcome": {
        "type": "object",
        "required": ["rule", "version", "changed", "dry_run", "before", "after", "moved_percent", "gateways", "acks"],
        "properties": {
            "rule": _TEXT,
            "version": _VERSION,
            "changed": {"type": "boolean"},
            "dry_run": {"type": "boolean"},
            "before": _SHARES,
            "after": _SHARES,
            "moved_percent": {"type": "number", "description": "Of users (sticky) or of requests that go elsewhere."},
            "gateways": {"type": "array", "items": _TEXT, "description": "Those that have the rule."},
            "acks": {"type": "array", "items": {"$ref": "#/components/schemas/Acks"}, "description": "With `wait`."},
            "notes": {"type": "array", "items": {"$ref": "#/components/schemas/Note"}},
        },
    },
    "Acks": {
        "type": "object",
        "required": ["gateway", "done", "acked_ms", "rejected", "pending", "problems"],
        "properties": {
            "gateway": _TEXT,
            "done": {"type": "boolean", "description": "Every connected proxy has the change."},
            "acked_ms": {
                "type": "object",
                "additionalProperties": {"type": "number"},
                "description": "Node → milliseconds from the change to its acknowledgement.",
            },
            "rejected": {"type": "object", "additionalProperties": _TEXT, "description": "Node → what it said."},
            "pending": {"type": "array", "items": _TEXT},
            "problems": {"type": "array", "items": _TEXT, "description": "Why nothing of it is served."},
        },
    },
    "Audit": {
        "type": "object",
        "required": ["head", "records"],
        "properties": {
            "head": {**_TEXT, "description": "Hash of the last line."},
            "records": {"type": "array", "items": {"type": "object"}},
        },
    },
}
