"""The watched folder: what is told, and when nothing is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from config.config_fixtures import FLEET
from pointsman.core.config import ConfigWatcher, Manifests, watch
from pointsman.core.config.watch import load_settled
from pointsman.core.errors import ConfigError
from support.waiting import eventually

DEADLINE_S = 20


class Told:
    """What a watcher reported, in order."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Manifests | ConfigError] = asyncio.Queue()

    def put(self, outcome: Manifests | ConfigError) -> None:
        self._queue.put_nowait(outcome)

    async def next(self) -> Manifests | ConfigError:
        """The next report."""
        return await asyncio.wait_for(self._queue.get(), DEADLINE_S)

    async def good(self) -> Manifests:
        """The next report, which must be good."""
        found = await self.next()
        assert isinstance(found, Manifests), found
        return found

    async def bad(self) -> str:
        """The next report, which must be an error."""
        found = await self.next()
        assert isinstance(found, ConfigError)
        return str(found)


@asynccontextmanager
async def watching(folder: Path) -> AsyncIterator[Told]:
    """A running watcher of the folder."""
    told = Told()
    watcher = ConfigWatcher(folder, on_good=told.put, on_bad=told.put, poll_s=0.2)
    task = asyncio.create_task(watcher.run())
    try:
        yield told
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def weights(manifests: Manifests) -> list[int]:
    return [ref.weight for ref in manifests.http_routes[0].spec.rules[0].backend_refs]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "fleet.yaml").write_text(FLEET)
    return folder


def put(path: Path, text: str) -> None:
    """All of it at once: a file that stays empty for a moment is told as such, and rightly."""
    new = path.parent.parent / path.name
    new.write_text(text)
    new.replace(path)


async def test_the_start_then_each_change_is_told(folder: Path) -> None:
    async with watching(folder) as told:
        assert weights(await told.good()) == [5, 95]
        put(folder / "fleet.yaml", FLEET.replace("weight: 5\n", "weight: 50\n"))
        assert weights(await told.good()) == [50, 95]
        site = FLEET[FLEET.index("apiVersion: pointsman.dev") :].replace("name: east", "name: west")
        (folder / "deeper").mkdir()
        (folder / "deeper" / "west.yaml").write_text(site)
        assert [s.name for s in (await told.good()).sites] == ["east", "west"]
        (folder / "deeper" / "west.yaml").unlink()
        assert [s.name for s in (await told.good()).sites] == ["east"]


async def test_a_broken_edit_is_told_and_mending_it_too(folder: Path) -> None:
    async with watching(folder) as told:
        first = await told.good()
        put(folder / "fleet.yaml", FLEET.replace("weight: 5\n", "weight: five\n"))
        assert (await told.bad()).startswith("fleet.yaml:38: spec.rules[0].backendRefs[0].weight: ")
        put(folder / "fleet.yaml", FLEET)
        assert await told.good() == first


async def test_a_change_that_changes_nothing_is_not_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Path] = []
    real = watch.load_settled

    def counted(path: Path) -> tuple[watch.Fingerprint | None, watch.Outcome]:
        loads.append(path)
        return real(path)

    monkeypatch.setattr(watch, "load_settled", counted)
    async with watching(folder) as told:
        await told.good()
        put(folder / "fleet.yaml", "# a comment\n" + FLEET)
        (folder / "notes.txt").write_text("not ours")
        put(folder / "more.yaml", "# nothing")
        await eventually(lambda: len(loads) > 1)
        put(folder / "fleet.yaml", FLEET.replace("weight: 5\n", "weight: 6\n"))
        assert weights(await told.good()) == [6, 95]


async def test_a_folder_that_goes_and_comes_back(folder: Path) -> None:
    async with watching(folder) as told:
        await told.good()
        folder.rename(folder.with_name("away"))
        assert "no such folder" in await told.bad()
        folder.mkdir()
        (folder / "fleet.yaml").write_text(FLEET.replace("weight: 5\n", "weight: 7\n"))
        found = await told.next()
        while isinstance(found, ConfigError):  # the folder may be seen before its file
            found = await told.next()
        assert weights(found) == [7, 95]
        put(folder / "fleet.yaml", FLEET.replace("weight: 5\n", "weight: 8\n"))
        assert weights(await told.good()) == [8, 95]


