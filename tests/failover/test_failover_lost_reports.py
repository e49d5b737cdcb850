"""Requests whose gateway or picker is gone: nobody tells how they end, and that is no fault of the site."""

from __future__ import annotations

from typing import Any, cast

import pytest

from pointsman.app.failover_views import waiting_of
from pointsman.app.workers.supervisor import _Running
from pointsman.core.model import Endpoint, Plan, Pool, SiteGroup
from pointsman.extproc.inflight import LOST_S, REPORT_S, Account, InFlight, Silent
from pointsman.extproc.table import EndpointTable
from pointsman.failover.detect import Detector
from pointsman.failover.model import EndpointView, Member, Sample, Trigger

SITE = Member(pool="n/p", site="a")
KEYS = ("10.0.0.1:80", "10.0.0.2:80")


class Site:
    """A site with streams through a gateway that reports what runs."""

    def __init__(self) -> None:
        self.table, self.detector = EndpointTable(), Detector()
        endpoints = tuple(Endpoint(name=key, address=key.split(":")[0], port=80, site="a") for key in KEYS)
        group = SiteGroup(site="a", priority=0, weight=1, endpoints=endpoints)
        self.table.sync(Plan(pools=(Pool(name="n/p", groups=(group,)),)), 0.0)
        self.inflight = InFlight(self.table)
        self.opened: list[str] = []
        self.now_s = 1_000.0
        for _ in range(150):
            for key in KEYS * 2:
                self.detector.add(SITE, Sample(at_s=self.now_s, endpoint=key, ttft_ms=110.0, expected_ms=100.0))
            self.look()

    def look(self) -> set[Trigger]:
        self.now_s += 0.1
        views = [EndpointView(endpoint=key, metrics_age_s=0.1) for key in KEYS]
        waiting = waiting_of(self.inflight.silent(self.now_s), {("n/p", key): SITE for key in KEYS}, self.now_s)
        (seen,) = self.detector.observe(self.now_s, waiting, {SITE: views})
        self.inflight.expire(self.now_s)
        return {finding.trigger for finding in seen.findings}

    def send(self, count: int) -> None:
        for number in range(count):
            account = Account(
                row=number % 2,
                opened_at_s=self.now_s,
                heard_at_s=self.now_s,
                prefill_ms=90.0,
                uncached_tokens=100,
                context_tokens=100,
                pool="n/p",
                expected_ms=100.0,
                streaming=True,
                reported=True,
            )
            self.inflight.open(f"{self.now_s}-{number}", account)
            self.opened.append(f"{self.now_s}-{number}")

    def report(self) -> None:
        for pick in self.opened:
            account = self.inflight.heard(pick, self.now_s)
            if account is not None:
                account.reports += 1


@pytest.mark.parametrize("reports", [1, 0])
def test_requests_whose_gateway_is_gone_are_no_stall(reports: int) -> None:
    site = Site()
    site.send(40)
    found = set()
    for tick in range(700):
        if tick and tick % 5 == 0 and tick // 5 <= reports:
            site.report()
        found |= site.look()
    assert not found
    assert not site.inflight.silent(site.now_s)
    assert len(site.inflight) == 0


def test_requests_that_the_gateway_goes_on_to_report_are() -> None:
    site = Site()
    site.send(40)
    found = set()
    for tick in range(40):
        if tick % (10 * REPORT_S) == 0:
            site.report()
        found |= site.look()
    assert Trigger.STALL in found


def test_what_a_frozen_picker_said_is_soon_forgotten() -> None:
    """It is killed after five seconds; until then its requests would look as if they waited for longer and longer."""
    waits = Silent(pool="n/p", endpoint=KEYS[0], opened_at_s=0.0, silent_ms=1_000.0, expected_ms=100.0)
    nothing = cast("Any", None)
    worker = _Running(child=nothing, writer=nothing, link=nothing, silent_from_s=10.0, silent=[waits])
    assert worker.still_silent(10.0 + LOST_S) == [waits]
    assert worker.still_silent(10.1 + LOST_S) == []
