"""Routes to rules: one `Rule` for each match, with its rank, and what is to be known about their weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pointsman.core.compile.arms import Layer, Settled, settle
from pointsman.core.compile.assignments import known_users_only, terms_for
from pointsman.core.compile.experiments import fall_back, reject_unknown
from pointsman.core.compile.precedence import Origin, Rank, RankedRule
from pointsman.core.compile.rewrites import rewrite_notes, spread
from pointsman.core.compile.weights import normalise
from pointsman.core.config.route_annotations import RouteTerms, route_terms
from pointsman.core.config.route_kinds import (
    BackendRef,
    Filter,
    GRPCMatch,
    GRPCMethodMatch,
    GRPCRule,
    HeaderMatch,
    HeaderModifier,
    HTTPMatch,
    HTTPRule,
    Route,
    RouteRule,
)
from pointsman.core.config.syntax import duration_ms
from pointsman.core.model import (
    DEFAULT_IDLE_TIMEOUT_MS,
    HeaderEdit,
    MatchType,
    Note,
    PickProfile,
    RouteMatch,
    Rule,
    Split,
    StringMatch,
    WeightedPool,
)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledRoute:
    """The rules of a route in the order they are written, and how the weights of those with arms came about."""

    ranked: tuple[RankedRule, ...]
    splits: tuple[Split, ...]
    notes: tuple[Note, ...]


def compile_route(route: Route, layer: Layer) -> CompiledRoute:
    """All matches of a route as rules, with the layer laid over them."""
    terms = route_terms(route.metadata.annotations)
    written: list[RankedRule] = []
    splits: list[Split] = []
    notes: list[Note] = []
    for index, rule in enumerate(route.spec.rules):
        rule_id = f"{route.kind}/{route.key}/{_rule_name(rule, index)}"
        declared = _arms(route, rule.backend_refs)
        notes += rewrite_notes(rule_id, declared, layer.rewritten)
        if isinstance(rule, HTTPRule):
            declared = spread(rule, declared, layer.rewritten)
        settled = settle(rule_id, declared, layer, terms.on_unavailable)
        pools = [arm.pool for arm in settled.arms]
        whole = f"{route.kind}/{route.key}"
        ours = terms_for(layer.assignments, whole, rule.name, pools, terms)
        matches = _ranked(_Place(route, rule, index, rule_id), settled, ours)
        written += known_users_only(matches, layer.assignments, whole, rule.name)
        notes += settled.notes
        if settled.arms:
            splits.append(replace(settled.split, sticky=_sticky(ours)))
    ranked, fallen = fall_back(written, terms, layer.unavailable)
    return CompiledRoute(ranked=tuple(reject_unknown(ranked, terms)), splits=tuple(splits), notes=(*notes, *fallen))


@dataclass(frozen=True, slots=True)
class _Place:
    """A rule of a manifest, and where it stands."""

    route: Route
    rule: RouteRule
    index: int
    rule_id: str

    def matches(self) -> list[_Match]:
        if isinstance(self.rule, HTTPRule):
            return [_http_match(match) for match in self.rule.matches or (HTTPMatch(),)]
        assert isinstance(self.rule, GRPCRule)
        return [_grpc_match(match) for match in self.rule.matches or (GRPCMatch(),)]

    def timeout_ms(self) -> int:
        return duration_ms(self.rule.timeouts.request) if isinstance(self.rule, HTTPRule) else 0

    def idle_timeout_ms(self) -> int:
        """An answer that is not streamed is silent until it is whole: who allows it more time means that, too, and
        who allows it any time does not mean five minutes."""
        written = isinstance(self.rule, HTTPRule) and bool(self.rule.timeouts.request)
        limit_ms = self.timeout_ms()
        return 0 if written and not limit_ms else max(DEFAULT_IDLE_TIMEOUT_MS, limit_ms)


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


def _ranked(place: _Place, settled: Settled, terms: RouteTerms) -> Iterator[RankedRule]:
    route, arms = place.route, settled.arms
    works = any(arm.weight for arm in arms)
    request, response = _edits(place.rule.filters)
    for position, one in enumerate(place.matches()):
        compiled = Rule(
            name=f"{place.rule_id}/{position}",
            route=f"{route.kind}/{route.key}",
            match=one.match,
            arms=arms,
            profile=one.profile if works else PickProfile.NONE,
            timeout_ms=place.timeout_ms(),
            idle_timeout_ms=place.idle_timeout_ms(),
            request_headers=request,
            response_headers=response,
            hash_header=terms.sticky_header,
            hash_cookie=terms.sticky_cookie,
            hash_salt=terms.sticky_salt,
            direct_status=0 if works else 503 if arms else 500,
            direct_reason="" if works else NO_WEIGHT if arms else NO_BACKEND,
            mirror=settled.mirror,
            variant=len(arms) > 1 or bool(one.match.headers or one.match.query),
        )
        origin = Origin(created_us=route.created_us, route=route.key, kind=route.kind, rule=place.index, match=position)
        yield RankedRule(specificity=one.specificity, origin=origin, rule=compiled)


def _sticky(terms: RouteTerms) -> str:
    """What a split is sticky by, in words."""
    by = f"header {terms.sticky_header}" if terms.sticky_header else ""
    by = f"cookie {terms.sticky_cookie}" if terms.sticky_cookie else by
    return f"{by}, salt {terms.sticky_salt}" if by and terms.sticky_salt else by


def _rule_name(rule: RouteRule, index: int) -> str:
    """The rule's own name, else its number; a name that looks like a number is not used."""
    return str(index) if not rule.name or rule.name.isdigit() else rule.name


def _arms(route: Route, refs: tuple[BackendRef, ...]) -> tuple[WeightedPool, ...]:
    arms = []
    for ref, weight in zip(refs, normalise([ref.weight for ref in refs]), strict=True):
        request, response = _edits(ref.filters)
        arms.append(
            WeightedPool(
                pool=ref.pool_of(route.namespace),
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
