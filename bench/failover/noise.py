"""What the failover detector makes of hours of noise, and how soon it finds faults. Virtual time: simulated.

    python bench/failover/noise.py [--hours 10] [--seeds 20] [--only TEXT]

Exit code 1 when noise moved traffic away once, or a fault was not found in its time. The model of a site, with all its
numbers, is `pointsman.failover.noise`. Each noise runs on the first of two sites; `elsewhere`: findings at the other.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from pointsman.failover.noise import from_second, rehearse
from pointsman.failover.noise_cases import faults, noises

HOUR_S = 3_600.0
BEFORE_S = 60.0
AFTER_S = 120.0


def show_noises(hours: float, only: str) -> bool:
    """The table of the noises; True when none moved traffic."""
    print(f"\nnoise, {hours:g} simulated hours each      trips  elsewhere  saturated  ejected  samples     CPU")
    good = True
    for noise in noises(hours * HOUR_S):
        if only not in noise.name:
            continue
        began_s = time.process_time()
        verdict = rehearse(noise.climate, seconds=hours * HOUR_S, endpoints=noise.endpoints, shared=noise.shared)
        good = good and not verdict.trips and not verdict.elsewhere
        print(
            f"{noise.name:<58} {verdict.trips:>5} {verdict.elsewhere:>6} "
            f"{verdict.saturated / 10:>8.1f} s {verdict.ejected / 10:>7.1f} s {verdict.requests:>9} "
            f"{time.process_time() - began_s:>6.0f} s",
            flush=True,
        )
        if verdict.first is not None:
            print(f"    first at {verdict.first_s:.1f} s: {verdict.first.trigger.value}, {verdict.first.detail}")
    return good


def show_faults(seeds: int, only: str) -> bool:
    """The table of the faults; True when each was found in its time in every run."""
    print(f"\nfault, {seeds} runs each        found      p50      max     bar   by")
    good = True
    for fault in faults():
        if only not in fault.name:
            continue
        delays: list[float] = []
        by: dict[str, int] = {}
        for seed in range(seeds):
            fault_s = BEFORE_S + 0.1 * (seed % 10) + seed
            climate = from_second(fault_s, fault.before, fault.after)
            verdict = rehearse(
                climate,
                seconds=fault_s + AFTER_S,
                seed=seed,
                until_first=True,
                endpoints=fault.endpoints,
                shared=fault.shared,
            )
            if verdict.first is not None:
                delays.append(verdict.first_s - fault_s)
                by[verdict.first.trigger.value] = by.get(verdict.first.trigger.value, 0) + 1
        bar_s = fault.within_s
        good = good and len(delays) == seeds and min(delays) > 0 and (bar_s is None or max(delays) <= bar_s)
        times = f"{statistics.median(delays):>6.1f} s {max(delays):>6.1f} s" if delays else "     -        -"
        bar = f"{bar_s:>4.0f} s" if bar_s is not None else "     -"
        print(f"{fault.name:<24} {len(delays):>5}/{seeds} {times} {bar}   {by}", flush=True)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=10.0, help="simulated hours of each noise; 0: none")
    parser.add_argument("--seeds", type=int, default=20, help="runs of each fault; 0: none")
    parser.add_argument("--only", default="", help="those with this text in their name")
    options = parser.parse_args()
    faults_good = not options.seeds or show_faults(options.seeds, options.only)
    noises_good = not options.hours or show_noises(options.hours, options.only)
    print(
        f"\nfaults {'found in time' if faults_good else 'NOT all found in time'}, "
        f"noise {'moved nothing' if noises_good else 'MOVED TRAFFIC'}"
    )
    sys.exit(0 if faults_good and noises_good else 1)


if __name__ == "__main__":
    main()
