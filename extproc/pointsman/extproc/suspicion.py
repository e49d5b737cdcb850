"""Endpoints that seem to be gone: who says so, for how long that is believed, and what takes it back.

Two witnesses speak at once: gateways whose attempts find no connection, and our own scrapes that are refused. A page
that an endpoint gives after that proves that it is alive. Until then it is picked where nothing else lives, and only
there: a picker that wrongly suspects everything picks as if it suspected nothing. What refused a scrape waits for
`SUSPECT_S` in any case, so that a site that flaps is left and not followed.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from pointsman.core.model import Plan
from pointsman.extproc.table import Chosen, EndpointTable, Mask

SUSPECT_S: Final = 3.0
"""How long a failure is believed when pages neither come nor are refused. Then requests try the endpoint again; one
that is still gone costs the few retries of the 10 ms until that is known."""

DISTRUST_S: Final = 10.0
"""A gateway that called an endpoint dead of which a page came then may have a broken network of its own: for so long it
is believed only where our scrape is refused, too. So it takes the endpoint from other gateways for one scrape in ten
seconds."""

TOGETHER_S: Final = 1.0
"""Endpoints of a site that fail within this time fail together."""

TOGETHER_SHARE: Final = 0.25
"""Share of a site's endpoints, two at least, that fail together when the site fails: a rolling restart takes fewer."""


class Suspicion:
    """What is known against the endpoints of a table; it lives in its columns. Times are monotonic."""

    def __init__(self, table: EndpointTable) -> None:
        self._table = table
        self._until_s = -np.inf
        self._sites: dict[int, float] = {}  # number of a site → when several of its endpoints had failed
        self._gateways: frozenset[str] = frozenset()

    def apply(self, plan: Plan) -> None:
        """Follow a new Plan. The page of a site behind a gateway is its control plane's: it proves nothing of the
        gateway."""
        self._gateways = frozenset(
            endpoint.key
            for pool in plan.pool_views()
            for group in pool.groups
            if group.hop is not None
            for endpoint in group.endpoints
        )

    def attempt_failed(self, row: int, now_s: float) -> None:
        """A gateway found no connection to the endpoint, or lost it."""
        table = self._table
        if not np.isfinite(table.proven_s[row]):
            return  # nothing would take it back, and one gateway without a network empties the pool for all
        if now_s - table.false_alarm_s[row] < DISTRUST_S and not self._refused(row):
            return
        self._suspect(row, now_s)

    def page_refused(self, row: int, now_s: float) -> None:
        """Nobody listens where its page was. Only the first time says something: a page may be closed to us alone."""
        if not self._refused(row):
            self._table.refused_s[row] = now_s
            self._suspect(row, now_s)
            self._until_s = max(self._until_s, now_s + SUSPECT_S)

    def proven(self, row: int, asked_s: float) -> None:
        """It gave a page that was asked for at `asked_s`."""
        table = self._table
        if table.key(row) in self._gateways:
            return
        if table.proven_s[row] < table.suspect_s[row] < asked_s and not self._refused(row):
            table.false_alarm_s[row] = asked_s
        table.proven_s[row] = max(table.proven_s[row], asked_s)

    def of(self, rows: Chosen, now_s: float, *, unsteady: bool = True) -> Mask | None:
        """Which of the rows are suspected; None: none of them. `unsteady`: with those that have just come back."""
        if now_s >= self._until_s:
            return None
        table = self._table
        since_s, proven_s, site = table.suspect_s[rows], table.proven_s[rows], table.site[rows]
        for number, failed_s in self._sites.items():
            with_site = (site == number) & np.isfinite(proven_s)  # where no page ever came, none can take it back
            since_s = np.where(with_site, np.maximum(since_s, failed_s), since_s)
        found: Mask = (since_s > proven_s) & (now_s - since_s < SUSPECT_S)
        if unsteady:
            found |= now_s - table.refused_s[rows] < SUSPECT_S
        return found if found.any() else None

    def confirmed(self, rows: Chosen) -> Mask:
        """Whose page is refused, too: by two witnesses it is gone."""
        found: Mask = self._table.refused_s[rows] > self._table.proven_s[rows]
        return found

    def _refused(self, row: int) -> bool:
        return bool(self._table.refused_s[row] > self._table.proven_s[row])

    def _suspect(self, row: int, now_s: float) -> None:
        table = self._table
        if table.suspect_s[row] > table.proven_s[row] and now_s - table.suspect_s[row] < SUSPECT_S:
            return  # else a gateway that goes on saying it would outdo each page that is under way
        table.suspect_s[row] = now_s
        self._until_s = now_s + SUSPECT_S
        mates = table.mates(row)
        fresh = (now_s - table.suspect_s[mates] < TOGETHER_S) & (table.suspect_s[mates] > table.proven_s[mates])
        if np.count_nonzero(fresh) >= max(2.0, TOGETHER_SHARE * len(mates)):
            self._sites[int(table.site[row])] = now_s


def last(order: npt.NDArray[np.int64], suspects: Mask | None) -> npt.NDArray[np.int64]:
    """The same order with those that are suspected behind all others."""
    return order if suspects is None else order[np.argsort(suspects[order], kind="stable")]
