"""Proxies that had a rollout's weights lately: one that is away for a moment still has them, and must not be forgotten.

After a restart of the control plane its gateways come back one by one, within seconds. Without a roster an abort would
be "everywhere" as soon as the first of them had it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

AWAY_S: Final = 60.0
"""How long a proxy that is not connected is waited for. Envoy tries again at least each 5 s; one that was stopped for
good, because a gateway was scaled down, must not hold a rollout up for ever."""


class Roster:
    """Names "gateway node" with the time they were last connected, monotonic seconds."""

    def __init__(self, names: Iterable[str] = (), now_s: float = 0.0) -> None:
        self._seen = dict.fromkeys(names, now_s)

    def note(self, connected: Mapping[str, Iterable[str]], now_s: float) -> None:
        """Take over which nodes of each gateway are connected now."""
        self._seen |= {f"{gateway} {node}": now_s for gateway, nodes in connected.items() for node in nodes}
        self._seen = {name: seen_s for name, seen_s in self._seen.items() if now_s - seen_s < AWAY_S}

    def away(self, now_s: float) -> tuple[str, ...]:
        """Who was connected lately and was not at the last `note`, for a human."""
        return tuple(
            f"{name} (away for {now_s - seen_s:.0f} s)" for name, seen_s in sorted(self._seen.items()) if seen_s < now_s
        )

    def names(self) -> tuple[str, ...]:
        """All of them, as they are kept."""
        return tuple(sorted(self._seen))
