"""The simulated fleet: regions with one gateway each, replicas, round trips, prices.

Defaults: three regions of four replicas (Llama-3-70B on four H100 each, `pointsman.sim.step_time`), round trips between
us-east-1, eu-west-1 and ap-northeast-1 as AWS reports them on average, 2 ms inside a region.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pointsman.replay.trace import BLOCK_TOKENS
from pointsman.sim.engine import EngineConfig
from pointsman.sim.step_time import StepTime

HBM_TOKENS = 400_000
"""KV pool of a replica on the device: `EngineConfig.num_gpu_blocks`."""

HOST_TOKENS = 1_600_000
"""Host tier of a replica: 512 GB of memory at 320 KB a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A region, its replicas, and the price of one of its GPUs in USD an hour (an example, no quotation).

    `slowdowns` multiply the step times of its replicas in turn: (1.0, 1.7) is every second one a GPU generation back.
    """

    name: str
    replicas: int = 4
    usd_per_gpu_hour: float = 2.5
    slowdowns: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """`rtt_ms[a][b]` is the round trip from region a to region b; each way takes half of it. Replicas are numbered
    through all regions in order."""

    regions: tuple[Region, ...] = (
        Region(name="us-east-1", usd_per_gpu_hour=2.50),
        Region(name="eu-west-1", usd_per_gpu_hour=2.80),
        Region(name="ap-northeast-1", usd_per_gpu_hour=3.60),
    )
    rtt_ms: tuple[tuple[float, ...], ...] = ((2.0, 80.5, 145.3), (80.5, 2.0, 212.4), (145.3, 212.4, 2.0))
    host_tokens: int = 0
    hbm_tokens: int = HBM_TOKENS
    gpus_per_replica: int = 4

    def __post_init__(self) -> None:
        size = len(self.regions)
        if len(self.rtt_ms) != size or any(len(row) != size for row in self.rtt_ms):
            raise ValueError("`rtt_ms` needs one row and one column for each region")

    @cached_property
    def region_of(self) -> tuple[int, ...]:
        """The region of each replica."""
        return tuple(r for r, region in enumerate(self.regions) for _ in range(region.replicas))

    @cached_property
    def local(self) -> tuple[tuple[int, ...], ...]:
        """The replicas of each region."""
        return tuple(tuple(i for i, r in enumerate(self.region_of) if r == n) for n in range(len(self.regions)))

    @property
    def size(self) -> int:
        """Replicas in all regions."""
        return len(self.region_of)

    @property
    def cache_tokens(self) -> int:
        """What one replica can hold, host tier included."""
        return self.hbm_tokens + self.host_tokens

    @cached_property
    def slowdown_of(self) -> tuple[float, ...]:
        """The slowdown of each replica."""
        return tuple(
            region.slowdowns[n % len(region.slowdowns)] for region in self.regions for n in range(region.replicas)
        )

    def rtt(self, gateway: int, replica: int) -> float:
        """Round trip in ms from a region's gateway to a replica."""
        return self.rtt_ms[gateway][self.region_of[replica]]

    def engine_config(self, replica: int) -> EngineConfig:
        """KV blocks are as large as those of the traces, so hits are counted in 512 tokens: a little too few."""
        return EngineConfig(
            block_size=BLOCK_TOKENS,
            num_gpu_blocks=self.hbm_tokens // BLOCK_TOKENS,
            num_host_blocks=self.host_tokens // BLOCK_TOKENS,
            step_time=StepTime(slowdown=self.slowdown_of[replica]),
        )
