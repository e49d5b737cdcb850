"""Drills: faults that are made on purpose, and what clients saw of them.

`fleet` is the embedded set-up (two sites, two gateways, simulated model servers, all else real), `kinds` the faults,
`clients` the outside world, `run` one drill from the steady state through the fault and back. Judging is
`pointsman.failover.outcome` and `report`.
"""
