"""How long unused clusters stay, and how many."""

from __future__ import annotations

from pointsman.xds.linger import Linger


def test_an_unused_cluster_stays_for_its_time() -> None:
    linger = Linger(10)
    assert not linger.check({"a"}, 100)
    assert (linger.names, linger.next_s()) == ({"a"}, 110)
    assert not linger.check({"a", "b"}, 109)
    assert linger.check({"a", "b"}, 110)
    assert (linger.names, linger.next_s()) == ({"b"}, 119)


def test_its_time_begins_anew_when_it_was_needed_in_between() -> None:
    linger = Linger(10)
    linger.check({"a"}, 100)
    assert not linger.check(set(), 105)
    assert linger.next_s() is None
    linger.check({"a"}, 108)
    assert linger.next_s() == 118


def test_of_too_many_those_leave_that_are_unused_longest() -> None:
    linger = Linger(10, most=2)
    linger.check({"a"}, 100)
    assert linger.check({"a", "b", "c"}, 101)
    assert linger.names == {"b", "c"}
    assert not linger.check({"b", "c"}, 102)


def test_without_a_time_nothing_stays() -> None:
    linger = Linger(0)
    linger.check({"a"}, 100)
    assert (linger.names, linger.next_s()) == (set(), None)
