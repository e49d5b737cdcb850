"""One engine's blocks, as its events tell them, and what follows for our prefix index.

An engine hashes tokens of a rendered template; we hash text. The two meet where a prompt came as token ids: its text
here is four bytes for each id (`token_ids`), so the events give exactly the hashes that a pick computes. For all other
prompts an event only tells how much has come and gone, and the index is corrected by size. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import xxhash

from pointsman.extproc.kv_events.decode import (
    FULL_ATTENTION,
    AllBlocksCleared,
    Batch,
    BlockHash,
    BlockRemoved,
    BlockStored,
    Event,
)
from pointsman.extproc.prefix import BLOCK_BYTES, BLOCK_TOKENS, chain_seed
from pointsman.extproc.token_ids import ID_BYTES, render_ids

MAX_CHAINED = 100_000
"""Blocks of one engine whose place in a chain is kept, at about 350 bytes: 1.6 M tokens in blocks of 16. Blocks past it
are counted only."""

MAX_BLOCKS = 1_000_000
"""Blocks of one engine that are known at all, a few hundred MB: 16 M tokens in blocks of 16, more than engines hold.
One that has more told of removals that we never heard, or tells lies: its mirror begins anew."""

MAX_MODELS = 4
"""Names of a model for which hashes are kept: a prompt's hash covers the name that the client used for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What an index should do about one event: first `cleared` (all has gone), then the rest.

    `stored` and `removed` are our block hashes. `lost_tokens` have gone of `held_tokens`; each of `removed` is
    `BLOCK_TOKENS` of them.
    """

    cleared: bool = False
    stored: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    lost_tokens: int = 0
    held_tokens: int = 0


@dataclass(slots=True)
class _Chain:
    """Where a block ends in our own chains, one for each name of the model; `rest` is the part of a block behind it.

    `ours` are our blocks that end in this one.
    """

    ends: tuple[int, ...]
    rest: bytes
    ours: tuple[int, ...]


@dataclass(slots=True)
class _Held:
    """A block of the engine and the media it is in, as bits; `chain` None: its place is not known."""

    tokens: int
    media: int
    chain: _Chain | None


_MEDIA: Final = {"GPU": 1, "CPU": 2, "STORAGE": 4}
_OTHER_MEDIUM: Final = 8


class KvMirror:
    """The blocks of one engine. `models` tells the names of its own model, as far as they are known."""

    def __init__(self, models: Callable[[], Iterable[str]]) -> None:
        self._models = models
        self._blocks: dict[BlockHash, _Held] = {}
        self._group: int | None = None
        self._chained = 0
        self.held_tokens = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def take(self, batch: Batch) -> list[Correction]:
        """Corrections that follow from a batch, in order. Past `MAX_BLOCKS` it is as if events had been lost."""
        found: list[Correction] = []
        for event in batch.events:
            correction = self._take(event)
            if correction is not None:
                found.append(correction)
            if len(self._blocks) > MAX_BLOCKS:
                found.append(self.doubt())
        return found

    def doubt(self) -> Correction:
        """Events were lost: what only they can vouch for is forgotten, here and in the index."""
        removed = tuple(ours for held in self._blocks.values() if held.chain for ours in held.chain.ours)
        self._reset()
        return Correction(removed=removed)

    def cleared(self) -> Correction:
        """Nothing is held any more."""
        self._reset()
        return Correction(cleared=True)

    def _reset(self) -> None:
        self._blocks.clear()
        self._chained = 0
        self.held_tokens = 0

    def _take(self, event: Event) -> Correction | None:
        match event:
            case AllBlocksCleared():
                return self.cleared()
            case BlockStored() if self._is_ours(event):
                return self._stored(event)
            case BlockRemoved() if event.group == (self._group or 0):
                return self._removed(event)
        return None

    def _is_ours(self, event: BlockStored) -> bool:
        """Hybrid models tell of each KV cache group; the first one with full attention stands for all."""
        if event.attention not in ("", FULL_ATTENTION):
            return False
        if self._group is None:
            self._group = event.group
        return event.group == self._group

    def _stored(self, event: BlockStored) -> Correction | None:
        chain = self._parent_chain(event)
        if len(event.token_ids) != len(event.hashes) * event.block_tokens:
            chain = None
        ours: list[int] = []
        text = render_ids(list(event.token_ids)) if chain is not None else b""
        size = event.block_tokens * ID_BYTES
        medium = _MEDIA.get(event.medium, _OTHER_MEDIUM)
        for position, name in enumerate(event.hashes):
            held = self._blocks.get(name)
            if chain is not None and _extra(event, position):
                chain = None  # media: their tokens say nothing of what they show
            if chain is not None:
                chain = _extended(chain, text[position * size : (position + 1) * size])
                ours.extend(chain.ours)
            if held is None:
                held = self._blocks[name] = _Held(event.block_tokens, 0, None)
                self.held_tokens += event.block_tokens
            held.media |= medium
            if held.chain is None and chain is not None and self._chained < MAX_CHAINED:
                held.chain = chain
                self._chained += 1
        return Correction(stored=tuple(ours)) if ours else None

    def _parent_chain(self, event: BlockStored) -> _Chain | None:
        if event.parent is not None:
            parent = self._blocks.get(event.parent)
            return None if parent is None else parent.chain
        names = (event.lora,) if event.lora else tuple(self._models())[:MAX_MODELS]
        salt = _salt(event)
        if salt is None or not names:
            return None
        return _Chain(tuple(chain_seed(name, salt) for name in names), b"", ())

    def _removed(self, event: BlockRemoved) -> Correction | None:
        held_tokens = self.held_tokens
        removed: list[int] = []
        lost_tokens = 0
        medium = _MEDIA.get(event.medium, _OTHER_MEDIUM)
        for name in event.hashes:
            held = self._blocks.get(name)
            if held is None:
                continue  # from before we listened
            held.media &= ~medium
            if held.media:
                continue
            del self._blocks[name]
            self.held_tokens -= held.tokens
            if held.chain is None:
                lost_tokens += held.tokens
            else:
                self._chained -= 1
                removed.extend(held.chain.ours)
                lost_tokens += len(held.chain.ours) * BLOCK_TOKENS // len(held.chain.ends)
        if not removed and not lost_tokens:
            return None
        return Correction(removed=tuple(removed), lost_tokens=lost_tokens, held_tokens=held_tokens)


def _extended(chain: _Chain, text: bytes) -> _Chain:
    """The chain after the rendered tokens of a block."""
    data = chain.rest + text
    ends = chain.ends
    ours: list[int] = []
    start = 0
    while start + BLOCK_BYTES <= len(data):
        block = data[start : start + BLOCK_BYTES]
        ends = tuple(xxhash.xxh3_64_intdigest(block, end) for end in ends)
        ours.extend(ends)
        start += BLOCK_BYTES
    return _Chain(ends, data[start:], tuple(ours))


def _keys(event: BlockStored, position: int) -> tuple[object, ...]:
    """What a block's hash covers besides tokens and the adapter."""
    keys = event.extra_keys[position] if position < len(event.extra_keys) else ()
    return keys[1:] if event.lora and keys[:1] == (event.lora,) else keys


def _salt(event: BlockStored) -> str | None:
    """The cache salt of a chain that begins here, empty without one; None when something else is covered, too."""
    match _keys(event, 0):
        case ():
            return ""
        case (str(salt),):
            return salt
    return None


def _extra(event: BlockStored, position: int) -> bool:
    """Is there more to a block than its tokens, the adapter and (in the first one) the salt?"""
    return bool(_keys(event, position)) and not (position == 0 and event.parent is None)
