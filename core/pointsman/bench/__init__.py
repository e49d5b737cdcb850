"""The policy benchmark: routing policies against each other on traces, in virtual time. Simulated figures only.

fleet → simulate (virtual time, the engines of `pointsman.sim`) → measure → table, svg
workload → simulate;   policy: the protocol;   joint: the production picker;   other modules: baselines
"""
