"""Pickers agree on each other's load whatever happens to their updates: order, loss, repetition, relays, restarts."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.extproc.feedback import Feedback
from pointsman.extproc.gossip import (
    IDLE,
    MAX_PICKERS,
    MAX_WAITING,
    TTL_S,
    WHOLE_EVERY,
    EndpointLoad,
    GossipState,
    Outbox,
)
from pointsman.picker.v1 import gossip_pb2 as pb

ENDPOINTS = ("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
LOADS = st.dictionaries(
    st.sampled_from(ENDPOINTS), st.builds(EndpointLoad, *(st.integers(0, 5) for _ in EndpointLoad._fields))
)


def busy(loads: dict[str, EndpointLoad]) -> dict[str, EndpointLoad]:
    return {endpoint: load for endpoint, load in loads.items() if load != IDLE}


def history(name: str, states: Iterable[dict[str, EndpointLoad]], epoch: int = 1) -> list[pb.Update]:
    """The updates of a picker that had these loads one after the other."""
    picker = GossipState(name, epoch)
    return [picker.update(loads) for loads in states]


def told(state: GossipState, updates: Iterable[pb.Update], now_s: float = 0.0) -> dict[str, EndpointLoad]:
    for update in updates:
        state.receive(pb.Update.FromString(update.SerializeToString()), now_s)
    return state.others(now_s)


@given(st.lists(LOADS, min_size=1, max_size=3 * WHOLE_EVERY), st.randoms(use_true_random=False))
def test_any_order_and_repetition_ends_in_the_latest_loads(
    states: list[dict[str, EndpointLoad]], rng: random.Random
) -> None:
    updates = history("a", states)
    arriving = [*updates, *rng.choices(updates, k=len(updates))]
    rng.shuffle(arriving)
    assert told(GossipState("b", 1), arriving) == busy(states[-1])


@given(st.lists(LOADS, min_size=WHOLE_EVERY, max_size=4 * WHOLE_EVERY), st.sets(st.integers(0, 40)), st.randoms())
def test_a_whole_update_heals_any_loss(
    states: list[dict[str, EndpointLoad]], lost: set[int], rng: random.Random
) -> None:
    states = states[: len(states) // WHOLE_EVERY * WHOLE_EVERY + 1]  # the last one is whole
    if len(states) % WHOLE_EVERY != 1:
        states = [*states, {}]
    updates = history("a", states)
    assert updates[-1].whole
    arriving = [update for n, update in enumerate(updates[:-1]) if n not in lost] + [updates[-1]]
    rng.shuffle(arriving)
    assert told(GossipState("b", 1), arriving) == busy(states[-1])


@given(st.lists(LOADS, min_size=1, max_size=15), st.lists(LOADS, min_size=1, max_size=15), st.randoms())
def test_a_restart_voids_the_life_before_in_any_order(
    before: list[dict[str, EndpointLoad]], after: list[dict[str, EndpointLoad]], rng: random.Random
) -> None:
    arriving = [*history("a", before, epoch=1), *history("a", after, epoch=2)]
    rng.shuffle(arriving)
    assert told(GossipState("b", 1), arriving) == busy(after[-1])


@given(st.lists(st.lists(LOADS, min_size=1, max_size=12), min_size=2, max_size=3), st.randoms())
def test_relays_in_a_chain_bring_everybody_the_same(
    lives: list[list[dict[str, EndpointLoad]]], rng: random.Random
) -> None:
    """Neighbours pass on what is news to them; links lose nothing but hold each update for as long as they like."""
    names = [f"p{n}" for n in range(len(lives))]
    nodes = [GossipState(name, 1) for name in names]
    in_transit: list[tuple[int, int, pb.Update]] = []

    def send(sender: int, update: pb.Update, but: int = -1) -> None:
        neighbours = {sender - 1, sender + 1} & set(range(len(nodes))) - {but}
        in_transit.extend((sender, neighbour, update) for neighbour in sorted(neighbours))

    for step in range(max(map(len, lives))):
        for number, life in enumerate(lives):
            if step < len(life):
                send(number, nodes[number].update(life[step]))
    # Links of a chain keep order, different links do not wait for each other.
    while in_transit:
        sender, receiver, _ = rng.choice(in_transit)
        position = next(n for n, (a, b, _) in enumerate(in_transit) if (a, b) == (sender, receiver))
        update = in_transit.pop(position)[2]
        if nodes[receiver].receive(update, 0.0).news:
            send(receiver, update, but=sender)
    for number, node in enumerate(nodes):
        expected: dict[str, EndpointLoad] = {}
        for other, life in enumerate(lives):
            if other != number:
                for endpoint, load in busy(life[-1]).items():
                    expected[endpoint] = load.plus(expected.get(endpoint, IDLE))
        assert node.others(0.0) == expected


@given(st.lists(LOADS, min_size=1, max_size=25), st.sets(st.integers(0, 25)), st.booleans(), st.randoms())
def test_what_a_neighbour_is_told_first_never_undoes_what_it_knows(
    states: list[dict[str, EndpointLoad]], lost: set[int], relayed_first: bool, rng: random.Random
) -> None:
    """A relay that missed updates introduces itself to one that has them all."""
    updates = history("a", states)
    relay = GossipState("relay", 1)
    told(relay, [update for n, update in enumerate(updates) if n not in lost])
    introduction = relay.everything(0.0)
    rng.shuffle(introduction)
    arriving = [*introduction, *updates] if relayed_first else [*updates, *introduction]
    assert told(GossipState("b", 1), arriving) == busy(states[-1])


@given(st.lists(LOADS, min_size=1, max_size=25))
def test_a_new_neighbour_learns_everything_from_a_relay(states: list[dict[str, EndpointLoad]]) -> None:
    relay = GossipState("relay", 1)
    told(relay, history("a", states))
    relay.update({ENDPOINTS[0]: EndpointLoad(requests=100)})
    found = told(GossipState("b", 1), relay.everything(0.0))
    expected = busy(states[-1])
    expected[ENDPOINTS[0]] = EndpointLoad(requests=100).plus(expected.get(ENDPOINTS[0], IDLE))
    assert found == expected


def test_the_load_of_a_silent_picker_vanishes_and_comes_back_with_it() -> None:
    picker, state = GossipState("a", 1), GossipState("b", 1)
    load = {ENDPOINTS[0]: EndpointLoad(requests=3)}
    first = picker.update(load)
    assert told(state, [first], now_s=10.0) == load
    assert state.others(10.0 + TTL_S - 0.1) == load
    assert state.others(10.0 + TTL_S) == {}
    assert state.live(10.0 + TTL_S) == ()
    assert told(state, [first], now_s=20.0) == {}, "an old update does not raise the dead"
    assert told(state, [picker.update(load)], now_s=30.0) == load, "unchanged, so not in this update"
    state.gone("a")
    assert state.others(30.0) == {}


def test_our_own_updates_and_nonsense_say_nothing() -> None:
    state = GossipState("a", 1)
    mine = state.update({ENDPOINTS[0]: EndpointLoad(requests=1)})
    for update in (mine, pb.Update(), pb.Update(picker="b"), pb.Update(version=1)):
        assert not state.receive(update, 0.0).news
    assert state.others(0.0) == {}


def test_prefixes_and_outcomes_travel_once() -> None:
    outbox = Outbox()
    picker, state = GossipState("a", 1), GossipState("b", 1)
    outbox.placed(ENDPOINTS[0], (2**64 - 1, 0, 7))
    outbox.placed(ENDPOINTS[0], ())
    entry = Feedback(pick_id="b-1", ended=True, upstream=ENDPOINTS[1], status=200, ttft_ms=12.5, attempts=1)
    early = Feedback(pick_id="b-2", ended=False, failed=True)
    outbox.outcome(entry)
    outbox.outcome(early)
    received = state.receive(picker.update({}, outbox), 0.0)
    assert received.prefixes == ((ENDPOINTS[0], (2**64 - 1, 0, 7)),)
    assert received.outcomes == (entry, early)
    assert picker.update({}, outbox).prefixes == []


def test_prefixes_of_another_block_size_are_not_ours() -> None:
    outbox = Outbox()
    outbox.placed(ENDPOINTS[0], (1,))
    update = GossipState("a", 1).update({}, outbox)
    update.block_bytes += 1
    assert GossipState("b", 1).receive(update, 0.0).prefixes == ()


def test_what_waits_and_who_is_known_are_bounded() -> None:
    outbox = Outbox()
    for number in range(MAX_WAITING + 5):
        outbox.placed(ENDPOINTS[0], (number,))
        outbox.outcome(Feedback(pick_id=str(number), ended=True))
    assert len(outbox.prefixes) == len(outbox.outcomes) == MAX_WAITING
    assert outbox.outcomes[-1].pick_id == str(MAX_WAITING + 4)
    state = GossipState("a", 1)
    for number in range(MAX_PICKERS + 5):
        state.receive(GossipState(f"p{number}", 1).update({}), 0.0)
    assert len(state.live(0.0)) == MAX_PICKERS
    assert "p0" not in state.live(0.0)


@pytest.mark.parametrize("changed", [True, False])
def test_only_what_changed_is_sent_between_two_whole_updates(changed: bool) -> None:
    picker = GossipState("a", 1)
    loads = {endpoint: EndpointLoad(requests=1) for endpoint in ENDPOINTS}
    assert len(picker.update(loads).loads) == 3
    loads[ENDPOINTS[1]] = EndpointLoad(requests=2 if changed else 1)
    assert [load.endpoint for load in picker.update(loads).loads] == ([ENDPOINTS[1]] if changed else [])
