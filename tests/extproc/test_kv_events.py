"""KV events: read as vLLM sends them, and what they change in the prefix index."""

from __future__ import annotations

import base64
import json
import random
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.fleet import POOL, make_plan
from pointsman.core.clock import ManualClock
from pointsman.core.errors import PeerError
from pointsman.extproc import Picker, PickRequest
from pointsman.extproc.engines import Engines
from pointsman.extproc.kv_events.decode import (
    MAX_PAYLOAD_BYTES,
    AllBlocksCleared,
    Batch,
    BlockRemoved,
    BlockStored,
    decode,
)
from pointsman.extproc.kv_events.mirror import KvMirror
from pointsman.extproc.kv_events.stream import KvStream
from pointsman.extproc.prefix import PrefixIndex, block_hashes, chain_seed
from pointsman.extproc.request import read_body
from pointsman.extproc.table import EndpointTable
from pointsman.extproc.token_ids import render_ids

RECORDED = [
    json.loads(line)
    for line in (Path(__file__).parent / "fixtures" / "vllm-0.32.0-kv-events.jsonl").read_text().splitlines()
]
KEY = "10.0.0.1:80"
pack = msgspec.msgpack.encode


def stored(first: int, count: int, *, parent: int | None = None, tokens: int = 64, **fields: Any) -> BlockStored:
    """Blocks named `first`, `first + 1`, … whose tokens are their names."""
    names = range(first, first + count)
    ids = tuple(name for name in names for _ in range(tokens))
    return BlockStored(hashes=tuple(names), parent=parent, token_ids=ids, block_tokens=tokens, **fields)


def batch(*events: BlockStored | BlockRemoved | AllBlocksCleared) -> Batch:
    return Batch(events=events)


def mirror(*models: str) -> KvMirror:
    return KvMirror(lambda: models)


def hashes_of(*blocks: int, model: str = "m", salt: str = "", tokens: int = 64) -> list[int]:
    return block_hashes(render_ids([block for block in blocks for _ in range(tokens)]), chain_seed(model, salt))


# Reading


@pytest.mark.parametrize("message", RECORDED)
def test_what_vllm_sent_is_read(message: dict[str, Any]) -> None:
    found = decode(base64.b64decode(message["payload_b64"]))
    assert found.skipped == 0
    for event, told in zip(found.events, message["decoded"][1], strict=True):
        assert isinstance(event, BlockStored)
        assert list(event.hashes) == told["block_hashes"]
        assert event.parent == told["parent_block_hash"]
        assert list(event.token_ids) == told["token_ids"]
        assert (event.block_tokens, event.medium, event.attention) == (128, "GPU", "full_attention")


def test_events_as_arrays_and_hashes_as_bytes_are_read_too() -> None:
    payload = pack(
        [
            1.5,
            [
                ["BlockStored", [b"\1" * 32], None, [7] * 16, 16, None, "GPU"],
                ["BlockRemoved", [b"\1" * 32, 2**64 - 1], "CPU"],
                ["AllBlocksCleared"],
            ],
        ]
    )
    assert decode(payload).events == (
        BlockStored(hashes=(b"\1" * 32,), parent=None, token_ids=(7,) * 16, block_tokens=16),
        BlockRemoved(hashes=(b"\1" * 32, 2**64 - 1), medium="CPU"),
        AllBlocksCleared(),
    )


def test_what_is_unknown_or_broken_is_counted_and_the_rest_is_read() -> None:
    events = [
        {"type": "BlockMoved", "block_hashes": [1]},
        {"type": "BlockRemoved", "block_hashes": "none"},
        {"type": "BlockRemoved", "block_hashes": [1], "locality": "REMOTE"},
        {"type": "BlockStored", "block_hashes": [1], "token_ids": [], "block_size": 0},
        {"type": "AllBlocksCleared", "why": "reset"},
        7,
    ]
    found = decode(pack([1.0, events, 0]))
    assert found == Batch(events=(AllBlocksCleared(),), skipped=5)


@pytest.mark.parametrize("payload", [b"", b"\xc1", pack({}), pack([1.0]), pack([1.0, {}]), b"\x91" * 100_000])
def test_what_is_no_batch_is_refused(payload: bytes) -> None:
    with pytest.raises(PeerError, match="no batch"):
        decode(payload)


