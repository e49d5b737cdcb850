"""Changes of weights: what is meant, what is refused, and what the only writer does with them."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from config.config_fixtures import FLEET, manifests
from pointsman.app.operations import Operations
from pointsman.core.audit import verify_file
from pointsman.core.change import ChangeError, Refusal, Signature, WeightChange, decide, resolve
from pointsman.core.clock import ManualClock
from pointsman.core.compile import compile_plan
from pointsman.core.model import TOTAL_WEIGHT, Mirror, Plan
from pointsman.core.overlay import Overlay, RuleOverlay
from pointsman.core.store import OVERLAY_FILE, StateError, StateFolder, read_overlay, write_overlay
from support.waiting import eventually

RULE = "HTTPRoute/default/chat/split"
CANARY, STABLE = "default/canary", "default/stable"
MANIFESTS = manifests(FLEET)
PLAN = compile_plan(MANIFESTS)
ALICE = Signature(actor="alice", via="loopback", reason="why not")


def change(weights: Mapping[str, int] | None, **more: Any) -> WeightChange:
    return WeightChange(**{"rule": RULE, "weights": weights, "signature": ALICE, **more})


HALF = change({CANARY: 1, STABLE: 1})


class TestDecide:
    def test_weights_of_any_size_become_shares(self) -> None:
        decided = decide(Overlay(), PLAN, change({"canary": 1, "stable": 2}))
        assert decided.after == RuleOverlay(weights=((CANARY, 3_333), (STABLE, 6_667)), version=1)
        assert decided.before is None

    def test_the_same_again_changes_nothing(self) -> None:
        once = decide(Overlay(), PLAN, HALF).overlay
        again = decide(once, PLAN, change({CANARY: 70, STABLE: 70}))
        assert not again.changed and again.overlay is once

    def test_clearing(self) -> None:
        once = decide(Overlay(), PLAN, HALF).overlay
        cleared = decide(once, PLAN, change(None))
        assert cleared.overlay == Overlay(revision=2)
        assert not decide(cleared.overlay, PLAN, change(None)).changed

    def test_what_is_left_of_a_vanished_rule_can_be_cleared(self) -> None:
        overlay = Overlay().with_rule("HTTPRoute/a/b/0", RuleOverlay.of({"a/p": TOTAL_WEIGHT}))
        assert decide(overlay, PLAN, change(None, rule="HTTPRoute/a/b/0")).overlay.rules == ()

    @pytest.mark.parametrize(
        ("asked", "refusal", "said"),
        [
            (change({"canary": 1}), Refusal.INVALID, "no weight for default/stable"),
            (change({"canary": 1, "stable": 1, "x": 1}), Refusal.INVALID, "x is no arm"),
            (change({"canary": 1, "default/canary": 1, "stable": 1}), Refusal.INVALID, "named twice"),
            (change({"canary": -1, "stable": 1}), Refusal.INVALID, "negative"),
            (change({"canary": 1, "stable": 100_000}), Refusal.INVALID, "less than 0.01 %"),
            (change({"p": 1}, rule="HTTPRoute/default/chat/x"), Refusal.UNKNOWN, "there is no rule"),
            (change(None, rule="HTTPRoute/default/chat/x"), Refusal.UNKNOWN, "there is no rule"),
            (change({"canary": 1, "stable": 1}, if_version=3), Refusal.VERSION, "has version 0, not 3"),
        ],
    )
    def test_refusals(self, asked: WeightChange, refusal: Refusal, said: str) -> None:
        with pytest.raises(ChangeError, match=said) as caught:
            decide(Overlay(), PLAN, asked)
        assert caught.value.refusal is refusal

    def test_what_a_controller_leads_is_its_own(self) -> None:
        policy = "RolloutPolicy/default/chat"
        led = decide(Overlay(), PLAN, change({CANARY: 1, STABLE: 9}, owner=policy)).overlay
        for asked in (HALF, change(None), change({CANARY: 1, STABLE: 1}, owner="RolloutPolicy/default/other")):
            with pytest.raises(ChangeError, match=f"{policy} leads") as caught:
                decide(led, PLAN, asked)
            assert caught.value.refusal is Refusal.OWNED
        assert decide(led, PLAN, change({CANARY: 2, STABLE: 8}, owner=policy)).changed
        taken = decide(led, PLAN, change({CANARY: 1, STABLE: 1}, force=True))
        assert taken.after is not None and taken.after.owner == ""
        assert decide(taken.overlay, PLAN, change({CANARY: 1, STABLE: 1}, owner=policy)).changed

    def test_a_mirror_is_a_change(self) -> None:
        once = decide(Overlay(), PLAN, HALF).overlay
        mirrored = decide(once, PLAN, change({CANARY: 1, STABLE: 1}, mirror=Mirror(pool=CANARY, share=5)))
        assert mirrored.changed and mirrored.after is not None and mirrored.after.mirror is not None


class TestResolve:
    @pytest.mark.parametrize(
        "target", ["chat", "default/chat", "HTTPRoute/default/chat", "chat/split", "default/chat/split", RULE]
    )
    def test_ways_to_name_a_rule(self, target: str) -> None:
        assert resolve(PLAN, target) == RULE

    @pytest.mark.parametrize("target", ["", "split", "chat/", "chat/0", "other/chat", "GRPCRoute/default/chat"])
    def test_what_is_nothing(self, target: str) -> None:
        with pytest.raises(ChangeError, match="there are GRPCRoute/default/generate/0, HTTPRoute") as caught:
            resolve(PLAN, target)
        assert caught.value.refusal is Refusal.UNKNOWN

    def test_several_are_listed(self) -> None:
        overlay = Overlay().with_rule("HTTPRoute/b/chat/split", RuleOverlay.of({"b/p": TOTAL_WEIGHT}))
        with pytest.raises(ChangeError, match=f"may be {RULE}, HTTPRoute/b/chat/split") as caught:
            resolve(PLAN, "chat", overlay)
        assert caught.value.refusal is Refusal.INVALID
        assert resolve(PLAN, "b/chat", overlay) == "HTTPRoute/b/chat/split"


class Fleet:
    """What surrounds the operations: a Plan in force, and gateways that answer when told to."""

    def __init__(self, state: Path, nodes: tuple[str, ...] = ("n1",)) -> None:
        self.plan = Plan()
        self.published: list[Plan] = []
        self.clock = ManualClock()
        self.nodes = dict.fromkeys(nodes, True)
        self.rejected: dict[str, str] = {}
        self.problems: list[str] = []
        self.answer = asyncio.Event()
        self.operations = Operations(
            state=StateFolder(state),
            clock=self.clock,
            compile_with=lambda overlay: compile_plan(MANIFESTS, overlay),
            publish=self.publish,
            current=lambda: self.plan,
            xds=lambda: self,
        )

    def start(self) -> Fleet:
        self.plan = compile_plan(MANIFESTS, self.operations.start())
        return self

    def publish(self, plan: Plan) -> None:
        self.plan = plan
        self.published.append(plan)

    async def wait_acked(self, gateway: str, timeout_s: float) -> None:
        assert gateway == "default/main"
        if timeout_s > 0 and not all(self.nodes.values()):
            await self.answer.wait()

    def status(self) -> dict[str, Any]:
        return {
            "gateways": [{"name": "default/main", "problems": self.problems}],
            "nodes": [
                {
                    "node": node,
                    "gateway": "default/main",
                    "settled": settled,
                    "rejected": [{"type": "RDS", "name": "r", "message": self.rejected[node]}]
                    if node in self.rejected
                    else [],
                    "types": [{"type": "RDS", "since_ack_s": 0.25}, {"type": "CDS", "since_ack_s": 9.0}],
                }
                for node, settled in self.nodes.items()
            ],
        }

    def weights(self) -> list[int]:
        split = self.plan.split(RULE)
        assert split is not None
        return [arm.effective for arm in split.arms]


class TestOperations:
    async def test_a_change_is_in_force_kept_and_audited(self, tmp_path: Path) -> None:
        fleet = Fleet(tmp_path).start()
        outcome = await fleet.operations.change(HALF)
        assert fleet.weights() == [5_000, 5_000]
        assert (outcome.changed, outcome.version, outcome.gateways) == (True, 1, ("default/main",))
        assert read_overlay(StateFolder(tmp_path)) == fleet.operations.overlay
        later = Fleet(tmp_path).start()
        assert later.weights() == [5_000, 5_000], "in force from the start"
        await fleet.operations.stop()

    async def test_acks_are_told_by_gateway_and_node_and_audited(self, tmp_path: Path) -> None:
        fleet = Fleet(tmp_path, ("good", "slow", "bad")).start()
        fleet.nodes["slow"] = False
        fleet.rejected["bad"] = "no such cluster"
        outcome = await fleet.operations.change(HALF)
        fleet.clock.advance(0.35)
        (acks,) = await fleet.operations.acks(outcome, 0.0)
        assert acks.acked == {"good": 100.0}
        assert acks.pending == ("slow",)
        assert acks.rejected == {"bad": "RDS r: no such cluster"}
        assert not acks.done
        fleet.nodes["slow"] = True
        fleet.answer.set()

        async def audited() -> bool:
            return [r.action for r in await fleet.operations.records(10)] == ["weights.set", "weights.acked"]

        await eventually(audited, what="the acknowledgements are in the log")
        one, other = await fleet.operations.records(10)
        assert (one.actor, one.reason, one.before) == ("alice", "why not", None)
        assert one.after == {"weights": {CANARY: 5_000, STABLE: 5_000}, "owner": "", "version": 1}
        assert set(other.evidence["default/main"]["acked_ms"]) == {"good", "slow"}
        await eventually(lambda: verify_file(tmp_path / "audit.jsonl").head == fleet.operations.audit_head)

    async def test_a_gateway_whose_configuration_is_not_served_has_not_got_it(self, tmp_path: Path) -> None:
        fleet = Fleet(tmp_path).start()
        fleet.problems = ["route to nowhere"]
        (acks,) = await fleet.operations.acks(await fleet.operations.change(HALF), 0.0)
        assert not acks.done and acks.problems == ("route to nowhere",)
        await fleet.operations.stop()

    async def test_a_dry_run_leaves_no_trace(self, tmp_path: Path) -> None:
        fleet = Fleet(tmp_path).start()
        outcome = await fleet.operations.change(HALF, dry_run=True)
        assert outcome.changed and outcome.after is not None
        assert [arm.effective for arm in outcome.after.arms] == [5_000, 5_000]
        assert fleet.published == [] and await fleet.operations.records(9) == []
        assert not (tmp_path / OVERLAY_FILE).exists()

    async def test_what_cannot_be_kept_is_not_done_and_the_log_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fleet = Fleet(tmp_path).start()

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(StateError, match="cannot be written"):
            await fleet.operations.change(HALF)
        assert fleet.published == []
        assert [r.action for r in await fleet.operations.records(9)] == ["weights.set", "weights.failed"]

    async def test_what_cannot_be_audited_is_not_done(self, tmp_path: Path) -> None:
        fleet = Fleet(tmp_path).start()
        (tmp_path / "audit.jsonl").unlink()
        (tmp_path / "audit.jsonl").mkdir()
        with pytest.raises(StateError):
            await fleet.operations.change(HALF)
        assert fleet.published == [] and not (tmp_path / OVERLAY_FILE).exists()

    async def test_changes_at_once_are_one_after_the_other(self, tmp_path: Path) -> None:
        fleet = Fleet(tmp_path).start()
        asked = [change({CANARY: turn, STABLE: 100 - turn}) for turn in range(20)]
        outcomes = await asyncio.gather(*(fleet.operations.change(one) for one in asked))
        assert sorted(outcome.version for outcome in outcomes) == list(range(1, 21))
        assert fleet.operations.overlay.revision == 20
        await fleet.operations.stop()

    async def test_only_one_of_two_optimistic_writers_wins(self, tmp_path: Path) -> None:
        fleet = Fleet(tmp_path).start()
        asked = [change({CANARY: turn, STABLE: 1}, if_version=0) for turn in (1, 2)]
        found = await asyncio.gather(*(fleet.operations.change(one) for one in asked), return_exceptions=True)
        assert sum(isinstance(one, ChangeError) for one in found) == 1
        await fleet.operations.stop()

    async def test_two_control_planes_on_one_folder_follow_each_other(self, tmp_path: Path) -> None:
        one, other = Fleet(tmp_path).start(), Fleet(tmp_path).start()
        following = asyncio.create_task(other.operations.follow())
        await one.operations.change(HALF)
        await eventually(lambda: other.weights() == [5_000, 5_000], what="the other control plane has it")
        with pytest.raises(ChangeError, match="has version 1"):
            await other.operations.change(change({CANARY: 1, STABLE: 3}, if_version=0))
        await other.operations.change(change({CANARY: 1, STABLE: 3}, if_version=1))
        assert read_overlay(StateFolder(tmp_path)).revision == 2
        (tmp_path / OVERLAY_FILE).write_text("{")
        await one.operations.stop()
        await other.operations.stop()
        write_overlay(StateFolder(tmp_path), Overlay(revision=7))
        await eventually(lambda: other.weights() == [500, 9_500], what="a good file counts after a bad one")
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    async def test_what_another_process_changed_is_not_lost_and_not_ignored(self, tmp_path: Path) -> None:
        """The other one has not noticed yet: it decides on what is kept, not on what it remembers."""
        one, other = Fleet(tmp_path).start(), Fleet(tmp_path).start()
        await one.operations.change(HALF)
        await other.operations.change(change({"stream": 1}, rule="GRPCRoute/default/generate/0"))
        assert [rule for rule, _ in read_overlay(StateFolder(tmp_path))] == ["GRPCRoute/default/generate/0", RULE]
        assert other.weights() == [5_000, 5_000]
        with pytest.raises(ChangeError, match="has version 1"):
            await other.operations.change(change({CANARY: 1, STABLE: 3}, if_version=0))
        await one.operations.stop()
        await other.operations.stop()

    async def test_what_controllers_find_lasts_over_changes_and_not_over_restarts(self, tmp_path: Path) -> None:
        fleet = Fleet(tmp_path).start()
        fleet.operations.set_unavailable(frozenset({CANARY}))
        await fleet.operations.change(HALF)
        assert fleet.operations.overlay.unavailable == {CANARY}
        assert len(fleet.published) == 2
        assert Fleet(tmp_path).start().operations.overlay.unavailable == frozenset()
        await fleet.operations.stop()
