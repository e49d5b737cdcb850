"""What a routing policy is to the simulator: it is asked for a replica, and told what its fleet reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from pointsman.bench.fleet import Fleet
from pointsman.bench.workload import Arrival
from pointsman.sim.engine import Engine


class Sample(NamedTuple):
    """One scrape of a replica: requests waiting and running, share of the KV pool in use (0..1)."""

    waiting: int
    running: int
    kv_usage: float


class World(Protocol):
    """What a policy may use of the simulation. `engines` and `flying` are for policies that know everything."""

    @property
    def fleet(self) -> Fleet: ...

    @property
    def now_ms(self) -> float: ...

    @property
    def engines(self) -> Sequence[Engine]: ...

    def flying(self, replica: int) -> Sequence[Arrival]:
        """Requests on the wire to a replica."""
        ...

    def later(self, at_ms: float, action: Callable[[], None]) -> None:
        """Do something at a later time, before any choice that is made then."""
        ...


class Policy(Protocol):
    """A policy, one instance for one run. Times are virtual ms; replicas are numbers.

    `per_region` says that each region's gateway observes the fleet for itself: a scrape reaches it half a round trip
    after it was taken. Otherwise there is one observer, as near to all as it can be.
    """

    @property
    def per_region(self) -> bool: ...

    def bind(self, world: World) -> None:
        """The run begins."""
        ...

    def choose(self, arrival: Arrival) -> int | None:
        """The replica for a request that is at its gateway now; None holds it back there and asks again soon."""
        ...

    def first_token(self, arrival: Arrival, replica: int) -> None:
        """The first token has come to the gateway."""
        ...

    def ended(self, arrival: Arrival, replica: int) -> None:
        """The last token has come to the gateway."""
        ...

    def scraped(self, view: int, replica: int, sample: Sample) -> None:
        """A scrape has come in; only the newest before each choice is reported."""
        ...
