"""One background task for each endpoint of the Plan, watched: one that ends is noticed and started again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Final, Generic, TypeVar

import structlog
from prometheus_client import CollectorRegistry, Counter

from pointsman.core.model import Plan
from pointsman.core.snapshot import PlanHolder
from pointsman.core.tasks import error_of

log = structlog.get_logger()

RESTART_DELAY_S: Final = 1.0
"""Pause before a task that ended is started again: a defect that strikes at once must not eat the processor."""

Wish = TypeVar("Wish")


class EndpointTasks(Generic[Wish]):
    """Runs `work(key, wish)` for each endpoint that `wanted` names, anew when its wish changes.

    `work` should never end. When it does, that is a defect: it is logged, counted as `pointsman_NAME_restarts` where a
    registry is given, and mended by starting it again.
    """

    def __init__(
        self,
        name: str,
        holder: PlanHolder,
        wanted: Callable[[Plan], Mapping[str, Wish]],
        work: Callable[[str, Wish], Coroutine[None, None, None]],
        *,
        registry: CollectorRegistry | None = None,
        restart_delay_s: float = RESTART_DELAY_S,
    ) -> None:
        self._name = name
        self._holder = holder
        self._wanted = wanted
        self._work = work
        self._restart_delay_s = restart_delay_s
        self._running: dict[str, tuple[Wish, asyncio.Task[None]]] = {}
        self._changed = asyncio.Event()
        self._restarts = (
            Counter(
                f"pointsman_{name}_restarts",
                "Background tasks of an endpoint that ended by a defect and were started again.",
                registry=registry,
            )
            if registry is not None
            else None
        )

    async def run(self) -> None:
        """Follow the Plan until cancelled; then all tasks have ended."""
        unsubscribe = self._holder.subscribe(lambda _plan: self._changed.set())
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                await self._follow(self._holder.plan or Plan())
        finally:
            unsubscribe()
            await self._stop(list(self._running))

    async def _follow(self, plan: Plan) -> None:
        wanted = self._wanted(plan)
        await self._stop([key for key, (wish, _) in self._running.items() if key not in wanted or wanted[key] != wish])
        for key in sorted(wanted.keys() - self._running.keys()):
            task = asyncio.create_task(self._keep(key, wanted[key]), name=f"{self._name} {key}")
            self._running[key] = wanted[key], task

    async def _keep(self, key: str, wish: Wish) -> None:
        while True:
            error = await error_of(self._work(key, wish))
            log.error("a task of an endpoint ended, it is started again", task=self._name, endpoint=key, exc_info=error)
            if self._restarts is not None:
                self._restarts.inc()
            await asyncio.sleep(self._restart_delay_s)

    async def _stop(self, keys: list[str]) -> None:
        tasks = [self._running.pop(key)[1] for key in keys]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
