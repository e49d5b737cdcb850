"""The current Plan and who wants to hear of the next one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from pointsman.core.model import Plan

Listener = Callable[[Plan], None]


class PlanHolder:
    """Holds the last good Plan. Single-threaded: every call comes from one event loop.

    Listeners are plain functions that return at once (they note the Plan and wake their own task); they are called in
    the order of their subscription, with the current Plan first, if there is one.
    """

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._listeners: list[Listener] = []

    @property
    def plan(self) -> Plan | None:
        """The last good Plan, None before the first."""
        return self._plan

    def publish(self, plan: Plan) -> bool:
        """Make `plan` the current one and tell the listeners; False if it equals the current one.

        Every listener is told, also when one before it fails; its error is raised when all have been.
        """
        if plan == self._plan:
            return False
        self._plan = plan
        with ExitStack() as calls:  # runs all of them, and raises what one of them raised
            for listener in reversed(self._listeners):
                calls.callback(listener, plan)
        return True

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every Plan from now on; returns the function that ends it."""
        self._listeners.append(listener)
        if self._plan is not None:
            listener(self._plan)

        def unsubscribe() -> None:
            self._listeners.remove(listener)

        return unsubscribe
