"""The part of the admin API that changes something: weights, and the audit log that tells of it.

Whoever reaches the admin API and has its token (where one is set) may change weights; without a token it only listens
on loopback. Browsers may not: a page of somebody else could send requests to loopback, and browsers name it (`Origin`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from pointsman.app.admin_access import signature
from pointsman.app.gateway_acks import GatewayAcks, acks_json
from pointsman.app.openapi import describe
from pointsman.app.operations import Operations, Outcome
from pointsman.app.weights_api import WEIGHTS_PATHS, WEIGHTS_SCHEMAS
from pointsman.core.buckets import moved, shifted
from pointsman.core.change import ChangeError, Refusal, WeightChange, pool_names, resolve
from pointsman.core.json_text import decode
from pointsman.core.model import TOTAL_WEIGHT, Plan, Split
from pointsman.core.store import StateError

Json = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.Response]]

LONGEST_WAIT_S: Final = 600.0
AUDIT_LIMIT: Final = 1_000
"""Most audit records in one answer."""
LONGEST_LIMIT: Final = 9
"""Digits of such a number in a query. Python refuses to read thousands of them, with an error of its own."""

_STATUS: Final = {Refusal.UNKNOWN: 404, Refusal.INVALID: 422, Refusal.VERSION: 409, Refusal.OWNED: 409}

Text = Annotated[str, msgspec.Meta(max_length=1_000)]


class WeightsBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of a PUT; see `weights_api.WEIGHTS_SCHEMAS`."""

    weights: Annotated[
        dict[str, Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]], msgspec.Meta(min_length=1, max_length=64)
    ]
    reason: Text = ""
    actor: Text = ""
    if_version: int | None = None
    wait: bool = False
    timeout_s: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_WAIT_S)] = 10.0
    dry_run: bool = False
    force: bool = False


class ClearQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Query of a DELETE: the fields of `WeightsBody` that make sense there."""

    reason: Text = ""
    actor: Text = ""
    if_version: int | None = None
    wait: bool = False
    timeout_s: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_WAIT_S)] = 10.0
    dry_run: bool = False
    force: bool = False


def add_writing_routes(application: web.Application, operations: Operations) -> None:
    """Add weights and the audit log."""
    api = _WeightsApi(operations)

    application.add_routes(
        [
            web.get("/api/v1/weights", _safe(api.every)),
            web.get("/api/v1/weights/{rule:.+}", _safe(api.one)),
            web.put("/api/v1/weights/{rule:.+}", _safe(api.put)),
            web.delete("/api/v1/weights/{rule:.+}", _safe(api.delete)),
            web.get("/api/v1/audit", _safe(api.audit)),
        ]
    )
    describe(application, WEIGHTS_PATHS, WEIGHTS_SCHEMAS)


class _WeightsApi:
    """The handlers; they raise what `_safe` turns into answers."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def every(self, _: web.Request) -> web.Response:
        plan = self._operations.plan()
        return _answer(
            {
                "revision": self._operations.overlay.revision,
                "rules": [split_json(split, plan) for split in plan.splits],
                "notes": [_note(note) for note in plan.notes],
            }
        )

    async def one(self, request: web.Request) -> web.Response:
        plan = self._operations.plan()
        rule = resolve(plan, request.match_info["rule"], self._operations.overlay)
        split = plan.split(rule)
        if split is None:
            raise ChangeError(Refusal.UNKNOWN, f"{rule} is gone; weights are still set for it")
        return _answer(split_json(split, plan), version=split.version)

    async def put(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="expected content-type: application/json")
        body = decode(await request.read(), WeightsBody)
        return await self._change(request, body, body.weights)

    async def delete(self, request: web.Request) -> web.Response:
        return await self._change(request, msgspec.convert(dict(request.query), ClearQuery, strict=False), None)

    async def audit(self, request: web.Request) -> web.Response:
        text = request.query.get("limit", "100")
        if not text.isdecimal() or len(text) > LONGEST_LIMIT or not 0 < int(text) <= AUDIT_LIMIT:
            raise msgspec.ValidationError(f"limit: expected 1 to {AUDIT_LIMIT}, not {text[:20]!r}")
        records = await self._operations.records(int(text))
        return _answer({"head": self._operations.audit_head, "records": records})

    async def _change(
        self, request: web.Request, asked: WeightsBody | ClearQuery, weights: dict[str, int] | None
    ) -> web.Response:
        if "origin" in request.headers:
            raise web.HTTPForbidden(text="browsers may not change anything here")
        plan = self._operations.plan()
        rule = resolve(plan, request.match_info["rule"], self._operations.overlay)
        split = plan.split(rule)
        if weights is not None and split is not None:
            weights = pool_names(split, weights)
        expected = _if_match(request)
        change = WeightChange(
            rule=rule,
            weights=weights,
            signature=signature(request, actor=asked.actor, reason=asked.reason),
            if_version=asked.if_version if expected is None else expected,
            force=asked.force,
        )
        try:
            outcome = await self._operations.change(change, dry_run=asked.dry_run)
        except ChangeError as error:
            if error.refusal is Refusal.VERSION and expected is not None:
                return _answer({"error": str(error), "version": error.version}, status=412, version=error.version)
            raise
        acks: tuple[GatewayAcks, ...] = ()
        if asked.wait and not asked.dry_run:
            acks = await self._operations.acks(outcome, asked.timeout_s)
        return _answer(
            outcome_json(outcome, self._operations.plan(), acks, dry_run=asked.dry_run), version=outcome.version
        )


