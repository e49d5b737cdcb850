"""Load of sites behind gateways, from the metrics pages of their control planes.

A gateway is one endpoint to us and many to its own picker. What that picker's control plane says of the site's
endpoints becomes means per endpoint and their number, so that the whole can be compared with a single replica.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import structlog
from prometheus_client import CollectorRegistry

from pointsman.core.engine_metrics import EngineMetrics
from pointsman.core.errors import UpstreamError
from pointsman.core.model import Plan
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc.endpoint_tasks import EndpointTasks
from pointsman.extproc.scrape import RttEstimate, ScrapeOptions, Signals, back_off_s, bounded

log = structlog.get_logger()

OPTIONS: Final = ScrapeOptions(interval_s=1.0)
"""Own accounts are immediate; a page of a control plane is ten times as long as an engine's and changes as slowly as a
mean over a site does."""

MAX_PAGE_BYTES: Final = 8 * 1024 * 1024
"""Longest page that is read: a hundred pools at ten sites make some 2 MB."""

_LINE: Final = re.compile(
    rb"^pointsman_(endpoints|inflight_requests|engine_running_requests|engine_waiting_requests|engine_kv_usage_ratio)"
    rb"\{([^}\n]*)\} ([^ \n]+)$",
    re.MULTILINE,
)
_LABEL: Final = re.compile(rb'(\w+)="([^"\\]*)"')
_UNUSABLE: Final = frozenset({b"UNHEALTHY", b"DRAINING"})


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class SitePage:
    """Where the load of a site is told. `site` is its name there; `token_file` holds the page's bearer token."""

    site: str
    url: str
    token_file: str = ""


class SiteScraper:
    """Asks for the pages of the holder's Plan until `run` is cancelled; the results go to `picker`."""

    def __init__(self, picker: Signals, holder: PlanHolder, *, registry: CollectorRegistry | None = None) -> None:
        self._picker = picker
        self._holder = holder
        self._registry = registry
        self._random = random.Random()  # noqa: S311 - jitter, no secret

    async def run(self) -> None:
        """Follow the Plan and ask. Ends only by cancellation."""
        timeout = aiohttp.ClientTimeout(total=OPTIONS.timeout_s)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            tasks = EndpointTasks(
                "site_metrics",
                self._holder,
                wanted_pages,
                lambda key, page: self._keep_asking(session, key, page),
                registry=self._registry,
            )
            await tasks.run()

    async def _keep_asking(self, session: aiohttp.ClientSession, key: str, page: SitePage) -> None:
        rtt, failures = RttEstimate(), 0
        while True:
            pause_s = back_off_s(OPTIONS, failures)
            await asyncio.sleep(pause_s * (1.0 - OPTIONS.jitter * self._random.random()))
            try:
                began_s = time.perf_counter()
                async with session.get(page.url, headers=_headers(page), allow_redirects=False) as response:
                    elapsed_ms = (time.perf_counter() - began_s) * 1000.0
                    if response.status != 200:
                        raise UpstreamError(f"{page.url} answered {response.status}")
                    text = await bounded(response, MAX_PAGE_BYTES)
                    # A thread: the longest page takes 0.4 s, in which picks would stand still.
                    metrics = await asyncio.to_thread(site_load, text, page.site)
            except (aiohttp.ClientError, UpstreamError, TimeoutError, OSError, UnicodeDecodeError) as error:
                failures += 1
                if failures == 3:
                    why = str(error) or type(error).__name__
                    log.warning("load of a site is not known", site=page.site, url=page.url, error=why)
                continue
            failures = 0
            self._picker.signals(key, metrics, rtt_ms=rtt.update(elapsed_ms))


def wanted_pages(plan: Plan) -> dict[str, SitePage]:
    """The gateways of the Plan whose load is told somewhere, by `ip:port`."""
    sites = {site.name: site for site in plan.sites if site.metrics_url}
    return {
        endpoint.key: SitePage(site=group.site, url=site.metrics_url, token_file=site.metrics_token_file)
        for pool in plan.pool_views()
        for group in pool.groups
        if group.hop is not None and (site := sites.get(group.site)) is not None
        for endpoint in group.endpoints
    }


def site_load(page: bytes, site: str) -> EngineMetrics:
    """What a control plane's page says of the endpoints at `site`: means over those that can serve.

    Running are the larger of what its picker and what its engines count. A pool and a fleet with the same endpoints
    count twice in numerator and denominator, which leaves the means as they are.

    Raises:
        UpstreamError: the page names no endpoint of the site that can serve.
    """
    totals: dict[bytes, float] = defaultdict(float)
    count: dict[bytes, int] = defaultdict(int)
    for name, value in _samples(page, site.encode()):
        totals[name] += value
        count[name] += 1
    endpoints = totals[b"endpoints"]
    if endpoints < 1.0:
        raise UpstreamError(f"the page names no endpoint at site {site} that can serve")
    running = max(totals[b"inflight_requests"], totals[b"engine_running_requests"])
    usages = count[b"engine_kv_usage_ratio"]
    return EngineMetrics(
        waiting=totals[b"engine_waiting_requests"] / endpoints if count[b"engine_waiting_requests"] else None,
        running=running / endpoints,
        kv_usage=min(1.0, totals[b"engine_kv_usage_ratio"] / usages) if usages else None,
        engines=int(endpoints),
    )


def _samples(page: bytes, site: bytes) -> Iterator[tuple[bytes, float]]:
    for name, text, number in _LINE.findall(page):
        labels = dict(_LABEL.findall(text))
        if labels.get(b"site") != site or labels.get(b"health") in _UNUSABLE:
            continue
        try:
            value = float(number)
        except ValueError:
            continue
        if math.isfinite(value) and value >= 0.0:
            yield name, value


def _headers(page: SitePage) -> dict[str, str]:
    """The token is read anew each time, so that it can be replaced at any time."""
    if not page.token_file:
        return {}
    return {"authorization": f"Bearer {Path(page.token_file).read_text(encoding='utf-8').strip()}"}
