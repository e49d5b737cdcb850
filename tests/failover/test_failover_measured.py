"""What triggers measure while none of them holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pointsman.failover.detect import Detector
from pointsman.failover.detect_triggers import Triggers
from pointsman.failover.model import EndpointView, Member, Observation, Sample, Trigger, Waiting

SITE = Member(pool="default/llama", site="a")
KEYS = ("a-1:80", "a-2:80")
UP = EndpointView(endpoint="", metrics_age_s=0.1, waiting=8.0, kv_usage=0.2, rtt_ms=2.0)
WELL = Sample(at_s=0.0, endpoint=KEYS[0], ended=True, ttft_ms=110.0, expected_ms=100.0)


class Site:
    """Two endpoints with requests at 50 a second, looked at ten times a second."""

    def __init__(self, triggers: Triggers | None = None) -> None:
        self.detector = Detector(triggers)
        self.now_s = 1_000.0
        self.views = [replace(UP, endpoint=key) for key in KEYS]
        self.waiting: list[Waiting] = []
        self._number = 0

    def live(self, seconds: float, *, late_ms: float = 0.0, failing: int = 0) -> Observation:
        """`failing`: each so many requests one fails; 0: none does."""
        seen = None
        for _ in range(round(seconds * 10)):
            for _ in range(5):
                self._number += 1
                bad = bool(failing) and self._number % failing == 0
                sample = replace(WELL, at_s=self.now_s, endpoint=KEYS[self._number % 2], ttft_ms=110.0 + late_ms)
                self.detector.add(SITE, replace(sample, failed=True, ttft_ms=None) if bad else sample)
            self.now_s += 0.1
            (seen,) = self.detector.observe(self.now_s, {SITE: self.waiting}, {SITE: self.views})
        assert seen is not None
        return seen

    def measured(self, seen: Observation) -> dict[Trigger, tuple[float, float]]:
        found = self.detector.measured([seen], self.now_s)
        assert {member for member, _ in found} == {SITE}
        return {one.trigger: (one.value, one.threshold) for _, one in found}


def test_a_site_that_is_well_has_a_little_of_everything() -> None:
    site = Site()
    found = site.measured(site.live(10))
    assert found[Trigger.ERROR_RATE] == (0.0, 0.1)
    assert found[Trigger.LATENCY] == (pytest.approx(0.0, abs=5.0), 500.0)
    assert found[Trigger.STALL] == (0.0, 500.0)
    assert found[Trigger.PROBE] == (0.0, 0.5)
    assert found[Trigger.SATURATION] == (pytest.approx(0.25), 1.0)


def test_one_sees_it_come_before_it_holds() -> None:
    site = Site()
    site.live(10)
    seen = site.live(6, failing=25, late_ms=200.0)
    assert seen.findings == ()
    found = site.measured(seen)
    assert found[Trigger.ERROR_RATE] == (pytest.approx(0.04, abs=0.01), 0.1)
    assert found[Trigger.LATENCY] == (pytest.approx(200.0, abs=30.0), 500.0)
    site.waiting = [Waiting(endpoint=KEYS[0], age_ms=2_000.0, expected_ms=100.0)]
    site.views.append(EndpointView(endpoint="a-3:80", scrape_failing=True))
    found = site.measured(site.live(0.1))
    assert found[Trigger.STALL] == (pytest.approx(1_890.0, abs=100.0), 500.0)
    assert found[Trigger.PROBE] == (pytest.approx(1 / 3), 0.5)


def test_triggers_that_are_off_measure_nothing() -> None:
    site = Site(Triggers(error_rate=None, latency=None, stall=None, saturation=None, probe=None))
    assert site.detector.measured([site.live(1)], site.now_s) == []
