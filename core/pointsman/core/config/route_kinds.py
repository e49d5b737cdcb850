"""HTTPRoute and GRPCRoute (gateway.networking.k8s.io)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from pointsman.core.config import route_annotations, syntax
from pointsman.core.config.document import Path, shown
from pointsman.core.config.import_kinds import IMPORT_MARK
from pointsman.core.config.meta import Duration, Hostname, Label, Name, Port, Resource
from pointsman.core.config.regex import re2_complaint
from pointsman.core.config.schema import Fields, not_yet, rule
from pointsman.core.model import TOTAL_WEIGHT

Found = Iterator[tuple[Path, str, str]]
HeaderName = Annotated[str, rule(syntax.header_name)]
HeaderValue = Annotated[str, rule(syntax.header_value)]

_FRAMING = frozenset({"host", "connection", "content-length", "transfer-encoding", "upgrade"})
"""Headers that frame the message; Envoy writes them, and refuses a configuration that edits `host`."""
MAX_MATCHES = 128
"""Matches of all rules of a route (Gateway API)."""


class ParentReference(Fields, frozen=True, kw_only=True):
    group: Literal["gateway.networking.k8s.io"] = "gateway.networking.k8s.io"
    kind: Annotated[Literal["Gateway"], not_yet("ListenerSet", "XListenerSet", "Service")] = "Gateway"
    namespace: Label = ""
    name: Name
    section_name: Name = ""
    port: Port | None = None


class HeaderMatch(Fields, frozen=True, kw_only=True):
    type: Literal["Exact", "RegularExpression"] = "Exact"
    name: HeaderName
    value: Annotated[str, Meta(min_length=1, max_length=4096)]

    def complaints(self) -> Found:
        if self.type == "Exact" and (complaint := syntax.header_value(self.value)):
            yield ("value",), *complaint
        if self.type == "RegularExpression":
            yield from _regex(("value",), self.value)


class QueryParamMatch(Fields, frozen=True, kw_only=True):
    type: Literal["Exact", "RegularExpression"] = "Exact"
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    value: Annotated[str, Meta(min_length=1, max_length=1024)]

    def complaints(self) -> Found:
        if self.type == "RegularExpression":
            yield from _regex(("value",), self.value)


class PathMatch(Fields, frozen=True, kw_only=True):
    type: Literal["Exact", "PathPrefix", "RegularExpression"] = "PathPrefix"
    value: Annotated[str, Meta(min_length=1, max_length=1024)] = "/"

    def complaints(self) -> Found:
        if self.type == "RegularExpression":
            yield from _regex(("value",), self.value)
        elif complaint := syntax.path(self.value):
            yield ("value",), *complaint


class HTTPMatch(Fields, frozen=True, kw_only=True):
    path: PathMatch = PathMatch()
    headers: Annotated[tuple[HeaderMatch, ...], Meta(max_length=16)] = ()
    query_params: Annotated[tuple[QueryParamMatch, ...], Meta(max_length=16)] = ()
    method: Annotated[
        Literal["", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"], not_yet("CONNECT")
    ] = ""

    def complaints(self) -> Found:
        yield from _repeated("headers", [h.name.lower() for h in self.headers])
        yield from _repeated("queryParams", [q.name for q in self.query_params])


class GRPCMethodMatch(Fields, frozen=True, kw_only=True):
    type: Literal["Exact", "RegularExpression"] = "Exact"
    service: Annotated[str, Meta(max_length=1024)] = ""
    method: Annotated[str, Meta(max_length=1024)] = ""

    def complaints(self) -> Found:
        if not self.service and not self.method:
            yield (), "neither service nor method is given", "expected one of them"
        elif self.type == "RegularExpression":
            given: Path = ("service",) if self.service else ("method",)
            yield from _regex(given, self.pattern)
        else:
            for field, value, check in (
                ("service", self.service, syntax.grpc_service),
                ("method", self.method, syntax.grpc_method),
            ):
                if value and (complaint := check(value)):
                    yield (field,), *complaint

    @property
    def pattern(self) -> str:
        """An expression for the request path `/Service/Method`; what is not given may be anything."""
        parts = [(part if self.type != "Exact" else re.escape(part)) for part in (self.service, self.method)]
        return "".join(f"/(?:{part})" if part else "/[^/]+" for part in parts)


class GRPCMatch(Fields, frozen=True, kw_only=True):
    method: GRPCMethodMatch | None = None
    headers: Annotated[tuple[HeaderMatch, ...], Meta(max_length=16)] = ()

    def complaints(self) -> Found:
        yield from _repeated("headers", [h.name.lower() for h in self.headers])


class HTTPHeader(Fields, frozen=True, kw_only=True):
    name: HeaderName
    value: HeaderValue


class HeaderModifier(Fields, frozen=True, kw_only=True):
    set: Annotated[tuple[HTTPHeader, ...], Meta(max_length=16)] = ()
    add: Annotated[tuple[HTTPHeader, ...], Meta(max_length=16)] = ()
    remove: Annotated[tuple[HeaderName, ...], Meta(max_length=16)] = ()

    def complaints(self) -> Found:
        named = (
            ("set", [h.name.lower() for h in self.set]),
            ("add", [h.name.lower() for h in self.add]),
            ("remove", [name.lower() for name in self.remove]),
        )
        for field, names in named:
            yield from _repeated(field, names)
            for index, name in enumerate(names):
                if name in _FRAMING:
                    yield (field, index), f"the header {name} can't be changed", "remove it"


class Filter(Fields, frozen=True, kw_only=True):
    not_yet: ClassVar[frozenset[str]] = frozenset(
        {"requestMirror", "requestRedirect", "urlRewrite", "cors", "externalAuth", "extensionRef"}
    )
    type: Annotated[
        Literal["RequestHeaderModifier", "ResponseHeaderModifier"],
        not_yet("RequestMirror", "RequestRedirect", "URLRewrite", "CORS", "ExternalAuth", "ExtensionRef"),
    ]
    request_header_modifier: HeaderModifier | None = None
    response_header_modifier: HeaderModifier | None = None

    def complaints(self) -> Found:
        wanted = self.type[0].lower() + self.type[1:]
        for field, value in (
            ("requestHeaderModifier", self.request_header_modifier),
            ("responseHeaderModifier", self.response_header_modifier),
        ):
            if field == wanted and value is None:
                yield (field,), "is missing", f"a filter of type {self.type} needs it"
            if field != wanted and value is not None:
                yield (field,), f"does not belong to a filter of type {self.type}", "remove it or change the type"


class BackendRef(Fields, frozen=True, kw_only=True):
    """One arm of a rule. Gateway API's default kind is Service; Pointsman routes to inference pools."""

    group: str = ""
    kind: str = "Service"
    namespace: Label = ""
    name: Name
    port: Port | None = None
    weight: Annotated[int, Meta(ge=0, le=1_000_000)] = 1
    filters: Annotated[tuple[Filter, ...], Meta(max_length=16)] = ()

    def complaints(self) -> Found:
        yield from _repeated("filters", [f.type for f in self.filters])

    def pool_of(self, namespace: str) -> str:
        """Name of the pool in the Plan, for a route in `namespace`."""
        mark = IMPORT_MARK if self.kind == "InferencePoolImport" else ""
        return f"{self.namespace or namespace}/{self.name}{mark}"


