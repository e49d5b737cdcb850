"""The noises that must never move a site's traffic, and the faults that must be found, with the bars of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from pointsman.failover.noise import Climate, Weather, alternating, diurnal, pauses, steady

SHARED_TOKENS: Final = 20.0
"""What is left of a prompt whose beginning is cached: an endpoint does 58 of these a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """A climate that must never move traffic. `endpoints` of each site, of which `shared` have the prefix of all."""

    name: str
    climate: Climate
    endpoints: int = 8
    shared: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What must be found, and within how many seconds (None: as soon as may be). `shared` as for noise."""

    name: str
    before: Weather
    after: Weather
    within_s: float | None
    endpoints: int = 8
    shared: int = 0


def noises(seconds: float) -> list[Noise]:
    """All of them; the day lasts as long as the run."""
    usual, few = Weather(), Weather(per_s=20.0)
    return [
        Noise(name="+300 ms, a minute of two", climate=alternating(120.0, 0.5, usual, Weather(added_ms=300.0))),
        Noise(name="2 % 503 at 100/s", climate=steady(Weather(failing=0.02))),
        Noise(name="2 % 503 at 5/s", climate=steady(Weather(per_s=5.0, failing=0.02))),
        Noise(
            name="8 x prompt lengths, 30 s of 120 s, load 11 % to 55 %",
            climate=alternating(120.0, 0.25, few, Weather(per_s=20.0, tokens=2_400.0)),
        ),
        Noise(
            name="8 x prompt lengths, 30 s of 300 s, load 31 % to 166 %",
            climate=alternating(300.0, 0.1, Weather(per_s=60.0), Weather(per_s=60.0, tokens=2_400.0)),
        ),
        Noise(
            name="pauses of 1 s at single endpoints of four, every 15 s",
            climate=pauses(Weather(per_s=50.0), 15.0, range(4)),
            endpoints=4,
        ),
        Noise(
            name="pauses of 1 s, all requests at two of four",
            climate=pauses(Weather(per_s=50.0, tokens=SHARED_TOKENS), 15.0, range(4)),
            endpoints=4,
            shared=2,
        ),
        Noise(
            name="pauses of 1 s, all requests at one of four",
            climate=pauses(Weather(per_s=25.0, tokens=SHARED_TOKENS), 15.0, range(4)),
            endpoints=4,
            shared=1,
        ),
        Noise(name="quiet night: 0.2/s, 2 % 503", climate=steady(Weather(per_s=0.2, failing=0.02))),
        Noise(name="a day: load 3 % to 90 %", climate=diurnal(seconds, 5.0, 176.0, 300.0)),
    ]


def faults() -> list[Fault]:
    """All of them, with the bars of the requirements."""
    usual, few, night = Weather(), Weather(per_s=5.0), Weather(per_s=0.2)
    one = Weather(per_s=30.0, tokens=SHARED_TOKENS)
    two = Weather(per_s=60.0, tokens=SHARED_TOKENS)
    return [
        Fault(name="100 % 503 at 100/s", before=usual, after=Weather(failing=1.0), within_s=1.0),
        Fault(name="30 % 503 at 100/s", before=usual, after=Weather(failing=0.3), within_s=5.0),
        Fault(name="+500 ms at 100/s", before=usual, after=Weather(added_ms=500.0), within_s=2.0),
        Fault(
            name="+500 ms at two of four",
            before=two,
            after=replace(two, added_ms=500.0),
            within_s=3.0,
            endpoints=4,
            shared=2,
        ),
        Fault(
            name="+500 ms at one of four",
            before=one,
            after=replace(one, added_ms=500.0),
            within_s=5.0,
            endpoints=4,
            shared=1,
        ),
        Fault(name="+500 ms at 5/s", before=few, after=Weather(per_s=5.0, added_ms=500.0), within_s=6.0),
        Fault(name="stall at 100/s", before=usual, after=Weather(stalled=True), within_s=2.0),
        Fault(name="black hole at 100/s", before=usual, after=Weather(gone=True), within_s=2.0),
        Fault(name="100 % 503 at 5/s", before=few, after=Weather(per_s=5.0, failing=1.0), within_s=None),
        Fault(name="30 % 503 at 5/s", before=few, after=Weather(per_s=5.0, failing=0.3), within_s=None),
        Fault(name="stall at 5/s", before=few, after=Weather(per_s=5.0, stalled=True), within_s=None),
        Fault(name="black hole at 5/s", before=few, after=Weather(per_s=5.0, gone=True), within_s=None),
        Fault(name="100 % 503 at 0.2/s", before=night, after=Weather(per_s=0.2, failing=1.0), within_s=None),
    ]
