"""The description of the admin API (OpenAPI 3.1): every module that adds routes describes them beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from pointsman.app.version import VERSION

Json = dict[str, Any]

PATHS: Final = web.AppKey("pointsman_openapi_paths", dict[str, Json])
SCHEMAS: Final = web.AppKey("pointsman_openapi_schemas", dict[str, Json])

OPENAPI_PATH: Final = "/api/v1/openapi.json"


def describe(
    application: web.Application, paths: Mapping[str, Json], schemas: Mapping[str, Json] | None = None
) -> None:
    """Add to the description. `paths`: path → method → operation; `schemas`: name → JSON Schema."""
    application.setdefault(PATHS, {}).update(paths)
    application.setdefault(SCHEMAS, {}).update(schemas or {})


def document(application: web.Application) -> Json:
    """The whole description."""
    paths, schemas = application[PATHS], application[SCHEMAS]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pointsman admin API",
            "version": VERSION,
            "description": "What runs, how it is, and changes at run time. Errors are objects with `error`, a text.",
        },
        "components": {
            "schemas": {"Error": ERROR_SCHEMA, **schemas},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The token of `pointsman up --admin-token-file`; needed where one is set.",
                },
                "certificate": {
                    "type": "mutualTLS",
                    "description": "An operator's, signed by `pointsman up --admin-client-ca`; in place of the token.",
                },
            },
        },
        "security": [{"token": []}, {"certificate": []}, {}],
        "paths": dict(sorted(paths.items())),
    }


ERROR_SCHEMA: Final[Json] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "string", "description": "What is wrong, and how to mend it."},
        "reason": {"type": "string", "description": "Of a refused change: why, as a word."},
        "version": {"type": ["integer", "null"], "description": "Of a refused change: the version of the rule now."},
    },
}


def operation(summary: str, answer: Json, *, media_type: str = "application/json", **more: Any) -> Json:
    """A GET or the like that answers 200 with a schema."""
    content = {media_type: {"schema": answer}}
    responses = {"200": {"description": "OK", "content": content}, **more.pop("responses", {})}
    return {"summary": summary, "responses": responses, **more}


def error(description: str) -> Json:
    """A response that is an error."""
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }


def parameter(name: str, where: str, schema: Json, description: str = "") -> Json:
    """A parameter in the path, the query or a header."""
    return {"name": name, "in": where, "required": where == "path", "schema": schema, "description": description}
