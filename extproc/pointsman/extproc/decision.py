"""The question to the picker and its answer, with everything needed to explain it later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from pointsman.core import wire
from pointsman.extproc.cost import Terms
from pointsman.extproc.filters import Codes, Filtered
from pointsman.extproc.pick import Order
from pointsman.extproc.request import Body
from pointsman.extproc.table import Floats

NO_BODY = Body()

UNKNOWN_POOL = "unknown-pool"
NO_READY_ENDPOINT = wire.NO_READY_ENDPOINT
NOT_IN_SUBSET = "no-endpoint-in-subset"
OVER_OBJECTIVE = "over-objective"
RESIDENCY = "residency"
AT_CAPACITY = "at-capacity"


@dataclass(frozen=True, slots=True, kw_only=True)
class PickRequest:
    """Which endpoint of `pool` (an Envoy cluster name) shall serve this?

    `affinity` is the user or session, empty when unknown. `subset`: endpoints (`ip:port`) that the gateway allows,
    None for all. `residency`: jurisdictions that the request must not leave. `objective`: the
    InferenceObjective that it names. `route` is the name of the rule that Envoy matched. `reported`:
    the gateway tells of each running request, again and again.
    """

    pool: str
    body: Body = NO_BODY
    request_id: str = ""
    path: str = ""
    affinity: str = ""
    subset: frozenset[str] | None = None
    residency: frozenset[str] = frozenset()
    objective: str = ""
    reported: bool = False
    route: str = ""

    def identity(self, hashes: list[int]) -> int:
        """What ties are broken by: the user, else the prompt (its block hashes), else the request."""
        if self.affinity:
            return xxhash.xxh3_64_intdigest(self.affinity.encode("utf-8", "surrogatepass"))
        if hashes:
            return hashes[-1]
        return xxhash.xxh3_64_intdigest(self.body.prompt or self.request_id.encode())


def why_none(codes: Codes) -> tuple[int, str]:
    """HTTP status and reason when every endpoint is filtered."""
    if (codes == Filtered.FULL).any():
        return 429, AT_CAPACITY
    if len(codes) and (codes == Filtered.RESIDENCY).all():
        return 451, RESIDENCY
    if (codes == Filtered.NOT_IN_SUBSET).any() and np.isin(codes, (Filtered.NOT_IN_SUBSET, Filtered.RESIDENCY)).all():
        return 503, NOT_IN_SUBSET
    return 503, NO_READY_ENDPOINT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decision:
    """The answer. `endpoints` is ordered, best first, and empty when there is no pick.

    Without a pick `status` is the HTTP status the client gets for `reason`, or 0 when the proxy may go on without us
    (it knows a pool that we do not know yet). The rest explains: `codes` over `pool_keys`, the other arrays over the
    candidates, which are the keys that no code filters; `order` holds their positions as they were ranked, best first.
    """

    pool: str
    endpoints: tuple[str, ...] = ()
    status: int = 0
    reason: str = ""
    pick_id: str = ""
    request_id: str = ""
    route: str = ""
    affinity: str = ""
    policy: str = ""
    at_s: float = 0.0
    model: str = ""
    asked_model: str = ""  # what the client called it, where it is renamed
    problem: str = ""
    prompt_tokens: int = 0
    pool_keys: tuple[str, ...] = ()
    codes: Codes | None = None
    cached_tokens: Floats | None = None
    terms: Terms | None = None
    scores: Floats | None = None
    order: Order | None = None
    retry_after_s: int = 0

    @property
    def destination(self) -> str:
        """The value for the gateway: `ip:port,ip:port,…`."""
        return ",".join(self.endpoints)

    def after(self, endpoint: str) -> str:
        """Where a request goes that finds nobody at `endpoint`, "" where the list ends."""
        if endpoint not in self.endpoints[:-1]:
            return ""
        return self.endpoints[self.endpoints.index(endpoint) + 1]

    def brief(self) -> dict[str, Any]:
        """The decision in a line, as plain data; `at_s` is of the machine's monotonic clock."""
        return {
            "pick": self.pick_id,
            "request_id": self.request_id,
            "at_s": self.at_s,
            "pool": self.pool,
            "model": self.model,
            "endpoint": self.endpoints[0] if self.endpoints else "",
            "status": self.status,
            "reason": self.reason,
            "prompt_tokens": self.prompt_tokens,
        }

    def explain(self) -> dict[str, Any]:
        """The decision as plain data for a human: each candidate with its terms in ms, the others with a reason."""
        candidates: list[dict[str, Any]] = []
        filtered: dict[str, str] = {}
        if self.codes is not None:
            keys = [key for key, code in zip(self.pool_keys, self.codes, strict=True) if code == Filtered.NO]
            filtered = {
                key: Filtered(int(code)).name.lower().replace("_", "-")
                for key, code in zip(self.pool_keys, self.codes, strict=True)
                if code != Filtered.NO
            }
            for position in self.order if self.order is not None else range(len(keys)):
                candidate: dict[str, Any] = {"endpoint": keys[position]}
                if self.scores is not None and self.terms is not None and self.cached_tokens is not None:
                    candidate["score_ms"] = round(float(self.scores[position]), 3)
                    candidate["cached_tokens"] = int(self.cached_tokens[position])
                    candidate["terms_ms"] = self.terms.of(position)
                candidates.append(candidate)
        return {
            "pick": self.pick_id,
            "request_id": self.request_id,
            "route": self.route,
            "affinity": self.affinity,
            "pool": self.pool,
            "policy": self.policy,
            "at_s": self.at_s,
            "model": self.model,
            "asked_model": self.asked_model,
            "prompt_tokens": self.prompt_tokens,
            "no_affinity_because": self.problem,
            "endpoints": list(self.endpoints),
            "status": self.status,
            "reason": self.reason,
            "retry_after_s": self.retry_after_s,
            "candidates": candidates,
            "filtered": filtered,
        }
