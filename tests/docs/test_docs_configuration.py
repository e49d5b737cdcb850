"""The reference of the configuration is up to date, and nothing that an operator meets is left out of it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pointsman.app.reference import page, words
from pointsman.app.reference.fields import UndocumentedError, rows
from pointsman.app.reference.names import NAMES, places
from pointsman.app.rollout_status import CONDITIONS
from pointsman.core import wire
from pointsman.core.config.kinds import GROUPS
from pointsman.core.config.meta import Resource
from pointsman.core.config.schema import Fields
from pointsman.extproc import decision, replies
from pointsman.extproc.filters import Filtered
from pointsman.failover.state import Phase as SitePhase
from pointsman.rollout.state import Phase

ROOT = Path(__file__).parents[2]
COMPILE = ROOT / "core" / "pointsman" / "core" / "compile"


class SignalSpec(Fields, frozen=True, kw_only=True):
    colour: str = "red"


class Signal(Resource, frozen=True, kw_only=True):
    spec: SignalSpec


def test_the_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == page.configuration(), "docs/configuration.md is out of date: make docs"


def test_every_field_has_a_text() -> None:
    assert page.undocumented() == [], "write what it means into core/pointsman/app/reference/texts_*.py"


def test_no_text_has_lost_its_field() -> None:
    assert page.forgotten() == []


def test_every_kind_is_told_about() -> None:
    kinds = {name for group in GROUPS.values() for name in group.kinds}
    assert kinds == set(page.ABOUT)


def test_a_field_without_a_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known, _ = rows(Signal)
    assert [(row.path, row.kind, row.default) for row in known] == [
        ("spec", "object", "required"),
        ("spec.colour", "string", "`red`"),
    ]
    monkeypatch.setitem(page.ABOUT, "Signal", "A signal.")  # type: ignore[arg-type]
    with pytest.raises(UndocumentedError, match=r"Signal\.spec has no text"):
        list(page._section("Signal", Signal))


def test_every_annotation_and_label_has_a_text() -> None:
    assert set(NAMES) == set(places())
    assert all(one.text and one.values for one in NAMES.values())


def test_every_reason_that_clients_see_has_a_text() -> None:
    told = {wire.NO_READY_ENDPOINT, wire.VARIANT_UNAVAILABLE, replies.TOO_LARGE, replies.MODEL_UNREAD}
    told |= {value for name, value in vars(decision).items() if name.isupper() and isinstance(value, str)}
    assert told | direct_reasons() == set(words.REASONS) | set(words.UNPICKED)


def direct_reasons() -> set[str]:
    """Constants that the compiler uses as `direct_reason`, with their values."""
    found: set[str] = set()
    for path in COMPILE.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        values: dict[str, str] = {}
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value = getattr(node, "value", None)
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                values |= {one.id: value.value for one in targets if isinstance(one, ast.Name)}
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "direct_reason":
                names = {one.id for one in ast.walk(node.value) if isinstance(one, ast.Name)}
                found |= {values[name] for name in names & values.keys()}
    return found


def test_direct_reasons_are_found_in_the_code() -> None:
    assert {"no-backend", "no-weight", "unknown-variant", "residency"} <= direct_reasons()


def test_every_note_has_a_text() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in COMPILE.glob("*.py"))
    assert set(re.findall(r'reason="([A-Z]\w+)"', source)) == set(words.NOTES)


def test_phases_conditions_and_filters_have_a_text() -> None:
    assert set(words.CONDITIONS) == set(CONDITIONS)
    assert set(words.PHASES) == {phase.value for phase in Phase}
    codes = {code.name.lower().replace("_", "-") for code in Filtered if code}
    assert set(words.FILTERED) == codes
    told = (ROOT / "docs" / "failover-policy.md").read_text(encoding="utf-8")
    for phase in SitePhase:
        assert re.search(rf"^\| [^|]*\b{phase.value}\b", told, re.MULTILINE), f"failover-policy.md: phase {phase.value}"


def test_every_default_is_a_value_or_said_to_be_required() -> None:
    for group in GROUPS.values():
        for kind in group.kinds.values():
            for row in rows(kind)[0]:
                assert row.default in {"", "required", "one, of defaults"} or row.default.startswith("`"), row
