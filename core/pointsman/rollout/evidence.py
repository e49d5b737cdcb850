"""What became of the requests of each arm: counts of bounded size, made from the gateways' access logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

import msgspec
import numpy as np

from pointsman.rollout import buckets
from pointsman.rollout.buckets import Counts
from pointsman.rollout.spec import Metric

ITL_BYTES: Final = 256
"""About one server-sent event of a chat completion with one token in it."""
ITL_MIN_BYTES: Final = 4 * ITL_BYTES
"""Shorter answers say nothing about the pace of decoding."""

MAX_OPEN: Final = 4_096
"""Requests without a first byte that are remembered for each arm; one that hangs tells as much as the next."""

SILENT_S: Final = 6.0
"""An open request that is not reported for so long is forgotten: gateways report each twice a second, so its end got
lost, and it would seem to wait for ever. As long as the picker believes in its accounts."""

GRPC_FAILURES: Final = frozenset({2, 4, 13, 14, 15})
"""UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS: what 5xx is to HTTP."""
GRPC_THROTTLED: Final = 8  # RESOURCE_EXHAUSTED, what 429 is to HTTP
GRPC_CANCELLED: Final = 1


class Outcome(Enum):
    OK = "ok"
    SERVER_ERROR = "5xx"
    BROKEN = "broken"  # reset, cut off, timed out
    GRPC_ERROR = "grpc"
    CLIENT_ERROR = "4xx"  # the client's fault, or that of a canary that knows another model name
    THROTTLED = "throttled"  # 429: a full engine spills, it is not broken
    CANCELLED = "cancelled"  # the client left before an answer


ERRORS: Final = frozenset({Outcome.SERVER_ERROR, Outcome.BROKEN, Outcome.GRPC_ERROR})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One access log entry. Times in ms; `ttft_ms` None: no body byte yet; `grpc_status` None: not gRPC.

    An entry that has not `ended` is a report on a request that runs; `key` joins it with its end, empty for none. How
    old such a request is follows from `heard_s`, when (monotonic) the entry came: Envoy tells the duration only at the
    end, so `duration_ms` of a report is the least that it can be. `failed`: the upstream, not the client, broke it off.
    """

    key: str
    ended: bool
    status: int
    grpc_status: int | None = None
    failed: bool = False
    ttft_ms: float | None = None
    duration_ms: float = 0.0
    response_bytes: int = 0
    attempts: int = 1
    heard_s: float = 0.0


@dataclass(slots=True)
class _Open:
    """A request without a first byte: when it began, at the latest, and when it was last reported."""

    began_s: float
    heard_s: float


def outcome(sample: Sample) -> Outcome:
    """How a request that ended counts."""
    status, grpc = sample.status, sample.grpc_status or 0
    if grpc in GRPC_FAILURES:
        kind = Outcome.GRPC_ERROR
    elif status >= 500:
        kind = Outcome.SERVER_ERROR
    elif sample.failed:
        kind = Outcome.BROKEN
    elif status == 429 or grpc == GRPC_THROTTLED:
        kind = Outcome.THROTTLED
    elif status in {0, 499} or grpc == GRPC_CANCELLED:
        kind = Outcome.CANCELLED
    else:
        kind = Outcome.CLIENT_ERROR if status >= 400 or grpc else Outcome.OK
    return kind


class ArmRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An arm's counts as they are saved: histograms as bucket → count."""

    outcomes: dict[str, int] = msgspec.field(default_factory=dict)
    retried: int = 0
    histograms: dict[str, dict[int, int]] = msgspec.field(default_factory=dict)


