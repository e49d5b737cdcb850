"""Engines keep whole blocks of their own size only; our record of them keeps no more."""

from __future__ import annotations

import pytest

from extproc.fleet import POOL, make_plan
from pointsman.core.clock import ManualClock
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.extproc import Picker, PickRequest
from pointsman.extproc.prefix import BLOCK_TOKENS, PrefixIndex
from pointsman.extproc.request import read_body

KEY = "10.0.0.1:80"


@pytest.mark.parametrize(("block_tokens", "kept"), [(16, 7), (64, 7), (128, 6), (200, 6), (256, 4), (1024, 0)])
def test_what_fills_no_block_of_the_engine_is_left_out(block_tokens: int, kept: int) -> None:
    index = PrefixIndex()
    index.set_block(3, block_tokens)
    assert list(index.whole(3, range(7))) == list(range(kept))
    assert list(index.whole(4, range(7))) == list(range(7))
    index.forget(3)
    assert list(index.whole(3, range(7))) == list(range(7))


def asking(first: str) -> PickRequest:
    """15 of our blocks, of which an engine with blocks of 512 tokens keeps 8."""
    text = first + "x" * (15 * BLOCK_TOKENS * 4 - 1)
    return PickRequest(pool=POOL, body=read_body(b'{"model": "m", "prompt": "%s"}' % text.encode()))


def test_the_engine_has_room_for_two_prompts_and_so_has_our_record() -> None:
    picker = Picker(ManualClock())
    picker.apply(make_plan({"near": [KEY]}))
    picker.signals(KEY, EngineMetrics(waiting=0.0, block_tokens=512, capacity_tokens=1_024))
    cached = []
    for first in "abab":
        made = picker.pick(asking(first))
        assert made.cached_tokens is not None
        cached.append(float(made.cached_tokens[0]))
    assert cached == [0.0, 0.0, 512.0, 512.0]
    assert picker.stats().prefix_blocks == 16
