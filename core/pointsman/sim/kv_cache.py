"""KV blocks of one replica: reference counts, prefix cache, LRU eviction, optional host tier. Pure.

A block is either *private* (held by one sequence and without a known content; only counted) or *cached* under the
chained hash of all tokens up to its end. Cached blocks that nobody references stay until the space is needed; they
leave in the order in which they were released, the tail of a sequence before its head, as in vLLM.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple


class Hit(NamedTuple):
    """What a prompt would find, in blocks: `blocks` in a row from its start, of which `host` must be loaded from host
    memory and `pinned` are referenced by others (they cost no space)."""

    blocks: int
    host: int
    pinned: int


class KvCache:
    """`blocks` on the device and `host_blocks` of host memory (0: no host tier).

    At any time: private + cached <= `blocks`; a cached block is in the LRU exactly when its count is 0.
    """

    __slots__ = ("_host", "_lru", "_private", "_refs", "blocks", "evicted", "host_blocks", "pinned_ever")

    def __init__(self, blocks: int, host_blocks: int = 0) -> None:
        self.blocks = blocks
        self.host_blocks = host_blocks
        self.evicted = 0
        self.pinned_ever = 0
        """Blocks that went from unreferenced or unknown to referenced, ever; grows only."""
        self._private = 0
        self._refs: dict[int, int] = {}
        self._lru: OrderedDict[int, None] = OrderedDict()
        self._host: OrderedDict[int, None] = OrderedDict()

    @property
    def used(self) -> int:
        """Blocks that running sequences hold."""
        return self._private + len(self._refs) - len(self._lru)

    @property
    def available(self) -> int:
        """Blocks that can be given out now: empty ones and cached ones that nobody references."""
        return self.blocks - self.used

    @property
    def cached(self) -> int:
        """Blocks whose content can be found by its hash."""
        return len(self._refs)

    def lookup(self, hashes: Sequence[int], limit: int) -> Hit:
        """The longest cached prefix of `hashes`, at most `limit` blocks; changes nothing."""
        refs, host = self._refs, self._host
        found = from_host = pinned = 0
        for block in islice(hashes, limit):
            count = refs.get(block)
            if count is None:
                if block not in host:
                    break
                from_host += 1
            elif count:
                pinned += 1
            found += 1
        return Hit(found, from_host, pinned)

    def acquire(self, hashes: Sequence[int], hit: Hit, total: int) -> list[int]:
        """Give a sequence `total` blocks, the first `hit.blocks` from the cache; returns the cached ones it holds now.

        The caller has made sure that `total - hit.pinned <= available`.
        """
        refs, lru = self._refs, self._lru
        held = list(islice(hashes, hit.blocks))
        load: list[int] = []
        for block in held:
            count = refs.get(block)
            if count is None:
                load.append(block)
                continue
            if not count:
                del lru[block]
                self.pinned_ever += 1
            refs[block] = count + 1
        self.take(total - len(held) + len(load))
        for block in load:
            refs[block] = 1
            if block in self._host:
                self._host.move_to_end(block)
        self._private -= len(load)
        self.pinned_ever += len(load)
        return held

    def take(self, count: int) -> None:
        """Give out `count` private blocks, evicting the least recently used as far as needed."""
        self._private += count
        surplus = self._private + len(self._refs) - self.blocks
        if surplus > 0:
            self._evict(surplus)

    def register(self, hashes: Sequence[int], start: int, stop: int, held: list[int]) -> None:
        """Private blocks `start` to `stop` of a sequence are full: make them findable and note them in `held`.

        A block whose hash is cached already (two sequences computed it at the same time) stays private, as in vLLM.
        """
        refs = self._refs
        before = len(held)
        for block in islice(hashes, start, stop):
            if block not in refs:
                refs[block] = 1
                held.append(block)
        fresh = len(held) - before
        self._private -= fresh
        self.pinned_ever += fresh

    def release(self, held: list[int], private: int) -> None:
        """Take back a sequence's blocks: `held` by reference count, tail first; `private` ones are empty at once."""
        refs, lru = self._refs, self._lru
        self._private -= private
        for block in reversed(held):
            count = refs[block] - 1
            refs[block] = count
            if not count:
                lru[block] = None

    def clear(self) -> None:
        """Forget every cached block that nobody references, on device and host."""
        for block in self._lru:
            del self._refs[block]
        self._lru.clear()
        self._host.clear()

    def check(self) -> None:
        """Raise AssertionError when the books do not balance; for tests."""
        idle = {block for block, count in self._refs.items() if count == 0}
        assert all(count >= 0 for count in self._refs.values()), "negative reference count"
        assert idle == set(self._lru), "the LRU does not hold exactly the unreferenced blocks"
        assert self._private >= 0, "negative number of private blocks"
        assert self._private + len(self._refs) <= self.blocks, "more blocks in use than there are"
        assert len(self._host) <= self.host_blocks, "host tier over its size"

    def _evict(self, count: int) -> None:
        refs, lru, host = self._refs, self._lru, self._host
        for _ in range(count):
            block, _none = lru.popitem(last=False)
            del refs[block]
            if self.host_blocks:
                host[block] = None
                host.move_to_end(block)
                if len(host) > self.host_blocks:
                    host.popitem(last=False)
        self.evicted += count
