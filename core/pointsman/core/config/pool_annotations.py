"""Annotations of pools, their endpoints and objectives: what the APIs have no field for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pointsman.core.config import syntax
from pointsman.core.config.document import Path, shown
from pointsman.core.config.meta import OWN_PREFIX

KV_EVENTS_PORT: Final = f"{OWN_PREFIX}kv-events-port"
"""InferencePool, EndpointSlice (before the pool's): the port on which each engine publishes its KV events. Where an
address has several ports (data-parallel ranks), the second one publishes on the next port, and so on, as vLLM does."""
KV_REPLAY_PORT: Final = f"{OWN_PREFIX}kv-replay-port"
"""InferencePool, EndpointSlice: the port on which the engine repeats events that were lost; counted like the other."""
SHED_AFTER: Final = f"{OWN_PREFIX}shed-after"
"""InferencePool: the expected time to the first token past which requests of negative priority are refused."""
TTFT: Final = f"{OWN_PREFIX}ttft"
"""InferenceObjective: its budget for the first token; what no endpoint can answer within it is refused."""

KV_ANNOTATIONS: Final = frozenset({KV_EVENTS_PORT, KV_REPLAY_PORT})

_PATH: Final[Path] = ("metadata", "annotations")


def complaints(annotations: Mapping[str, str]) -> Iterator[tuple[Path, str, str]]:
    """What is wrong with the values of these annotations."""
    for name in sorted(KV_ANNOTATIONS & annotations.keys()):
        value = annotations[name]
        if not (value.isascii() and value.isdigit() and len(value) <= 5 and 0 < int(value) < 65536):
            yield (*_PATH, name), f"{shown(value)} is not a port", 'expected a number from 1 to 65535, such as "5557"'
    for name in (SHED_AFTER, TTFT):
        if name not in annotations:
            continue
        complaint = syntax.duration(annotations[name])
        if complaint is None and syntax.duration_ms(annotations[name]) == 0:
            complaint = "no time at all would refuse every request", "expected a duration such as 2s"
        if complaint:
            yield (*_PATH, name), *complaint


def port(name: str, *annotated: Mapping[str, str]) -> int:
    """The port under `name` in the first mapping that has it, 0 where none has."""
    return next((int(one[name]) for one in annotated if name in one), 0)


def milliseconds(name: str, annotations: Mapping[str, str]) -> float | None:
    """A duration, None where it is absent."""
    return float(syntax.duration_ms(annotations[name])) if name in annotations else None