class Arm:
    """The counts of one arm."""

    def __init__(self) -> None:
        self.outcomes: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self.retried = 0
        self.histograms: dict[Metric, Counts] = {
            metric: buckets.counts() for metric in (Metric.TTFT, Metric.E2E, Metric.ITL)
        }
        self._open: dict[str, _Open] = {}
        self._heard_s = 0.0
        self._swept_s = 0.0

    @property
    def requests(self) -> int:
        """Requests that got an answer or an error: the base of every rate. Clients that left do not count."""
        return sum(self.outcomes.values()) - self.outcomes[Outcome.CANCELLED]

    def add(self, sample: Sample) -> bool:
        """Count an entry; True when a request ended."""
        self._heard_s = max(self._heard_s, sample.heard_s)
        if not sample.ended:
            if sample.ttft_ms is not None:
                self._open.pop(sample.key, None)
            elif sample.key:
                self._note_open(sample)
            return False
        self._open.pop(sample.key, None)
        kind = outcome(sample)
        self.outcomes[kind] += 1
        self.retried += sample.attempts > 1
        if kind is Outcome.OK:
            self._note(Metric.TTFT, sample.ttft_ms if sample.ttft_ms is not None else sample.duration_ms)
            self._note(Metric.E2E, sample.duration_ms)
            if sample.ttft_ms is not None and sample.response_bytes >= ITL_MIN_BYTES:
                pace = (sample.duration_ms - sample.ttft_ms) * ITL_BYTES / sample.response_bytes
                self._note(Metric.ITL, max(0.0, pace))
        elif kind is Outcome.CANCELLED:
            # Whoever left without a byte had waited at least that long; leaving them out would praise a slow canary.
            self._note(Metric.TTFT, sample.duration_ms if sample.ttft_ms is None else sample.ttft_ms)
        return True

    def _note_open(self, sample: Sample) -> None:
        began_s = sample.heard_s - sample.duration_ms / 1000.0
        known = self._open.get(sample.key)
        if known is not None:
            known.began_s, known.heard_s = min(known.began_s, began_s), sample.heard_s
            return
        if len(self._open) >= MAX_OPEN and self._heard_s - self._swept_s > SILENT_S:
            self._swept_s = self._heard_s
            self._open = {key: one for key, one in self._open.items() if self._is_heard(one)}
        if len(self._open) < MAX_OPEN:
            self._open[sample.key] = _Open(began_s, sample.heard_s)

    def _is_heard(self, one: _Open) -> bool:
        return self._heard_s - one.heard_s <= SILENT_S

    def _ages_ms(self) -> list[float]:
        """How long requests without a first byte wait, at the last entry of this arm."""
        return [1000.0 * (self._heard_s - one.began_s) for one in self._open.values() if self._is_heard(one)]

    def _note(self, metric: Metric, value_ms: float) -> None:
        self.histograms[metric][buckets.bucket(value_ms)] += 1

    def rate(self, metric: Metric) -> tuple[int, int]:
        """(hits, requests) of a rate."""
        if metric is Metric.RETRY_RATE:
            hits = self.retried
        elif metric is Metric.CLIENT_ERROR_RATE:
            hits = self.outcomes[Outcome.CLIENT_ERROR]
        else:
            hits = sum(self.outcomes[kind] for kind in ERRORS)
        return min(hits, self.requests), self.requests

    def times(self, metric: Metric) -> Counts:
        """The histogram of a time. That of TTFT counts who still waits for a first byte at the age it has now."""
        counted = self.histograms[metric]
        if metric is not Metric.TTFT or not self._open:
            return counted
        result = counted.copy()
        for age_ms in self._ages_ms():
            result[buckets.bucket(age_ms)] += 1
        return result

    @property
    def waiting(self) -> int:
        """Requests that run and have no byte of an answer yet, as far as the access log told."""
        return len(self._ages_ms())

    def record(self) -> ArmRecord:
        """As it is saved. Requests that still run are not: they tell of themselves again."""
        return ArmRecord(
            outcomes={kind.value: count for kind, count in self.outcomes.items() if count},
            retried=self.retried,
            histograms={
                metric.value: {int(i): int(histogram[i]) for i in np.flatnonzero(histogram)}
                for metric, histogram in self.histograms.items()
            },
        )

    @classmethod
    def restored(cls, record: ArmRecord) -> Arm:
        """From what was saved."""
        arm = cls()
        arm.retried = record.retried
        for name, count in record.outcomes.items():
            arm.outcomes[Outcome(name)] = count
        for name, sparse in record.histograms.items():
            for index, count in sparse.items():
                arm.histograms[Metric(name)][min(index, buckets.SIZE - 1)] += count
        return arm


class EvidenceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`Evidence` as it is saved."""

    look: int
    step_look: int
    step_requests: int
    began_s: float
    canary: ArmRecord
    stable: ArmRecord
    baseline: ArmRecord


class Evidence:
    """The two arms since the step, or since the last judgement within a long step, began.

    `look` numbers the separate bodies of evidence of the rollout, `step_look` those of the step: the odds of being
    wrong are divided among them. `baseline` is the stable arm as it was before it lost its last request.
    """

    def __init__(self, *, now_s: float = 0.0) -> None:
        self.canary = Arm()
        self.stable = Arm()
        self.baseline = Arm()
        self.look = 1
        self.step_look = 1
        self.step_requests = 0
        self.began_s = now_s

    def add(self, sample: Sample, *, canary: bool) -> None:
        """Count an access log entry of one of the arms."""
        ended = (self.canary if canary else self.stable).add(sample)
        self.step_requests += ended and canary

    def restart(self, now_s: float, *, new_step: bool) -> None:
        """Begin anew: what was seen under other weights, or long ago, must not excuse what is seen now."""
        if self.stable.requests:
            self.baseline = self.stable
        self.canary, self.stable = Arm(), Arm()
        self.look += 1
        self.step_look = 1 if new_step else self.step_look + 1
        if new_step:
            self.step_requests = 0
        self.began_s = now_s

    def stable_arm(self, *, serves: bool) -> Arm:
        """What the canary is held against: the stable arm, or how it was when it last served."""
        return self.stable if serves else self.baseline

    def record(self) -> EvidenceRecord:
        """As it is saved."""
        return EvidenceRecord(
            look=self.look,
            step_look=self.step_look,
            step_requests=self.step_requests,
            began_s=self.began_s,
            canary=self.canary.record(),
            stable=self.stable.record(),
            baseline=self.baseline.record(),
        )

    @classmethod
    def restored(cls, record: EvidenceRecord) -> Evidence:
        """From what was saved."""
        evidence = cls(now_s=record.began_s)
        evidence.look, evidence.step_look = record.look, record.step_look
        evidence.step_requests = record.step_requests
        evidence.canary = Arm.restored(record.canary)
        evidence.stable = Arm.restored(record.stable)
        evidence.baseline = Arm.restored(record.baseline)
        return evidence


def counted(arm: Arm) -> Mapping[str, int]:
    """Outcomes of an arm for a status: only those that occurred."""
    return {kind.value: count for kind, count in arm.outcomes.items() if count}
