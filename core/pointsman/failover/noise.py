"""A made-up site in virtual time, to ask a detector what it makes of noise and of faults. Simulated, not measured.

Each endpoint prefills one request after the other (first come, first served) and then decodes it beside the others:

    prefill   15.6 ms + 0.086 ms a token + 1.3e-6 ms a token squared, times a lognormal factor (sigma 0.3)
    step      the first byte waits for the running step: exponential, mean 40 ms
    tokens    not in a cache: lognormal, sigma 1.0, the mean is the scenario's
    answer    lognormal, mean 150 tokens of 30 ms each; four of five answers are streamed
    network   2 ms; reports 20 to 70 ms after the fact, on running requests at each whole second of their age

The picker of this world believes prefills to be a quarter cheaper than they are, knows the queue by what it sent and by
scrapes of 0.2 s, and sends a request to the endpoint with the shortest believed wait (one in five anywhere; who fails
is avoided for a while). So its expectations are wrong as real ones are: by a factor, by the luck of each step, and more
when queues are long. Where all prompts share a prefix it knows no others than the few endpoints that have it, while
those are in service: what the detector lists is out for half a minute then, as failover has it.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from pointsman.failover.detect import Detector
from pointsman.failover.model import EndpointView, Finding, Member, Sample, Trigger, Waiting

TICK_S: Final = 0.1
FIXED_MS: Final = 15.6
TOKEN_MS: Final = 0.086
TOKEN_SQUARED_MS: Final = 1.3e-6
BELIEVED: Final = 0.75
PREFILL_SIGMA: Final = 0.3
STEP_MS: Final = 40.0
TOKEN_SIGMA: Final = 1.0
ANSWER_TOKENS: Final = 150.0
ANSWER_MS: Final = 30.0
RTT_MS: Final = 2.0
STREAMED: Final = 0.8
ANYWHERE: Final = 0.2
SCRAPE_S: Final = 0.2
RETRY_MS: Final = 25.0
CALM_PER_S: Final = 5.0
MAX_SILENT: Final = 32  # of each endpoint, as the picker lists them
PENALTY_MS: Final = 2_000.0
PENALTY_HALF_LIFE_S: Final = 2.0
"""What a failure costs an endpoint at the picker."""

FIRST_BYTE_TIMEOUT_S: Final = 2.0
"""After which a streaming route tries another endpoint (`failover.retry.firstByteTimeout`)."""

OUT_S: Final = 30.0
PROGRAMMED_S: Final = 0.1
"""How long an endpoint is out that the detector listed, and after which time gateways and pickers know it."""

FAULTS: Final = frozenset({Trigger.ERROR_RATE, Trigger.LATENCY, Trigger.STALL, Trigger.PROBE, Trigger.METRICS_ABSENT})
"""What would move a site's traffic away; saturation only spills."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What happens to a site at one moment.

    `per_s`: requests; `tokens`: their mean, not cached. `failing`: the share of attempts that fail at once; `added_ms`
    before each first byte. `stalled`: nothing comes any more; `gone`: nor does a scrape. `paused`: one endpoint that
    stands still from now for a second.
    """

    per_s: float = 100.0
    tokens: float = 300.0
    failing: float = 0.0
    added_ms: float = 0.0
    stalled: bool = False
    gone: bool = False
    paused: int | None = None


Climate = Callable[[float], Weather]
"""Seconds since the start → the weather of that tenth of a second."""


@dataclass(slots=True)
class _Endpoint:
    key: str
    free_s: float = 0.0
    believed_s: float = 0.0
    penalty_ms: float = 0.0
    penalty_s: float = 0.0
    starts: deque[float] = field(default_factory=deque)
    out_s: float = -math.inf
    scraped: int = 0
    scraped_s: float = 0.0


@dataclass(slots=True)
class _Pending:
    endpoint: str
    opened_s: float
    expected_ms: float
    until_s: float


class Site:
    """One site with `endpoints` endpoints in some climate. `shared` of them have the prefix of all prompts; 0: none."""

    def __init__(self, member: Member, climate: Climate, *, endpoints: int, seed: int, shared: int = 0) -> None:
        self.member = member
        self._climate = climate
        self._shared = shared
        self._random = random.Random(seed)  # noqa: S311 - a simulation
        self._endpoints = [_Endpoint(f"{member.site}-{number}:8000") for number in range(endpoints)]
        self._reports: dict[int, list[tuple[float, Sample]]] = {}
        self._pending: list[_Pending] = []
        self._stalled_s = math.inf
        self._gone_s = math.inf
        self._mean_ms = 50.0

    def tick(self, number: int) -> Iterator[Sample]:
        """Let a tenth of a second pass; returns the samples that are told in it, in order."""
        began_s = number * TICK_S
        weather = self._climate(began_s)
        self._stalled_s = min(self._stalled_s, began_s) if weather.stalled or weather.gone else math.inf
        self._gone_s = min(self._gone_s, began_s) if weather.gone else math.inf
        if weather.paused is not None:
            paused = self._endpoints[weather.paused % len(self._endpoints)]
            paused.free_s = max(paused.free_s, began_s) + 1.0
        self._scrape(began_s)
        at_s = began_s + self._random.expovariate(weather.per_s)
        while at_s < began_s + TICK_S:
            self._arrive(at_s, weather)
            at_s += self._random.expovariate(weather.per_s)
        told = self._reports.pop(number, [])
        told.sort(key=lambda report: report[0])
        for _, sample in told:
            if sample.ended and not sample.failed and sample.at_s > self._stalled_s + 0.1:
                continue  # nothing ends in a stall
            yield sample

    def waiting(self, now_s: float) -> list[Waiting]:
        """Who has been reported to be without a first byte."""
        self._pending = [one for one in self._pending if one.until_s > now_s]
        found: list[Waiting] = []
        listed: dict[str, int] = {}
        for one in self._pending:
            age_s = now_s - one.opened_s
            silent_s = math.floor(age_s - 0.07)
            if silent_s >= 1 and listed.setdefault(one.endpoint, 0) < MAX_SILENT:
                listed[one.endpoint] += 1
                found.append(
                    Waiting(
                        endpoint=one.endpoint,
                        age_ms=age_s * 1000.0,
                        expected_ms=one.expected_ms,
                        silent_ms=silent_s * 1000.0,
                    )
                )
        return found

    def views(self, now_s: float) -> list[EndpointView]:
        """What the scrapes say."""
        gone = now_s - self._gone_s > 2.8  # two tries that time out, with the pause between
        return [
            EndpointView(
                endpoint=one.key,
                metrics_age_s=max(0.0, now_s - min(one.scraped_s, self._gone_s)),
                scrape_failing=gone,
                waiting=float(one.scraped),
                rtt_ms=RTT_MS,
            )
            for one in self._endpoints
        ]

    def take_out(self, keys: Sequence[str], now_s: float) -> None:
        """The detector lists these endpoints: half of a site at most is out at once."""
        for one in self._endpoints:
            out = sum(now_s < other.out_s + OUT_S for other in self._endpoints)
            if one.key in keys and now_s >= one.out_s + OUT_S and out < len(self._endpoints) // 2:
                one.out_s = now_s + PROGRAMMED_S

    def _scrape(self, now_s: float) -> None:
        if self._gone_s < now_s:
            return
        for one in self._endpoints:
            if now_s - one.scraped_s >= SCRAPE_S - 1e-9:
                while one.starts and one.starts[0] <= now_s:
                    one.starts.popleft()
                one.scraped, one.scraped_s = len(one.starts), now_s

    def _arrive(self, at_s: float, weather: Weather) -> None:
        draw = self._random
        tokens = weather.tokens * math.exp(draw.gauss(-(TOKEN_SIGMA**2) / 2, TOKEN_SIGMA))
        prefill_ms = FIXED_MS + TOKEN_MS * tokens + TOKEN_SQUARED_MS * tokens * tokens
        believed_ms = BELIEVED * prefill_ms
        self._mean_ms += 0.05 * (believed_ms - self._mean_ms)
        endpoint = self._choose(at_s)
        if weather.failing and draw.random() < weather.failing:
            endpoint.penalty_ms = min(10.0 * PENALTY_MS, _penalty_ms(endpoint, at_s) + PENALTY_MS)
            endpoint.penalty_s = at_s
            self._tell(at_s + RTT_MS / 1000.0, Sample(at_s=0.0, endpoint=endpoint.key, failed=True, retried=True))
            return
        expected_ms = RTT_MS + self._wait_ms(endpoint, at_s) + believed_ms
        endpoint.believed_s = max(at_s, endpoint.believed_s) + believed_ms / 1000.0
        start_s = max(at_s, endpoint.free_s)
        if start_s > at_s:
            endpoint.starts.append(start_s)
        endpoint.free_s = start_s + prefill_ms * draw.lognormvariate(0.0, PREFILL_SIGMA) / 1000.0
        first_s = endpoint.free_s + (RTT_MS + weather.added_ms + draw.expovariate(1.0 / STEP_MS)) / 1000.0
        streamed = draw.random() < STREAMED
        if first_s > self._stalled_s:
            self._hang(at_s, endpoint, expected_ms, streamed=streamed)
            return
        end_s = first_s + ANSWER_TOKENS * ANSWER_MS / 1000.0 * math.exp(draw.gauss(-0.5, 1.0))
        self._answer(endpoint.key, (at_s, first_s, end_s), expected_ms, streamed=streamed)

    def _choose(self, at_s: float) -> _Endpoint:
        if self._shared:
            fit = [one for one in self._endpoints if not one.out_s <= at_s < one.out_s + OUT_S][: self._shared]
            return min(fit, key=lambda one: self._wait_ms(one, at_s) + _penalty_ms(one, at_s))
        if self._random.random() < ANYWHERE:
            return self._random.choice(self._endpoints)
        first = self._random.randrange(len(self._endpoints))  # ties go to anyone
        ring = self._endpoints[first:] + self._endpoints[:first]
        return min(ring, key=lambda one: self._wait_ms(one, at_s) + _penalty_ms(one, at_s))

    def _wait_ms(self, endpoint: _Endpoint, at_s: float) -> float:
        return max(0.0, (endpoint.believed_s - at_s) * 1000.0, endpoint.scraped * self._mean_ms)

    def _answer(
        self, endpoint: str, times_s: tuple[float, float, float], expected_ms: float, *, streamed: bool
    ) -> None:
        opened_s, first_s, end_s = times_s
        if not streamed:
            self._tell(end_s, Sample(at_s=0.0, endpoint=endpoint))
            return
        ttft_ms = (first_s - opened_s) * 1000.0
        told_s = opened_s + math.ceil(first_s - opened_s)
        first = Sample(at_s=0.0, endpoint=endpoint, ttft_ms=ttft_ms, expected_ms=expected_ms, ended=end_s <= told_s)
        self._tell(min(told_s, end_s), first)
        if first_s - opened_s > 1.0:
            self._pending.append(_Pending(endpoint, opened_s, expected_ms, told_s))
        if end_s > told_s:
            self._tell(end_s, Sample(at_s=0.0, endpoint=endpoint))

    def _hang(self, at_s: float, endpoint: _Endpoint, expected_ms: float, *, streamed: bool) -> None:
        """No answer. A streaming route gives up after a while and finds one elsewhere."""
        if not streamed:
            return
        until_s = at_s + FIRST_BYTE_TIMEOUT_S
        self._pending.append(_Pending(endpoint.key, at_s, expected_ms, until_s))
        self._tell(until_s + RETRY_MS / 1000.0, Sample(at_s=0.0, endpoint=endpoint.key, failed=True, retried=True))

    def _tell(self, at_s: float, sample: Sample) -> None:
        at_s += 0.02 + 0.05 * self._random.random()
        told = Sample(
            at_s=at_s,
            endpoint=sample.endpoint,
            failed=sample.failed,
            ttft_ms=sample.ttft_ms,
            expected_ms=sample.expected_ms,
            ended=sample.ended,
            retried=sample.retried,
        )
        self._reports.setdefault(int(at_s / TICK_S), []).append((at_s, told))


def _penalty_ms(endpoint: _Endpoint, now_s: float) -> float:
    if not endpoint.penalty_ms:
        return 0.0
    return float(endpoint.penalty_ms * 2.0 ** ((endpoint.penalty_s - now_s) / PENALTY_HALF_LIFE_S))


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What a detector said of the first site: findings that would move it, when the first came, and what else."""

    trips: int = 0
    first: Finding | None = None
    first_s: float = math.nan
    saturated: int = 0
    ejected: int = 0
    elsewhere: int = 0
    requests: int = 0


