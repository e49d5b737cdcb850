"""TrafficOperations at work: manifests that drain, evacuate, fail over or freeze, once or on a schedule.

Each run is kept before it is carried out, so that a crash in between repeats what changes nothing the second time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from pointsman.app.failover import Failover
from pointsman.app.failover_samples import broken
from pointsman.core.clock import Clock
from pointsman.core.config import Manifests
from pointsman.core.store import StateError, StateFolder
from pointsman.extproc import Feedback
from pointsman.failover import schedule_operations as schedule
from pointsman.failover.schedule_operations import Operation, Order
from pointsman.failover.state import FailoverError

log = structlog.get_logger()

Json = dict[str, Any]

FILE: Final = "operations.json"

TICK_S: Final = 0.5
"""How often it is looked whether something is due: manifests are read ten times a second at most."""

WINDOW_S: Final = 10.0
"""What `abortIf` judges: the requests that ended in these last seconds."""

MIN_REQUESTS: Final = 20
"""Fewer tell no rate: one failure of three is no 33 %."""


class Seen:
    """What clients got in the last seconds: bounded by time, read when an operation has `abortIf`."""

    def __init__(self) -> None:
        self._ended: deque[tuple[float, bool, float | None]] = deque(maxlen=100_000)

    def add(self, entry: Feedback, now_s: float) -> None:
        """Count an entry that ended."""
        if entry.ended:
            self._ended.append((now_s, broken(entry), entry.ttft_ms))

    def now(self, now_s: float) -> dict[str, float]:
        """Error rate (a fraction) and TTFT quantiles (ms); empty with too few requests."""
        while self._ended and now_s - self._ended[0][0] > WINDOW_S:
            self._ended.popleft()
        if len(self._ended) < MIN_REQUESTS:
            return {}
        found = {"errorRate": sum(bad for _, bad, _ in self._ended) / len(self._ended)}
        times = sorted(ttft_ms for _, _, ttft_ms in self._ended if ttft_ms is not None)
        if times:
            for percent in (50, 95, 99):
                found[f"ttft.p{percent}"] = times[min(len(times) - 1, len(times) * percent // 100)]
        return found


class TrafficOperations:
    """See the module. Only the control plane that leads failover carries operations out. `state`: the state folder.

    Raises:
        StateError: what was kept cannot be read, or is damaged. Then nothing starts: taken for nothing, every operation
            would be repeated.
    """

    def __init__(self, *, state: Path, failover: Failover, clock: Clock) -> None:
        self._folder = StateFolder(state)
        self._failover = failover
        self._clock = clock
        self._wanted: tuple[Operation, ...] = ()
        self._state = self._read()
        self._seen = Seen()
        self._judging = False  # an operation is in force that what clients see would end
        self._problem = ""

    def configure(self, manifests: Manifests) -> None:
        """Take over the operations of a configuration that is in force."""
        self._wanted = tuple(schedule.operation_of(one) for one in manifests.operations)

    def feedback(self, entry: Feedback) -> None:
        """Take in an access log entry."""
        if self._judging:
            self._seen.add(entry, self._clock.monotonic_s())

    def status(self) -> list[Json]:
        """All runs that are remembered, the latest last."""
        runs = sorted(self._state.runs.items(), key=lambda item: item[1].at_s)
        return [
            {
                "run": name,
                "name": run.operation.key,
                "action": run.operation.action.value,
                "target": run.operation.endpoint or run.operation.site or run.operation.policy,
                "status": run.status.value,
                "at": _timestamp(run.at_s),
                "until": _timestamp(run.until_s) if run.until_s else "",
                "why": run.why or run.operation.reason,
                "by": run.operation.requested_by,
            }
            for name, run in runs
        ]

    async def run(self) -> None:
        """Carry out what is due until cancelled."""
        await self._failover.leading()
        self._state = await asyncio.to_thread(self._read)  # another process may have led since this one began
        for order in schedule.resume(self._state):
            await self._carry_out(order)
        while True:
            now_s = self._clock.wall_s()
            in_force = (run for run in self._state.runs.values() if run.status is schedule.Status.IN_FORCE)
            self._judging = any(run.operation.abort_if for run in in_force)
            seen = self._seen.now(self._clock.monotonic_s()) if self._judging else {}
            await self._follow(lambda: schedule.due(self._state, self._wanted, now_s))  # noqa: B023 - called at once
            await self._follow(lambda: schedule.watched(self._state, seen, now_s))  # noqa: B023 - called at once
            await asyncio.sleep(TICK_S)

    async def _follow(self, decide: Callable[[], tuple[schedule.Operations, tuple[Order, ...]]]) -> None:
        before = self._state
        self._state, orders = decide()
        if self._state != before and not await self._kept():
            self._state = before  # an operation that could not be kept might be repeated: try again later
            return
        for order in orders:
            await self._carry_out(order)

    async def _carry_out(self, order: Order) -> None:
        refusal = ""
        try:
            await self._failover.command(order.command, policy=order.policy, dry_run=order.dry_run)
        except FailoverError as error:
            refusal = str(error)
        self._state = schedule.carried_out(self._state, order, refusal)
        made = self._state.runs[order.run]
        tell = log.warning if refusal else log.info
        tell("traffic operation", name=made.operation.key, status=made.status.value, why=made.why)
        await self._kept()

    async def _kept(self) -> bool:
        try:
            await asyncio.to_thread(self._folder.write, FILE, self._state)
        except StateError as error:
            if self._problem != str(error):
                log.error("traffic operations cannot be kept, so none is carried out", problem=str(error))
            self._problem = str(error)
            return False
        self._problem = ""
        return True

    def _read(self) -> schedule.Operations:
        """What was kept.

        Raises:
            StateError: it cannot be read, or it is damaged.
        """
        path = self._folder.path / FILE
        try:
            return schedule.operations_from_json(path.read_bytes())
        except FileNotFoundError:
            return schedule.Operations()
        except OSError as error:
            raise StateError(f"{path} cannot be read: {error.strerror}") from error
        except FailoverError as error:
            raise StateError(f"{path}: {error}") from error


def _timestamp(wall_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_s))