def test_a_huge_batch_is_not_read() -> None:
    with pytest.raises(PeerError, match="at most"):
        decode(bytes(MAX_PAYLOAD_BYTES + 1))


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder(payload: bytes) -> None:
    with suppress(PeerError):
        decode(payload)


# What follows for the index


def test_blocks_of_token_ids_get_the_hashes_of_picks() -> None:
    ours = mirror("m")
    (first,) = ours.take(batch(stored(1, 3)))
    (more,) = ours.take(batch(stored(4, 1, parent=3)))
    assert [*first.stored, *more.stored] == hashes_of(1, 2, 3, 4)
    (lost,) = ours.take(batch(BlockRemoved(hashes=(4,))))
    assert (list(lost.removed), lost.lost_tokens, lost.held_tokens) == (hashes_of(1, 2, 3, 4)[3:], 64, 256)


@pytest.mark.parametrize("tokens", [16, 48, 128])
def test_blocks_of_other_sizes_are_cut_anew(tokens: int) -> None:
    ours = mirror("m")
    found: list[int] = []
    for name in range(1, 9):  # one at a time, as answers grow
        for one in ours.take(batch(stored(name, 1, parent=name - 1 or None, tokens=tokens))):
            found += one.stored
    assert found == hashes_of(*range(1, 9), tokens=tokens)


@pytest.mark.parametrize(
    ("fields", "hashes"),
    [
        ({"extra_keys": (("tenant",), ())}, hashes_of(1, 2, salt="tenant")),
        ({"lora": "sql", "extra_keys": (("sql",), ("sql",))}, hashes_of(1, 2, model="sql")),
        ({"lora": "sql", "extra_keys": (("sql", "tenant"), ("sql",))}, hashes_of(1, 2, model="sql", salt="tenant")),
        ({"extra_keys": ((), (["picture", 0],))}, hashes_of(1)),
        ({"extra_keys": ((["picture", 0],), ())}, []),
    ],
)
def test_adapters_and_salts_begin_chains_of_their_own_and_media_end_them(
    fields: dict[str, Any], hashes: list[int]
) -> None:
    found = mirror("m").take(batch(stored(1, 2, **fields)))
    assert [block for one in found for block in one.stored] == hashes


def test_each_name_of_the_model_has_its_chain() -> None:
    ours = mirror("a", "b")
    (found,) = ours.take(batch(stored(1, 2)))
    assert set(found.stored) == {*hashes_of(1, 2, model="a"), *hashes_of(1, 2, model="b")}
    (lost,) = ours.take(batch(BlockRemoved(hashes=(1, 2))))
    assert lost.lost_tokens == 128


def test_a_copy_in_another_medium_keeps_a_block() -> None:
    ours = mirror("m")
    ours.take(batch(stored(1, 1), stored(1, 1, medium="CPU")))
    assert ours.take(batch(BlockRemoved(hashes=(1,)))) == []
    assert len(ours.take(batch(BlockRemoved(hashes=(1,), medium="CPU")))) == 1
    assert ours.held_tokens == 0


def test_an_engine_that_only_stores_is_forgotten_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.extproc.kv_events.mirror.MAX_BLOCKS", 20)
    held = mirror("m")
    for first in range(0, 20, 5):
        held.take(batch(stored(first, 5)))
    assert len(held) == 20
    corrections = held.take(batch(stored(20, 5)))
    assert len(held) == held.held_tokens == 0
    assert len(corrections[-1].removed) == 25  # all that only events vouched for


def test_one_cache_group_stands_for_all() -> None:
    ours = mirror("m")
    ours.take(
        batch(stored(1, 2, group=1, attention="sliding_window"), stored(3, 2, group=2, attention="full_attention"))
    )
    ours.take(batch(stored(5, 2, group=3, attention="full_attention"), BlockRemoved(hashes=(3,), group=0)))
    assert ours.held_tokens == 128


def picking() -> tuple[Picker, ManualClock]:
    clock = ManualClock()
    picker = Picker(clock)
    picker.apply(make_plan({"near": [KEY]}))
    picker.models(KEY, frozenset({"m"}))
    return picker, clock


