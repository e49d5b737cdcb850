"""The part of the admin API that shows failover and takes sites and endpoints in and out of service."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from pointsman.app.admin_access import signature
from pointsman.app.failover import Failover
from pointsman.app.openapi import describe, error, operation, parameter
from pointsman.core.clock import Clock
from pointsman.core.json_text import decode
from pointsman.failover.state import Action, Command, FailoverError, Phase

Json = dict[str, Any]

NEEDS_REASON: Final = frozenset({Action.DRAIN, Action.EVACUATE, Action.FAILOVER, Action.FREEZE})
"""What takes something away from somebody: whoever reads the audit log wants to know why."""

OF_ENDPOINTS: Final = frozenset({Action.DRAIN, Action.EVACUATE, Action.ACTIVATE})
"""What may name one endpoint; the others would do it to the whole site."""

LONGEST_WAIT_S: Final = 600.0

Text = Annotated[str, msgspec.Meta(max_length=1_000)]
Name = Annotated[str, msgspec.Meta(max_length=253)]


class FailoverBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of a POST. `deadline_s`: seconds from now until the endpoint or the site will be gone."""

    site: Name = ""
    pool: Name = ""
    endpoint: Name = ""
    actor: Text = ""
    reason: Text = ""
    deadline_s: Annotated[float, msgspec.Meta(ge=0, le=604_800)] = 0.0
    force: bool = False
    dry_run: bool = False
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_WAIT_S)] = 0.0


def add_failover_routes(application: web.Application, failover: Failover, clock: Clock) -> None:
    """Add the routes below /api/v1/failover."""

    async def every(_: web.Request) -> web.Response:
        return _answer({"policies": failover.status()})

    async def act(request: web.Request) -> web.Response:
        try:
            body, command = await _command(request, clock)
            return _answer({"policies": await failover.command(command, dry_run=body.dry_run, wait_s=body.wait_s)})
        except web.HTTPException as problem:
            return _answer({"error": problem.text}, problem.status)
        except msgspec.MsgspecError as problem:
            return _answer({"error": f"the request does not fit: {problem}"}, 400)
        except FailoverError as problem:
            return _answer({"error": str(problem)}, 409)

    application.add_routes([web.get("/api/v1/failover", every), web.post("/api/v1/failover/{action}", act)])
    describe(application, FAILOVER_PATHS, FAILOVER_SCHEMAS)


async def _command(request: web.Request, clock: Clock) -> tuple[FailoverBody, Command]:
    """What a request asks for; raises what `act` turns into answers."""
    if "origin" in request.headers:
        raise web.HTTPForbidden(text="browsers may not change anything here")
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="expected content-type: application/json")
    action = next((one for one in Action if one.value == request.match_info["action"]), None)
    if action is None:
        raise web.HTTPNotFound(text=f"expected one of {', '.join(one.value for one in Action)}")
    body = decode(await request.read(), FailoverBody)
    if action in NEEDS_REASON and not body.reason.strip():
        raise web.HTTPBadRequest(text=f"{action.value} needs a reason: it goes into the audit log")
    if body.endpoint and action not in OF_ENDPOINTS:
        raise web.HTTPBadRequest(text=f"{action.value} is about a site or a policy, not about one endpoint: drain it")
    if action in NEEDS_REASON - {Action.FREEZE} and not body.site and not body.endpoint:
        raise web.HTTPBadRequest(text=f"{action.value} needs a site or an endpoint")
    return body, Command(
        action=action,
        site=body.site,
        pool=body.pool,
        endpoint=body.endpoint,
        deadline_s=clock.wall_s() + body.deadline_s if body.deadline_s else 0.0,
        force=body.force,
        signature=signature(request, actor=body.actor, reason=body.reason),
    )


def _answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


_TEXT: Final[Json] = {"type": "string"}
_TIME: Final[Json] = {"type": ["number", "null"], "description": "Seconds since the epoch."}
_POLICIES: Final[Json] = {
    "type": "object",
    "required": ["policies"],
    "properties": {"policies": {"type": "array", "items": {"$ref": "#/components/schemas/FailoverStatus"}}},
}

