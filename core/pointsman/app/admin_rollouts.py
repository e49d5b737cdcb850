"""The part of the admin API that shows and steers rollouts."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from pointsman.app.admin_access import signature
from pointsman.app.openapi import describe, error, operation, parameter
from pointsman.app.rollout_words import verb_of
from pointsman.app.rollouts import Rollouts
from pointsman.core.json_text import decode
from pointsman.core.store import StateError
from pointsman.rollout.state import Command, RolloutError

Json = dict[str, Any]

VERBS: Final = ("promote", "pause", "resume", "abort", "undo", "retry")

Text = Annotated[str, msgspec.Meta(max_length=1_000)]


class CommandBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of a POST. `full` goes with promote: straight to the last step."""

    actor: Text = ""
    reason: Text = ""
    full: bool = False


def add_rollout_routes(application: web.Application, rollouts: Rollouts) -> None:
    """Add the routes below /api/v1/rollouts."""

    async def every(_: web.Request) -> web.Response:
        return _answer({"rollouts": rollouts.status()})

    async def one(request: web.Request) -> web.Response:
        found = rollouts.find(_name(request))
        return _answer({"error": f"there is no rollout {_name(request)}"}, 404) if found is None else _answer(found)

    async def act(request: web.Request) -> web.Response:
        try:
            return _answer(await rollouts.command(_name(request), await _command(request)))
        except web.HTTPException as problem:
            return _answer({"error": problem.text}, problem.status)
        except msgspec.MsgspecError as problem:
            return _answer({"error": f"the request does not fit: {problem}"}, 400)
        except RolloutError as problem:
            known = rollouts.find(_name(request)) is not None
            return _answer({"error": str(problem)}, 409 if known else 404)
        except StateError as problem:
            return _answer({"error": f"nothing was changed: {problem}"}, 503)

    application.add_routes(
        [
            web.get("/api/v1/rollouts", every),
            web.get("/api/v1/rollouts/{namespace}/{name}", one),
            web.post("/api/v1/rollouts/{namespace}/{name}/{verb}", act),
        ]
    )
    describe(application, ROLLOUT_PATHS, ROLLOUT_SCHEMAS)


async def _command(request: web.Request) -> Command:
    """What a request asks for; raises what `act` turns into answers."""
    if "origin" in request.headers:
        raise web.HTTPForbidden(text="browsers may not change anything here")
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="expected content-type: application/json")
    body = decode(await request.read(), CommandBody)
    verb = verb_of(request.match_info["verb"], full=body.full)
    if verb is None:
        raise web.HTTPNotFound(text=f"expected one of {', '.join(VERBS)}")
    signed = signature(request, actor=body.actor, reason=body.reason)
    return Command(verb=verb, by=signed.actor, reason=signed.reason)


def _name(request: web.Request) -> str:
    return f"{request.match_info['namespace']}/{request.match_info['name']}"


def _answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


_TEXT: Final[Json] = {"type": "string"}
_SHARE: Final[Json] = {"type": "number", "minimum": 0, "maximum": 1}
_ROLLOUT: Final[Json] = {"$ref": "#/components/schemas/Rollout"}
_POLICY: Final = [
    parameter("namespace", "path", _TEXT, "Namespace of the RolloutPolicy."),
    parameter("name", "path", _TEXT, "Its name."),
]

ROLLOUT_PATHS: Final[dict[str, Json]] = {
    "/api/v1/rollouts": {
        "get": operation(
            "All rollouts.", {"type": "object", "properties": {"rollouts": {"type": "array", "items": _ROLLOUT}}}
        )
    },
    "/api/v1/rollouts/{namespace}/{name}": {
        "get": operation(
            "One rollout: phase, step, effective weights, what every check says.",
            _ROLLOUT,
            parameters=_POLICY,
            responses={"404": error("There is no such rollout.")},
        )
    },
    "/api/v1/rollouts/{namespace}/{name}/{verb}": {
        "post": operation(
            "Steer a rollout: promote, pause, resume, abort, undo, retry.",
            _ROLLOUT,
            parameters=[*_POLICY, parameter("verb", "path", {"type": "string", "enum": list(VERBS)})],
            requestBody={
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "actor": {**_TEXT, "description": "Who asks, for the audit log; it is not proven."},
                                "reason": {**_TEXT, "description": "For the audit log."},
                                "full": {
                                    "type": "boolean",
                                    "default": False,
                                    "description": "With promote: straight to the last step, past checks and gates.",
                                },
                            },
                        }
                    }
                },
            },
            responses={
                "400": error("The request does not fit."),
                "403": error("It comes from a browser."),
                "404": error("There is no such rollout, or no such verb."),
                "409": error("It makes no sense in the present phase."),
                "503": error("It could not be kept, so it was not done."),
            },
        )
    },
}

ROLLOUT_SCHEMAS: Final[dict[str, Json]] = {
    "Rollout": {
        "type": "object",
        "required": ["name", "phase", "why", "step", "weight"],
        "properties": {
            "name": {**_TEXT, "description": "namespace/name of the RolloutPolicy."},
            "strategy": {"enum": ["Canary", "BlueGreen", "Shadow"]},
            "mode": {"enum": ["Auto", "Manual", "DryRun"]},
            "phase": {"enum": ["Progressing", "Paused", "Holding", "Promoting", "Completed", "Aborting", "Aborted"]},
            "why": {**_TEXT, "description": "What it waits for, or why it ended."},
            "step": {"type": "integer", "minimum": 1},
            "steps": {"type": "array", "items": {"type": "object"}},
            "weight": {**_SHARE, "description": "The canary's share; with Shadow that of mirrored requests."},
            "programmed": {"type": "boolean", "description": "Every connected gateway has this weight."},
            "site": {**_TEXT, "description": "The site whose turn it is, empty for all at once."},
            "sites": {"type": "array", "items": {"type": "object"}, "description": "Each site's weight."},
            "observed_s": {"type": "number", "description": "Time that the present step was looked at."},
            "requests": {"type": "integer", "description": "Canary requests in this step."},
            "attempt": {"type": "integer", "description": "How often it was started."},
            "revision": {**_TEXT, "description": "Of the policy: what makes it another rollout."},
            "stable": {**_TEXT, "description": "Pool."},
            "canary": {**_TEXT, "description": "Pool."},
            "outcomes": {"type": "object", "description": "Counts of what canary and stable did."},
            "waiting": {"type": "object", "description": "Requests in flight without a first byte."},
            "started_at": {**_TEXT, "description": "RFC 3339, in UTC."},
            "changed_at": {**_TEXT, "description": "RFC 3339, in UTC."},
            "rules": {"type": "array", "items": {"type": "object"}},
            "checks": {"type": "array", "items": {"type": "object"}},
            "conditions": {"type": "array", "items": {"type": "object"}},
        },
    }
}
