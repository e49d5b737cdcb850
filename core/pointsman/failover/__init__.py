"""Failover between sites: what was seen of them, and what is decided from it. Pure; `pointsman.app.failover` drives it.

`detect` turns samples of requests into findings, `machine` turns findings into directives. What Envoy does by itself in
milliseconds (retries, outlier detection, priorities) is not here: this is for what Envoy cannot see.
"""
