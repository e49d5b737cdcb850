"""Routes to rules: one `Rule` for each match, with its rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pointsman.core.compile.precedence import Origin, Rank, RankedRule
from pointsman.core.compile.weights import normalise
from pointsman.core.config.route_kinds import (
    BackendRef,
    Filter,
    GRPCMatch,
    GRPCMethodMatch,
    HeaderMatch,
    HeaderModifier,
    HTTPMatch,
    HTTPRoute,
    Route,
    RouteRule,
)
from pointsman.core.config.syntax import duration_ms
from pointsman.core.model import HeaderEdit, MatchType, PickProfile, RouteMatch, Rule, StringMatch, WeightedPool

NO_BACKEND = "no-backend"
"""Reason of a rule without backendRefs; Gateway API wants 500."""
NO_WEIGHT = "no-weight"
"""Reason of a rule whose backendRefs all have weight 0."""

_METHODS_WITH_BODY = frozenset({"", "POST", "PUT", "PATCH"})
_PATH_RANK = {MatchType.EXACT: 0, MatchType.REGEX: 1, MatchType.PREFIX: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    """One match of a rule, compiled."""

    match: RouteMatch
    specificity: Rank
    profile: PickProfile


def ranked_rules(route: Route) -> tuple[RankedRule, ...]:
    """All matches of a route in the order they are written."""
    found: list[RankedRule] = []
    if isinstance(route, HTTPRoute):
        for index, rule in enumerate(route.spec.rules):
            matches = [_http_match(match) for match in rule.matches or (HTTPMatch(),)]
            found += _ranked(route, rule, index, matches, duration_ms(rule.timeouts.request))
    else:
        for index, grpc_rule in enumerate(route.spec.rules):
            matches = [_grpc_match(match) for match in grpc_rule.matches or (GRPCMatch(),)]
            found += _ranked(route, grpc_rule, index, matches, 0)
    return tuple(found)


def _http_match(match: HTTPMatch) -> _Match:
    query = tuple(StringMatch(type=MatchType(q.type), name=q.name, value=q.value) for q in match.query_params)
    path = _path(match)
    specificity = (
        _PATH_RANK[path.type],
        -len(path.value),
        0,
        0 if match.method else 1,
        -len(match.headers),
        -len(query),
    )
    return _Match(
        match=RouteMatch(path=path, method=match.method, headers=_headers(match.headers), query=query),
        specificity=specificity,
        profile=PickProfile.BODY if match.method in _METHODS_WITH_BODY else PickProfile.NONE,
    )


def _grpc_match(match: GRPCMatch) -> _Match:
    method = match.method
    kind = MatchType.PREFIX if method is None else MatchType(method.type)
    service_length, method_length = (len(method.service), len(method.method)) if method else (0, 0)
    return _Match(
        match=RouteMatch(path=_grpc_path(method), headers=_headers(match.headers)),
        specificity=(_PATH_RANK[kind], -service_length, -method_length, 1, -len(match.headers), 0),
        profile=PickProfile.HEADERS,
    )


def _ranked(route: Route, rule: RouteRule, index: int, matches: list[_Match], timeout_ms: int) -> Iterator[RankedRule]:
    arms = _arms(route, rule.backend_refs)
    works = any(arm.weight for arm in arms)
    request, response = _edits(rule.filters)
    name = f"{route.kind}/{route.key}"
    for position, one in enumerate(matches):
        compiled = Rule(
            name=f"{name}/{_rule_name(rule, index)}/{position}",
            route=name,
            match=one.match,
            arms=arms,
            profile=one.profile if works else PickProfile.NONE,
            timeout_ms=timeout_ms,
            request_headers=request,
            response_headers=response,
            direct_status=0 if works else 503 if arms else 500,
            direct_reason="" if works else NO_WEIGHT if arms else NO_BACKEND,
        )
        origin = Origin(created_us=route.created_us, route=route.key, kind=route.kind, rule=index, match=position)
        yield RankedRule(specificity=one.specificity, origin=origin, rule=compiled)


def _rule_name(rule: RouteRule, index: int) -> str:
    """The rule's own name, else its number; a name that looks like a number is not used."""
    return str(index) if not rule.name or rule.name.isdigit() else rule.name


def _arms(route: Route, refs: tuple[BackendRef, ...]) -> tuple[WeightedPool, ...]:
    arms = []
    for ref, weight in zip(refs, normalise([ref.weight for ref in refs]), strict=True):
        request, response = _edits(ref.filters)
        arms.append(
            WeightedPool(
                pool=f"{ref.namespace or route.namespace}/{ref.name}",
                weight=weight,
                request_headers=request,
                response_headers=response,
            )
        )
    return tuple(arms)


def _edits(filters: tuple[Filter, ...]) -> tuple[HeaderEdit, HeaderEdit]:
    request = response = HeaderEdit()
    for one in filters:
        if one.request_header_modifier is not None:
            request = _edit(one.request_header_modifier)
        if one.response_header_modifier is not None:
            response = _edit(one.response_header_modifier)
    return request, response


def _edit(modifier: HeaderModifier) -> HeaderEdit:
    return HeaderEdit(
        set=tuple((header.name.lower(), header.value) for header in modifier.set),
        add=tuple((header.name.lower(), header.value) for header in modifier.add),
        remove=tuple(name.lower() for name in modifier.remove),
    )


def _headers(matches: tuple[HeaderMatch, ...]) -> tuple[StringMatch, ...]:
    return tuple(StringMatch(type=MatchType(m.type), name=m.name.lower(), value=m.value) for m in matches)


def _path(match: HTTPMatch) -> StringMatch:
    kind, value = MatchType(match.path.type), match.path.value
    if kind is MatchType.PREFIX:
        value = value.rstrip("/") or "/"  # a prefix is whole segments: /v1/ and /v1 mean the same
    return StringMatch(type=kind, value=value)


def _grpc_path(method: GRPCMethodMatch | None) -> StringMatch:
    if method is None:
        return StringMatch(type=MatchType.PREFIX, value="/")
    if method.type == "Exact" and method.service:
        if method.method:
            return StringMatch(type=MatchType.EXACT, value=f"/{method.service}/{method.method}")
        return StringMatch(type=MatchType.PREFIX, value=f"/{method.service}")
    return StringMatch(type=MatchType.REGEX, value=method.pattern)
