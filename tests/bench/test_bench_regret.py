"""Our choices next to the oracle's: who is judged, by what, and how it is summed up."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from bench.conftest import small_fleet
from pointsman.bench.cli import regret_command
from pointsman.bench.joint import Joint
from pointsman.bench.regret import Cause, Choice, Judged, regrets
from pointsman.bench.simulate import Simulation
from pointsman.bench.workload import Workload


def test_each_choice_is_judged_and_none_is_changed(minute: Workload) -> None:
    arrivals = minute.arrivals[:150]
    judged = Judged()
    followed = {o.arrival.id: o.replica for o in Simulation(small_fleet(), arrivals, judged).run()}
    alone = {o.arrival.id: o.replica for o in Simulation(small_fleet(), arrivals, Joint()).run()}
    assert followed == alone
    assert [choice.at_ms for choice in judged.choices] == [arrival.at_ms for arrival in arrivals]
    assert all(choice.regret_ms >= 0.0 for choice in judged.choices)
    assert all(choice.regret_ms == 0.0 for choice in judged.choices if choice.cause is None)
    found = regrets(judged.choices, 0.0)
    assert 0.3 < found.agreed < 1.0
    assert sum(found.parts.values()) == pytest.approx(1.0)


def choice(at_ms: float, regret_ms: float, cause: Cause | None) -> Choice:
    return Choice(at_ms=at_ms, regret_ms=regret_ms, cause=cause)


def test_regrets_are_summed_after_the_warm_up() -> None:
    choices = [
        choice(1.0, 900.0, Cause.TIE),
        choice(10.0, 0.0, None),
        choice(11.0, 30.0, Cause.WAIT),
        choice(12.0, 10.0, Cause.CACHE),
        choice(13.0, 0.0, None),
    ]
    found = regrets(choices, 10.0)
    assert (found.requests, found.agreed, found.mean_ms, found.worst) == (4, 0.5, 10.0, 0.75)
    assert found.parts == {Cause.CACHE: 0.25, Cause.WAIT: 0.75, Cause.REGION: 0.0, Cause.TIE: 0.0}
    assert regrets([choice(0.0, 0.0, None)], 0.0).worst == 0.0


def test_the_command_tells_of_the_causes() -> None:
    result = CliRunner().invoke(regret_command, ["--duration", "6"])
    assert result.exit_code == 0, result.output
    assert "simulated; C, 77 % load, tune slice, seed 0: mean TTFT" in result.output
    assert all(cause.value in result.output for cause in Cause)
    assert CliRunner().invoke(regret_command, ["--workload", "A"]).exit_code == 1
