"""Where requests went over the last minutes: counted from Envoy's access log, in slots of a few seconds."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from pointsman.core.arm_names import whole_pool
from pointsman.core.clock import Clock
from pointsman.core.model import Plan
from pointsman.extproc.feedback import Feedback

Json = dict[str, Any]

SLOT_S: Final = 5.0
"""Long enough for ten requests a second to give a share, short enough that a shift shows at once."""

SLOTS: Final = 60
"""Five minutes: the time in which an operator looks at what a change did."""

RECENT_SLOTS: Final = 3
"""Slots whose counts are "now" in the tree, the one that fills included: 10 to 15 s."""

MOST_KEYS: Final = 4_096
"""Different (pool, endpoint) pairs counted in one slot. Names come from gateways; past this they are one."""

MOST_SERIES: Final = 24
"""Series of one kind in an answer: more than a picture has colours for; the smaller ones are summed as `other`."""

OTHER: Final = "other"

NOWHERE: Final = ("", "")

Key = tuple[str, str]
"""Pool and endpoint (`ip:port`); the endpoint is empty where none answered."""


@dataclass(slots=True)
class _Slot:
    number: int
    served: Counter[Key] = field(default_factory=Counter)
    failed: Counter[Key] = field(default_factory=Counter)


class Traffic:
    """Counts requests that ended. A request counts for the endpoint that answered, or failed, last."""

    def __init__(self, clock: Clock, plan: Callable[[], Plan | None]) -> None:
        self._clock = clock
        self._plan = plan
        self._slots: deque[_Slot] = deque(maxlen=SLOTS)
        self._seen: Plan | None = None
        self._known: dict[Key, tuple[str, str]] = {}

    def feedback(self, entry: Feedback) -> None:
        """Count one access log entry, if its request has ended."""
        if not entry.ended:
            return
        slot = self._slot()
        key = (whole_pool(entry.cluster), entry.upstream)
        if key not in slot.served and len(slot.served) >= MOST_KEYS:
            key = NOWHERE
        slot.served[key] += 1
        if entry.failed or entry.status >= 500:
            slot.failed[key] += 1

    def recent(self) -> Counter[Key]:
        """Requests by pool and endpoint over the last `RECENT_SLOTS`."""
        first = self._number() - RECENT_SLOTS + 1
        total: Counter[Key] = Counter()
        for slot in self._slots:
            if slot.number >= first:
                total.update(slot.served)
        return total

    def status(self) -> Json:
        """Counts for each slot of the last minutes, oldest first; the last one still fills.

        `pools`, `sites` and `endpoints`: name → counts by slot; what the Plan does not know, and all but the
        largest `MOST_SERIES`, is summed as `other`.
        `requests` and `failed` are those of all. `ends_at` is the end of the last slot, in seconds since the epoch.
        """
        last = self._number()
        numbers = range(last - SLOTS + 1, last + 1)
        slots = {slot.number: slot for slot in self._slots}
        found: Json = {
            "slot_s": SLOT_S,
            "ends_at": (last + 1) * SLOT_S + self._clock.wall_s() - self._clock.monotonic_s(),
            "requests": [],
            "failed": [],
            "pools": {},
            "sites": {},
            "endpoints": {},
        }
        for index, number in enumerate(numbers):
            slot = slots.get(number)
            found["requests"].append(slot.served.total() if slot else 0)
            found["failed"].append(slot.failed.total() if slot else 0)
            for key, count in slot.served.items() if slot else ():
                site, endpoint = self._names(key)
                pool = key[0] if site else OTHER
                for kind, name in (("pools", pool), ("sites", site or OTHER), ("endpoints", endpoint)):
                    found[kind].setdefault(name, [0] * SLOTS)[index] += count
        return found | {kind: _largest(found[kind]) for kind in ("pools", "sites", "endpoints")}

    def _number(self) -> int:
        return int(self._clock.monotonic_s() // SLOT_S)

    def _slot(self) -> _Slot:
        number = self._number()
        if not self._slots or self._slots[-1].number != number:
            self._slots.append(_Slot(number))
        return self._slots[-1]

    def _names(self, key: Key) -> tuple[str, str]:
        """Site and shown name of an endpoint; an empty site where the Plan does not know it."""
        plan = self._plan()
        if plan is not self._seen:
            self._seen = plan
            self._known = {
                (pool.name, endpoint.key): (endpoint.site, f"{pool.name} {endpoint.name}")
                for pool in (plan.pools if plan else ())
                for endpoint in pool.endpoints()
            }
        return self._known.get(key, ("", OTHER))


def _largest(series: dict[str, list[int]]) -> dict[str, list[int]]:
    """The largest series by name; the others as one."""
    if len(series) <= MOST_SERIES:
        return dict(sorted(series.items()))
    ranked = sorted(series, key=lambda name: (name == OTHER, -sum(series[name]), name))
    rest = [series[name] for name in ranked[MOST_SERIES - 1 :]]
    kept = {name: series[name] for name in sorted(ranked[: MOST_SERIES - 1])}
    return kept | {OTHER: [sum(counts) for counts in zip(*rest, strict=True)]}
