"""TrafficOperations: each is done once, ended in time, and survives a restart at any moment."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from msgspec import structs

from config.config_fixtures import FLEET, manifests
from pointsman.core.change import Signature
from pointsman.failover import machine
from pointsman.failover.model import Member
from pointsman.failover.schedule_operations import (
    KEPT,
    Operation,
    Operations,
    Order,
    Status,
    carried_out,
    due,
    operation_of,
    operations_from_json,
    operations_to_json,
    resume,
    watched,
)
from pointsman.failover.spec import FailoverSpec, Tier
from pointsman.failover.state import Action, Command, FailoverError, Phase, SpecChanged, State

TUESDAY_S = 1_767_693_600.0  # 6 January 2026, 10:00 UTC


def operation(**spec: Any) -> Operation:
    manifest = {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "TrafficOperation",
        "metadata": {"name": "leave-east"},
        "spec": {"action": "Drain", "target": {"kind": "Site", "name": "east"}, "reason": "new switch", **spec},
    }
    (found,) = manifests(f"{FLEET}---\n{yaml.safe_dump(manifest)}").operations
    return operation_of(found)


class Shell:
    """Does what is due to one machine, and keeps what a shell would keep."""

    def __init__(self) -> None:
        spec = FailoverSpec(
            name="FailoverPolicy/default/f",
            pools=("default/stable",),
            tiers=(Tier(sites=("east", "west")),),
            sites={"default/stable": ("east", "west")},
        )
        self.state: State = machine.begin(spec, TUESDAY_S)
        self.operations = Operations()
        self.done: list[str] = []

    def look(self, now_s: float, *wanted: Operation) -> None:
        self.operations, orders = due(self.operations, wanted, now_s)
        self.restart()
        self.carry_out(orders, now_s)

    def restart(self) -> None:
        self.operations = operations_from_json(operations_to_json(self.operations))

    def carry_out(self, orders: tuple[Order, ...], now_s: float) -> None:
        for order in orders:
            refusal = ""
            try:
                state, _ = machine.step(self.state, order.command, now_s)
            except FailoverError as error:
                refusal = str(error)
            else:
                self.state = self.state if order.dry_run else state
                self.done.append(order.command.action.value)
            self.operations = carried_out(self.operations, order, refusal)

    @property
    def east(self) -> Phase:
        return self.state.members["default/stable@east"].phase

    @property
    def statuses(self) -> list[Status]:
        return [run.status for run in self.operations.runs.values()]


def test_an_operation_is_done_once_and_ends_in_time() -> None:
    shell, drain = Shell(), operation(ttl="30m")
    for now_s in (0.0, 1.0, 1_799.0):
        shell.look(TUESDAY_S + now_s, drain)
        assert (shell.done, shell.east) == (["drain"], Phase.DRAINED)
    shell.look(TUESDAY_S + 1_800, drain)
    assert shell.done == ["drain", "activate"]
    assert shell.east is Phase.RAMPING
    shell.look(TUESDAY_S + 9_000, drain)
    assert shell.done == ["drain", "activate"]
    assert shell.statuses == [Status.ENDED]


def test_another_content_is_another_operation() -> None:
    shell = Shell()
    shell.look(TUESDAY_S, operation())
    shell.look(TUESDAY_S + 1, operation(action="Activate"))
    assert shell.done == ["drain", "activate"]
    shell.look(TUESDAY_S + 2, operation(action="Activate"))
    assert shell.done == ["drain", "activate"]


def test_a_default_that_is_written_out_is_no_other_content() -> None:
    target = {"kind": "Site", "name": "east", "pool": ""}
    assert operation(force=False, abortIf=[], target=target).content == operation().content
    assert operation(force=True).content != operation().content
    assert operation(reason="another").content != operation().content


def test_what_was_begun_before_a_crash_is_asked_for_again() -> None:
    shell, drain = Shell(), operation()
    shell.operations, _ = due(shell.operations, (drain,), TUESDAY_S)  # killed here
    shell.restart()
    shell.carry_out(resume(shell.operations), TUESDAY_S + 5)
    assert (shell.statuses, shell.east) == ([Status.IN_FORCE], Phase.DRAINED)
    assert resume(shell.operations) == ()
    shell.look(TUESDAY_S + 6, drain)
    assert shell.done == ["drain"]


def test_a_refused_one_is_kept_with_its_reason_and_not_tried_again() -> None:
    shell = Shell()
    drain_west = operation(target={"kind": "Site", "name": "east"}, requestedBy="bob")
    shell.state, _ = machine.step(shell.state, Command(action=Action.DRAIN, site="west"), TUESDAY_S)
    shell.look(TUESDAY_S, drain_west)
    shell.look(TUESDAY_S + 1, drain_west)
    (run,) = shell.operations.runs.values()
    assert run.status is Status.REFUSED
    assert "maxConcurrentDrains" in run.why
    assert shell.east is Phase.HEALTHY


def test_a_dry_run_changes_nothing() -> None:
    shell = Shell()
    shell.look(TUESDAY_S, operation(dryRun=True))
    assert (shell.statuses, shell.east) == ([Status.DRY_RUN], Phase.HEALTHY)


def test_a_scheduled_one_is_done_at_each_match_and_never_late() -> None:
    shell, weekly = Shell(), operation(schedule="0 10 * * 2", ttl="10m")
    shell.look(TUESDAY_S - 3_600, weekly)
    assert shell.done == []
    shell.look(TUESDAY_S + 20, weekly)
    shell.look(TUESDAY_S + 40, weekly)
    assert shell.done == ["drain"]
    shell.look(TUESDAY_S + 620, weekly)
    assert shell.done == ["drain", "activate"]
    week_s = 7 * 86_400.0
    shell.look(TUESDAY_S + week_s + 301, weekly)  # nobody was there in time
    assert shell.done == ["drain", "activate"]
    shell.look(TUESDAY_S + 2 * week_s + 299, weekly)
    assert shell.done == ["drain", "activate", "drain"]
    assert [run.rpartition("@")[2] for run in shell.operations.runs] == ["2026-01-06T10:00Z", "2026-01-20T10:00Z"]


def test_a_schedule_does_not_look_back_before_it_was_known() -> None:
    shell = Shell()
    shell.look(TUESDAY_S + 120, operation(schedule="0 10 * * 2"))
    assert shell.done == []


def test_it_is_aborted_when_clients_suffer() -> None:
    shell, drain = Shell(), operation(abortIf=["errorRate>1%", "ttft.p95>3s"])
    shell.look(TUESDAY_S, drain)
    for seen in ({"errorRate": 0.01, "ttft.p95": 3_000.0}, {}):
        shell.operations, orders = watched(shell.operations, seen, TUESDAY_S + 5)
        assert orders == ()
    shell.operations, orders = watched(shell.operations, {"ttft.p95": 3_100.0}, TUESDAY_S + 6)
    shell.carry_out(orders, TUESDAY_S + 6)
    (run,) = shell.operations.runs.values()
    assert (run.status, run.why) == (Status.ENDED, "aborted: ttft.p95 3100 over 3000")
    assert shell.east is Phase.RAMPING


def test_its_end_leaves_alone_what_somebody_else_took_out() -> None:
    shell, drain = Shell(), operation(ttl="10s")
    shell.look(TUESDAY_S, drain)
    alice = Signature(actor="alice", via="cli")
    for action in (Action.ACTIVATE, Action.EVACUATE):
        command = Command(action=action, site="east", force=True, signature=alice)
        shell.state, _ = machine.step(shell.state, command, TUESDAY_S + 1)
    shell.look(TUESDAY_S + 11, drain)
    assert shell.east is Phase.EVACUATED
    (run,) = shell.operations.runs.values()
    assert run.status is Status.ENDED
    assert "is not drained" in run.why


def test_endpoints_and_pools_are_named_in_full() -> None:
    found = operation(target={"kind": "Site", "name": "east", "pool": "stable"})
    assert (found.site, found.pool) == ("east", "default/stable")
    found = operation(target={"kind": "Endpoint", "name": "10.0.0.1:8000"}, deadline="2026-01-06T10:02:00Z")
    assert (found.site, found.endpoint, found.deadline_s) == ("", "10.0.0.1:8000", TUESDAY_S + 120)


def test_old_runs_are_forgotten_and_those_that_count_are_not() -> None:
    shell, drain = Shell(), operation(action="Activate", target={"kind": "Endpoint", "name": "10.0.0.1:8000"})
    shell.look(TUESDAY_S, drain)
    shell.look(TUESDAY_S + 40 * 86_400, drain)
    assert len(shell.operations.runs) == 1
    shell.look(TUESDAY_S + 40 * 86_400)
    assert shell.operations.runs == {}


def test_a_damaged_file_is_refused() -> None:
    with pytest.raises(FailoverError, match="damaged"):
        operations_from_json(b"{")
    with pytest.raises(FailoverError, match="version 2"):
        operations_from_json(b'{"version": 2}')


@pytest.mark.parametrize("action", [Action.DRAIN, Action.EVACUATE, Action.FAILOVER])
def test_a_site_that_was_taken_out_stays_out_while_it_has_no_endpoints(action: Action) -> None:
    """Whoever drains a site scales it to nothing next; what he starts there later must wait for his word."""
    shell = Shell()
    whole = shell.state.spec
    empty = structs.replace(whole, sites={"default/stable": ("west",)})
    command = Command(action=action, site="east", signature=Signature(actor="ann", via="test"))
    shell.state, _ = machine.step(shell.state, command, TUESDAY_S)
    out = shell.east
    for spec in (empty, empty, whole):
        shell.state, _ = machine.step(shell.state, SpecChanged(spec=spec), TUESDAY_S + 60)
        assert shell.east is out
    assert machine.directives(shell.state)[Member(pool="default/stable", site="east")].share == 0


def test_an_empty_site_is_no_refuge_and_one_that_leaves_the_policy_is_forgotten() -> None:
    shell = Shell()
    whole = shell.state.spec
    drain = Command(action=Action.DRAIN, site="east", signature=Signature(actor="ann", via="test"))
    shell.state, _ = machine.step(shell.state, drain, TUESDAY_S)
    empty = structs.replace(whole, sites={"default/stable": ("west",)})
    shell.state, _ = machine.step(shell.state, SpecChanged(spec=empty), TUESDAY_S)
    with pytest.raises(FailoverError, match="not taken from west"):
        machine.step(shell.state, Command(action=Action.EVACUATE, site="west"), TUESDAY_S)
    without = structs.replace(whole, tiers=(Tier(sites=("west",)),))
    shell.state, _ = machine.step(shell.state, SpecChanged(spec=without), TUESDAY_S)
    assert set(shell.state.members) == {"default/stable@west"}


def test_an_operation_for_each_minute_does_not_fill_the_disk() -> None:
    shell, often = Shell(), operation(schedule="* * * * *", dryRun=True)
    for minute in range(KEPT + 20):
        shell.look(TUESDAY_S + 60 * minute, often)
        shell.look(TUESDAY_S + 60 * minute + 30, often)
    assert shell.done == ["drain"] * (KEPT + 20)
    assert KEPT <= len(shell.operations.runs) <= KEPT + 1
    assert max(run.at_s for run in shell.operations.runs.values()) == TUESDAY_S + 60 * (KEPT + 19)
