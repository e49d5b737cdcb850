"""Faults of a simulated replica: what can be asked for, and what a request gets. Pure: shells act on the answers.

A request draws its luck once, when it arrives; what it gets is decided anew whenever something is about to be sent. So
a fault that is switched on also hits what is running, and one that is switched off lets it go on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal, TypeVar

import msgspec

from pointsman.core.errors import ConfigError, Problem

Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Tokens = Annotated[int, msgspec.Meta(ge=0)]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class ErrorFault(_Strict, frozen=True):
    """`percent` of the inference requests are answered with `status` at once; `retry_after_s` as Retry-After."""

    status: Literal[429, 500, 502, 503, 504] = 503
    percent: Percent = 100.0
    retry_after_s: Annotated[int, msgspec.Meta(ge=0)] | None = None


class LatencyFault(_Strict, frozen=True):
    """`ms` of wall time are added before the first token of `percent` of the requests. Headers still go at once."""

    ms: Annotated[float, msgspec.Meta(ge=0, le=3_600_000)]
    percent: Percent = 100.0


class StallFault(_Strict, frozen=True):
    """`percent` of the requests get nothing more, on an open connection: `before` the first token, or `mid` stream
    from `after_tokens` on."""

    where: Literal["before", "mid"]
    after_tokens: Annotated[int, msgspec.Meta(ge=1)] = 1
    percent: Percent = 100.0


class ResetFault(_Strict, frozen=True):
    """The connection of `percent` of the requests is reset (TCP RST) once `after_tokens` are sent; 0: before any."""

    after_tokens: Tokens = 1
    percent: Percent = 100.0


class Faults(_Strict, frozen=True):
    """All faults of one replica; any of them can be combined. The empty value is a healthy replica.

    - `exit`: the process is gone: listener closed, all connections reset; afterwards it starts with empty caches.
    - `refuse`: listener closed, running requests finish.
    - `blackhole`: connections are accepted, nothing is ever answered, nothing is closed; like a stopped process.
    - `malformed_sse`: from the second token on, events are cut in the middle and `[DONE]` never comes.
    - `metrics`: `/metrics` is 404, no Prometheus text, late by ten seconds, or 64 MiB long.
    - `health`: `/health` answers 503.
    - `model_unloaded`: 404 for the model and its adapters, `/v1/models` is empty, `/health` is fine.
    - `models`: `error`, `latency`, `stall`, `reset` and `malformed_sse` only hit requests for these; empty: for any.
    """

    exit: bool = False
    refuse: bool = False
    error: ErrorFault | None = None
    latency: LatencyFault | None = None
    stall: StallFault | None = None
    blackhole: bool = False
    reset: ResetFault | None = None
    malformed_sse: bool = False
    metrics: Literal["missing", "garbage", "slow", "huge"] | None = None
    health: Literal["failing"] | None = None
    model_unloaded: bool = False
    models: tuple[str, ...] = ()

    def of(self, model: str) -> Faults:
        """What of it hits a request for `model`."""
        if not self.models or model in self.models:
            return self
        return msgspec.structs.replace(self, error=None, latency=None, stall=None, reset=None, malformed_sse=False)

    @property
    def listening(self) -> bool:
        """Whether the port is open."""
        return not (self.exit or self.refuse)


HEALTHY = Faults()

GRPC_UNSUPPORTED = ("malformed_sse", "metrics")
"""A gRPC replica has neither SSE nor a metrics page."""

T = TypeVar("T")


def decode_strictly(body: bytes, kind: type[T], *, file: str, mend: str) -> T:
    """JSON to a typed value; raises ConfigError with the field's path, what was found and what is expected."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `")
        raise ConfigError(
            Problem(file=file, line=0, field=path.rstrip("`").removeprefix("$").lstrip("."), what=what, mend=mend)
        ) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        problem = Problem(file=file, line=0, field="", what=f"not JSON: {error}", mend="send one JSON object")
        raise ConfigError(problem) from error


def parse_faults(body: bytes, *, protocol: Literal["http", "grpc"] = "http") -> Faults:
    """The body of a PUT; raises ConfigError when anything in it is unknown or out of range."""
    known = "known: " + ", ".join(Faults.__struct_fields__)
    faults = decode_strictly(body, Faults, file="faults", mend=known)
    problems = [
        Problem(file="faults", line=0, field=name, what=f"a {protocol} replica has no such fault", mend="leave it out")
        for name in GRPC_UNSUPPORTED
        if protocol == "grpc" and getattr(faults, name)
    ]
    if problems:
        raise ConfigError(problems)
    return faults


class Luck(msgspec.Struct, frozen=True, kw_only=True):
    """One number from 0 to 100 for each fault that takes a percentage; a fault hits where it is below `percent`."""

    error: float
    latency: float
    stall: float
    reset: float


def draw(rng: random.Random) -> Luck:
    """The luck of the next request."""
    return Luck(
        error=rng.random() * 100,
        latency=rng.random() * 100,
        stall=rng.random() * 100,
        reset=rng.random() * 100,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An answer that takes the place of the model's."""

    status: int
    retry_after_s: int | None


class Act(Enum):
    """What to do with a stream that has something to send."""

    SEND = "send"
    HOLD = "hold"  # nothing, until the faults change
    RESET = "reset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`limit` is how many tokens in all may be out before the next look, None: any number."""

    act: Act
    limit: int | None = None
    malformed: bool = False


def refusal(faults: Faults, luck: Luck) -> Refusal | None:
    """The error that a new inference request gets instead of an answer."""
    if faults.error is not None and luck.error < faults.error.percent:
        return Refusal(status=faults.error.status, retry_after_s=faults.error.retry_after_s)
    return None


def added_latency_ms(faults: Faults, luck: Luck) -> float:
    """Wall time to add before the first token."""
    if faults.latency is not None and luck.latency < faults.latency.percent:
        return faults.latency.ms
    return 0.0


def verdict(faults: Faults, luck: Luck, sent_tokens: int) -> Verdict:
    """What a stream that has sent `sent_tokens` may do now. A stall wins over a reset at the same token."""
    if faults.blackhole:
        return Verdict(act=Act.HOLD)
    limits: list[int] = []
    if faults.malformed_sse and not sent_tokens:
        limits.append(1)  # so that even a short answer has a second event, which is the first broken one
    stall = faults.stall
    if stall is not None and luck.stall < stall.percent:
        if stall.where == "before":
            if sent_tokens == 0:
                return Verdict(act=Act.HOLD)
        elif sent_tokens >= stall.after_tokens:
            return Verdict(act=Act.HOLD)
        else:
            limits.append(stall.after_tokens)
    reset = faults.reset
    if reset is not None and luck.reset < reset.percent:
        if sent_tokens >= reset.after_tokens:
            return Verdict(act=Act.RESET)
        limits.append(reset.after_tokens)
    return Verdict(act=Act.SEND, limit=min(limits, default=None), malformed=faults.malformed_sse)
