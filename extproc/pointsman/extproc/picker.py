"""The picker's state and its verbs: follow a Plan, pick, learn from feedback and scrapes, explain.

Pure but for the clock that is passed in; one event loop owns it. A pick counts at once (in flight, and as cached
prefix), so that a burst of requests does not see an idle endpoint each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pointsman.core.clock import Clock
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.core.model import Plan
from pointsman.extproc import decision as reasons
from pointsman.extproc.admission import Admission, admissions
from pointsman.extproc.affinity import Homes
from pointsman.extproc.calibrate import Calibration
from pointsman.extproc.candidates import CandidateFilter, Candidates
from pointsman.extproc.cost import CostModel, Terms, cached_tokens, own_prefill_ms, score
from pointsman.extproc.decision import Decision, PickRequest
from pointsman.extproc.engines import Engines
from pointsman.extproc.feedback import Feedback
from pointsman.extproc.filters import Codes, Filtered
from pointsman.extproc.gossip import EndpointLoad, Loads, Outbox
from pointsman.extproc.inflight import EXPIRY_S, Account, InFlight
from pointsman.extproc.kv_events.mirror import Correction
from pointsman.extproc.model_rules import ModelRules
from pointsman.extproc.penalties import PENALTY_MS, Blame, penalise, prompt_hash
from pointsman.extproc.pick import Order, PickPolicy, by_cost, by_outstanding, by_turn, rendezvous, top
from pointsman.extproc.prefix import BYTES_PER_TOKEN, PrefixIndex, block_hashes, chain_seed
from pointsman.extproc.recent import RECENT_DECISIONS, RecentDecisions
from pointsman.extproc.sharing import own_loads, set_remote_loads
from pointsman.extproc.signals import Load, fuse
from pointsman.extproc.suspicion import Suspicion, last
from pointsman.extproc.table import EndpointTable, Floats, Mask, PoolRows, Rows
from pointsman.extproc.tiers import FULL_RETRY_AFTER_S, draw, hold_back, reserve, with_reserve


@dataclass(frozen=True, slots=True, kw_only=True)
class PickerStats:
    """Sizes and counts since the start."""

    endpoints: int
    in_flight: int
    prefix_blocks: int
    picks: int
    refused: int
    expired: int
    unmatched_feedback: int


class Picker:
    """See the module. `instance` distinguishes the pick ids of several pickers; `seed` is for the random policy.

    `calibrate`: learn the prefill rates of each endpoint from its TTFT. `admission`: for pools whose Plan
    declares none; None: let all in. `outbox` takes what other pickers should hear.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        policy: PickPolicy = PickPolicy.JOINT,
        cost: CostModel | None = None,
        instance: str = "p",
        seed: int = 0,
        expiry_s: float = EXPIRY_S,
        recent: int = RECENT_DECISIONS,
        calibrate: bool = True,
        admission: Admission | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        self.policy = policy
        self.table = EndpointTable()
        self.index = PrefixIndex()
        self.inflight = InFlight(self.table, expiry_s)
        self.model_rules = ModelRules()
        self._engines = Engines(self.table, self.index, clock)
        self._calibration = Calibration(self.table) if calibrate else None
        self._admission = admission
        self._admissions: dict[str, Admission] = {}
        self._outbox = outbox
        self._cost = cost or CostModel()
        self._clock = clock
        self._instance = instance
        self._random = np.random.default_rng(seed)
        self._homes = Homes()
        self._blame = Blame()
        self._suspicion = Suspicion(self.table)
        self._candidates = CandidateFilter(self.table)
        self._turns: dict[str, int] = {}
        self._recent = RecentDecisions(recent)
        self._picks = 0
        self._refused = 0
        self._expired = 0
        self._unmatched = 0

    def apply(self, plan: Plan) -> None:
        """Follow a new Plan; accounts, prefixes and measurements of endpoints that stay are kept."""
        changes = self.table.sync(plan, self._clock.monotonic_s())
        self._admissions = admissions(plan)
        self._suspicion.apply(plan)
        self.model_rules.apply(plan)
        for row in changes.freed:
            self._engines.forget(row)
            self._blame.forget(row)
            if self._calibration is not None:
                self._calibration.forget(row)

    def pick(self, request: PickRequest) -> Decision:
        """Choose, count the choice as in flight, and remember the decision."""
        return self._remember(self._decide(request, counts=True))

    def preview(self, request: PickRequest) -> Decision:
        """What `pick` would decide now, without a pick id: nothing is counted or remembered."""
        kept = self._refused, dict(self._turns)
        found = self._decide(request, counts=False)
        self._refused, self._turns = kept
        return replace(found, pick_id="")

    def _decide(self, request: PickRequest, *, counts: bool) -> Decision:
        now_s = self._clock.monotonic_s()
        self.expire()
        pool = self.table.pool(request.pool)
        if pool is None:
            return self._refusal(request, (0, reasons.UNKNOWN_POOL))
        found = self._candidates.of(pool, request)
        suspects = self._suspicion.of(pool.span, now_s)
        if pool.tiering is not None:
            requests = self.table.requests[pool.rows] + self.table.remote_requests[pool.rows]
            at = draw(request.affinity or request.request_id or str(self._picks))
            confirmed = None if suspects is None else self._suspicion.confirmed(pool.span)
            codes = found.codes.copy()
            hold_back(codes, pool.tiering, requests, at, suspects=suspects, confirmed=confirmed)
            found = self._candidates.left(pool, codes)
        if not len(found.rows):
            codes = found.codes
            wait_s = FULL_RETRY_AFTER_S if (codes == Filtered.FULL).any() else 0
            return self._refusal(request, reasons.why_none(codes), pool, codes, retry_after_s=wait_s)
        return self._choose(request, now_s, pool, found, suspects, counts=counts)

    def _choose(
        self,
        request: PickRequest,
        now_s: float,
        pool: PoolRows,
        found: Candidates,
        suspects: Mask | None,
        *,
        counts: bool,
    ) -> Decision:
        rows, at, codes = found.rows, found.at, found.codes
        doubted = None if suspects is None else suspects[codes == 0]
        if doubted is not None and doubted.all():  # better one that has just come back than one that is gone
            doubted = self._suspicion.of(at, now_s, unsteady=False)
        table, body = self.table, request.body
        tokens = -(-body.prompt_bytes // BYTES_PER_TOKEN)
        hashes: list[int] = []
        matched = np.zeros(len(rows), dtype=np.int64)
        cached: Floats = np.zeros(len(rows))
        terms: Terms | None = None
        scores: Floats | None = None
        load: Load | None = None
        if self.policy is PickPolicy.JOINT:
            self._engines.token_prompts = self._engines.token_prompts or body.token_ids
            hashes = block_hashes(body.prompt, chain_seed(body.model, body.cache_salt))
            matched = self.index.match(hashes, rows)
            cached = cached_tokens(table, at, matched, tokens)
            load = fuse(table, at, now_s, self.inflight.mean_prefill_ms)
            failed_at = self._blame.failed_at(prompt_hash(body.prompt, hashes))
            if failed_at is not None:
                load = replace(load, penalty_ms=load.penalty_ms + np.where(rows == failed_at, PENALTY_MS, 0.0))
            who = pool.name, request.identity(hashes)
            terms = score(
                self._cost,
                table,
                at,
                load=load,
                prompt_tokens=tokens,
                cached_tokens=cached,
                lora_ms=self._engines.adapters.load_ms(rows, body.model, now_s),
                user_ms=self._homes.leaving_ms(self._cost.home_ms, who, table, rows) if request.affinity else None,
                suspects=doubted,
            )
            admission = self._admissions.get(pool.name, self._admission)
            if admission is not None:
                wait_s = self._retry_after_s(admission, request, load, terms)
                if wait_s:
                    return self._refusal(request, (429, reasons.OVER_OBJECTIVE), pool, codes, retry_after_s=wait_s)
            scores = terms.total()
            order = by_cost(scores, load.running, rendezvous(found.key_hash, who[1]))
            if counts and request.affinity:
                self._homes.went(who, table.key(int(rows[order[0]])))
        else:
            order = last(self._plain_order(pool.name, rows), doubted)
        best = top(order, found.sites, suspects=doubted)
        listed = best_rows = rows[best].tolist()
        if pool.tiering is not None and len(rows) < len(pool.rows):
            requests = table.requests[pool.rows] + table.remote_requests[pool.rows]
            alike = rendezvous(table.key_hash[pool.rows], request.identity(hashes))
            spare = pool.rows[reserve(codes, pool.tiering, requests, alike, suspects)].tolist()
            listed = with_reserve(listed, table.site, spare, () if doubted is None else rows[doubted].tolist())
        pick_id = ""
        if counts:
            account = self._account(request, now_s, best_rows[0], float(cached[best[0]]), hashes)
            if load is not None and terms is not None:
                account.ahead_ms = float(load.backlog_ms[best[0]]) if not body.problem else None
                account.rtt_ms = float(load.rtt_ms[best[0]])
                account.expected_ms = terms.first_byte_ms(load, int(best[0]))
            pick_id = self._count(account, body.model, known=int(matched[best[0]]))
        return Decision(
            pool=pool.name,
            endpoints=tuple(map(table.key, listed)),
            status=200,
            pick_id=pick_id,
            request_id=request.request_id,
            route=request.route,
            affinity=request.affinity,
            policy=self.policy.value,
            at_s=now_s,
            model=body.model,
            asked_model=body.asked_model,
            problem=body.problem,
            prompt_tokens=tokens,
            pool_keys=pool.keys,
            codes=codes,
            cached_tokens=cached,
            terms=terms,
            scores=scores,
            order=order,
        )

    def _account(self, request: PickRequest, now_s: float, row: int, held_tokens: float, hashes: list[int]) -> Account:
        body = request.body
        tokens = -(-body.prompt_bytes // BYTES_PER_TOKEN)
        uncached = max(float(self._cost.min_uncached_tokens), tokens - held_tokens) if tokens else 0.0
        return Account(
            row=row,
            opened_at_s=now_s,
            heard_at_s=now_s,
            prefill_ms=own_prefill_ms(self.table, row, tokens, uncached),
            uncached_tokens=int(uncached),
            context_tokens=tokens,
            hashes=tuple(hashes),
            prompt=prompt_hash(body.prompt, hashes),
            pool=request.pool,
            reported=request.reported,
            streaming=body.stream if body.prompt_bytes and not body.problem else None,
        )

    def _count(self, account: Account, model: str, *, known: int) -> str:
        """Count a pick as in flight and its prompt as cached, of which the endpoint had `known` blocks; its id."""
        self._picks += 1
        pick_id = f"{self._instance}-{self._picks:x}"
        self.inflight.open(pick_id, account)
        blocks = self.index.whole(account.row, account.hashes)
        self.index.insert(account.row, blocks, known=known)
        if self._outbox is not None and known < len(blocks):  # what was there is known to the peers, too
            self._outbox.placed(self.table.key(account.row), blocks)
        self._engines.adapters.sent(account.row, model, account.opened_at_s)
        return pick_id

    def _retry_after_s(self, admission: Admission, request: PickRequest, load: Load, terms: Terms) -> int:
        expected_ms = (
            load.rtt_ms + terms.backlog + terms.own + terms.decode_tax + terms.kv_wait + terms.penalty + terms.lora
        )
        return admission.retry_after_s(
            float(expected_ms.min()), objective=request.objective, body_priority=request.body.priority
        )

    def _plain_order(self, pool: str, rows: Rows) -> Order:
        turn = self._turns.get(pool, 0)
        self._turns[pool] = turn + 1
        if self.policy is PickPolicy.ROUND_ROBIN:
            return by_turn(len(rows), turn)
        if self.policy is PickPolicy.LEAST_OUTSTANDING:
            return by_outstanding(self.table.requests[rows] + self.table.remote_requests[rows], turn)
        return self._random.permutation(len(rows))

    def feedback(self, entry: Feedback, *, forwarded: bool = False) -> Account | None:
        """Learn what became of a pick; returns its account, None when the pick is unknown, ended or expired.

        `forwarded`: another picker heard it, and has learnt from it what does not need the account.
        """
        now_s = self._clock.monotonic_s()
        served = self.table.row(entry.upstream) if entry.upstream else None
        account = self.inflight.heard(entry.pick_id, now_s) if entry.pick_id else None
        if account is None and forwarded:
            return None
        if account is None:
            self._unmatched += 1
            if self._outbox is not None and entry.pick_id and not entry.pick_id.startswith(f"{self._instance}-"):
                self._outbox.outcome(entry)
        elif served is not None and served != account.row:
            self._passed_over(entry.pick_id, account, served, now_s)
            if account.hashes:
                self.index.insert(served, self.index.whole(served, account.hashes))
        if account is not None and entry.ttft_ms is not None:
            if self._calibration is not None and account.pending and entry.attempts <= 1 and entry.status == 200:
                self._calibration.learn(account, entry.ttft_ms)
            self.inflight.first_token(entry.pick_id)
        if entry.ended:
            row = served if served is not None else account.row if account is not None else None
            prompt = account.prompt if account is not None else None
            if row is not None and self._blame.falls_on(row, entry, prompt):
                penalise(self.table, row, now_s, entry.retry_after_s if entry.overloaded else 0.0)
            self.inflight.close(entry.pick_id)
        return account

    def _passed_over(self, pick_id: str, account: Account, row: int, now_s: float) -> None:
        """Envoy passed over our choice, or gave up on it: it knows something that we do not."""
        if not account.presumed:
            penalise(self.table, account.row, now_s)
        account.ahead_ms = None
        account.presumed = False
        self.inflight.move(pick_id, row)

    def attempt_failed(self, entry: Feedback) -> None:
        """A gateway found nobody at `entry.upstream` (`Feedback.attempt`); the request goes on to the next of its pick,
        and is counted there at once: what a dying site sends elsewhere must not look like room."""
        now_s, row = self._clock.monotonic_s(), self.table.row(entry.upstream)
        if row is None:
            return
        self._suspicion.attempt_failed(row, now_s)
        made = self._recent.find(entry.request_id)
        account = None if made is None else self.inflight.get(made.pick_id)
        following = None if made is None else self.table.row(made.after(entry.upstream))
        begun = entry.status != 0  # an answer that broke off goes nowhere else
        if made is not None and account is not None and account.row == row and following is not None and not begun:
            account.presumed = False  # the gateway says that it was here
            self._passed_over(made.pick_id, account, following, now_s)
            account.presumed = True

    def refused(self, key: str) -> None:
        """A scrape found that nobody listens at an endpoint."""
        row = self.table.row(key)
        if row is not None:
            self._suspicion.page_refused(row, self._clock.monotonic_s())

    def signals(self, key: str, metrics: EngineMetrics | None = None, *, rtt_ms: float | None = None) -> bool:
        """See `Engines.signals`. A page proves that its endpoint lives."""
        row = self.table.row(key)
        if row is not None and metrics is not None:
            self._suspicion.proven(row, self._clock.monotonic_s() - (rtt_ms or 0.0) / 1000.0)
        return self._engines.signals(key, metrics, rtt_ms=rtt_ms)

    def models(self, key: str, names: frozenset[str] | None, adapters: frozenset[str] = frozenset()) -> None:
        """See `Engines.models`."""
        self._engines.models(key, names, adapters)

    def base_models(self, key: str) -> tuple[str, ...]:
        """See `Engines.base_models`."""
        return self._engines.base_models(key)

    def kv_events(self, key: str, corrections: Iterable[Correction]) -> None:
        """See `Engines.kv_events`."""
        self._engines.kv_events(key, corrections)

    def own_loads(self) -> dict[str, EndpointLoad]:
        """What this picker has in flight, for its peers."""
        return own_loads(self.table, self._clock.monotonic_s())

    def remote_loads(self, loads: Loads) -> None:
        """What all other pickers have in flight; replaces what was said before."""
        set_remote_loads(self.table, loads)

    def placed(self, endpoint: str, blocks: Sequence[int]) -> None:
        """Another picker sent a prompt of these blocks to `endpoint`."""
        row = self.table.row(endpoint)
        if row is not None:
            self.index.insert(row, blocks)

    def expire(self) -> int:
        """Drop accounts that were silent for too long; each pick does it too."""
        dropped = self.inflight.expire(self._clock.monotonic_s())
        self._expired += dropped
        return dropped

    def explain(self, identity: str) -> Decision | None:
        """A recent decision by its pick id, or the latest one of a request id."""
        return self._recent.find(identity)

    def recent(self) -> tuple[Decision, ...]:
        """The decisions that are still remembered, oldest first."""
        return self._recent.all()

    def stats(self) -> PickerStats:
        """Sizes and counts now."""
        return PickerStats(
            endpoints=len(self.table),
            in_flight=len(self.inflight),
            prefix_blocks=self.index.total_blocks,
            picks=self._picks,
            refused=self._refused,
            expired=self._expired,
            unmatched_feedback=self._unmatched,
        )

    def _refusal(
        self,
        request: PickRequest,
        why: tuple[int, str],
        pool: PoolRows | None = None,
        codes: Codes | None = None,
        *,
        retry_after_s: int = 0,
    ) -> Decision:
        self._refused += 1
        status, reason = why
        return Decision(
            pool=request.pool,
            status=status,
            reason=reason,
            pick_id=f"{self._instance}-r{self._refused:x}",
            request_id=request.request_id,
            route=request.route,
            affinity=request.affinity,
            policy=self.policy.value,
            at_s=self._clock.monotonic_s(),
            model=request.body.model,
            asked_model=request.body.asked_model,
            problem=request.body.problem,
            pool_keys=pool.keys if pool else (),
            codes=codes,
            retry_after_s=retry_after_s,
        )

    def _remember(self, made: Decision) -> Decision:
        self._recent.add(made, len(self.table))
        return made
