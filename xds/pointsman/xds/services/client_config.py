"""How each resource of a client stands, and that as CSDS says it. Pure.

`xds_config` and `version_info` always are what the client acknowledged and therefore runs with, empty if it has nothing
yet. What it refused stands in `error_state`, with its own words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from envoy.service.status.v3 import csds_pb2
from google.protobuf import timestamp_pb2

from pointsman.xds.quarantine import Rejection
from pointsman.xds.resources import EMPTY, Resource
from pointsman.xds.session import Session
from pointsman.xds.stream import Stream

UNKNOWN: Final = csds_pb2.UNKNOWN
SYNCED: Final = csds_pb2.SYNCED
NOT_SENT: Final = csds_pb2.NOT_SENT
STALE: Final = csds_pb2.STALE
ERROR: Final = csds_pb2.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One resource of one client.

    `held` is what the client acknowledged, `wanted` what it is to have (None: nothing, it is to go), `on_its_way` says
    that a change of it was sent and not answered, `rejection` that it refused what is wanted.
    """

    type_url: str
    name: str
    held: Resource | None
    wanted: Resource | None
    on_its_way: bool = False
    rejection: Rejection | None = None

    def status(self) -> csds_pb2.ConfigStatus:
        """SYNCED: the client has what it is to have. STALE: sent, not answered. NOT_SENT: held back or not yet written,
        a removal included. ERROR: refused."""
        if self.rejection is not None:
            return ERROR
        if self.on_its_way:
            return STALE
        if self.held is not None and self.wanted is not None and self.held.version == self.wanted.version:
            return SYNCED
        return NOT_SENT


def standings(session: Session) -> Iterator[Standing]:
    """All resources that a client has or is to have, by type in push order and sorted by name."""
    rejected = {(entry.type_url, entry.name): entry for entry in session.rejections()}
    for state in session.types():
        channel = session.channels[state.type_url]
        wanted = channel.subscription.select(session.desired.get(state.type_url, EMPTY))
        flight = channel.in_flight
        moving = set() if flight is None else {*flight.trial, *flight.reply.removed}
        for name in sorted({*channel.known, *wanted}):
            yield Standing(
                type_url=state.type_url,
                name=name,
                held=channel.known.get(name),
                wanted=wanted.get(name),
                on_its_way=name in moving,
                rejection=rejected.get((state.type_url, name)),
            )


def client_config(streams: Iterable[Stream], *, contents: bool) -> csds_pb2.ClientConfig:
    """One client, which has one stream (aggregated) or several; `contents` includes the resources themselves."""
    config = csds_pb2.ClientConfig()
    for stream in streams:
        config.node.CopyFrom(stream.node)
        for standing in standings(stream.session):
            _fill(config.generic_xds_configs.add(), standing, stream, contents=contents)
    return config


def _fill(entry: csds_pb2.ClientConfig.GenericXdsConfig, standing: Standing, stream: Stream, *, contents: bool) -> None:
    entry.type_url = standing.type_url
    entry.name = standing.name
    entry.config_status = standing.status()
    if standing.held is not None:
        entry.version_info = standing.held.version
        if contents and standing.held.body:  # what came from before a restart is known by its version only
            entry.xds_config.type_url = standing.type_url
            entry.xds_config.value = standing.held.body
        times = stream.ack_times.get(standing.type_url)
        generation = stream.session.channels[standing.type_url].generations.get(standing.name)
        _date(entry.last_updated, times.of(generation) if times else None)
        if not entry.last_updated.ByteSize():
            entry.ClearField("last_updated")
    if standing.rejection is not None:
        _fill_error(entry, standing, standing.rejection, stream, contents=contents)


def _fill_error(
    entry: csds_pb2.ClientConfig.GenericXdsConfig,
    standing: Standing,
    rejection: Rejection,
    stream: Stream,
    *,
    contents: bool,
) -> None:
    entry.error_state.details = rejection.message
    entry.error_state.version_info = rejection.version
    at_s = stream.refused_at_s.get((rejection.type_url, rejection.name, rejection.version))
    if at_s is not None:
        _date(entry.error_state.last_update_attempt, at_s)
    if contents and standing.wanted is not None:
        entry.error_state.failed_configuration.type_url = standing.type_url
        entry.error_state.failed_configuration.value = standing.wanted.body


def _date(field: timestamp_pb2.Timestamp, at_s: float | None) -> None:
    if at_s is not None:
        field.FromNanoseconds(int(at_s * 1_000_000_000))
