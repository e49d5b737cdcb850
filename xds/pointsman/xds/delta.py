"""The incremental protocol: subscriptions and resources change one by one.

What the protocol says and where it stands here:

- Subscription changes count even when the request answers an old nonce; the nonce only ties ACK and NACK to a response.
- A name that is subscribed again is sent again, changed or not (`forced`).
- A subscribed name that does not exist is reported as removed, once, and the subscription stays (`_absent`).
- A name that is unsubscribed while the wildcard stays is answered with the resource or its removal.
- After a reconnect the client says what it holds (`initial_resource_versions`): only differences are sent.
- `xdstp://` names and aliases are not served: they are names that do not exist. A name next to the wildcard, as
  on-demand discovery asks for it, is answered like any other.
- What has a lifetime is confirmed in a response of its own, before anything else (`beats`), so that a refusal says
  which of the two was meant and steady changes starve no confirmation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from envoy.service.discovery.v3 import discovery_pb2

from pointsman.core.errors import PeerError
from pointsman.xds.channel import Channel, Note, Reply, Request, Stale, Target, unknown_content
from pointsman.xds.resources import Resource, ResourceSet


class DeltaChannel:
    """The delta protocol for one type on one stream.

    `find` gives the resource of a name and version that a client says it holds, None when it was never seen here.
    """

    def __init__(self, channel: Channel, find: Callable[[str, str], Resource | None]) -> None:
        self.channel = channel
        self._find = find
        self._absent: set[str] = set()  # names reported as not existing, and acknowledged as such
        self._started = False

    def receive(self, request: Request) -> Note | None:
        """Take a request; the answer, if any, comes from `respond`.

        Raises:
            PeerError: the request speaks the other protocol.
        """
        if not isinstance(request, discovery_pb2.DeltaDiscoveryRequest):
            raise PeerError("SotW and delta requests on one stream")
        channel = self.channel
        note = self._settle(request)
        asked, given_up = channel.subscription.change(
            request.resource_names_subscribe, request.resource_names_unsubscribe
        )
        channel.forced |= asked
        self._absent -= asked | given_up
        if not self._started:
            self._started = True
            # The first answer is owed even when it is empty, except to a client that comes back with what it has.
            channel.owes_answer = channel.subscription.wildcard and not request.initial_resource_versions
            self._resume(request.initial_resource_versions)
        elif "*" in request.resource_names_subscribe:
            channel.owes_answer = True
        channel.unsubscribed()
        return note

    def respond(self, target: Target, generation: int) -> Reply | None:
        """The next response, None when the client has what it is to have or has not answered yet."""
        channel = self.channel
        if channel.in_flight is not None:
            return None
        if beats := channel.take_beats():
            reply = Reply(type_url=channel.type_url, nonce=channel.nonces(), version="", resources=(), beats=beats)
            return channel.send(reply, {}, generation)
        wanted = channel.subscription.select(target.resources)
        trial = channel.probation.next_trial(channel.changed(wanted))
        removed = self._gone(wanted, target)
        if not trial and not removed and not channel.owes_answer:
            return None
        reply = Reply(
            type_url=channel.type_url,
            nonce=channel.nonces(),
            version="",
            resources=tuple(trial.values()),
            removed=tuple(removed),
        )
        return channel.send(reply, trial, generation)

    def _gone(self, wanted: ResourceSet, target: Target) -> list[str]:
        """Names to report as removed: held and not wanted any more, or asked for and not there."""
        channel = self.channel
        asked = channel.subscription.names | channel.forced
        held = set(channel.known) | (asked - self._absent)
        return sorted(name for name in held if name not in wanted and name not in target.withheld)

    def _settle(self, request: discovery_pb2.DeltaDiscoveryRequest) -> Note | None:
        channel = self.channel
        flight = channel.in_flight
        nonce = request.response_nonce
        if not nonce:
            return None
        if flight is None or nonce != flight.reply.nonce:
            return Stale(type_url=channel.type_url, nonce=nonce)
        refused = request.HasField("error_detail")
        if refused and flight.trial:
            return channel.refuse(request.error_detail.message)
        # A removal can't be refused: whatever the client says, there is nothing else to tell it.
        known = {name: resource for name, resource in channel.known.items() if name not in flight.reply.removed}
        self._absent = (self._absent | set(flight.reply.removed)) & channel.subscription.names
        self._absent -= flight.sent.keys()
        if refused:
            channel.known = known
            return channel.refuse(request.error_detail.message)
        return channel.acknowledge(known | dict(flight.sent))

    def _resume(self, versions: Mapping[str, str]) -> None:
        """Take over what the client says it holds; unknown content is kept in mind by its version."""
        channel = self.channel
        for name, version in versions.items():
            found = self._find(name, version)
            channel.known[name] = found or unknown_content(channel.type_url, name, version)
            channel.heartbeats.found(channel.known[name], channel.now_s)
            channel.forced.discard(name)


def encode_delta(reply: Reply, identifier: str) -> bytes:
    """The serialised `DeltaDiscoveryResponse`: its head and the resources' own parts."""
    head = discovery_pb2.DeltaDiscoveryResponse(
        type_url=reply.type_url, nonce=reply.nonce, removed_resources=reply.removed
    )
    head.control_plane.identifier = identifier
    parts = [*(r.delta_part() for r in reply.resources), *(r.beat_part() for r in reply.beats)]
    return b"".join([head.SerializeToString(deterministic=True), *parts])
