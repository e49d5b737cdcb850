"""Who may serve a request: the rows of a pool that nothing filters, kept from pick to pick while nothing changes.

What filters by the Plan and by the models of endpoints is the same for most requests; subsets, residency and tiers are
of the request, or of the moment, and filtered anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pointsman.extproc.decision import PickRequest
from pointsman.extproc.filters import Codes, filter_rows
from pointsman.extproc.pick import Hashes
from pointsman.extproc.table import Chosen, EndpointTable, PoolRows, Rows

MAX_KEPT: Final = 256
"""Pairs of pool and model: clients name models, and may make up new ones for ever."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """`codes` are those of `filter_rows`; all other columns are of the candidates, for which they are 0.

    `at` is `rows`, or the same as a slice. Nobody writes into these columns: several requests have them.
    """

    codes: Codes
    rows: Rows
    at: Chosen
    sites: npt.NDArray[np.int32]
    key_hash: Hashes


class CandidateFilter:
    """Candidates in the pools of a table."""

    def __init__(self, table: EndpointTable) -> None:
        self._table = table
        self._kept: dict[tuple[str, str], tuple[PoolRows, int, Candidates]] = {}

    def codes(self, pool: PoolRows, request: PickRequest) -> Codes:
        """The codes of all rows, for the caller to change."""
        return filter_rows(
            self._table, pool, model=request.body.model, subset=request.subset, residency=request.residency
        )

    def of(self, pool: PoolRows, request: PickRequest) -> Candidates:
        """The candidates for a request, whatever tiers say."""
        if request.subset is not None or request.residency:
            return self.left(pool, self.codes(pool, request))
        key = pool.name, request.body.model
        kept = self._kept.get(key)
        if kept is not None and kept[0] is pool and kept[1] == self._table.models_version:
            return kept[2]
        found = self.left(pool, self.codes(pool, request))
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        self._kept[key] = pool, self._table.models_version, found
        return found

    def left(self, pool: PoolRows, codes: Codes) -> Candidates:
        """The candidates that some codes leave."""
        free = codes == 0
        whole = bool(np.logical_and.reduce(free))
        rows = pool.rows if whole else pool.rows[free]
        at = pool.span if whole else rows
        return Candidates(
            codes=codes, rows=rows, at=at, sites=self._table.site[at].copy(), key_hash=self._table.key_hash[at].copy()
        )