FAILOVER_PATHS: Final[dict[str, Json]] = {
    "/api/v1/failover": {
        "get": operation("All failover policies: state of each site, and the last recoveries.", _POLICIES)
    },
    "/api/v1/failover/{action}": {
        "post": operation(
            "Take a site, a pool there or an endpoint in or out of service; steer failover.",
            _POLICIES,
            parameters=[parameter("action", "path", {"type": "string", "enum": [one.value for one in Action]})],
            requestBody={
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "site": {**_TEXT, "description": "Name of a Site."},
                                "pool": {**_TEXT, "description": "namespace/name; all pools where it is left out."},
                                "endpoint": {**_TEXT, "description": "ip:port: drain or activate only this one."},
                                "actor": {**_TEXT, "description": "Who asks, for the audit log; it is not proven."},
                                "reason": {
                                    **_TEXT,
                                    "description": "For the audit log; required by drain, evacuate, failover, freeze.",
                                },
                                "deadline_s": {
                                    "type": "number",
                                    "minimum": 0,
                                    "description": "Seconds until it will be gone, as after a reclaim notice.",
                                },
                                "force": {
                                    "type": "boolean",
                                    "default": False,
                                    "description": "Beyond the safety rules, and back without the ramp.",
                                },
                                "dry_run": {"type": "boolean", "default": False},
                                "wait_s": {
                                    "type": "number",
                                    "minimum": 0,
                                    "maximum": LONGEST_WAIT_S,
                                    "description": "Longest wait until every connected gateway has it.",
                                },
                            },
                        }
                    }
                },
            },
            responses={
                "400": error("The request does not fit, or lacks a reason."),
                "403": error("It comes from a browser."),
                "404": error("There is no such action."),
                "409": error("It makes no sense now, or would leave too little; nothing was changed."),
                "415": error("Its body is not application/json."),
            },
        )
    },
}

FAILOVER_SCHEMAS: Final[dict[str, Json]] = {
    "FailoverStatus": {
        "type": "object",
        "required": ["name", "mode", "pools", "sites", "records", "programmed"],
        "properties": {
            "name": {**_TEXT, "description": "FailoverPolicy/namespace/name, or the pool that has no policy."},
            "declared": {"type": "boolean", "description": "A manifest asked for it; else the defaults hold."},
            "mode": {"enum": ["Auto", "Recommend", "Manual"]},
            "pools": {"type": "array", "items": _TEXT},
            "tiers": {"type": "array", "items": {"type": "object"}},
            "active_tier": {"type": ["integer", "null"], "description": "The lowest tier that serves."},
            "programmed": {"type": "boolean", "description": "Every connected gateway has what was decided."},
            "problem": {**_TEXT, "description": "Why decisions are not saved, empty when they are."},
            "frozen_by": {**_TEXT, "description": "Who froze it, empty for nobody."},
            "degraded": {"type": "object", "description": "Sites that stay in service though they are bad, and why."},
            "sites": {"type": "array", "items": {"$ref": "#/components/schemas/FailoverSite"}},
            "endpoints": {"type": "array", "items": {"type": "object"}},
            "spill": {"type": "object", "description": "Pool → share of its requests that may overflow."},
            "proposals": {"type": "array", "items": {"type": "object"}},
            "rto_objective_s": {"type": "number"},
            "records": {"type": "array", "items": {"$ref": "#/components/schemas/RtoRecord"}},
            "last": {"oneOf": [{"$ref": "#/components/schemas/RtoRecord"}, {"type": "null"}]},
        },
    },
    "FailoverSite": {
        "type": "object",
        "required": ["site", "pool", "state", "share"],
        "properties": {
            "site": _TEXT,
            "pool": _TEXT,
            "tier": {"type": "integer"},
            "state": {"enum": [phase.value for phase in Phase]},
            "why": _TEXT,
            "by": _TEXT,
            "since": _TEXT,
            "evidence": {"type": "array", "items": _TEXT},
            "triggers": {"type": "array", "items": _TEXT},
            "share": {"type": "number", "minimum": 0, "maximum": 1},
            "max_concurrent": {"type": "integer"},
            "load": {"type": ["number", "null"]},
            "ready": {"type": ["integer", "null"]},
            "baseline": {
                "type": "boolean",
                "description": "What a first byte usually takes there is known, so latency can be judged.",
            },
            "hold_down_s": {"type": "number"},
        },
    },
    "RtoRecord": {
        "type": "object",
        "required": ["site", "trigger", "fault_at_s", "decided_at_s", "rto_s", "outcome"],
        "properties": {
            "site": _TEXT,
            "pools": {"type": "array", "items": _TEXT},
            "trigger": _TEXT,
            "why": _TEXT,
            "by": _TEXT,
            "evidence": {"type": "array", "items": _TEXT},
            "fault_at_s": _TIME,
            "detected_at_s": _TIME,
            "decided_at_s": _TIME,
            "programmed_at_s": _TIME,
            "recovered_at_s": _TIME,
            "rto_s": {"type": ["number", "null"], "description": "From the fault to the first good second after it."},
            "requests": {"type": "integer"},
            "failed": {"type": "integer"},
            "truncated": {"type": "integer"},
            "retried": {"type": "integer"},
            "outcome": {"enum": ["open", "recovered", "silent", "unrecovered", "withdrawn"]},
        },
    },
}
