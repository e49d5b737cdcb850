"""The numbered batches of one publisher: which are missing, and what to believe when they stay so. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pointsman.extproc.kv_events.decode import Batch
from pointsman.extproc.kv_events.mirror import Correction, KvMirror


class KvStream:
    """Sequence numbers and blocks of one engine; `models` as in `KvMirror`. Numbers start at 0 with the engine."""

    def __init__(self, models: Callable[[], Iterable[str]]) -> None:
        self.mirror = KvMirror(models)
        self.gaps = 0
        self._next: int | None = None

    def missing_from(self, number: int) -> int | None:
        """The first number that should be asked for again before `number` is taken, None when nothing is missing.

        A publisher that ran before we listened has told what it holds: that is worth asking for, too. So it is after
        a restart, which shows in a number that goes back.
        """
        expected = 0 if self._next is None or number < self._next else self._next
        return expected if number > expected else None

    def take(self, number: int, batch: Batch | None) -> list[Correction]:
        """Corrections that follow from batch `number`; None: it could not be read."""
        corrections: list[Correction] = []
        if self._next is not None and number < self._next:
            corrections.append(self.mirror.cleared())  # the engine started again
        elif self._next is not None and number > self._next:
            self.gaps += 1
            corrections.append(self.mirror.doubt())
        self._next = number + 1
        if batch is None:
            corrections.append(self.mirror.doubt())
        else:
            corrections += self.mirror.take(batch)
        return corrections
