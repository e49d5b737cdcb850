"""What the control plane and its picker workers say to each other: msgpack behind a length, over a socket pair."""

from __future__ import annotations

import asyncio
import struct
from typing import Any, Final

import msgspec

from pointsman.app.tls import Content
from pointsman.app.tracing_options import TracingOptions
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.core.errors import PeerError
from pointsman.core.model import Plan
from pointsman.extproc import Feedback
from pointsman.extproc.inflight import Silent
from pointsman.extproc.kv_events.mirror import Correction

MAX_FRAME_BYTES: Final = 256 * 1024 * 1024
"""A Plan of ten thousand endpoints has 2 MB; past this the stream is out of step."""

_LENGTH = struct.Struct(">I")


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The command line of a worker, as JSON. `fd` is its end of the socket pair; ports are shared by all workers.

    `guarded`: it listens with TLS, when it has `SetCertificates`. `shell`: a `PickerShell`.
    """

    fd: int
    name: str
    address: str
    port: int
    policy: str
    default_pool: str = ""
    guarded: bool = False
    trust_domain: str = ""
    tracing: TracingOptions | None = None
    calibrate: bool = True
    shell: str = "native"
    log_level: str = "info"
    log_format: str = "auto"


class SetPlan(msgspec.Struct, tag="plan"):
    """Follow this Plan. The first one lets the worker listen."""

    plan: Plan


class SetCertificates(msgspec.Struct, tag="certificates"):
    """What to listen with; comes before the first Plan, and again when the files change. Never on a command line."""

    content: Content


class Signal(msgspec.Struct, tag="signal"):
    """A scrape: the arguments of `Picker.signals`."""

    key: str
    metrics: EngineMetrics | None
    rtt_ms: float | None


class Refused(msgspec.Struct, tag="refused"):
    """A scrape was refused: the argument of `Picker.refused`."""

    key: str


class Models(msgspec.Struct, tag="models"):
    """What an endpoint serves: the arguments of `Picker.models`."""

    key: str
    names: frozenset[str] | None
    adapters: frozenset[str]


class KvEvents(msgspec.Struct, tag="kv-events"):
    """What an engine's events mean for the index: the arguments of `Picker.kv_events`."""

    key: str
    corrections: list[Correction]


class Gossip(msgspec.Struct, tag="gossip"):
    """An update of `pointsman.picker.v1`, serialised; both ways."""

    update: bytes


class Explain(msgspec.Struct, tag="explain"):
    """Tell of a decision, by pick or request id; answered by `Explained` with the same number."""

    number: int
    identity: str


class Explained(msgspec.Struct, tag="explained"):
    """The decision as plain data, None when it is not remembered."""

    number: int
    decision: dict[str, Any] | None


class Recent(msgspec.Struct, tag="recent"):
    """Tell of the last `limit` decisions; answered by `Made` with the same number."""

    number: int
    limit: int


class Made(msgspec.Struct, tag="made"):
    """`Decision.brief` of each, oldest first."""

    number: int
    decisions: list[dict[str, Any]]


class Drain(msgspec.Struct, tag="drain"):
    """Say NOT_SERVING from now on."""


class Ready(msgspec.Struct, tag="ready"):
    """The worker listens."""


Family = tuple[str, str, str, list[tuple[str, dict[str, str], float]]]
"""A metric: name, documentation, type, samples (name, labels, value)."""


class Heard(msgspec.Struct, tag="heard"):
    """Access log entries that reached the worker."""

    entries: list[Feedback]


class StillSilent(msgspec.Struct, tag="silent"):
    """Requests of the worker's picks that wait for their first byte (`InFlight.silent`): all that there are now. Its
    monotonic clock is the parent's: they share a machine."""

    requests: list[Silent]


class Samples(msgspec.Struct, tag="samples"):
    """The worker's metrics, once a second; also its sign of life."""

    families: list[Family]


ToWorker = SetPlan | SetCertificates | Signal | Refused | Models | KvEvents | Gossip | Explain | Recent | Drain
ToParent = Ready | Gossip | Explained | Made | Heard | StillSilent | Samples

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_to_parent: msgspec.msgpack.Decoder[ToParent] = msgspec.msgpack.Decoder(ToParent)


def frame(message: ToWorker | ToParent) -> bytes:
    """A message as bytes for the stream."""
    content = _encoder.encode(message)
    return _LENGTH.pack(len(content)) + content


async def read_by_worker(stream: asyncio.StreamReader) -> ToWorker | None:
    """The parent's next message, None when it has ended.

    Raises:
        PeerError: these bytes are no message.
    """
    content = await _read(stream)
    try:
        return None if content is None else _to_worker.decode(content)
    except msgspec.DecodeError as error:
        raise PeerError(f"frame of the control plane: {error}") from error


async def read_by_parent(stream: asyncio.StreamReader) -> ToParent | None:
    """A worker's next message, None when it has ended.

    Raises:
        PeerError: these bytes are no message.
    """
    content = await _read(stream)
    try:
        return None if content is None else _to_parent.decode(content)
    except msgspec.DecodeError as error:
        raise PeerError(f"frame of a picker worker: {error}") from error


async def _read(stream: asyncio.StreamReader) -> bytes | None:
    try:
        (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
        if length > MAX_FRAME_BYTES:
            raise PeerError(f"frame of {length} bytes")
        return await stream.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
