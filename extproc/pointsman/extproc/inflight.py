"""What we sent and has not ended: an account for each pick, and its sums in the endpoint table.

An account is opened at the pick, so that the next pick already sees it. Its prefill is pending until the first body
byte, its context stays until the end. Whatever is lost on the way (access log entries, whole gateways) expires.

The first byte is known late: Envoy logs a running request twice a second, and a long prefill is a second done before it
has given any token. So an endpoint's backlog is not the sum of what is pending but drains with time, a millisecond of
prefill each millisecond; the reports correct it downwards. Each account has the time at which its prefill is due;
`due_at_s` of a row is that of its oldest pending one, so that an endpoint that stalls is seen to be late.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import NamedTuple

from pointsman.extproc.feedback import Feedback
from pointsman.extproc.table import EndpointTable

EXPIRY_S = 60.0
"""Silence after which an account is dropped. Envoy logs each running request twice a second, so this is 120 missing
logs; and it outlasts the longest sensible prefill queue behind a gateway that only logs at the end."""

REPORTED_EXPIRY_S = 6.0
"""The same for a gateway that reports what runs, while reports flow: twelve are missing. The pick came too late for
Envoy and was never used, or its entry was lost; for a minute its endpoint would look late."""

FLOW_GAP_S = 2.0
"""Reports flow while no more than this passes between two of them, whosever requests they are about."""

MEAN_SHARE = 0.05
"""Weight of the newest prefill in the running mean: about the last twenty picks."""

FIRST_MEAN_MS = 100.0
"""The mean prefill before any pick: 1,500 tokens, the mean of public chat traces (facts 2)."""

REPORT_S = 0.5
"""How often Envoy reports a request that runs (`access_log_flush_interval` of our gateways)."""

LOST_S = 2.5
"""Silence of the gateway after which it is not known any more whether a request waits: five reports are missing."""

MAX_SILENT = 32
"""Silent requests that are listed for each endpoint: what so many do not prove, more do not either."""

MAX_LOOKED_AT = 512
"""Pending requests of an endpoint that are looked through for them: 0.1 ms. Most may be plain completions."""


class Silent(NamedTuple):
    """A request that a gateway has reported as still without its first byte.

    It was sent at `opened_at_s` (monotonic), was silent for `silent_ms` at the last report, and `expected_ms` is what
    its pick expected.
    """

    pool: str
    endpoint: str
    opened_at_s: float
    silent_ms: float
    expected_ms: float


@dataclass(slots=True, kw_only=True)
class Account:
    """One request in flight. Tokens are those of the prompt; `hashes` are its prefix blocks, `prompt` is a hash of it
    all, None: not known.

    `ahead_ms` is the backlog that the pick saw at its endpoint, None where the TTFT teaches nothing; `rtt_ms` the round
    trip it counted with. `expected_ms` is all that it expected until the first byte, None: not known; `streaming`:
    the answer comes in pieces, None: not known. `moved_from` is the row of the first choice where another serves.
    `reports`: how often the gateway has said that there is no byte yet; `told`: of the first byte, or the end.
    `reported`: its gateway tells of each running request, again and again. `presumed`: where it was sent on to is
    known by its pick alone.
    """

    row: int
    opened_at_s: float
    heard_at_s: float
    prefill_ms: float
    uncached_tokens: int
    context_tokens: int
    hashes: tuple[int, ...] = ()
    prompt: int | None = None
    pool: str = ""
    pending: bool = True
    due_at_s: float = math.inf
    ahead_ms: float | None = None
    rtt_ms: float = 0.0
    expected_ms: float | None = None
    streaming: bool | None = None
    moved_from: int | None = None
    reports: int = 0
    told: bool = False
    reported: bool = False
    presumed: bool = False


class InFlight:
    """The accounts by pick id, and the mean prefill of recent picks (`mean_prefill_ms`)."""

    def __init__(self, table: EndpointTable, expiry_s: float = EXPIRY_S) -> None:
        self._table = table
        self._expiry_s = expiry_s
        self._accounts: dict[str, Account] = {}
        # Those of gateways that do not report, and of those that do; least recently heard of first.
        self._queues: tuple[OrderedDict[str, Account], OrderedDict[str, Account]] = (OrderedDict(), OrderedDict())
        self._heard_s = self._flow_since_s = -math.inf
        self._pending: dict[int, dict[int, Account]] = {}  # row → accounts without a first token, oldest first
        self._now_s = -math.inf
        self.mean_prefill_ms = FIRST_MEAN_MS

    def __len__(self) -> int:
        return len(self._accounts)

    def get(self, pick_id: str) -> Account | None:
        """The account, None when the pick is unknown, ended or expired."""
        return self._accounts.get(pick_id)

    def open(self, pick_id: str, account: Account) -> None:
        """Count a pick. A pick id that is already open is closed first."""
        self._now_s = max(self._now_s, account.opened_at_s)
        self.close(pick_id)
        self._accounts[pick_id] = self._queues[account.reported][pick_id] = account
        if account.expected_ms is None and account.uncached_tokens:
            account.expected_ms = account.prefill_ms  # a policy that knows no queues
        self._add(account, 1)
        if account.uncached_tokens:
            self.mean_prefill_ms += MEAN_SHARE * (account.prefill_ms - self.mean_prefill_ms)

    def heard(self, pick_id: str, now_s: float) -> Account | None:
        """A sign of life; None for an unknown pick."""
        self._now_s = max(self._now_s, now_s)
        account = self._accounts.get(pick_id)
        if account is not None:
            if now_s - self._heard_s > FLOW_GAP_S:
                self._flow_since_s = now_s
            self._heard_s = now_s
            account.heard_at_s = max(now_s, account.heard_at_s)
            self._queues[account.reported].move_to_end(pick_id)
        return account

    def first_token(self, pick_id: str) -> None:
        """The first body byte has come: the prefill is done."""
        account = self._accounts.get(pick_id)
        if account is not None and account.pending:
            self._add(account, -1)
            account.pending = False
            self._add(account, 1)

    def move(self, pick_id: str, row: int) -> None:
        """Another endpoint serves the request than the one it was counted on (a retry)."""
        account = self._accounts.get(pick_id)
        if account is not None and account.row != row:
            self._add(account, -1)
            if account.moved_from is None:
                account.moved_from = account.row
            account.row = row
            self._add(account, 1)

    def close(self, pick_id: str) -> Account | None:
        """The request has ended, however; None for an unknown pick."""
        account = self._accounts.pop(pick_id, None)
        if account is not None:
            del self._queues[account.reported][pick_id]
            self._add(account, -1)
        return account

    def told(self, entry: Feedback, account: Account | None, *, forwarded: bool = False) -> Feedback:
        """The entry with what its account knows, after the picker has taken it in; call it once for each entry."""
        if account is None:
            return entry
        if entry.ttft_ms is None and not entry.ended:
            account.reports += 1
            return entry if not forwarded else replace(entry, cluster=account.pool, forwarded=True)
        moved = account.moved_from is not None and account.moved_from != account.row
        news = not account.told
        judged = news and not moved and entry.attempts <= 1 and account.streaming is True
        account.told = True
        if not (news or moved or forwarded):
            return entry
        return replace(
            entry,
            cluster=entry.cluster or account.pool,
            expected_ms=account.expected_ms if judged else None,
            streaming=account.streaming,
            first_choice=self._table.key(account.moved_from) if account.moved_from is not None and moved else "",
            forwarded=forwarded,
        )

    def silent(self, now_s: float) -> list[Silent]:
        """Streaming requests that a gateway has lately reported to be without a first byte; a few of each endpoint."""
        found: list[Silent] = []
        for row, accounts in self._pending.items():
            listed = 0
            for account in itertools.islice(accounts.values(), MAX_LOOKED_AT):  # oldest first
                if now_s - account.opened_at_s < REPORT_S or listed == MAX_SILENT:
                    break
                if (
                    account.reports
                    and account.streaming
                    and account.expected_ms is not None
                    and account.moved_from is None
                    and now_s - account.heard_at_s <= LOST_S
                ):
                    # Our own clock may have stood still between the reports: so many mean at least so many seconds.
                    silent_s = min(account.heard_at_s - account.opened_at_s, account.reports * REPORT_S)
                    listed += 1
                    found.append(
                        Silent(
                            pool=account.pool,
                            endpoint=self._table.key(row),
                            opened_at_s=account.opened_at_s,
                            silent_ms=silent_s * 1000.0,
                            expected_ms=account.expected_ms,
                        )
                    )
        return found

    def expire(self, now_s: float) -> int:
        """Drop the accounts that have been silent for too long; returns how many."""
        self._now_s = max(self._now_s, now_s)
        dropped = 0
        for queue, expiry_s in zip(self._queues, (self._expiry_s, self._reported_expiry_s(now_s)), strict=True):
            while queue:
                pick_id, account = next(iter(queue.items()))
                if now_s - account.heard_at_s < expiry_s:
                    break
                self.close(pick_id)
                dropped += 1
        return dropped

    def _reported_expiry_s(self, now_s: float) -> float:
        """Shorter while reports have flowed for as long: after a pause (ours, or the gateway's) they may be queued."""
        flows = now_s - self._heard_s <= FLOW_GAP_S and now_s - self._flow_since_s >= REPORTED_EXPIRY_S
        return min(self._expiry_s, REPORTED_EXPIRY_S) if flows else self._expiry_s

    def _add(self, account: Account, sign: int) -> None:
        table, row = self._table, account.row
        table.requests[row] += sign
        table.context_tokens[row] += sign * account.context_tokens
        table.fresh_kv_tokens[row] += sign * account.uncached_tokens
        if account.pending:
            table.pending_tokens[row] += sign * account.uncached_tokens
            # Whole tokens add up exactly, milliseconds do not: without pending tokens nothing is pending.
            left = table.pending_ms[row] + sign * account.prefill_ms
            table.pending_ms[row] = max(0.0, left) if table.pending_tokens[row] > 0 else 0.0
            self._drain(account, sign)

    def _drain(self, account: Account, sign: int) -> None:
        """Bring the row's backlog to now, put the account in or take it out, and note which one is due next."""
        table, row, now_s = self._table, account.row, self._now_s
        left_ms = max(0.0, table.backlog_ms[row] - (now_s - table.backlog_at_s[row]) * 1000.0)
        pending = self._pending.setdefault(row, {})
        if sign > 0:
            left_ms += account.prefill_ms
            account.due_at_s = now_s + left_ms / 1000.0
            pending[id(account)] = account
        else:
            del pending[id(account)]
            left_ms = min(left_ms, table.pending_ms[row])
        table.backlog_ms[row] = left_ms
        table.backlog_at_s[row] = now_s
        if pending:
            table.due_at_s[row] = next(iter(pending.values())).due_at_s
        else:
            table.due_at_s[row] = math.inf
            del self._pending[row]
