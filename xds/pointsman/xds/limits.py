"""What one gateway process may use, as the overload manager of its bootstrap.

    80 %  memory that is free goes back to the system
    90 %  new requests are answered 503; those that run go on
    95 %  and up: the streams that hold most are reset, more of them the nearer the limit is

Requests are refused first because the answer says why and costs nobody what he already has. Connections are bounded by
their number and not by memory: a gateway that takes none looks dead to whoever asks it how it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]

MIB: Final = 1024 * 1024

SHRINK_AT: Final = 0.80
REFUSE_AT: Final = 0.90
RESET_AT: Final = 0.95
"""Shares of the heap limit; 10 % of 2 GiB are a thousand prompts of 200 kB that were just taken."""

REFRESH: Final = "0.25s"
"""How often memory is looked at; at 1 GB/s a gateway goes from the first answer of 503 to its limit in that time."""

TRACKED_POWER: Final = 20
"""Streams are known by the size of their buffers from 2^20 bytes on; smaller ones would free nothing."""

_MONITORS: Final = "type.googleapis.com/envoy.extensions.resource_monitors"
_HEAP: Final = "envoy.resource_monitors.fixed_heap"
_CONNECTIONS: Final = "envoy.resource_monitors.global_downstream_max_connections"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """`max_heap_bytes`: what Envoy may allocate; 2 GiB hold 1,000 prompts of 1 MB in both of the buffers that they
    pass. In a container it should be 80 % of its memory, or the kernel is faster. `max_connections`: of clients, over
    all listeners; no more than a process with usual file limits can serve."""

    max_heap_bytes: int = 2048 * MIB
    max_connections: int = 50_000

    def __post_init__(self) -> None:
        if self.max_heap_bytes < 1 or self.max_connections < 1:
            raise ValueError(f"a gateway needs some memory and connections: {self}")


DEFAULT_LIMITS: Final = GatewayLimits()


def overload_manager(limits: GatewayLimits) -> Json:
    """The `overload_manager` of a bootstrap."""
    heap = {"@type": f"{_MONITORS}.fixed_heap.v3.FixedHeapConfig", "max_heap_size_bytes": str(limits.max_heap_bytes)}
    connections = {
        "@type": f"{_MONITORS}.downstream_connections.v3.DownstreamConnectionsConfig",
        "max_active_downstream_connections": str(limits.max_connections),
    }
    return {
        "refresh_interval": REFRESH,
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": TRACKED_POWER},
        "resource_monitors": [
            {"name": _HEAP, "typed_config": heap},
            {"name": _CONNECTIONS, "typed_config": connections},
        ],
        "actions": [
            _action("shrink_heap", {"threshold": {"value": SHRINK_AT}}),
            _action("stop_accepting_requests", {"threshold": {"value": REFUSE_AT}}),
            _action(
                "reset_high_memory_stream", {"scaled": {"scaling_threshold": RESET_AT, "saturation_threshold": 1.0}}
            ),
        ],
    }


def _action(name: str, trigger: Json) -> Json:
    return {"name": f"envoy.overload_actions.{name}", "triggers": [{"name": _HEAP, **trigger}]}