class Timeouts(Fields, frozen=True, kw_only=True):
    not_yet: ClassVar[frozenset[str]] = frozenset({"backendRequest"})
    request: Duration = ""


class RouteRule(Fields, frozen=True, kw_only=True):
    """What rules of both kinds of route have."""

    name: Name = ""
    filters: Annotated[tuple[Filter, ...], Meta(max_length=16)] = ()
    backend_refs: Annotated[tuple[BackendRef, ...], Meta(max_length=16)] = ()

    def complaints(self) -> Found:
        yield from _repeated("filters", [f.type for f in self.filters])
        total = sum(ref.weight for ref in self.backend_refs)
        for index, ref in enumerate(self.backend_refs):
            if 0 < ref.weight * TOTAL_WEIGHT < total:
                what = f"{ref.weight} of {total} is less than 0.01 %, so no request would come"
                mend = f"expected 0 or at least {-(-total // TOTAL_WEIGHT)}"
                yield ("backendRefs", index, "weight"), what, mend


class HTTPRule(RouteRule, frozen=True, kw_only=True):
    not_yet: ClassVar[frozenset[str]] = frozenset({"retry", "sessionPersistence"})
    matches: Annotated[tuple[HTTPMatch, ...], Meta(max_length=64)] = ()
    timeouts: Timeouts = Timeouts()


