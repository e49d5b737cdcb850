"""From access log entries to samples of failover: who failed, who was slow, what clients got. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from pointsman.core.arm_names import whole_pool
from pointsman.extproc import Feedback
from pointsman.failover.model import Member, Sample
from pointsman.failover.record import Second

BROKEN_GRPC: Final = frozenset({2, 4, 13, 14, 15})
"""gRPC statuses of a server that is broken: UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS. Number 8,
RESOURCE_EXHAUSTED, is load; the others blame the request."""

_BROKEN_HTTP: Final = frozenset({500, 502, 504})
_OVERLOAD_GRPC: Final = 8
_LEFT: Final = frozenset({0, 499})

Members = Mapping[tuple[str, str], Member]
"""(pool, endpoint) → the member that it belongs to."""


def overloaded(entry: Feedback) -> bool:
    """The upstream has too much to do: it says when to come again."""
    if entry.grpc_status is not None:
        return entry.grpc_status == _OVERLOAD_GRPC
    return entry.status == 429 or (entry.status == 503 and entry.retry_after_s > 0)


def broken(entry: Feedback) -> bool:
    """The upstream failed, or nobody could be asked."""
    if overloaded(entry):
        return False
    by_grpc = entry.grpc_status in BROKEN_GRPC
    return entry.failed or by_grpc or entry.status in _BROKEN_HTTP or entry.status == 503


def truncated(entry: Feedback) -> bool:
    """It broke off after its first byte."""
    return entry.ended and entry.failed and (entry.ttft_ms is not None or entry.response_bytes > 0)


def left(entry: Feedback) -> bool:
    """The client left, or a proxy before us gave up, before there was an answer: what it would have been is not known.

    Envoy logs no status then; proxies in between say 499.
    """
    return entry.status in _LEFT and not entry.failed and entry.ttft_ms is None


def samples(entry: Feedback, members: Members, now_s: float) -> Iterator[tuple[Member, Sample]]:
    """What an entry says of each endpoint that it was sent to. Answers that come whole have no time to first byte.

    Of a forwarded entry only that time is news.
    """
    pool = whole_pool(entry.cluster)
    slow = entry.ttft_ms if entry.expected_ms is not None and entry.streaming is not False else None
    if not entry.ended or entry.forwarded:
        member = members.get((pool, entry.upstream))
        if member is not None and slow is not None:
            yield (
                member,
                Sample(at_s=now_s, endpoint=entry.upstream, ttft_ms=slow, expected_ms=entry.expected_ms, ended=False),
            )
        return
    earlier = entry.attempted[:-1] if entry.attempted else (entry.first_choice,) if entry.first_choice else ()
    for endpoint in earlier:
        member = members.get((pool, endpoint))
        if member is not None:
            yield member, Sample(at_s=now_s, endpoint=endpoint, failed=True, retried=True)
    member = members.get((pool, entry.upstream))
    if member is not None:
        yield (
            member,
            Sample(
                at_s=now_s,
                endpoint=entry.upstream,
                failed=broken(entry),
                overloaded=overloaded(entry),
                ttft_ms=slow,
                expected_ms=entry.expected_ms,
                truncated=truncated(entry),
                retried=entry.attempts > 1,
                waited_ms=entry.duration_ms if left(entry) else None,
            ),
        )


class Seconds:
    """What the clients of one policy got, second by second of wall time."""

    def __init__(self) -> None:
        self._now = Second(start_s=0.0)

    def add(self, entry: Feedback) -> None:
        """Count an entry that ended with an answer, or for want of one."""
        if not entry.ended or entry.forwarded or left(entry):
            return  # a second in which all clients gave up is no good one
        cut = truncated(entry)
        now = self._now
        self._now = msgspec.structs.replace(
            now,
            requests=now.requests + 1,
            failed=now.failed + (broken(entry) and not cut),
            truncated=now.truncated + cut,
            retried=now.retried + (entry.attempts > 1),
        )

    def take(self, wall_s: float) -> Second | None:
        """The second that is over, None while it is not. The first one begins with the first call."""
        now = self._now
        if not now.start_s:
            self._now = msgspec.structs.replace(now, start_s=wall_s)
            return None
        length_s = wall_s - now.start_s
        if 0.0 <= length_s < 1.0:
            return None
        self._now = Second(start_s=wall_s)
        return msgspec.structs.replace(now, length_s=max(0.0, length_s))
