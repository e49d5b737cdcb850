"""Who is waited for although he is not connected."""

from __future__ import annotations

from pointsman.app.proxy_roster import AWAY_S, Roster


def test_who_was_there_lately_is_waited_for_and_then_forgotten() -> None:
    roster = Roster()
    roster.note({"default/main": ["a", "b"]}, 10.0)
    assert roster.away(10.0) == ()
    roster.note({"default/main": ["a"]}, 12.0)
    assert roster.away(12.0) == ("default/main b (away for 2 s)",)
    roster.note({"default/main": ["a", "b"]}, 15.0)
    assert roster.away(15.0) == ()
    roster.note({"default/main": ["a"]}, 16.0)
    roster.note({"default/main": ["a"]}, 15.0 + AWAY_S)
    assert roster.away(15.0 + AWAY_S) == (), "scaled down"
    assert roster.names() == ("default/main a",)


def test_a_restart_waits_for_those_that_were_there_before() -> None:
    before = Roster()
    before.note({"default/main": ["a"]}, 1_000.0)
    after = Roster(before.names(), 5.0)  # another process, another clock
    after.note({"default/main": []}, 6.0)
    assert after.away(6.0) == ("default/main a (away for 1 s)",)
