"""Tasks of endpoints: they follow the Plan, and one that dies is noticed and started again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from extproc.fleet import make_plan
from pointsman.core.model import Plan
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc.endpoint_tasks import EndpointTasks
from support.waiting import eventually

A, B = "10.0.0.1:80", "10.0.0.2:80"


class Work:
    """Work that fails, returns or goes on as told."""

    def __init__(self) -> None:
        self.began: list[tuple[str, int]] = []
        self.ended: list[str] = []
        self.fault: Exception | None = None
        self.returns = False

    async def __call__(self, key: str, wish: int) -> None:
        self.began.append((key, wish))
        if self.fault is not None:
            raise self.fault
        if self.returns:
            return
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append(key)


@asynccontextmanager
async def running(work: Work, plan: Plan) -> AsyncIterator[tuple[PlanHolder, CollectorRegistry]]:
    def wanted(plan: Plan) -> dict[str, int]:
        return {e.key: e.weight for pool in plan.pools for e in pool.endpoints()}

    holder, registry = PlanHolder(), CollectorRegistry()
    holder.publish(plan)
    tasks = EndpointTasks("toil", holder, wanted, work, registry=registry, restart_delay_s=0.01)
    task = asyncio.create_task(tasks.run())
    try:
        yield holder, registry
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def restarts(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("pointsman_toil_restarts_total") or 0.0


@pytest.mark.parametrize("fault", [ValueError("a page that nobody foresaw"), None])
async def test_a_task_that_ends_is_logged_counted_and_started_again(fault: Exception | None) -> None:
    work = Work()
    work.fault, work.returns = fault, fault is None
    with capture_logs() as logs:
        async with running(work, make_plan({"near": [A]})) as (_, registry):
            await eventually(lambda: restarts(registry) >= 2)
            work.fault, work.returns = None, False
            began = len(work.began)
            await eventually(lambda: len(work.began) > began)
    assert work.ended == [A]
    assert {(line["task"], line["endpoint"], line["exc_info"]) for line in logs} == {("toil", A, fault)}


async def test_tasks_come_and_go_with_the_plan() -> None:
    work = Work()
    async with running(work, make_plan({"near": [A, B]})) as (holder, registry):
        await eventually(lambda: sorted(work.began) == [(A, 1), (B, 1)])
        holder.publish(make_plan({"near": [B]}))
        await eventually(lambda: work.ended == [A])
        assert restarts(registry) == 0
    assert work.ended == [A, B]
