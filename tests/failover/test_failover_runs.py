"""A policy at work: its state and its detector."""

from __future__ import annotations

import pytest

from pointsman.app.failover_runs import Run
from pointsman.core.change import Signature
from pointsman.failover import machine
from pointsman.failover.detect_triggers import Triggers
from pointsman.failover.model import EndpointView, Member, Sample
from pointsman.failover.spec import FailoverSpec, Tier
from pointsman.failover.state import Action, Command, Observed

EAST = Member(pool="default/p", site="east")
SPEC = FailoverSpec(
    name="FailoverPolicy/default/f",
    pools=("default/p",),
    tiers=(Tier(sites=("east", "west")),),
    sites={"default/p": ("east", "west")},
)


@pytest.mark.parametrize("force", [True, False])
def test_a_forced_way_back_is_not_undone_by_what_failed_before_it(*, force: bool) -> None:
    run = Run(machine.begin(SPEC, 0.0), Triggers())
    views = {EAST: [EndpointView(endpoint="10.0.0.1:80", metrics_age_s=0.1)]}

    def look(now_s: float) -> bool:
        seen = run.detector.observe(now_s, {}, views)
        run.state, _ = machine.step(run.state, Observed(observations=seen, at_s=now_s), now_s)
        return bool(seen[0].findings)

    look(1.0)
    for _ in range(50):
        run.detector.add(EAST, Sample(at_s=1.0, endpoint="10.0.0.1:80", failed=True))
    assert look(1.1)
    command = Command(
        action=Action.FAILBACK if force else Action.UNFREEZE,
        site="east" if force else "",
        force=force,
        signature=Signature(actor="ann", via="test"),
    )
    state, _ = machine.step(run.state, command, 1.2)
    run.change(state, 1.2, command)
    assert look(1.3) is not force
