"""What is known of client processes between their streams."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable
from itertools import count
from typing import Final

from pointsman.xds.quarantine import Quarantine
from pointsman.xds.resources import Resource

ENTRIES_KEPT: Final = 1_000_000
"""Resources that clients hold which are away now: 500 gateways with 2,000 each, some 100 MB. A client whose memory was
dropped is sent again what it refused, once, and a SotW client everything."""


class Memory:
    """What is known of one client process between its streams: what it holds, rejected, and may or may not have."""

    def __init__(self) -> None:
        self.quarantine = Quarantine()
        self.held: dict[str, dict[str, Resource]] = {}
        self.uncertain: dict[str, set[str]] = {}

    def find(self, type_url: str, name: str, version: str) -> Resource | None:
        """The resource of that version, if the client acknowledged it on an earlier stream."""
        found = self.held.get(type_url, {}).get(name)
        return found if found is not None and found.version == version else None

    def size(self) -> int:
        """How many resources it remembers, and one for itself."""
        return 1 + len(self.quarantine) + sum(map(len, self.held.values())) + sum(map(len, self.uncertain.values()))


class Memories:
    """The memories of all clients. Who is connected is never forgotten; of the others those that left last are kept."""

    def __init__(self, limit: int = ENTRIES_KEPT) -> None:
        self._limit = limit
        self._present: dict[Hashable, Memory] = {}
        self._streams: Counter[Hashable] = Counter()
        self._away: OrderedDict[Hashable, tuple[Memory, int]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._present) + len(self._away)

    def seat(self, client: Hashable) -> tuple[Hashable, int]:
        """Who a stream belongs to that is its client's only one: number 0, unless another such stream of that client is
        open. Then it is another process that says it is the same, and what one of them refuses is no matter of the
        other's."""
        return client, next(number for number in count() if (client, number) not in self._present)

    def enter(self, client: Hashable) -> Memory:
        """A stream of this client begins; `leave` must follow."""
        self._streams[client] += 1
        if client in self._away:
            self._present[client], size = self._away.pop(client)
            self._size -= size
        return self._present.setdefault(client, Memory())

    def leave(self, client: Hashable) -> None:
        """A stream of this client ended."""
        self._streams[client] -= 1
        if self._streams[client]:
            return
        del self._streams[client]
        memory = self._present.pop(client)
        size = memory.size()
        self._away[client] = (memory, size)
        self._size += size
        while self._size > self._limit:
            _, (_, dropped) = self._away.popitem(last=False)
            self._size -= dropped
