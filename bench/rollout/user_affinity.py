"""How often does a user's request go where the one before went? The production picker in virtual time.

    python bench/rollout/user_affinity.py [--loads 20 50 70 77] [--prices 0 250] [--seconds 600]

Users chat in sessions of several turns (workload C of `pointsman bench`): once as they are, each turn with the cached
prefix of the one before, and once with every prompt new, so that only the user id can keep them together. Twelve
replicas in three regions, one picker. Load is in percent of what round robin can carry. A price is what the picker lets
it cost to send a user elsewhere than before (`CostModel.home_ms`); at 0 it only breaks ties. Times are simulated.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from pointsman.bench.fleet import Fleet
from pointsman.bench.joint import Joint
from pointsman.bench.simulate import Outcome, Simulation
from pointsman.bench.workload import Arrival, Sessions, Workload
from pointsman.extproc.cost import CostModel
from pointsman.extproc.decision import Decision, PickRequest
from pointsman.extproc.picker import Picker

RATE_AT_77 = 18.5
"""Requests per second that are 77 % of saturation for this workload and fleet (`pointsman.bench.kinds`)."""
BAR = 0.95


class WithUser(Picker):
    """The picker, told who the user is as a gateway tells it by `x-user-id`."""

    user = ""

    def pick(self, request: PickRequest) -> Decision:
        """The pick for this user."""
        return super().pick(replace(request, affinity=self.user))


class Users(Joint):
    """Pickers that know the users."""

    def bind(self, world: object) -> None:
        """As for `Joint`, with users."""
        super().bind(world)  # type: ignore[arg-type]
        for picker in self.pickers:
            picker.__class__ = WithUser

    def choose(self, arrival: Arrival) -> int:
        """Ask for the session's user."""
        for picker in self.pickers:
            assert isinstance(picker, WithUser)
            picker.user = f"user-{arrival.session}"
        return super().choose(arrival)


def without_prefixes(workload: Workload) -> Workload:
    """The same requests with prompts that have nothing in common."""
    fresh = iter(range(10**9, 2 * 10**9))
    arrivals = tuple(
        replace(arrival, blocks=tuple(next(fresh) for _ in arrival.blocks)) for arrival in workload.arrivals
    )
    return replace(workload, arrivals=arrivals)


def stayed(outcomes: list[Outcome], after_ms: float) -> tuple[int, int]:
    """(requests that went where their user's former one went, requests that had a former one)."""
    before: dict[int, int] = {}
    same = found = 0
    for outcome in sorted(outcomes, key=lambda one: one.arrival.at_ms):
        user = outcome.arrival.session
        if user in before and outcome.arrival.at_ms >= after_ms:
            found += 1
            same += before[user] == outcome.replica
        before[user] = outcome.replica
    return same, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, nargs="+", default=[20, 50, 70, 77], help="in percent")
    default = CostModel().home_ms
    parser.add_argument("--prices", type=float, nargs="+", default=[0.0, default], help="in ms (default 0 and ours)")
    parser.add_argument("--seconds", type=float, default=600.0, help="virtual seconds of each run (default 600)")
    asked = parser.parse_args()
    print("| load | prompts | price | requests | where the former went | TTFT mean | p50 | p95 | bar |")
    print(f"|{'---|' * 9}", flush=True)
    for load in asked.loads:
        turns = Sessions(rate=RATE_AT_77 * load / 77, duration_s=asked.seconds).build(1)
        for name, workload in (("turns of a chat", turns), ("nothing in common", without_prefixes(turns))):
            for price_ms in asked.prices:
                outcomes = Simulation(Fleet(), workload.arrivals, Users(CostModel(home_ms=price_ms))).run()
                print(row(load, name, price_ms, outcomes, workload.warm_up_ms), flush=True)


def row(load: int, name: str, price_ms: float, outcomes: list[Outcome], after_ms: float) -> str:
    """One line of the table."""
    same, found = stayed(outcomes, after_ms)
    ttft = np.array([one.ttft_ms for one in outcomes if one.arrival.at_ms >= after_ms])
    p50, p95 = np.percentile(ttft, (50, 95))
    good = "reached" if same >= BAR * found else "missed"
    cells = [f"{load} %", name, f"{price_ms:g} ms", f"{found}", f"{100 * same / found:.1f} %"]
    cells += [f"{one:.0f} ms" for one in (ttft.mean(), p50, p95)]
    return f"| {' | '.join(cells)} | {BAR:.0%} {good} |"


if __name__ == "__main__":
    main()
