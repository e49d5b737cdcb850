"""The model servers behind the gateway: who they are, and what their own counters say before and after a replay."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from pointsman.core.engine_metrics import MAX_PAGE_BYTES, parse
from pointsman.core.errors import PeerError, UpstreamError
from pointsman.core.model import AppProtocol

FETCH_TIMEOUT_S: Final = 5.0
"""A replay waits this long for an upstream before and after it; a scraper's own limit is much shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One model server. `url` is its base URL; `site` and `pool` are empty where they are not known."""

    name: str
    url: str
    site: str = ""
    pool: str = ""

    @property
    def key(self) -> str:
        """Host and port: its identity."""
        return urlsplit(self.url).netloc


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Counters of one upstream, in prompt tokens: looked up in the prefix cache, and found there.

    `start_time_s` tells a restart (0: unknown).
    """

    query_tokens: float = 0.0
    hit_tokens: float = 0.0
    start_time_s: float = 0.0

    def since(self, before: Counters) -> Counters:
        """The increase since `before`; after a restart of the server, all that it counted since then."""
        restarted = self.start_time_s != before.start_time_s or self.query_tokens < before.query_tokens
        if restarted or self.hit_tokens < before.hit_tokens:
            return self
        return Counters(
            query_tokens=self.query_tokens - before.query_tokens,
            hit_tokens=self.hit_tokens - before.hit_tokens,
            start_time_s=self.start_time_s,
        )


class _Endpoint(msgspec.Struct):
    key: str
    name: str
    site: str = ""
    pool: str = ""
    protocol: str = AppProtocol.HTTP.value


def upstream_of_url(url: str) -> Upstream:
    """An upstream that is known by its base URL only."""
    base = url.rstrip("/")
    return Upstream(name=urlsplit(base).netloc, url=base)


def parse_counters(page: bytes) -> Counters:
    """The counters of a `/metrics` page, summed over engines. Raises `UpstreamError` if they are not there.

    SGLang doesn't count lookups; there every prompt token is one.
    """
    metrics = parse(page)
    queries = metrics.prefix_queries_total if metrics.prefix_queries_total is not None else metrics.prompt_tokens_total
    if queries is None or metrics.prefix_hits_total is None:
        raise UpstreamError("no prefix cache counters in the metrics page")
    return Counters(
        query_tokens=queries, hit_tokens=metrics.prefix_hits_total, start_time_s=metrics.start_time_s or 0.0
    )


async def discover(session: aiohttp.ClientSession, admin: str) -> tuple[Upstream, ...]:
    """The HTTP/1.1 endpoints that the admin API lists, each `ip:port` once: others have no page of counters.

    Raises `PeerError`.
    """
    url = f"{admin}/api/v1/endpoints"
    try:
        found = msgspec.json.decode(await fetch(session, url), type=list[_Endpoint])
    except UpstreamError as error:
        raise PeerError(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PeerError(f"{url} is no list of endpoints: {error}") from error
    readable = [endpoint for endpoint in found if endpoint.protocol == AppProtocol.HTTP.value]
    return tuple(
        {e.key: Upstream(name=e.name, url=f"http://{e.key}", site=e.site, pool=e.pool) for e in readable}.values()
    )


async def scrape(
    session: aiohttp.ClientSession, upstreams: Iterable[Upstream]
) -> tuple[Mapping[str, Counters], Mapping[str, str]]:
    """Counters by the upstream's key, and for those that gave none why. Never raises `UpstreamError`."""

    async def one(upstream: Upstream) -> Counters | str:
        try:
            return parse_counters(await fetch(session, f"{upstream.url}/metrics"))
        except UpstreamError as error:
            return str(error)

    asked = list(upstreams)
    answers = await asyncio.gather(*map(one, asked))
    pairs = list(zip((u.key for u in asked), answers, strict=True))
    return (
        {key: answer for key, answer in pairs if isinstance(answer, Counters)},
        {key: answer for key, answer in pairs if isinstance(answer, str)},
    )


async def fetch(session: aiohttp.ClientSession, url: str) -> bytes:
    """GET with a bound on time and size. Raises `UpstreamError` that names the URL."""
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S), session.get(url) as response:
            page = bytearray()
            async for data in response.content.iter_any():
                page += data
                if len(page) > MAX_PAGE_BYTES:
                    raise UpstreamError(f"{url} answered more than {MAX_PAGE_BYTES:,} bytes")
            if response.status != 200:
                raise UpstreamError(f"{url} answered {response.status}")
            return bytes(page)
    except TimeoutError as error:
        raise UpstreamError(f"{url} did not answer in {FETCH_TIMEOUT_S:g} s") from error
    except aiohttp.ClientResponseError as error:
        # Its text is the parser's picture of the bytes, many lines long; a gRPC port is the usual cause.
        raise UpstreamError(f"{url} does not answer in HTTP/1.1") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise UpstreamError(f"{url} cannot be reached: {error}") from error
