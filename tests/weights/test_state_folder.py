"""The state folder: whole files after a crash at any moment, and an overlay that says what it said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.core.model import TOTAL_WEIGHT, Mirror
from pointsman.core.overlay import Overlay, RuleOverlay
from pointsman.core.store import OVERLAY_FILE, StateError, StateFolder, read_overlay, write_overlay

pools = st.text("abc-/", min_size=1, max_size=6)


@st.composite
def entries(draw: st.DrawFn) -> RuleOverlay:
    names = draw(st.lists(pools, unique=True, max_size=4))
    cuts = sorted(draw(st.integers(0, TOTAL_WEIGHT)) for _ in names[1:])
    bounds = [0, *cuts, TOTAL_WEIGHT]
    shares = [high - low for low, high in pairwise(bounds)] if names else []
    mirror = draw(st.none() | st.builds(Mirror, pool=pools, share=st.integers(0, TOTAL_WEIGHT)))
    weights = dict(zip(names, shares, strict=True))
    return RuleOverlay.of(weights, owner=draw(st.text(max_size=5)), mirror=mirror)


@given(st.lists(st.tuples(pools, entries() | st.none()), max_size=6))
def test_an_overlay_is_read_as_it_was_written(changes: list[tuple[str, RuleOverlay | None]]) -> None:
    overlay = Overlay()
    for rule, entry in changes:
        overlay = overlay.without_rule(rule) if entry is None else overlay.with_rule(rule, entry)
    with tempfile.TemporaryDirectory() as folder:
        state = StateFolder(Path(folder) / "deep" / "state")
        assert read_overlay(state) == Overlay()
        write_overlay(state, overlay)
        assert read_overlay(state) == overlay


def test_versions_grow_and_never_come_back() -> None:
    one = Overlay().with_rule("a", RuleOverlay.of({"p": TOTAL_WEIGHT}))
    two = one.with_rule("b", RuleOverlay.of({"p": TOTAL_WEIGHT})).without_rule("a")
    three = two.with_rule("a", RuleOverlay.of({"p": TOTAL_WEIGHT}))
    assert (one.version("a"), two.version("a"), three.version("a"), three.version("b")) == (1, 0, 4, 2)
    assert two.without_rule("a") is two


@pytest.mark.parametrize("weights", [{"a": 1}, {"a": -1, "b": 10_001}, {"a": 20_000}])
def test_weights_that_are_no_shares_are_refused(weights: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="add up"):
        RuleOverlay.of(weights)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 2, "revision": 1, "rules": {}}', "format 2"),
        ('{"format": 1, "revision": 1, "rules": {"r": {"version": 1, "weights": {"p": 3}}}}', "add up"),
        ('{"format": 1, "revision": 1, "rules": {}, "more": 1}', "more"),
    ],
)
def test_a_damaged_overlay_is_never_taken_for_none(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / OVERLAY_FILE).write_text(content)
    with pytest.raises(StateError, match=told):
        read_overlay(StateFolder(tmp_path))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    state = StateFolder(tmp_path / "file" / "state")
    with pytest.raises(StateError, match="cannot be written"):
        write_overlay(state, Overlay())
    with pytest.raises(StateError, match="cannot be"), state.locked():
        pass


WRITER = """
import sys
from pathlib import Path
from pointsman.core.overlay import Overlay, RuleOverlay
from pointsman.core.store import StateFolder, write_overlay
overlay, folder = Overlay(), StateFolder(Path(sys.argv[1]))
for turn in range(100_000):
    overlay = overlay.with_rule("r", RuleOverlay.of({"a": turn % 10_000, "b": 10_000 - turn % 10_000}))
    write_overlay(folder, overlay)
    print(turn, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    """Killed after its n-th write was told: the file holds that write or a later one, and is whole."""
    for told in (1, 2, 7, 31):
        with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(told):
                line = writer.stdout.readline()
            os.kill(writer.pid, signal.SIGKILL)
        overlay = read_overlay(StateFolder(tmp_path))
        assert overlay.revision > int(line)


CLIMBER = """
import sys
from pathlib import Path
from pointsman.core.overlay import RuleOverlay
from pointsman.core.store import StateFolder, read_overlay, write_overlay
state = StateFolder(Path(sys.argv[1]))
for _ in range(25):
    with state.locked():
        write_overlay(state, read_overlay(state).with_rule(sys.argv[2], RuleOverlay.of({"a": 10_000})))
"""


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", CLIMBER, tmp_path, name]) for name in ("x", "y")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    overlay = read_overlay(StateFolder(tmp_path))
    assert overlay.revision == 50
    assert [name for name, _ in overlay] == ["x", "y"]
