"""The scraping shell: each endpoint's `/metrics`, about five times a second, and its `/v1/models` now and then.

What a page means is decided in `pointsman.core.engine_metrics` and `Picker.signals`; here are sockets and timers.
Pools that speak only gRPC have no page to scrape and live from our own accounts.
"""

from __future__ import annotations

import asyncio
import errno
import random
import time
from dataclasses import dataclass
from typing import Final, Protocol

import aiohttp
import msgspec
import structlog
from prometheus_client import CollectorRegistry

from pointsman.core.attention import ATTENTIVE, Attention
from pointsman.core.engine_metrics import MAX_PAGE_BYTES, EngineMetrics, parse
from pointsman.core.errors import UpstreamError
from pointsman.core.model import AppProtocol, Plan
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc.endpoint_tasks import EndpointTasks
from pointsman.extproc.tries import Tries

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeOptions:
    """How often and how patiently. Seconds."""

    interval_s: float = 0.2
    """Own accounts are immediate, so scrapes only correct them; llm-d's 50 ms costs 7.5 cores for 100 endpoints."""
    jitter: float = 0.2
    """Part of the interval that is random, so that endpoints are not all asked in the same instant."""
    timeout_s: float = 1.0
    max_back_off_s: float = 5.0
    """Between two tries of an endpoint that keeps failing."""
    models_interval_s: float = 10.0
    max_models_bytes: int = 256 * 1024
    """A list of models: each entry has some 500 bytes, and hundreds of adapters are listed."""


_NOBODY: Final = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH})


class RttEstimate:
    """The round trip in ms: follows a shorter measurement quickly and a longer one slowly.

    What makes a scrape slow is mostly the engine or our own event loop; the network shows in the fast ones.
    """

    def __init__(self) -> None:
        self.rtt_ms: float | None = None

    def update(self, measured_ms: float) -> float:
        """Take in one measurement; returns the estimate."""
        if self.rtt_ms is None:
            self.rtt_ms = measured_ms
        else:
            share = 0.5 if measured_ms < self.rtt_ms else 0.05
            self.rtt_ms += share * (measured_ms - self.rtt_ms)
        return self.rtt_ms


def back_off_s(options: ScrapeOptions, failures: int) -> float:
    """The pause after this many failures in a row; 0 failures: the interval."""
    return float(min(options.max_back_off_s, options.interval_s * 2.0 ** min(failures, 16)))


class Signals(Protocol):
    """Where the measurements go: a picker, or what passes them on to several."""

    def signals(self, key: str, metrics: EngineMetrics | None = None, *, rtt_ms: float | None = None) -> bool: ...

    def models(self, key: str, names: frozenset[str] | None, adapters: frozenset[str] = frozenset()) -> None: ...

    def refused(self, key: str) -> None: ...


