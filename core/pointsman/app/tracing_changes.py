"""The trace of a change of configuration: read, compile, build, and one span for each proxy until it has it.

Changes are few, so each is traced, whatever share of requests is. One that a newer change overtakes ends there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from pointsman.core.tracing import Span, SpanKind, SpanSink, new_span_id, new_trace_id
from pointsman.xds import Convergence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pointsman.core.model import Plan
    from pointsman.core.snapshot import PlanHolder
    from pointsman.xds import XdsServer

ACK_TIMEOUT_S: Final = 30.0
"""A proxy that has not answered by then is away; its span says so."""

MAX_ERROR: Final = 256
"""Characters of what a proxy said when it refused something; the status shows all of it."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a change that is over; nanoseconds since the epoch."""

    name: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """A proxy that was to get the change: when it acknowledged the last of it, or gave up on; `error` says why not."""

    gateway: str
    node: str
    end_ns: int
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A Plan that was put in force at the end of the last of its `steps`. `by_manifests`: because a file changed."""

    steps: tuple[Step, ...]
    by_manifests: bool
    gateways: tuple[str, ...]

    @property
    def published_ns(self) -> int:
        return self.steps[-1].end_ns


def change_spans(change: Change, pushes: Iterable[Push], end_ns: int, *, overtaken: bool = False) -> list[Span]:
    """The spans of a change, the one that holds all others first."""
    trace_id, root_id = new_trace_id(), new_span_id()
    parts = [
        Span(
            name=step.name,
            trace_id=trace_id,
            span_id=new_span_id(),
            parent_id=root_id,
            start_ns=step.start_ns,
            end_ns=step.end_ns,
        )
        for step in change.steps
    ]
    for push in pushes:
        end_ns = max(end_ns, push.end_ns)
        parts.append(
            Span(
                name="push",
                trace_id=trace_id,
                span_id=new_span_id(),
                parent_id=root_id,
                kind=SpanKind.CLIENT,
                start_ns=change.published_ns,
                end_ns=push.end_ns,
                attributes={"pointsman.gateway": push.gateway, "pointsman.node": push.node},
                error=push.error,
            )
        )
    failed = sum(1 for part in parts if part.error)
    root = Span(
        name="configuration change" if change.by_manifests else "decision",
        trace_id=trace_id,
        span_id=root_id,
        start_ns=change.steps[0].start_ns,
        end_ns=end_ns,
        attributes={"pointsman.gateways": len(change.gateways), "pointsman.overtaken": overtaken},
        error=f"{failed} proxies do not have it" if failed and not overtaken else "",
    )
    return [root, *parts]


class ChangeTracer:
    """Follows changes through this process; all of it on one event loop.

    `noticed` says that a file changed, `reload` wraps what is done with the new manifests, `timed` what makes a Plan of
    them; the rest is learnt from the Plan's holder and the xDS server, which must have been told of the Plan before.
    """

    def __init__(self, spans: SpanSink) -> None:
        self._spans = spans
        self._noticed_ns: int | None = None
        self._steps: list[Step] = []
        self._by_manifests = False
        self._generations: dict[str, int] | None = None
        self._open: Change | None = None  # the one that proxies are still waited for
        self._follower: asyncio.Task[None] | None = None

    def noticed(self) -> None:
        """The folder changed, and will be read once it is quiet."""
        self._noticed_ns = time.time_ns()

    def reload(self, react: Callable[P, None]) -> Callable[P, None]:
        """What `react` puts in force comes from the files that were noticed to change."""

        def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
            now_ns = time.time_ns()
            self._by_manifests = True
            self._steps = [Step("read", self._noticed_ns or now_ns, now_ns)]
            self._noticed_ns = None
            try:
                react(*args, **kwargs)
            finally:
                self._by_manifests = False
                self._steps = []

        return wrapped

    def timed(self, name: str, work: Callable[P, T]) -> Callable[P, T]:
        """`work` is a step of the change that follows."""

        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            start_ns = time.time_ns()
            try:
                return work(*args, **kwargs)
            finally:
                # A decision's only step so far: what was compiled before, and not put in force, was a question.
                kept = self._steps if self._by_manifests else []
                self._steps = [*kept, Step(name, start_ns, time.time_ns())]

        return wrapped

    @asynccontextmanager
    async def following(self, holder: PlanHolder, xds: XdsServer) -> AsyncIterator[None]:
        """Trace every Plan that is put in force while the block runs, but for the first one."""
        unsubscribe = holder.subscribe(lambda plan: self._published(plan, xds))
        try:
            yield
        finally:
            unsubscribe()
            self._overtake(xds)
            if self._follower is not None:
                await asyncio.gather(self._follower, return_exceptions=True)

    def _published(self, plan: Plan, xds: XdsServer) -> None:
        now_ns = time.time_ns()
        since_ns = self._steps[-1].end_ns if self._steps else now_ns
        generations = {gateway.name: _generation(xds, gateway.name) for gateway in plan.gateways}
        known, self._generations = self._generations, generations
        if known is None:  # the first Plan: nobody is connected yet
            return
        changed = [name for name, generation in generations.items() if generation != known.get(name)]
        change = Change(
            steps=(*self._steps, Step("build", since_ns, now_ns)),
            by_manifests=self._by_manifests,
            gateways=tuple(changed),
        )
        self._steps = []
        self._overtake(xds)
        self._open = change
        self._follower = asyncio.create_task(self._follow(change, xds), name="trace of a change")

    async def _follow(self, change: Change, xds: XdsServer) -> None:
        await asyncio.gather(*(xds.wait_acked(name, ACK_TIMEOUT_S) for name in change.gateways))
        self._tell(change, xds, overtaken=False)

    def _overtake(self, xds: XdsServer) -> None:
        """A newer change, or the end: what has been acknowledged until now is told, also where nobody waited yet."""
        if self._follower is not None:
            self._follower.cancel()
        if self._open is not None:
            self._tell(self._open, xds, overtaken=True)

    def _tell(self, change: Change, xds: XdsServer, *, overtaken: bool) -> None:
        self._open = None
        now_ns = time.time_ns()
        found = pushes(change, xds, now_ns, overtaken=overtaken)
        for span in change_spans(change, found, now_ns if overtaken else change.published_ns, overtaken=overtaken):
            self._spans.add(span)


def pushes(change: Change, xds: XdsServer, now_ns: int, *, overtaken: bool) -> list[Push]:
    """How the connected proxies of the changed gateways stand; those for which nothing changed are left out."""
    found = []
    stands: dict[str, Convergence] = {name: xds.convergence(name) for name in change.gateways}
    for stream in xds.streams():
        if stream.gateway not in stands:
            continue
        node = stream.identity.id
        refused = stream.session.rejections()
        acked_ns = [int(at_s * 1e9) for at_s in stream.acked_at_s.values()]
        end_ns = max((at_ns for at_ns in acked_ns if at_ns >= change.published_ns), default=None)
        error = ""
        if refused:
            error = f"{refused[0].name}: {refused[0].message}"[:MAX_ERROR]
        elif end_ns is None and node in stands[stream.gateway].pending:
            error = "overtaken before it answered" if overtaken else f"no answer within {ACK_TIMEOUT_S:g} s"
        elif end_ns is None:
            continue
        end_ns = now_ns if end_ns is None else end_ns
        found.append(Push(gateway=stream.gateway, node=node, end_ns=end_ns, error=error))
    return found


def _generation(xds: XdsServer, gateway: str) -> int:
    snapshot = xds.snapshot(gateway)
    return snapshot.generation if snapshot is not None else -1
