"""What would become of a request: the rule, the arm, the pick. Nothing is sent and nothing is counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import msgspec

from pointsman.core.errors import PointsmanError
from pointsman.core.matching import Arm, RequestHead, Route, arm_of_rule, is_grpc, route_of
from pointsman.core.model import Gateway, Listener, PickProfile, Plan, Rule
from pointsman.core.wire import AFFINITY_HEADER, OBJECTIVE_HEADER
from pointsman.extproc import Picker
from pointsman.extproc.decision import NO_BODY, PickRequest
from pointsman.extproc.request import Body, read_body

Json = dict[str, Any]

Text = Annotated[str, msgspec.Meta(max_length=8_192)]
MAX_BODY = 1024 * 1024
"""Characters of a body. It is read on the event loop that serves gateways; a megabyte takes 3 ms."""


class QuestionError(PointsmanError):
    """The question does not fit the fleet."""


class AskBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of a POST to /api/v1/explain. `gateway` and `listener` may be left out where there is one that fits."""

    gateway: Text = ""
    listener: Text = ""
    host: Text = ""
    path: Text = "/v1/chat/completions"
    method: Text = ""
    headers: Annotated[list[tuple[Text, Text]], msgspec.Meta(max_length=100)] = []
    body: Annotated[str, msgspec.Meta(max_length=MAX_BODY)] = ""


def explain_request(plan: Plan, picker: Picker, asked: AskBody) -> Json:
    """Rule, arm and pick of a request that nobody sent.

    `picks` holds one decision for each pool that it may go to: the arm's, or all with a weight where chance decides.

    Raises:
        QuestionError: no gateway or listener fits, or several do.
    """
    gateway = _gateway(plan, asked.gateway)
    request = RequestHead(
        host=asked.host,
        path=asked.path if asked.path.startswith("/") else f"/{asked.path}",
        method=asked.method.upper() or ("POST" if asked.body else "GET"),
        headers=tuple((name.lower(), value.strip()) for name, value in asked.headers),
    )
    listener = _listener(gateway, asked.listener, request)
    route = route_of(listener, request)
    arm = arm_of_rule(route.rule, request) if route.rule else Arm()
    return {
        "gateway": gateway.name,
        "listener": listener.name,
        "request": {"host": request.host, "path": request.path, "method": request.method},
        "host": route.host.name if route.host else "",
        "rule": route.rule.name if route.rule else "",
        "route": route.rule.route if route.rule else "",
        "passed_over": [{"rule": one.rule, "why": one.why, "doubtful": one.doubtful} for one in route.passed_over],
        "answer": _own_answer(route),
        "arm": _arm_json(route.rule, arm),
        "profile": route.rule.profile.value if route.rule else "",
        "picks": _picks(route, arm, request, asked.body, plan=plan, picker=picker),
    }


def with_arm(decision: Json, plan: Plan) -> Json:
    """A decision as `Decision.explain` tells it, with the arm of its split instead of the user's name.

    The bucket is known where the split is sticky by the header that the picker sees.
    """
    found = dict(decision)
    user = found.pop("affinity", "")
    rules = {
        rule.name: rule
        for gateway in plan.gateways
        for listener in gateway.listeners
        for host in listener.hosts
        for rule in host.rules
    }
    rule = rules.get(found.get("route", ""))
    arm = Arm(pool=found["pool"])
    if rule is not None and user and rule.hash_header == AFFINITY_HEADER:
        arm = replace(arm_of_rule(rule, RequestHead(headers=((AFFINITY_HEADER, user),))), key=None)
    return found | {"arm": _arm_json(rule, arm)}


def _gateway(plan: Plan, name: str) -> Gateway:
    names = [gateway.name for gateway in plan.gateways]
    chosen = name if "/" in name or not name else f"default/{name}"
    found = [gateway for gateway in plan.gateways if chosen in {"", gateway.name}]
    if len(found) == 1:
        return found[0]
    have = f"there is {', '.join(names) or 'none'}"
    raise QuestionError(f"{name!r} is no gateway: {have}" if name else f"say which gateway: {have}")


def _listener(gateway: Gateway, name: str, request: RequestHead) -> Listener:
    """The listener that is named, or has the port of the host, or is the only one for this kind of request."""
    listeners = gateway.listeners
    have = ", ".join(f"{listener.name} (port {listener.port})" for listener in listeners) or "none"
    if name:
        found = [one for one in listeners if name in {one.name, str(one.port)}]
        if not found:
            raise QuestionError(f"{gateway.name} has no listener {name!r}; it has {have}")
        return found[0]
    port = request.host.rpartition("]")[2].partition(":")[2]
    fitting = [one for one in listeners if port == str(one.port)] or [
        one for one in listeners if _speaks_grpc(one) == is_grpc(request)
    ]
    if len(fitting) == 1 or len(listeners) == 1:
        return (fitting or list(listeners))[0]
    raise QuestionError(f"say which listener of {gateway.name}: it has {have}")


def _speaks_grpc(listener: Listener) -> bool:
    routes = {rule.route for host in listener.hosts for rule in host.rules}
    return bool(routes) and all(route.startswith("GRPCRoute/") for route in routes)


def _own_answer(route: Route) -> Json | None:
    """What the gateway answers by itself; None when it forwards."""
    if route.host is None:
        return {"status": 404, "reason": "no route has this host name"}
    rule = route.rule
    if rule is None:
        return {"status": 404, "reason": "no rule of this host matches"}
    if rule.direct_status or not rule.arms:
        return {"status": rule.direct_status or 500, "reason": rule.direct_reason or "no backend"}
    if not any(arm.weight for arm in rule.arms):
        return {"status": 503, "reason": "all weights are zero"}
    return None


def _arm_json(rule: Rule | None, arm: Arm) -> Json | None:
    if rule is None or not rule.arms:
        return None
    shares: dict[str, int] = {}
    for one in rule.arms:
        shares[one.pool] = shares.get(one.pool, 0) + one.weight
    return {
        "pool": arm.pool,
        "decided_by": "bucket"
        if arm.bucket is not None
        else "chance"
        if sum(map(bool, shares.values())) > 1
        else "weights",
        "sticky_by": arm.sticky_by,
        "key": arm.key,
        "bucket": arm.bucket,
        "shares": shares,
    }


def _picks(route: Route, arm: Arm, request: RequestHead, body: str, *, plan: Plan, picker: Picker) -> list[Json]:
    rule = route.rule
    if rule is None or _own_answer(route) is not None or rule.profile is PickProfile.NONE:
        return []
    if rule.profile is PickProfile.BODY and not body and request.method == "GET":
        return []  # without a body the picker is not asked
    pools = [arm.pool] if arm.pool else [one.pool for one in rule.arms if one.weight]
    user = request.header(AFFINITY_HEADER) or ""
    read = read_body(body.encode()) if body and rule.profile is PickProfile.BODY else NO_BODY
    made = [
        picker.preview(
            PickRequest(
                pool=pool,
                body=_renamed(picker, pool, read, body, user),
                path=request.path,
                affinity=user,
                objective=request.header(OBJECTIVE_HEADER) or "",
            )
        )
        for pool in dict.fromkeys(pools)
    ]
    return [with_arm(one.explain() | {"route": rule.name}, plan) for one in made]


def _renamed(picker: Picker, pool: str, read: Body, text: str, user: str) -> Body:
    """The body as the pool's model servers would get it."""
    found = picker.model_rules.rename(pool, text.encode(), identity=user) if read is not NO_BODY else None
    return read if found is None or found.unread else replace(read, model=found.model, asked_model=found.asked)