async def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    async with watching(tmp_path / "later") as told:
        assert "no such folder" in await told.bad()
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "fleet.yaml").write_text(FLEET)
        (tmp_path / "made").rename(tmp_path / "later")
        assert weights(await told.good()) == [5, 95]


async def test_a_config_map_that_is_swapped(tmp_path: Path) -> None:
    for number, weight in (("1", "5"), ("2", "9")):
        version = tmp_path / f"..{number}"
        version.mkdir()
        (version / "fleet.yaml").write_text(FLEET.replace("weight: 5\n", f"weight: {weight}\n"))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "fleet.yaml").symlink_to("..data/fleet.yaml")
    async with watching(tmp_path) as told:
        assert weights(await told.good()) == [5, 95]
        (tmp_path / "..next").symlink_to("..2")
        (tmp_path / "..next").rename(tmp_path / "..data")
        assert weights(await told.good()) == [9, 95]


async def test_a_link_to_a_folder_that_is_turned(tmp_path: Path) -> None:
    for number, weight in (("1", "5"), ("2", "9")):
        (tmp_path / number).mkdir()
        (tmp_path / number / "fleet.yaml").write_text(FLEET.replace("weight: 5\n", f"weight: {weight}\n"))
    (tmp_path / "current").symlink_to("1")
    async with watching(tmp_path / "current") as told:
        assert weights(await told.good()) == [5, 95]
        (tmp_path / "next").symlink_to("2")
        (tmp_path / "next").rename(tmp_path / "current")
        assert weights(await told.good()) == [9, 95]


async def test_without_inotify_the_folder_is_polled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise OSError("inotify watch limit reached")

    monkeypatch.setattr(watch, "awatch", none_left)
    async with watching(folder) as told:
        await told.good()
        put(folder / "fleet.yaml", FLEET.replace("weight: 5\n", "weight: 50\n"))
        assert weights(await told.good()) == [50, 95]


def test_a_folder_that_changes_while_it_is_read_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = watch.load, []

    def written_meanwhile(path: Path) -> Manifests:
        found = real(path)
        calls.append(path)
        if len(calls) < 3:
            (folder / "fleet.yaml").write_text(FLEET.replace("weight: 5\n", f"weight: {len(calls) + 10}\n"))
        return found

    monkeypatch.setattr(watch, "load", written_meanwhile)
    seen, outcome = load_settled(folder)
    assert isinstance(outcome, Manifests)
    assert weights(outcome) == [12, 95]
    assert seen == watch.fingerprint(folder)


def test_a_folder_that_never_settles_is_not_taken_half_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(1000))
    monkeypatch.setattr(watch, "fingerprint", lambda _: (("fleet.yaml", next(numbers), 0, 0),))
    _, outcome = load_settled(folder)
    assert isinstance(outcome, ConfigError)
    assert "keeps changing while it is read" in str(outcome)


async def test_half_a_file_is_not_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody writes in place, in two parts, and the first part alone is a good configuration."""
    file, whole = folder / "fleet.yaml", FLEET.replace("weight: 95", "weight: 15")
    loading, looks = False, 0
    real_fingerprint, real_load = watch.fingerprint, watch.load_settled

    def look(path: Path) -> watch.Fingerprint | None:
        nonlocal looks
        found = real_fingerprint(path)
        if not loading and "weight: 55" in file.read_text():
            looks += 1
            if looks == 2:
                file.write_text(whole + "# the second part")
        return found

    def load(path: Path) -> tuple[watch.Fingerprint | None, watch.Outcome]:
        nonlocal loading
        loading = True
        try:
            return real_load(path)
        finally:
            loading = False

    monkeypatch.setattr(watch, "fingerprint", look)
    monkeypatch.setattr(watch, "load_settled", load)
    async with watching(folder) as told:
        await told.good()
        draft = folder.parent / "draft.yaml"
        draft.write_text(FLEET.replace("weight: 95", "weight: 55"))
        draft.replace(file)
        assert weights(await told.good()) == [5, 15]
