"""State of the world: every request lists all names, every response of some types lists all resources.

What the protocol says and where it stands here:

- A request that carries another nonce than the last response's is stale and is not answered (`receive`).
- ACK and NACK both carry the last nonce; it is a NACK if and only if `error_detail` is there.
- Listener and cluster responses hold everything the client wants, what is missing is deleted. Other types send
  what changed; deletion is implied by the parent (`respond`).
- The first request of a stream may say which version the client still has; when it is ours, nothing is sent
  (`_resume`). Clients keep saying it after they dropped the resources, so it only counts for what was asked for before
  anything changed on the stream.
- There is no way to say that a name does not exist, except by its absence from a full response.
- What has a lifetime is confirmed by sending it again (see `heartbeat`), and a client that says which version it has
  may have dropped it since, so such a state is never taken over (`_resume`).
- A client that comes back to a restarted server is sent everything if anything changed: it does not say what it
  holds, so nothing can be kept for its old routes. Delta clients say it, and lose nothing.
"""

from __future__ import annotations

from typing import Final

from envoy.service.discovery.v3 import discovery_pb2

from pointsman.core.errors import PeerError
from pointsman.xds.channel import Acked, Channel, Note, Reply, Request, Stale, Target
from pointsman.xds.resources import FULL_STATE, Resource, ResourceSet, set_version

REFUSED_KEPT: Final = 64
"""Rejected states of a type that are remembered per stream; one is added per NACK that names no culprit."""


class SotwChannel:
    """The SotW protocol for one type on one stream.

    `earlier` is what the client held at the end of an earlier stream, None if that is not known. With `resume` False
    the client is not believed to hold anything.
    """

    def __init__(self, channel: Channel, earlier: dict[str, Resource] | None, *, resume: bool) -> None:
        self.channel = channel
        channel.whole = True
        self._full_state = channel.type_url in FULL_STATE
        self._earlier = earlier
        self._may_resume = resume
        self._started = False
        self._offered = ""  # version that the first request named, until it is known whether it is ours
        self._refused: list[str] = []

    def receive(self, request: Request) -> Note | None:
        """Take a request; the answer, if any, comes from `respond`.

        Raises:
            PeerError: the request speaks the other protocol.
        """
        if not isinstance(request, discovery_pb2.DiscoveryRequest):
            raise PeerError("SotW and delta requests on one stream")
        channel = self.channel
        first, self._started = not self._started, True
        if channel.last_nonce and request.response_nonce != channel.last_nonce:
            return Stale(type_url=channel.type_url, nonce=request.response_nonce)
        note = self._settle(request)
        added = channel.subscription.replace(request.resource_names)
        channel.unsubscribed()
        if first:
            # A full response says what does not exist, so it is owed even when it is empty; without it Envoy waits for
            # ever at start.
            channel.owes_answer = self._full_state or channel.subscription.wildcard
            self._resume(request.version_info)
        elif added and self._full_state:
            channel.owes_answer = True
        return note

    def respond(self, target: Target, generation: int) -> Reply | None:
        """The next response, None when the client has what it is to have or has not answered yet."""
        channel = self.channel
        if channel.in_flight is not None:
            return None
        wanted = channel.subscription.select(target.resources)
        if self._offered:
            self._match_offer(channel.subscription.select(target.desired))
        changed = channel.changed(wanted)
        trial = channel.probation.next_trial(changed)
        if self._full_state:
            content = after = self._full(wanted, changed, trial)
            removed = tuple(sorted(channel.known.keys() - content.keys()))
        else:
            content, after, removed = dict(trial), channel.known | dict(trial), ()
        version = set_version(after)
        news = bool(trial or removed) and version not in self._refused
        if not news and not channel.owes_answer:
            return None
        reply = Reply(
            type_url=channel.type_url,
            nonce=channel.nonces(),
            version=version,
            resources=tuple(content.values()),
            removed=removed,
        )
        return channel.send(reply, trial, generation)

    def _settle(self, request: discovery_pb2.DiscoveryRequest) -> Note | None:
        """The answer to the last response, when it is the first one."""
        channel = self.channel
        flight = channel.in_flight
        if flight is None:
            return None
        if not request.HasField("error_detail"):
            return self._ack(dict(flight.sent))
        nacked = channel.refuse(request.error_detail.message)
        if not flight.trial:
            self._refused = [*self._refused[-REFUSED_KEPT + 1 :], flight.reply.version]
        return nacked

    def _ack(self, sent: dict[str, Resource]) -> Acked:
        channel = self.channel
        return channel.acknowledge(sent if self._full_state else channel.known | sent)

    def _full(self, wanted: ResourceSet, changed: ResourceSet, trial: ResourceSet) -> dict[str, Resource]:
        """Everything the client is to have, with what is not on trial as it was acknowledged (or absent)."""
        if len(trial) == len(changed):
            return dict(wanted)
        known = self.channel.known
        content = {}
        for name, resource in wanted.items():
            if name not in changed or name in trial:
                content[name] = resource
            elif name in known:
                content[name] = known[name]
        return content

    def _resume(self, version: str) -> None:
        """Take over what the client says it holds, if we know that state."""
        channel = self.channel
        if not version:
            return
        if not self._may_resume:
            channel.suspected = dict(self._earlier or {})
            channel.unsubscribed()
        elif self._earlier is None:
            self._offered = version
        elif set_version(self._earlier) == version and not _mortal(self._earlier):
            channel.known = dict(self._earlier)
            channel.acked_version = version
            channel.unsubscribed()
            channel.owes_answer = False

    def _match_offer(self, wanted: ResourceSet) -> None:
        """A version from before a restart: it is ours if it is the hash of what we would send now."""
        channel = self.channel
        if self._offered == set_version(wanted) and not _mortal(wanted):
            channel.known = dict(wanted)
            channel.acked_version = self._offered
            channel.owes_answer = False
        self._offered = ""


def _mortal(resources: ResourceSet) -> bool:
    return any(resource.ttl_ms for resource in resources.values())


def encode_sotw(reply: Reply, identifier: str) -> bytes:
    """The serialised `DiscoveryResponse`: its head and the resources' own parts."""
    head = discovery_pb2.DiscoveryResponse(type_url=reply.type_url, nonce=reply.nonce, version_info=reply.version)
    head.control_plane.identifier = identifier
    return b"".join([head.SerializeToString(deterministic=True), *(r.sotw_part() for r in reply.resources)])
