"""KV events of vLLM as its ZeroMQ publisher sends them: msgpack `[time, [event, …], data_parallel_rank]`.

An event is a map with `type` (vLLM 0.32) or an array that begins with the type (before). Fields that we do not know are
passed over, and so are events of other types. Source: vLLM 0.32.0, `vllm/distributed/kv_events.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from pointsman.core.errors import PeerError

MAX_PAYLOAD_BYTES: Final = 16 * 1024 * 1024
"""Longest batch that is read: three million token ids, more than a scheduler step can store."""

BlockHash = int | bytes
"""How an engine names a block; what it hashes is its own affair."""

Group = tuple[Any, ...]

GPU: Final = "GPU"
FULL_ATTENTION: Final = "full_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStored:
    """Blocks that follow each other, after `parent` (None: from the start of a prompt), now in `medium`.

    `extra_keys` has one entry for each block: what else its hash covers (LoRA name, media, cache salt); empty when the
    engine does not say. `group` is the KV cache group of hybrid models, `attention` its kind (empty: not said).
    """

    hashes: tuple[BlockHash, ...]
    parent: BlockHash | None
    token_ids: tuple[int, ...]
    block_tokens: int
    medium: str = GPU
    lora: str = ""
    extra_keys: tuple[tuple[Any, ...], ...] = ()
    group: int = 0
    attention: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRemoved:
    """Blocks that are no longer in `medium`."""

    hashes: tuple[BlockHash, ...]
    medium: str = GPU
    group: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AllBlocksCleared:
    """The prefix cache is empty."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Events in order. `skipped`: how many more there were, of other types or not readable."""

    events: tuple[Event, ...]
    skipped: int = 0


class _Batch(msgspec.Struct, array_like=True):
    time_s: float
    events: list[msgspec.Raw]


class _StoredMap(msgspec.Struct, tag="BlockStored"):
    block_hashes: list[BlockHash]
    token_ids: list[int]
    block_size: int
    parent_block_hash: BlockHash | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    locality: str | None = None


class _RemovedMap(msgspec.Struct, tag="BlockRemoved"):
    block_hashes: list[BlockHash]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None


class _ClearedMap(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class _StoredArray(msgspec.Struct, tag="BlockStored", array_like=True):
    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None


class _RemovedArray(msgspec.Struct, tag="BlockRemoved", array_like=True):
    block_hashes: list[BlockHash]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None


class _ClearedArray(msgspec.Struct, tag="AllBlocksCleared", array_like=True):
    pass


_BATCH = msgspec.msgpack.Decoder(_Batch)
_MAP = msgspec.msgpack.Decoder(_StoredMap | _RemovedMap | _ClearedMap)
_ARRAY = msgspec.msgpack.Decoder(_StoredArray | _RemovedArray | _ClearedArray)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_REMOTE = "REMOTE"  # another engine's memory: told here for who transfers blocks


def decode(payload: bytes) -> Batch:
    """Read a batch.

    Raises:
        PeerError: it is no batch, or too long. A single event that can't be read is only counted.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PeerError(f"KV events of {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} are read")
    try:
        raw_events = _BATCH.decode(payload).events
    except _UNREADABLE as error:
        raise PeerError(f"no batch of KV events: {error}") from error
    found = [_event(bytes(raw)) for raw in raw_events]
    events = tuple(event for event in found if event is not None)
    return Batch(events=events, skipped=len(found) - len(events))


def _event(raw: bytes) -> Event | None:
    kind = raw[0]
    decoder: Any = _MAP if 0x80 <= kind <= 0x8F or kind in (0xDE, 0xDF) else _ARRAY  # msgpack's fixmap, map 16, map 32
    try:
        found = decoder.decode(raw)
    except _UNREADABLE:
        return None
    match found:
        case _ClearedMap() | _ClearedArray():
            return AllBlocksCleared()
        case _RemovedMap() | _RemovedArray() if found.locality != _REMOTE:
            return BlockRemoved(
                hashes=tuple(found.block_hashes), medium=found.medium or GPU, group=found.group_idx or 0
            )
        case _StoredMap() | _StoredArray() if found.locality != _REMOTE and found.block_size > 0:
            return BlockStored(
                hashes=tuple(found.block_hashes),
                parent=found.parent_block_hash,
                token_ids=tuple(found.token_ids),
                block_tokens=found.block_size,
                medium=found.medium or GPU,
                lora=found.lora_name or "",
                extra_keys=tuple(tuple(keys or ()) for keys in found.extra_keys or ()),
                group=found.group_idx or 0,
                attention=found.kv_cache_spec_kind or "",
            )
    return None
