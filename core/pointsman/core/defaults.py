"""Addresses that a user meets, in one place."""

from __future__ import annotations

from typing import Final

GRPC_PORT: Final = 18_000
"""xDS, ext_proc and access logs: the port that Envoy's own examples use for a control plane."""

ADMIN_PORT: Final = 18_001
"""The admin API; not 9901, where many Envoys have theirs."""

LOOPBACK: Final = "127.0.0.1"