def ask(prompt: object) -> PickRequest:
    return PickRequest(pool=POOL, body=read_body(json.dumps({"model": "m", "prompt": prompt}).encode()))


def cached(picker: Picker, prompt: object) -> int:
    found = picker.pick(ask(prompt)).cached_tokens
    assert found is not None
    return int(found[0])


def test_a_pick_knows_the_blocks_that_another_gateway_put_there_once_prompts_come_as_ids() -> None:
    picker, _ = picking()
    ours = mirror(*picker.base_models(KEY))
    picker.kv_events(KEY, ours.take(batch(stored(1, 4))))
    assert picker.index.total_blocks == 0, "no prompt has come as token ids: nobody could ask for them"
    assert cached(picker, [7] * 10) == 0
    picker.kv_events(KEY, ours.take(batch(stored(1, 4))))
    ids = [name for name in (1, 2, 3, 4, 5) for _ in range(64)]
    assert cached(picker, ids) == 256
    picker.kv_events(KEY, ours.take(batch(BlockRemoved(hashes=(4, 3)))))
    assert cached(picker, ids) == 128
    picker.kv_events(KEY, ours.take(batch(AllBlocksCleared())))
    assert cached(picker, ids) == 0


def test_text_prompts_are_forgotten_by_size_the_longest_unused_first() -> None:
    picker, _ = picking()
    old, new = "old " * 640, "new " * 640  # ten blocks each
    picker.pick(ask(old))
    picker.pick(ask(new))
    ours = mirror("m")
    picker.kv_events(KEY, ours.take(batch(stored(1, 10), stored(101, 10))))
    picker.kv_events(KEY, ours.take(batch(BlockRemoved(hashes=tuple(range(10, 5, -1))))))  # a quarter
    assert picker.index.total_blocks == 15
    assert cached(picker, new) == 639
    assert cached(picker, old) == 320
    picker.kv_events("10.9.9.9:1", ours.take(batch(AllBlocksCleared())))  # not of the Plan
    picker.kv_events(KEY, ours.take(batch(AllBlocksCleared())))
    assert picker.index.total_blocks == 0


# Numbers of batches


def test_lost_batches_are_asked_for_and_without_an_answer_the_doubtful_is_forgotten() -> None:
    stream = KvStream(lambda: ("m",))
    assert stream.missing_from(0) is None
    stream.take(0, batch(stored(1, 2)))
    assert stream.missing_from(1) is None
    assert stream.missing_from(3) == 1
    doubted, found = stream.take(3, batch(stored(9, 1)))
    assert list(doubted.removed) == hashes_of(1, 2)
    assert list(found.stored) == hashes_of(9)
    assert (stream.gaps, len(stream.mirror)) == (1, 1)


def test_a_publisher_that_ran_before_is_asked_for_what_it_told() -> None:
    stream = KvStream(lambda: ())
    assert stream.missing_from(5) == 0
    stream.take(5, batch())
    assert (stream.gaps, stream.missing_from(6)) == (0, None)


def test_a_number_that_goes_back_is_a_new_engine() -> None:
    stream = KvStream(lambda: ())
    stream.take(7, batch(stored(1, 2)))
    assert stream.missing_from(1) == 0
    (cleared,) = stream.take(0, batch())
    assert cleared.cleared
    assert stream.mirror.held_tokens == 0


def test_a_batch_that_cannot_be_read_puts_what_is_held_in_doubt() -> None:
    stream = KvStream(lambda: ("m",))
    stream.take(0, batch(stored(1, 2)))
    (doubted,) = stream.take(1, None)
    assert list(doubted.removed) == hashes_of(1, 2)
    assert stream.missing_from(2) is None


# Against an engine


