"""One replay from its options to its result: trace, model, upstreams, load, counters."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from pointsman.core.clock import Clock, SystemClock
from pointsman.core.defaults import ADMIN_PORT, LOOPBACK
from pointsman.core.errors import ConfigError, PeerError, Problem, UpstreamError
from pointsman.replay.load import LoadOptions, Tally, client_session, run_load
from pointsman.replay.progress import ProgressSink, Silent
from pointsman.replay.report import ReplayResult
from pointsman.replay.trace import Selection, load_trace
from pointsman.replay.upstreams import Upstream, discover, fetch, scrape

DEFAULT_ADMIN: Final = f"http://{LOOPBACK}:{ADMIN_PORT}"
"""Asked for the upstreams when nothing else is said and the gateway is on this machine too."""

PROGRESS_INTERVAL_S: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What to replay and where to.

    `gateway` is a base URL with or without `/v1`. `model` empty: the first that the gateway lists. `speed` > 0 divides
    the arrival times. `upstreams` are scraped for their counters besides those that `admin` lists; `admin` None means
    `DEFAULT_ADMIN` if it answers and the gateway is local, while an `admin` that was named must answer.
    """

    trace: Path
    gateway: str
    model: str = ""
    speed: float = 1.0
    selection: Selection = field(default_factory=Selection)
    admin: str | None = None
    upstreams: tuple[Upstream, ...] = ()
    timeout_s: float = 600.0


async def replay(
    options: ReplayOptions,
    *,
    clock: Clock | None = None,
    progress: ProgressSink | None = None,
    stop: asyncio.Event | None = None,
) -> ReplayResult:
    """Replay the trace; returns when the last request ended, or soon after `stop` was set, with what there is then.

    Raises `ConfigError` for options or a trace that cannot be used, `PeerError` for an admin API that was named and
    does not work. Failing requests are part of the result.
    """
    clock = clock or SystemClock()
    stop = stop or asyncio.Event()
    gateway = base_url(options.gateway, "--gateway")
    trace = await asyncio.to_thread(load_trace, options.trace, options.selection)
    tally = Tally(planned=len(trace.requests))
    async with client_session() as session:
        model = options.model or await _first_model(session, gateway)
        upstreams, notes = await _upstreams(session, options, gateway)
        before, mute = await scrape(session, upstreams)
        load = LoadOptions(gateway=gateway, model=model, speed=options.speed, timeout_s=options.timeout_s)
        start_s = clock.monotonic_s()
        async with _shown(tally, clock, start_s, progress or Silent()):
            await run_load(trace.requests, load, session=session, clock=clock, tally=tally, stop=stop)
        wall_s = clock.monotonic_s() - start_s
        after, mute_after = await scrape(session, upstreams)
    return ReplayResult(
        trace=trace.source,
        gateway=gateway,
        model=model,
        speed=options.speed,
        seed=options.selection.seed,
        jitter_ms=trace.jitter_ms,
        planned=tally.planned,
        sent=tally.sent,
        records=tuple(tally.records),
        wall_s=wall_s,
        interrupted=stop.is_set(),
        upstreams=upstreams,
        before=before,
        after=after,
        notes=(*notes, *_mute_notes({**mute, **mute_after}, upstreams)),
    )


def base_url(url: str, setting: str) -> str:
    """The URL without `/v1` and slashes at its end. Raises `ConfigError` that names the setting."""
    mend = "expected a URL like http://127.0.0.1:8080"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ConfigError(Problem(file=setting, line=0, field="", what=f"{url!r}: {error}", mend=mend)) from error
    if not valid or parts.query or parts.fragment:
        raise ConfigError(Problem(file=setting, line=0, field="", what=f"{url!r} is no base URL", mend=mend))
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def _first_model(session: aiohttp.ClientSession, gateway: str) -> str:
    mend = "is the gateway up? Name a model with --model if it lists none"
    try:
        listed = msgspec.json.decode(await fetch(session, f"{gateway}/v1/models"), type=_Models)
    except (UpstreamError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(Problem(file="--gateway", line=0, field="", what=str(error), mend=mend)) from error
    if not listed.data:
        raise ConfigError(Problem(file="--gateway", line=0, field="", what="no model is listed", mend=mend))
    return listed.data[0].id


async def _upstreams(
    session: aiohttp.ClientSession, options: ReplayOptions, gateway: str
) -> tuple[tuple[Upstream, ...], list[str]]:
    """The upstreams of the admin API and those named, each once, and what could not be learnt."""
    listed: tuple[Upstream, ...] = ()
    notes = []
    if options.admin is not None:
        listed = await discover(session, base_url(options.admin, "--admin"))
    elif not options.upstreams and _is_local(gateway):
        try:
            listed = await discover(session, DEFAULT_ADMIN)
        except PeerError as error:
            notes.append(f"{error}; without --admin or --upstream only what clients see is reported")
    known = {u.key for u in listed}
    return (*listed, *(u for u in options.upstreams if u.key not in known)), notes


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _mute_notes(mute: Mapping[str, str], upstreams: tuple[Upstream, ...]) -> list[str]:
    """One note for all upstreams without counters: a pool of another protocol has as many as it has replicas."""
    names = [u.name for u in upstreams if u.key in mute]
    if not names:
        return []
    reason = mute[next(u.key for u in upstreams if u.key in mute)]
    return [f"no counters of {', '.join(names[:3])}{' …' if len(names) > 3 else ''} ({len(names)}): {reason}"]


@contextlib.asynccontextmanager
async def _shown(tally: Tally, clock: Clock, start_s: float, progress: ProgressSink) -> AsyncIterator[None]:
    """Progress while the body runs, and once at its end."""

    async def show() -> None:
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL_S)
            progress.update(tally, clock.monotonic_s() - start_s)

    task = asyncio.create_task(show())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        progress.update(tally, clock.monotonic_s() - start_s)
