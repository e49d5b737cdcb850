"""The state of connected proxies as JSON-able data, for the admin server and the command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pointsman.xds.resources import SHORT_NAMES

if TYPE_CHECKING:
    from pointsman.xds.stream import Stream

Json = dict[str, Any]


def node_json(stream: Stream, now_s: float) -> Json:
    """One connected proxy: per type what it acknowledged and since when, what it rejected in its own words, and what is
    held back for what. Times are seconds."""
    session = stream.session
    return {
        "node": stream.identity.id,
        "gateway": stream.gateway,
        "peer": stream.address,
        "agent": stream.agent,
        "protocol": "delta" if session.delta else "sotw",
        "connected_s": round(now_s - stream.connected_at_s, 3),
        "generation": session.generation,
        "settled": session.settled(),
        "types": [
            {
                "type": SHORT_NAMES.get(state.type_url, state.type_url),
                "acked": len(state.acked),
                "pending": list(state.pending),
                "version": state.version,
                "since_ack_s": _since(stream, state.type_url, now_s),
            }
            for state in session.types()
        ],
        "rejected": [
            {
                "type": SHORT_NAMES.get(rejection.type_url, rejection.type_url),
                "name": rejection.name,
                "version": rejection.version,
                "message": rejection.message,
                "retries": rejection.retries,
                "retry": not rejection.final,
            }
            for rejection in session.rejections()
        ],
        "unsupported": list(session.foreign.names),
        "waiting": [str(entry) for entry in session.waiting],
    }


def rejected_json(streams: Iterable[Stream]) -> list[Json]:
    """What proxies of one gateway rejected of what it is to have now: each content once, with who refused it in which
    words (of the first one), sorted by type and name. `retry`: it is tried again, else only once it changes."""
    found: dict[tuple[str, str, str], Json] = {}
    for stream in streams:
        for rejection in stream.session.rejections():
            kind = SHORT_NAMES.get(rejection.type_url, rejection.type_url)
            entry = found.setdefault(
                (kind, rejection.name, rejection.version),
                {
                    "type": kind,
                    "name": rejection.name,
                    "version": rejection.version,
                    "message": rejection.message,
                    "nodes": [],
                    "retry": False,
                },
            )
            entry["nodes"].append(stream.identity.id)
            entry["retry"] |= not rejection.final
    return [found[key] for key in sorted(found)]


def difference_json(stream: Stream) -> Json:
    """What a connected proxy does not have as it is wanted: each resource with the version it acknowledged last and
    the one it is to have, empty where there is none."""
    session = stream.session
    missing = [
        {
            "type": SHORT_NAMES.get(state.type_url, state.type_url),
            "name": name,
            "has": state.acked.get(name, ""),
            "wanted": wanted.version if (wanted := session.desired.get(state.type_url, {}).get(name)) else "",
        }
        for state in session.types()
        for name in state.pending
    ]
    return {"node": stream.identity.id, "gateway": stream.gateway, "settled": session.settled(), "resources": missing}


def _since(stream: Stream, type_url: str, now_s: float) -> float | None:
    at_s = stream.acked_at_s.get(type_url)
    return None if at_s is None else round(now_s - at_s, 3)
