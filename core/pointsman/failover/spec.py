"""What failover shall do, in plain units: the machine's input, made of a FailoverPolicy manifest.

Shares are in 1/10,000, times are seconds, fill levels and free capacity are fractions. A spec is part of the saved
state, so that a restart knows under which rules a hold-down was begun. docs/failover-policy.md has each default's
reason.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

from pointsman.core.model import TOTAL_WEIGHT
from pointsman.failover.model import Member, Trigger

DEFAULT_RAMP: Final = (500, 2_500, TOTAL_WEIGHT)

DECISIVE: Final = frozenset({Trigger.ERROR_RATE, Trigger.LATENCY, Trigger.STALL, Trigger.PROBE, Trigger.METRICS_ABSENT})
"""Triggers that a site is left for. Saturation is load: it spills."""


class Role(Enum):
    ACTIVE = "Active"
    STANDBY = "Standby"  # is called, must be ready, is warmed up and gets no more than its capacity


class Mode(Enum):
    AUTO = "Auto"
    RECOMMEND = "Recommend"  # proposes; a person approves
    MANUAL = "Manual"  # shows what it sees; a person decides


class Combine(Enum):
    """How many triggers must hold for a site to be left."""

    ANY = "Any"
    ALL = "All"


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """Sites of one rank; the next tier is used when none of these serves, or to relieve them (spill).

    `warm_up_s`: how long a standby's cap grows to its capacity when it helps a tier that serves. `require_ready`: it
    counts as a refuge only while it has a ready endpoint.
    """

    sites: tuple[str, ...]
    role: Role = Role.ACTIVE
    warm_up_s: float = 5.0
    require_ready: bool = True


class Failback(msgspec.Struct, frozen=True, kw_only=True):
    """The way back. `hold_down_s` doubles with each further flap within an hour."""

    auto: bool = True
    hold_down_s: float = 60.0
    healthy_for_s: float = 30.0
    ramp: tuple[int, ...] = DEFAULT_RAMP
    ramp_interval_s: float = 10.0
    max_flaps_per_hour: int = 3


class Freeze(msgspec.Struct, frozen=True, kw_only=True):
    """A window in which nothing is decided without a person: it opens when `cron` (UTC) matches."""

    cron: str
    for_s: float


class Safety(msgspec.Struct, frozen=True, kw_only=True):
    """What automation never goes beyond. `min_free`: fraction of the remaining capacity that must stay free."""

    min_active_sites: int = 1
    min_free: float = 0.0
    max_concurrent_drains: int = 1
    freeze: tuple[Freeze, ...] = ()


class Spill(msgspec.Struct, frozen=True, kw_only=True):
    """Overflow into the next tier: it begins at fill level `start`, ends below `stop`, takes `max_share` at most."""

    start: float = 0.8
    stop: float = 0.6
    max_share: int = TOTAL_WEIGHT // 2


class Rto(msgspec.Struct, frozen=True, kw_only=True):
    """Promise and alarm for the time from a fault to the first good second."""

    objective_s: float = 120.0
    alert_above_s: float = 30.0


class FailoverSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One policy. `pools` are "namespace/name", sorted; `sites` says where each has endpoints, `capacity` how many
    requests a site carries (only where it is known).

    `outside`: sites of its pools that residency forbids: they never get a request, whatever fails. `required`: the
    triggers that must all hold with `Combine.ALL`. `policy`: whether a manifest asked for it.
    """

    name: str
    pools: tuple[str, ...]
    tiers: tuple[Tier, ...]
    sites: dict[str, tuple[str, ...]]
    capacity: dict[str, int] = msgspec.field(default_factory=dict)
    outside: tuple[str, ...] = ()
    mode: Mode = Mode.AUTO
    combine: Combine = Combine.ANY
    required: tuple[Trigger, ...] = ()
    decisive: tuple[Trigger, ...] = tuple(sorted(DECISIVE, key=lambda trigger: trigger.value))
    failback: Failback = Failback()
    safety: Safety = Safety()
    spill: Spill | None = Spill()
    rto: Rto = Rto()
    policy: bool = True

    def members(self) -> tuple[Member, ...]:
        """Every pool at every site where it has endpoints, those that residency forbids included."""
        return tuple(Member(pool=pool, site=site) for pool in self.pools for site in self.sites.get(pool, ()))

    def tier_of(self, site: str) -> int:
        """Number of the site's tier; sites that no tier names come after all of them."""
        return next((number for number, tier in enumerate(self.tiers) if site in tier.sites), len(self.tiers))

    def tier(self, site: str) -> Tier:
        """The site's tier; a site that no tier names is a tier of its own."""
        number = self.tier_of(site)
        return self.tiers[number] if number < len(self.tiers) else Tier(sites=(site,))