def rehearse(
    climate: Climate,
    *,
    seconds: float,
    endpoints: int = 8,
    seed: int = 1,
    detector: Detector | None = None,
    until_first: bool = False,
    quiet_s: float = 0.0,
    shared: int = 0,
) -> Verdict:
    """Two sites, the first in `climate`, the second in calm weather with `CALM_PER_S` at most. Decides at 10 Hz.

    Trips before `quiet_s` end the rehearsal as others do, with their time. `until_first`: stop at the first finding.
    """
    detector = detector or Detector()
    calm = climate(0.0)
    usual = Weather(per_s=min(calm.per_s, CALM_PER_S), tokens=calm.tokens)
    sites = (
        Site(Member(pool="default/llama", site="a"), climate, endpoints=endpoints, seed=seed, shared=shared),
        Site(Member(pool="default/llama", site="b"), lambda _: usual, endpoints=endpoints, seed=seed + 1_000_003),
    )
    verdict = Verdict()
    tripped = False
    for number in range(int(seconds / TICK_S)):
        now_s = (number + 1) * TICK_S
        for site in sites:
            for sample in site.tick(number):
                detector.add(site.member, sample)
                verdict.requests += 1
        seen = detector.observe(
            now_s,
            {site.member: site.waiting(now_s) for site in sites},
            {site.member: site.views(now_s) for site in sites},
        )
        faults = [finding for finding in seen[0].findings if finding.trigger in FAULTS]
        verdict.saturated += any(finding.trigger is Trigger.SATURATION for finding in seen[0].findings)
        verdict.ejected += len(seen[0].failing_endpoints)
        if shared:
            sites[0].take_out(seen[0].failing_endpoints, now_s)
        verdict.elsewhere += any(finding.trigger in FAULTS for finding in seen[1].findings)
        verdict.trips += bool(faults) and not tripped
        tripped = bool(faults)
        if faults and verdict.first is None and now_s >= quiet_s:
            verdict.first, verdict.first_s = faults[0], now_s
            if until_first:
                break
    return verdict


