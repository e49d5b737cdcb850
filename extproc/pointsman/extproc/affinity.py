"""Soft affinity of users: each pool's users stay where they were, unless that costs more than it is worth.

What is remembered is the endpoint of a user's last pick, and leaving it has a price in ms (`CostModel.home_ms`). So a
cached prefix, a queue, a penalty or a degraded endpoint that is worth more than the price wins, for as long as it is;
an endpoint that is filtered (unhealthy, drained, forbidden) is no candidate at all. A user whom nobody knows is placed
by cost alone: to place him by a hash costs those with him more time than it saves (docs/rollouts.md).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pointsman.extproc.table import EndpointTable, Floats, Rows

MAX_USERS: Final = 65_536
"""Of all pools together; who came last longest ago is forgotten. About 10 MB."""

User = tuple[str, int]
"""The pool, and a hash of what identifies the user."""


class Homes:
    """Where the users of one picker were last. `limit` bounds how many are remembered."""

    def __init__(self, limit: int = MAX_USERS) -> None:
        self._limit = limit
        self._homes: dict[User, str] = {}

    def __len__(self) -> int:
        return len(self._homes)

    def leaving_ms(self, price_ms: float, user: User, table: EndpointTable, rows: Rows) -> Floats | None:
        """What each candidate costs the user more: nothing at home, the price elsewhere.

        None: it makes no difference, because he has no home or it is not among the candidates.
        """
        home = self._homes.get(user)
        row = table.row(home) if home is not None and price_ms else None
        if row is None:
            return None
        elsewhere = rows != row
        return None if elsewhere.all() else np.where(elsewhere, price_ms, 0.0)

    def went(self, user: User, endpoint: str) -> None:
        """A pick sent the user there."""
        self._homes.pop(user, None)
        self._homes[user] = endpoint
        if len(self._homes) > self._limit:
            del self._homes[next(iter(self._homes))]
