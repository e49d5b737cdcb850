"""Which rule of a listener takes a request, and which arm of its split: Envoy's own answer, told in advance.

Every comparison is Envoy's (`envoy.config.route.v3`, 1.40, with the listeners that `pointsman.xds` makes): hosts
without port and case, paths without query after normalisation, each value of a header, query parameters as they are
written. The tests ask a real Envoy the same questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pointsman.core.buckets import arm_of, bucket
from pointsman.core.model import Listener, MatchType, Rule, StringMatch, VirtualHost
from pointsman.core.re2 import UnreadableError, full_match

Header = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """The head of a request. `path` may have a query; names of `headers` are lower-case and may repeat."""

    host: str = ""
    path: str = "/"
    method: str = "GET"
    headers: tuple[Header, ...] = ()

    def header(self, name: str) -> str | None:
        """The value of a header, several joined as Envoy does; None when it is absent."""
        values = self.values(name)
        return ",".join(values) if values else None

    def values(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for key, value in self.headers if key == name]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """A rule that was tried and does not match, and why. `doubtful`: it cannot be told here whether it does."""

    rule: str
    why: str
    doubtful: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a request goes. Without `host` no virtual host has its host name; without `rule` none of its rules fits:
    Envoy answers 404 to both. Rules that were `passed_over` stand in the order in which they were tried."""

    host: VirtualHost | None = None
    rule: Rule | None = None
    passed_over: tuple[PassedOver, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """The arm of a split. Of a sticky one `bucket` (0 to 9,999) decides; `pool` is empty where chance does."""

    sticky_by: str = ""
    key: str | None = None
    bucket: int | None = None
    pool: str = ""


def route_of(listener: Listener, request: RequestHead) -> Route:
    """The rule that takes a request, and those that were tried before it."""
    host = find_host(listener, request.host)
    if host is None:
        return Route()
    passed: list[PassedOver] = []
    for rule in host.rules:
        why, doubtful = _why_not(rule, request)
        if not why:
            return Route(host=host, rule=rule, passed_over=tuple(passed))
        passed.append(PassedOver(rule=rule.name, why=why, doubtful=doubtful))
    return Route(host=host, passed_over=tuple(passed))


def find_host(listener: Listener, host: str) -> VirtualHost | None:
    """The virtual host for a `Host` header: the exact name, else the longest `*.suffix`, else `*`."""
    name = _without_port(host).lower()
    best: tuple[int, VirtualHost] | None = None
    for candidate in listener.hosts:
        for domain in candidate.domains:
            rank = _fits(domain.lower(), name)
            if rank and (best is None or rank > best[0]):
                best = rank, candidate
    return best[1] if best else None


def _fits(domain: str, name: str) -> int:
    """How well a domain fits a host name; 0: not at all."""
    if domain == name:
        return 1 << 20
    if domain == "*":
        return 1
    if domain.startswith("*") and name.endswith(domain[1:]) and len(name) > len(domain) - 1:
        return 1 + len(domain)
    return 0


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def arm_of_rule(rule: Rule, request: RequestHead) -> Arm:
    """The arm that the split of a rule gives a request."""
    weights = [arm.weight for arm in rule.arms]
    certain = [arm.pool for arm in rule.arms if arm.weight]
    if not rule.hash_header and not rule.hash_cookie:
        return Arm(pool=certain[0] if len(certain) == 1 else "")
    by = f"cookie {rule.hash_cookie}" if rule.hash_cookie else f"header {rule.hash_header}"
    key, salted = _hash_key(rule, request)
    if key is None:
        return Arm(sticky_by=by, pool=certain[0] if len(certain) == 1 else "")
    place = bucket(key, rule.hash_salt if salted else "")
    index = arm_of(place, weights)
    return Arm(sticky_by=by, key=key, bucket=place, pool="" if index is None else rule.arms[index].pool)


def _hash_key(rule: Rule, request: RequestHead) -> tuple[str | None, bool]:
    """What is hashed, and whether the salt stands before it; None: nothing, and the arm is random."""
    if not rule.hash_cookie:
        return request.header(rule.hash_header), True
    cookies = request.header("cookie")
    if cookies is None:
        return None, True
    found = re.fullmatch(rf"(?:.*;\s*)?{re.escape(rule.hash_cookie)}=\"?([^;\"]*)\"?(?:;.*)?", cookies)
    if found:
        return found[1], True
    # With a salt the header is rewritten before it is hashed; where the pattern does not fit, it stays as it is.
    return (cookies, False) if rule.hash_salt else (None, True)


def _why_not(rule: Rule, request: RequestHead) -> tuple[str, bool]:
    """Why a rule does not match, and whether that is in doubt; ("", False) when it does."""
    try:
        return next(_misses(rule, request), ""), False
    except UnreadableError as problem:
        return f"a regular expression cannot be judged here: {problem}", True


def _misses(rule: Rule, request: RequestHead) -> Iterator[str]:
    match = rule.match
    path, _, query = request.path.partition("#")[0].partition("?")
    path = normalised(path)
    if not _path_fits(match.path, path):
        yield f"the path {path} is not {_shown(match.path)}"
    if match.method and match.method != request.method:
        yield f"the method {request.method} is not {match.method}"
    for header in match.headers:
        if miss := _header_miss(header, request.values(header.name)):
            yield miss
    given = _query(query)
    for parameter in match.query:
        value = given.get(parameter.name)
        if value is None:
            yield f"the query has no {parameter.name}"
        elif not _equals(parameter, value):
            yield f"the query's {parameter.name} is not {_shown(parameter)}"
    if rule.route.startswith("GRPCRoute/") and not is_grpc(request):
        yield "it is no gRPC request"


def is_grpc(request: RequestHead) -> bool:
    """Whether Envoy takes a request for gRPC: by its content type."""
    kind = request.header("content-type") or ""
    return kind == "application/grpc" or kind.startswith("application/grpc+")


_UNRESERVED: Final = re.compile(r"%(2[deDE]|3[0-9]|[46][1-9a-fA-F]|[57][0-9aA]|5[fF]|7[eE])")
"""Escapes of letters, digits and `-._~`, which mean the same without."""


def normalised(path: str) -> str:
    """The path as rules see it: dot segments resolved, `\\` as `/`, needless escapes undone, slashes in a row
    merged."""
    parts: list[str] = []
    segments = path.replace("\\", "/").split("/")
    for number, segment in enumerate(segments):
        plain = _UNRESERVED.sub(lambda found: chr(int(found[1], 16)), segment)
        last = number == len(segments) - 1
        if plain == "..":
            if len(parts) > 1:
                parts.pop()
            if last:
                parts.append("")
        elif plain == ".":
            if last:
                parts.append("")
        else:
            parts.append(plain)
    return re.sub("/{2,}", "/", "/".join(parts) or "/")


def _path_fits(match: StringMatch, path: str) -> bool:
    if match.type is MatchType.PREFIX:
        prefix = match.value.rstrip("/")
        return path == prefix or path.startswith(f"{prefix}/")
    return _equals(match, path)


def _header_miss(match: StringMatch, values: Sequence[str]) -> str:
    """Why a header does not match; empty when it does. Of several values one that fits is enough."""
    if match.type is MatchType.PRESENT:
        if bool(values) != match.invert:
            return ""
        return f"the header {match.name} is {'there' if match.invert else 'absent'}"
    if not values:
        return f"the header {match.name} is absent"
    if any(_equals(match, value) for value in values) != match.invert:
        return ""
    return f"the header {match.name} is {'' if match.invert else 'not '}{_shown(match)}"


def _equals(match: StringMatch, value: str) -> bool:
    if match.type is MatchType.REGEX:
        return full_match(match.value, value)
    if match.type is MatchType.PREFIX:
        return value.startswith(match.value)
    return value == match.value


def _shown(match: StringMatch) -> str:
    kinds = {MatchType.EXACT: "", MatchType.PREFIX: "below ", MatchType.REGEX: "like "}
    return f"{kinds.get(match.type, '')}{match.value}"


def _query(text: str) -> dict[str, str]:
    """The first value of each parameter, as it is written."""
    found: dict[str, str] = {}
    for part in text.split("&"):
        name, _, value = part.partition("=")
        if name:
            found.setdefault(name, value)
    return found