def steady(weather: Weather) -> Climate:
    """The same weather for ever."""
    return lambda _: weather


def from_second(fault_s: float, before: Weather, after: Weather) -> Climate:
    """One weather until `fault_s`, another from then on."""
    return lambda now_s: after if now_s >= fault_s else before


def alternating(period_s: float, part: float, usual: Weather, other: Weather) -> Climate:
    """`other` for the last `part` of each period."""
    return lambda now_s: other if now_s % period_s >= (1.0 - part) * period_s else usual


def diurnal(day_s: float, low_per_s: float, high_per_s: float, tokens: float) -> Climate:
    """A day's load, from `low_per_s` to `high_per_s` and back."""

    def climate(now_s: float) -> Weather:
        level = 0.5 - 0.5 * math.cos(2.0 * math.pi * now_s / day_s)
        return Weather(per_s=low_per_s + level * (high_per_s - low_per_s), tokens=tokens)

    return climate


def pauses(usual: Weather, every_s: float, endpoints: Sequence[int]) -> Climate:
    """One endpoint after the other stands still for a second, every `every_s`."""

    def climate(now_s: float) -> Weather:
        step, since = divmod(round(now_s / TICK_S), round(every_s / TICK_S))
        if since or not step:
            return usual
        return Weather(per_s=usual.per_s, tokens=usual.tokens, paused=endpoints[step % len(endpoints)])

    return climate
