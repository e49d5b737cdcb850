"""The specification of a simulation: which replicas, where, how large, how fast. Read from JSON, checked strictly."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec

from pointsman.core.errors import ConfigError, Problem
from pointsman.sim.engine import EngineConfig
from pointsman.sim.faults import decode_strictly

Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
_Report = Callable[[str, str, str], None]
Speed = Annotated[float, msgspec.Meta(gt=0, le=1_000_000)]

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
"""Names are path segments of the admin endpoint and words of the answers."""


class ReplicaSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One replica: a model server on its own port.

    `port` 0 takes a free one. `speed` multiplies the simulation's. `engine` overrides the defaults of `EngineConfig`.
    `rtt_ms` is the network's round trip to it in simulated time: every answer, `/metrics` too, comes that much later.
    `answer_tokens` is the length of an answer to a request that does not say `max_tokens`.
    """

    name: str
    site: str = ""
    pool: str = ""
    address: str = "127.0.0.1"
    port: Port = 0
    protocol: Literal["http", "grpc"] = "http"
    model: str = "sim-llama"
    loras: tuple[str, ...] = ()
    max_loras: Annotated[int, msgspec.Meta(ge=1)] = 4
    engine: EngineConfig = EngineConfig()
    speed: Speed = 1.0
    rtt_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0
    answer_tokens: Annotated[int, msgspec.Meta(ge=1)] = 64


class SimSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole simulation. `speed` is engine time over wall time; `seed` decides which requests a percentage hits."""

    replicas: Annotated[tuple[ReplicaSpec, ...], msgspec.Meta(min_length=1)]
    seed: int = 1
    speed: Speed = 1.0
    admin_address: str = "127.0.0.1"
    admin_port: Port = 0


def parse_spec(body: bytes, file: str = "spec") -> SimSpec:
    """JSON to a checked specification; raises ConfigError with every problem found."""
    spec = decode_strictly(body, SimSpec, file=file, mend="")
    check_spec(spec, file)
    return spec


def parse_replicas(body: bytes) -> tuple[ReplicaSpec, ...]:
    """A JSON list of replicas, checked like the specification; raises ConfigError with every problem found."""
    replicas = decode_strictly(body, tuple[ReplicaSpec, ...], file="replicas", mend="")
    check_spec(SimSpec(replicas=replicas), "replicas")
    return replicas


def check_spec(spec: SimSpec, file: str = "spec") -> None:
    """What the types do not say; raises ConfigError with every problem found."""
    problems: list[Problem] = []

    def problem(field: str, what: str, mend: str) -> None:
        problems.append(Problem(file=file, line=0, field=field, what=what, mend=mend))

    names: dict[str, int] = {}
    places: dict[tuple[str, int], str] = {}
    _check_address(problem, "admin_address", spec.admin_address)
    if spec.admin_port:
        places[spec.admin_address, spec.admin_port] = "the admin endpoint"
    for i, replica in enumerate(spec.replicas):
        at = f"replicas[{i}]"
        if not _NAME.fullmatch(replica.name):
            problem(f"{at}.name", f"{replica.name!r} is no name", "letters, digits, dots, dashes and underscores")
        if (other := names.setdefault(replica.name, i)) != i:
            problem(f"{at}.name", f"{replica.name!r} is the name of replicas[{other}], too", "choose another name")
        _check_address(problem, f"{at}.address", replica.address)
        if not replica.model:
            problem(f"{at}.model", "the model has no name", "give it one")
        if len({replica.model, *replica.loras}) != 1 + len(replica.loras):
            problem(f"{at}.loras", "adapters and model share a name", "each model name once")
        place = (replica.address, replica.port)
        if replica.port and (user := places.setdefault(place, replica.name)) != replica.name:
            problem(f"{at}.port", f"{replica.address} port {replica.port} is taken by {user}", "choose another port")
    if problems:
        raise ConfigError(problems)


def _check_address(problem: _Report, field: str, address: str) -> None:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        problem(field, f"{address!r} is no IP address", "an IP literal such as 127.0.0.1 or ::1")
