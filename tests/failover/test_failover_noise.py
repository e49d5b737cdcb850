"""Ten minutes of each noise, and each fault once, in virtual time; `bench/failover/noise.py` does ten hours."""

from __future__ import annotations

import pytest

from pointsman.failover.model import Trigger
from pointsman.failover.noise import Weather, from_second, rehearse, steady
from pointsman.failover.noise_cases import Fault, Noise, faults, noises

MINUTES_S = 600.0
FAULT_S = 40.0


@pytest.mark.parametrize("noise", noises(MINUTES_S), ids=lambda noise: noise.name)
def test_noise_moves_no_traffic(noise: Noise) -> None:
    verdict = rehearse(noise.climate, seconds=MINUTES_S, endpoints=noise.endpoints, seed=7, shared=noise.shared)
    assert verdict.requests > 100
    assert (verdict.trips, verdict.elsewhere, verdict.first) == (0, 0, None)


@pytest.mark.parametrize("fault", [f for f in faults() if f.within_s is not None], ids=lambda fault: fault.name)
def test_faults_are_found_in_time(fault: Fault) -> None:
    assert fault.within_s is not None
    climate = from_second(FAULT_S, fault.before, fault.after)
    seconds = FAULT_S + 60.0
    verdict = rehearse(
        climate, seconds=seconds, seed=11, until_first=True, endpoints=fault.endpoints, shared=fault.shared
    )
    assert verdict.first is not None
    assert FAULT_S < verdict.first_s <= FAULT_S + fault.within_s
    assert verdict.elsewhere == 0


def test_a_site_that_is_full_is_saturated() -> None:
    verdict = rehearse(steady(Weather(per_s=60.0, tokens=2_400.0)), seconds=60.0)
    assert verdict.saturated
    assert verdict.trips == 0


def test_the_finding_names_the_trigger_that_fits() -> None:
    gone = rehearse(from_second(FAULT_S, Weather(), Weather(gone=True)), seconds=FAULT_S + 30.0, until_first=True)
    assert gone.first is not None
    assert gone.first.trigger is Trigger.STALL
