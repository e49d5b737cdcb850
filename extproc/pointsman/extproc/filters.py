"""Which endpoints of a pool may be picked at all, and why the others may not."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from pointsman.core.model import Health
from pointsman.extproc.table import HEALTH_CODES, EndpointTable, PoolRows

Codes = npt.NDArray[np.int8]


class Filtered(IntEnum):
    """Why an endpoint is no candidate; the first reason that holds is kept. 0: it is one."""

    NO = 0
    RESIDENCY = 1  # the request may not leave its jurisdictions
    NOT_IN_SUBSET = 2  # the gateway allows only some endpoints
    UNHEALTHY = 3
    DRAINING = 4
    SITE_DRAINING = 5
    MODEL_MISSING = 6  # it is known to serve other models
    HELD_BACK = 7  # its site failed, or takes only a share of the requests as yet
    HIGHER_TIER = 8  # a site of a lower tier serves
    FULL = 9  # its site carries all that it may
    GONE = 10  # nobody listens there, and whoever else might serve is full


_UNHEALTHY = HEALTH_CODES[Health.UNHEALTHY]
_DRAINING = HEALTH_CODES[Health.DRAINING]


def filter_rows(
    table: EndpointTable,
    pool: PoolRows,
    *,
    model: str = "",
    subset: frozenset[str] | None = None,
    residency: frozenset[str] = frozenset(),
) -> Codes:
    """A `Filtered` code for each row of the pool.

    `subset` None: all are allowed. `residency`: the jurisdictions in which the request must stay, all of which a site
    must have. A model that no endpoint is known to have filters nothing: the engine's own 404 is the better answer.
    """
    rows = pool.rows
    codes = np.zeros(len(rows), dtype=np.int8)
    if model and len(table.model_sets) > 1:
        serving = np.array([names is None or model in names for names in table.model_sets], dtype=np.bool_)
        has = serving[table.model_set[rows]]
        if has.any():
            codes[~has] = Filtered.MODEL_MISSING
    codes[table.site_draining[table.site[rows]]] = Filtered.SITE_DRAINING
    health = table.health[rows]
    codes[health == _DRAINING] = Filtered.DRAINING
    codes[health == _UNHEALTHY] = Filtered.UNHEALTHY
    if subset is not None:
        outside = np.fromiter((key not in subset for key in pool.keys), dtype=np.bool_, count=len(rows))
        codes[outside] = Filtered.NOT_IN_SUBSET
    if residency:
        allowed = np.array([residency <= tags for tags in table.site_jurisdictions], dtype=np.bool_)
        codes[~allowed[table.site[rows]]] = Filtered.RESIDENCY
    return codes
