"""Counts over the last seconds in buckets of time: O(1) for each sample, bounded memory, several windows at once."""

from __future__ import annotations


class Ring:
    """Counts of (all, bad) in `size` buckets of `bucket_s` seconds; what is older is forgotten."""

    __slots__ = ("_bads", "_newest", "_per_s", "_totals", "bad", "bucket_s", "size", "total")

    def __init__(self, *, bucket_s: float, size: int) -> None:
        self.bucket_s = bucket_s
        self.size = size
        self.total = 0  # in all buckets
        self.bad = 0
        self._per_s = 1.0 / bucket_s
        self._newest = 0
        self._totals = [0] * size
        self._bads = [0] * size

    def add(self, at_s: float, *, bad: bool) -> None:
        """Count one; what is older than the ring is dropped."""
        bucket = int(at_s * self._per_s)
        if bucket > self._newest:
            self._roll(bucket)
        elif self._newest - bucket >= self.size:
            return
        place = bucket % self.size
        self._totals[place] += 1
        self.total += 1
        if bad:
            self._bads[place] += 1
            self.bad += 1

    def advance(self, now_s: float) -> None:
        """Time goes on; call it before counting."""
        bucket = int(now_s * self._per_s)
        if bucket > self._newest:
            self._roll(bucket)

    def count(self, length: int) -> tuple[int, int]:
        """(all, bad) in the newest `length` buckets."""
        end = self._newest % self.size + 1
        start = end - length
        if start >= 0:
            return sum(self._totals[start:end]), sum(self._bads[start:end])
        return (
            sum(self._totals[start:]) + sum(self._totals[:end]),
            sum(self._bads[start:]) + sum(self._bads[:end]),
        )

    def first_bad_s(self, length: int) -> float:
        """The start of the first of the newest `length` buckets that has a bad one; of the newest if none has."""
        for bucket in range(self._newest - length + 1, self._newest):
            if self._bads[bucket % self.size]:
                return bucket * self.bucket_s
        return self._newest * self.bucket_s

    def _roll(self, bucket: int) -> None:
        if not self.total:  # most rings are those of idle endpoints
            self._newest = bucket
            return
        size, totals, bads = self.size, self._totals, self._bads
        for gone in range(self._newest + 1, self._newest + 1 + min(size, bucket - self._newest)):
            place = gone % size
            if totals[place]:
                self.total -= totals[place]
                self.bad -= bads[place]
                totals[place] = bads[place] = 0
        self._newest = bucket