def split_json(split: Split, plan: Plan) -> Json:
    """A rule's weights and how they came about; shares are in 1/10,000."""
    return {
        "rule": split.rule,
        "version": split.version,
        "source": ("controller" if split.owner else "operator") if split.overlaid else "manifest",
        "owner": split.owner,
        "sticky": split.sticky,
        "arms": [
            {
                "pool": arm.pool,
                "declared": arm.declared,
                "decided": arm.decided,
                "effective": arm.effective,
                "unavailable": arm.unavailable,
            }
            for arm in split.arms
        ],
        "sites": {site: {arm.pool: arm.effective for arm in arms} for site, arms in split.sites},
        "notes": [_note(note) for note in plan.notes if note.rule == split.rule],
    }


def outcome_json(outcome: Outcome, plan: Plan, acks: Iterable[GatewayAcks], *, dry_run: bool) -> Json:
    """What a change did or would do."""
    before, after = _effective(outcome.before), _effective(outcome.after)
    sticky = bool(outcome.after and outcome.after.sticky)
    return {
        "rule": outcome.rule,
        "version": outcome.version,
        "changed": outcome.changed,
        "dry_run": dry_run,
        "before": _by_pool(before),
        "after": _by_pool(after),
        "moved_percent": (moved(before, after) if sticky else shifted(before, after)) * 100 / TOTAL_WEIGHT,
        "gateways": list(outcome.gateways),
        "acks": [acks_json(one) for one in acks],
        "notes": [_note(note) for note in plan.notes if note.rule == outcome.rule],
    }


def _effective(split: Split | None) -> list[tuple[str, int]]:
    return [(arm.pool, arm.effective) for arm in split.arms] if split else []


def _by_pool(arms: list[tuple[str, int]]) -> Json:
    totals: Json = {}
    for pool, weight in arms:
        totals[pool] = totals.get(pool, 0) + weight
    return totals


def _note(note: Any) -> Json:
    return {"rule": note.rule, "reason": note.reason, "message": note.message}


def _if_match(request: web.Request) -> int | None:
    """The version that `If-Match` names; `*` is any."""
    value = request.headers.get("if-match", "*").strip()
    if value == "*":
        return None
    number = value.removeprefix('"').removesuffix('"')
    if not number.isascii() or not number.isdecimal() or len(number) > 18:
        raise msgspec.ValidationError(f"if-match: expected a version as a GET tells it (etag), not {value!r}")
    return int(number)


def _safe(handler: Handler) -> Handler:
    """Turn what a handler raises into answers that say what is wrong."""

    async def guarded(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except ChangeError as error:
            told = {"error": str(error), "reason": error.refusal.value, "version": error.version}
            return _answer(told, status=_STATUS[error.refusal])
        except msgspec.MsgspecError as error:
            return _answer({"error": f"the request does not fit: {error}"}, status=400)
        except StateError as error:
            return _answer({"error": f"nothing was changed: {error}"}, status=503)
        except web.HTTPException as error:
            return _answer({"error": error.text}, status=error.status)

    return guarded


def _answer(value: Any, *, status: int = 200, version: int | None = None) -> web.Response:
    headers = {} if version is None else {"etag": f'"{version}"'}
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json", headers=headers
    )
