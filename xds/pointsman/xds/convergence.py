"""How far the proxies of each gateway are, kept up to date one stream at a time."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum


class Stand(Enum):
    """How one stream stands with the present snapshot of its gateway."""

    ACKED = "acked"  # it has all of it
    REJECTED = "rejected"  # it has all but what it refused
    PENDING = "pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Convergence:
    """Node ids of a gateway's connected proxies by how they stand."""

    acked: frozenset[str]
    rejected: frozenset[str]
    pending: frozenset[str]

    @property
    def done(self) -> bool:
        """Whether every proxy has acknowledged everything."""
        return not self.rejected and not self.pending


class Progress:
    """The stand of every stream, and counts per gateway that cost nothing to read."""

    def __init__(self) -> None:
        self._streams: dict[Hashable, tuple[str, str, Stand]] = {}
        self._gateways: dict[str, dict[Hashable, tuple[str, Stand]]] = {}
        self._pending: dict[str, int] = {}

    def note(self, stream: Hashable, gateway: str, node: str, stand: Stand) -> bool:
        """Take over the stand of a stream; returns whether it changed."""
        if self._streams.get(stream) == (gateway, node, stand):
            return False
        self.drop(stream)
        self._streams[stream] = (gateway, node, stand)
        self._gateways.setdefault(gateway, {})[stream] = (node, stand)
        self._pending[gateway] = self._pending.get(gateway, 0) + (stand is Stand.PENDING)
        return True

    def drop(self, stream: Hashable) -> None:
        """Forget a stream."""
        known = self._streams.pop(stream, None)
        if known is None:
            return
        gateway, _, stand = known
        del self._gateways[gateway][stream]
        self._pending[gateway] -= stand is Stand.PENDING
        if not self._gateways[gateway]:
            del self._gateways[gateway], self._pending[gateway]

    def answered(self, gateway: str, nodes: int) -> bool:
        """Whether nobody is pending and at least `nodes` streams are there."""
        return not self._pending.get(gateway) and len(self._gateways.get(gateway, ())) >= nodes

    def of(self, gateway: str) -> Convergence:
        """How the proxies of a gateway stand."""
        by_stand: dict[Stand, set[str]] = {stand: set() for stand in Stand}
        for node, stand in self._gateways.get(gateway, {}).values():
            by_stand[stand].add(node)
        return Convergence(
            acked=frozenset(by_stand[Stand.ACKED] - by_stand[Stand.PENDING] - by_stand[Stand.REJECTED]),
            rejected=frozenset(by_stand[Stand.REJECTED] - by_stand[Stand.PENDING]),
            pending=frozenset(by_stand[Stand.PENDING]),
        )
