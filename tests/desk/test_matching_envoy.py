"""`pointsman explain` foretells which rule takes a request: a real Envoy is asked the same thousands of questions."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from pointsman.core.matching import RequestHead, route_of
from pointsman.core.model import (
    Gateway,
    Listener,
    MatchType,
    PickProfile,
    RouteMatch,
    Rule,
    StringMatch,
    VirtualHost,
)
from pointsman.xds import BuildOptions, build_resources, static_bootstrap
from support.envoy import running_envoy
from support.fleet import Loopback

pytestmark = pytest.mark.e2e

QUESTIONS = 2_500
CONNECTIONS = 4


def header(name: str, value: str = "", kind: MatchType = MatchType.EXACT, *, invert: bool = False) -> StringMatch:
    return StringMatch(type=kind, name=name, value=value, invert=invert)


def exact(value: str) -> StringMatch:
    return StringMatch(type=MatchType.EXACT, value=value)


def below(value: str) -> StringMatch:
    return StringMatch(type=MatchType.PREFIX, value=value)


def like(value: str) -> StringMatch:
    return StringMatch(type=MatchType.REGEX, value=value)


def query(name: str, value: str, kind: MatchType = MatchType.EXACT) -> StringMatch:
    return StringMatch(type=kind, name=name, value=value)


MATCHES = {
    "exact": RouteMatch(path=exact("/v1/models")),
    "exact-empty-end": RouteMatch(path=exact("/v1/models/")),
    "regex-path": RouteMatch(path=like(r"/v[0-9]+/(chat|text)/[^/]{1,4}")),
    "regex-lazy": RouteMatch(path=like(r"/lazy/.*?x")),
    "grpc-method": RouteMatch(path=exact("/inference.Generator/Chat")),
    "grpc-any": RouteMatch(path=below("/")),
    "post-variant": RouteMatch(path=below("/v1"), method="POST", headers=(header("x-model-variant", "canary"),)),
    "two-headers": RouteMatch(headers=(header("x-a", "1"), header("x-b", "", MatchType.PRESENT))),
    "regex-header": RouteMatch(headers=(header("x-user-id", r"(?i)team-[a-z]+|\d{3}", MatchType.REGEX),)),
    "not-value": RouteMatch(path=below("/not"), headers=(header("x-a", "1", invert=True),)),
    "joined": RouteMatch(path=below("/joined"), headers=(header("x-a", "1,2", MatchType.REGEX),)),
    "absent": RouteMatch(path=below("/absent"), headers=(header("x-a", "", MatchType.PRESENT, invert=True),)),
    "query": RouteMatch(path=below("/q"), query=(query("user", "a"), query("n", r"\d+", MatchType.REGEX))),
    "query-empty": RouteMatch(path=below("/q"), query=(query("flag", ""),)),
    "method": RouteMatch(path=below("/v1/chat"), method="DELETE"),
    "prefix-long": RouteMatch(path=below("/v1/chat/completions")),
    "prefix": RouteMatch(path=below("/v1")),
    "prefix-slash": RouteMatch(path=below("/trail/")),
    "unreserved": RouteMatch(path=exact("/t-._~--~~")),
    "not-joined": RouteMatch(path=below("/joined/not"), headers=(header("x-a", "2", invert=True),)),
}

NARROW = ("exact", "post-variant", "prefix")


def rule(host: str, name: str) -> Rule:
    kind = "GRPCRoute" if name.startswith("grpc") else "HTTPRoute"
    # Envoy answers by itself, with the rule's name as the reason: no upstream, no picker.
    return Rule(
        name=f"{host}:{name}",
        route=f"{kind}/default/{name}",
        match=MATCHES[name],
        profile=PickProfile.NONE,
        direct_status=200,
        direct_reason=f"{host}:{name}",
    )


def listener_on(address: str, port: int) -> Listener:
    hosts = {
        "a.example.com": tuple(MATCHES),
        "*.example.com": NARROW,
        "*.b.example.com": ("two-headers", "prefix"),
        "*": tuple(name for name in MATCHES if name not in NARROW),
    }
    return Listener(
        name="http",
        address=address,
        port=port,
        hosts=tuple(
            VirtualHost(name=host, domains=(host,), rules=tuple(rule(host, name) for name in names))
            for host, names in hosts.items()
        ),
    )


HOSTS = (
    "a.example.com",
    "A.Example.COM",
    "a.example.com:8080",
    "b.example.com",
    "x.b.example.com",
    "y.x.b.example.com:1",
    ".example.com",
    "example.com",
    "xexample.com",
    "[::1]:80",
    "10.0.0.1",
    "localhost",
)
PATHS = (
    "/",
    "/v1",
    "/v1/",
    "/v1x",
    "/v1/models",
    "/v1/models/",
    "/V1/models",
    "//v1//models",
    "/v1/./models",
    "/v1/x/../models",
    "/v1/x/%2e%2E/models",
    "/v1/models/..",
    "/../v1/models",
    "/v1/chat/abcd",
    "/v1/chat/abcde",
    "/v12/text/a",
    "/v1/chat/a/b",
    "/v1/chat/completions",
    "/v1/chat/completions/x",
    "/v1/chat/completionsx",
    "/v1%2fmodels",
    "/v1/%6dodels",
    "/v1/%4Dodels",
    "/v1/%6Dodel%73",
    "/tr%61il",
    "/t-._~%2d%2D%7e%7E",
    "/joined",
    "/joined/not",
    "/lazy/abcx",
    "/lazy/xabc",
    "/trail",
    "/trail/",
    "/trail/x",
    "/trailx",
    "/inference.Generator/Chat",
    "/not",
    "/not/x",
    "/absent",
    "/q",
)
QUERIES = ("", "", "?user=a&n=12", "?n=12&user=a", "?user=b&user=a&n=1", "?user=a&n=x", "?flag", "?flag=", "?flag=1",
           "?user=%61&n=1", "?", "?a=/v1/models")  # fmt: skip
HEADERS = (
    ("x-model-variant", "canary"),
    ("x-model-variant", "Canary"),
    ("x-model-variant", " canary "),
    ("X-Model-Variant", "canary"),
    ("x-a", "1"),
    ("x-a", "2"),
    ("x-a", ""),
    ("x-a", "1,2"),
    ("x-b", ""),
    ("x-b", "whatever"),
    ("x-user-id", "TEAM-Blue"),
    ("x-user-id", "team-blue2"),
    ("x-user-id", "123"),
    ("x-user-id", "1234"),
    ("content-type", "application/grpc"),
    ("content-type", "application/grpc+proto"),
    ("content-type", "application/grpc-web"),
    ("content-type", "application/grpcx"),
    ("content-type", "application/json"),
)


def questions(seed: int) -> list[RequestHead]:
    draw = random.Random(seed)
    found = [RequestHead(host=host, path=path) for host in HOSTS for path in PATHS]
    two = (("x-a", "1"), ("x-a", "2"))  # Envoy looks at each value, not at "1,2"
    found += [RequestHead(path=path, headers=two[::way]) for path in ("/joined", "/joined/not") for way in (1, -1)]
    while len(found) < QUESTIONS:
        count = draw.choice((0, 1, 1, 2, 2, 3, 4))
        found.append(
            RequestHead(
                host=draw.choice((*HOSTS, "a.example.com", "a.example.com")),
                path=draw.choice(PATHS) + draw.choice(QUERIES),
                method=draw.choice(("GET", "POST", "POST", "DELETE")),
                headers=tuple(draw.choice(HEADERS) for _ in range(count)),
            )
        )
    return found


async def answers(address: str, port: int, asked: list[RequestHead]) -> list[str]:
    """Who took each request, or its status."""
    found = []
    reader, writer = await asyncio.open_connection(address, port)
    for request in asked:
        lines = [f"{request.method} {request.path} HTTP/1.1", f"host: {request.host}", "content-length: 0"]
        lines += [f"{name}: {value}" for name, value in request.headers]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *rest = head.split("\r\n")
        fields = dict(line.split(": ", 1) for line in rest if line)
        await reader.readexactly(int(fields.get("content-length", "0")))
        code = status.split(" ")[1]
        reason = fields["x-pointsman-reason"]  # to gRPC a 404 is told with status 200
        found.append(reason if code == "200" and reason != "route_not_found" else "404" if code == "200" else code)
        if fields.get("connection") == "close":
            writer.close()
            reader, writer = await asyncio.open_connection(address, port)
    writer.close()
    return found


async def test_envoy_takes_the_rule_that_is_foretold(tmp_path: Path) -> None:
    net = Loopback()
    address = net.address()
    port = net.free_port(address)
    listener = listener_on(address, port)
    gateway = Gateway(name="default/main", listeners=(listener,))
    config = static_bootstrap(build_resources(gateway, BuildOptions(picker_address="127.0.0.1", picker_port=9)))
    asked = questions(seed=7)
    async with running_envoy(config):
        parts = await asyncio.gather(
            *(answers(address, port, asked[index::CONNECTIONS]) for index in range(CONNECTIONS))
        )
    wrong = []
    taken: set[str] = set()
    for index, part in enumerate(parts):
        for request, answer in zip(asked[index::CONNECTIONS], part, strict=True):
            plain = tuple((name.lower(), value.strip()) for name, value in request.headers)
            head = RequestHead(host=request.host, path=request.path, method=request.method, headers=plain)
            route = route_of(listener, head)
            foretold = route.rule.name if route.rule else "404"
            taken.add(foretold.partition(":")[2])
            if foretold != answer:
                wrong.append(f"{request}: foretold {foretold}, Envoy {answer}")
    assert not wrong, f"{len(wrong)} of {len(asked)}:\n" + "\n".join(wrong[:15])
    assert taken >= set(MATCHES), "every kind of match was needed"