class Engine:
    """A prefix cache in miniature: blocks of `size` tokens, the least recently used ones leave, tails first."""

    def __init__(self, size: int, capacity: int) -> None:
        self.size, self.capacity = size, capacity
        self.held: OrderedDict[int, None] = OrderedDict()

    def _names(self, tokens: list[int]) -> list[int]:
        whole = range(self.size, len(tokens) + 1, self.size)
        return [hash(tuple(tokens[:end])) & (2**63 - 1) for end in whole]

    def cached(self, tokens: list[int]) -> int:
        count = 0
        for name in self._names(tokens):
            if name not in self.held:
                break
            count += self.size
        return count

    def run(self, tokens: list[int]) -> list[BlockStored | BlockRemoved]:
        names = self._names(tokens)[: self.capacity]
        known = self.cached(tokens[: len(names) * self.size]) // self.size
        events: list[BlockStored | BlockRemoved] = []
        for name in reversed(names):
            self.held[name] = None
            self.held.move_to_end(name)
        gone = []
        while len(self.held) > self.capacity:
            gone.append(self.held.popitem(last=False)[0])
        if gone:
            events.append(BlockRemoved(hashes=tuple(gone)))
        if names[known:]:
            start, end = known * self.size, len(names) * self.size
            events.append(
                BlockStored(
                    hashes=tuple(names[known:]),
                    parent=names[known - 1] if known else None,
                    token_ids=tuple(tokens[start:end]),
                    block_tokens=self.size,
                )
            )
        return events


PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(lambda parts: [p for p in parts for _ in range(48)])


@given(
    size=st.sampled_from([16, 32, 64, 128]),
    capacity=st.integers(2, 30),
    prompts=st.lists(st.one_of(PROMPTS, st.none()), min_size=1, max_size=25),
)
def test_the_index_says_of_token_ids_what_the_engine_holds(
    size: int, capacity: int, prompts: list[list[int] | None]
) -> None:
    table, index = EndpointTable(), PrefixIndex()
    table.sync(make_plan({"near": [KEY]}), 0.0)
    engines = Engines(table, index, ManualClock())
    engines.token_prompts = True
    engine, ours = Engine(size, capacity), mirror("m")
    seen: list[list[int]] = []
    for prompt in prompts:
        if prompt is None:
            engine.held.clear()
            engines.kv_events(KEY, ours.take(batch(AllBlocksCleared())))
        else:
            seen.append(prompt)
            engines.kv_events(KEY, ours.take(batch(*engine.run(prompt))))
        assert ours.held_tokens == len(engine.held) * size
        for tokens in seen:
            (found,) = index.match(block_hashes(render_ids(tokens), chain_seed("m", "")), np.array([0]))
            whole = max(size, 64)  # a pick counts whole blocks of the engine
            assert found * 64 // whole == engine.cached(tokens) // whole
    assert len(ours) == len(engine.held)


def test_events_halve_the_error_about_text_when_others_use_the_engine_too() -> None:
    """Half of the traffic comes by another gateway and evicts what we believe cached; events tell how much it was.

    Prompts are text to the index (its hashes know nothing of the engine's), conversations grow, answers stay in the
    engine's cache and are no prefix of ours.
    """
    chance = random.Random(3)

    def words(least: int, most: int) -> list[int]:
        return [chance.randrange(1 << 31) for _ in range(chance.randrange(least, most))]

    def told() -> tuple[Engines, PrefixIndex]:
        table, index = EndpointTable(), PrefixIndex()
        table.sync(make_plan({"near": [KEY]}), 0.0)
        index.set_capacity(0, 1_000 * 16)
        return Engines(table, index, ManualClock()), index

    engine, ours = Engine(16, 1_000), mirror("m")
    (engines, hearing), (_, deaf) = told(), told()
    conversations = [words(100, 900) for _ in range(30)]
    wrong_tokens = {"hearing": 0, "deaf": 0}
    for _ in range(400):
        if chance.random() < 0.5:
            engines.kv_events(KEY, ours.take(batch(*engine.run(words(100, 900)))))
            continue
        number = chance.randrange(len(conversations))
        prompt = conversations[number]
        hashes = block_hashes(render_ids(prompt), chain_seed("m", "text"))
        for name, index in (("hearing", hearing), ("deaf", deaf)):
            found = int(index.match(hashes, np.array([0]))[0]) * 64
            wrong_tokens[name] += abs(found - engine.cached(prompt))
            index.insert(0, hashes)
        answer = words(20, 200)
        engines.kv_events(KEY, ours.take(batch(*engine.run(prompt + answer))))
        conversations[number] = prompt + words(20, 80) if len(prompt) < 3_000 else words(100, 900)
    assert engines.token_prompts is False
    assert wrong_tokens["hearing"] < wrong_tokens["deaf"] / 2, wrong_tokens