class GRPCRule(RouteRule, frozen=True, kw_only=True):
    not_yet: ClassVar[frozenset[str]] = frozenset({"sessionPersistence"})
    matches: Annotated[tuple[GRPCMatch, ...], Meta(max_length=64)] = ()


class RouteSpec(Fields, frozen=True, kw_only=True):
    """What both kinds of route have beside their rules."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"useDefaultGateways"})
    parent_refs: Annotated[tuple[ParentReference, ...], Meta(min_length=1, max_length=32)]
    hostnames: Annotated[tuple[Hostname, ...], Meta(max_length=16)] = ()


class HTTPRouteSpec(RouteSpec, frozen=True, kw_only=True):
    rules: Annotated[tuple[HTTPRule, ...], Meta(min_length=1, max_length=16)] = (HTTPRule(),)

    def complaints(self) -> Found:
        yield from _rules([(one.name, len(one.matches)) for one in self.rules])


class GRPCRouteSpec(RouteSpec, frozen=True, kw_only=True):
    rules: Annotated[tuple[GRPCRule, ...], Meta(min_length=1, max_length=16)] = (GRPCRule(),)

    def complaints(self) -> Found:
        yield from _rules([(one.name, len(one.matches)) for one in self.rules])


class HTTPRoute(Resource, frozen=True, kw_only=True):
    """HTTP requests to pools."""

    own_annotations: ClassVar[frozenset[str]] = route_annotations.ROUTE_ANNOTATIONS
    spec: HTTPRouteSpec

    def complaints(self) -> Found:
        matches = [match for one in self.spec.rules for match in one.matches]
        return route_annotations.complaints(self.metadata.annotations, _matched_headers(matches))


class GRPCRoute(Resource, frozen=True, kw_only=True):
    """gRPC calls to pools."""

    own_annotations: ClassVar[frozenset[str]] = route_annotations.ROUTE_ANNOTATIONS
    spec: GRPCRouteSpec

    def complaints(self) -> Found:
        matches = [match for one in self.spec.rules for match in one.matches]
        return route_annotations.complaints(self.metadata.annotations, _matched_headers(matches))


Route = HTTPRoute | GRPCRoute


def _matched_headers(matches: Iterable[HTTPMatch | GRPCMatch]) -> frozenset[str]:
    return frozenset(header.name.lower() for match in matches for header in match.headers)


def _rules(rules: Sequence[tuple[str, int]]) -> Found:
    """Rules between the rules of a route, given as (name, number of matches)."""
    names = [name for name, _ in rules]
    for index, name in enumerate(names):
        if name and name in names[:index]:
            yield ("rules", index, "name"), f"{shown(name)} is the name of two rules", "expected unique names"
    matches = sum(max(1, count) for _, count in rules)
    if matches > MAX_MATCHES:
        yield ("rules",), f"have {matches} matches together", f"expected at most {MAX_MATCHES}"


def _repeated(field: str, names: Iterable[str]) -> Found:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield (field, index), f"{shown(name)} occurs twice", "remove one"
        seen.add(name)


def _regex(path: Path, pattern: str) -> Found:
    if complaint := re2_complaint(pattern):
        yield path, f"{shown(pattern)} is no RE2 expression: {complaint}", "see github.com/google/re2/wiki/Syntax"