class Scraper:
    """Scrapes the endpoints of the holder's Plan until `run` is cancelled."""

    def __init__(
        self,
        picker: Signals,
        holder: PlanHolder,
        options: ScrapeOptions | None = None,
        *,
        registry: CollectorRegistry | None = None,
        attention: Attention = ATTENTIVE,
    ) -> None:
        self._picker = picker
        self._attention = attention
        self._holder = holder
        self._options = options or ScrapeOptions()
        self._random = random.Random()  # noqa: S311 - jitter, no secret
        self.absent: dict[str, int] = {}  # endpoint → tries in a row that found nobody there
        self.asked_at_s: dict[str, float] = {}  # endpoint → since when a page is awaited (monotonic)
        self._tried: set[str] = set()
        self._first_try = asyncio.Event()
        self._registry = registry

    async def run(self) -> None:
        """Follow the Plan and scrape. Ends only by cancellation; no endpoint's fault ends it."""
        timeout = aiohttp.ClientTimeout(total=self._options.timeout_s)
        connector = aiohttp.TCPConnector(limit=0, limit_per_host=2)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as session:
            tasks = EndpointTasks(
                "scraper", self._holder, _wanted, lambda key, _: self._endpoint(session, key), registry=self._registry
            )
            await tasks.run()

    async def first_look(self, within_s: float) -> bool:
        """Wait until each endpoint of the Plan has been asked once, whatever it said; False when that took too long.

        Before it, picks know neither load nor distance.
        """
        try:
            async with asyncio.timeout(within_s):
                while (plan := self._holder.plan) is None or not _wanted(plan).keys() <= self._tried:
                    self._first_try.clear()
                    await self._first_try.wait()
        except TimeoutError:
            return False
        return True

    async def _endpoint(self, session: aiohttp.ClientSession, key: str) -> None:
        try:
            await self._keep_asking(session, key)
        finally:
            self._tried.discard(key)
            self.absent.pop(key, None)
            self.asked_at_s.pop(key, None)

    async def _keep_asking(self, session: aiohttp.ClientSession, key: str) -> None:
        options, rtt = self._options, RttEstimate()
        tries = Tries(options.timeout_s, self._attention)
        models_at_s = 0.0
        while True:
            pause_s = back_off_s(options, tries.failures)
            await asyncio.sleep(pause_s * (1.0 - options.jitter * self._random.random()))
            patience_s = tries.begin(time.monotonic())
            self.asked_at_s[key] = tries.since_s or 0.0
            try:
                metrics, elapsed_ms = await self._metrics(session, key, patience_s)
            except (aiohttp.ClientError, UpstreamError, TimeoutError, OSError) as error:
                if not tries.failed(time.monotonic(), timed_out=isinstance(error, TimeoutError)):
                    continue
                self.asked_at_s.pop(key, None)
                if isinstance(error, UpstreamError):  # a server that has no such page is there
                    self.absent.pop(key, None)
                else:
                    self.absent[key] = self.absent.get(key, 0) + 1
                if _nobody_there(error):
                    self._picker.refused(key)
                if tries.failures == 3:
                    log.warning("endpoint cannot be scraped", endpoint=key, error=str(error) or type(error).__name__)
                continue
            finally:
                self._note_tried(key)
            tries.answered()
            self.asked_at_s.pop(key, None)
            self.absent.pop(key, None)
            if self._picker.signals(key, metrics, rtt_ms=rtt.update(elapsed_ms)):
                log.info("engine restarted, its prefixes are forgotten", endpoint=key)
                models_at_s = 0.0
            if time.monotonic() >= models_at_s:
                models_at_s = time.monotonic() + options.models_interval_s
                self._picker.models(key, *await self._models(session, key))

    def _note_tried(self, key: str) -> None:
        if key not in self._tried:
            self._tried.add(key)
            self._first_try.set()

    async def _metrics(self, session: aiohttp.ClientSession, key: str, timeout_s: float) -> tuple[EngineMetrics, float]:
        began_s = time.perf_counter()
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with session.get(f"http://{key}/metrics", allow_redirects=False, timeout=timeout) as response:
            elapsed_ms = (time.perf_counter() - began_s) * 1000.0
            if response.status != 200:
                raise UpstreamError(f"/metrics answered {response.status}")
            return parse(await bounded(response, MAX_PAGE_BYTES)), elapsed_ms

    async def _models(self, session: aiohttp.ClientSession, key: str) -> tuple[frozenset[str] | None, frozenset[str]]:
        """The models an endpoint lists, None when it does not say, which rules nothing out; those that are adapters."""
        try:
            async with session.get(f"http://{key}/v1/models", allow_redirects=False) as response:
                if response.status != 200:
                    return None, frozenset()
                return model_names(await bounded(response, self._options.max_models_bytes))
        except (aiohttp.ClientError, UpstreamError, TimeoutError, OSError):
            return None, frozenset()


def _nobody_there(error: Exception) -> bool:
    """The other side says that there is nobody. What our own side lacks (descriptors, a route) blames no endpoint."""
    return isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno in _NOBODY


def _wanted(plan: Plan) -> dict[str, None]:
    """A gateway has no page of its own: `pointsman.extproc.site_metrics` asks the control plane behind it."""
    return {
        e.key: None
        for pool in plan.pool_views()
        if pool.app_protocol is AppProtocol.HTTP
        for group in pool.groups
        if group.hop is None
        for e in group.endpoints
    }


class _Model(msgspec.Struct):
    id: str
    parent: str | None = None


class _ModelList(msgspec.Struct):
    data: list[_Model]


def model_names(body: bytes) -> tuple[frozenset[str] | None, frozenset[str]]:
    """Names in an answer of `/v1/models`, None when it is none; and those of them that have a parent: adapters."""
    try:
        models = msgspec.json.decode(body, type=_ModelList).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, frozenset()
    return frozenset(model.id for model in models), frozenset(model.id for model in models if model.parent)


async def bounded(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """The whole body, or `UpstreamError` past the limit."""
    chunks: list[bytes] = []
    size_bytes = 0
    async for chunk in response.content.iter_any():
        size_bytes += len(chunk)
        if size_bytes > limit_bytes:
            raise UpstreamError(f"answer longer than {limit_bytes} bytes")
        chunks.append(chunk)
    return b"".join(chunks)
