"""Pictures of dashboards: well-formed, complete, and safe with any data."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.app.observe.boards import DASHBOARDS
from pointsman.app.observe.picture import Series, Span, picture, show

SVG = "{http://www.w3.org/2000/svg}"
SPAN = Span(begin_s=1_000.0, end_s=1_060.0)
DOCS = Path(__file__).parents[2] / "docs" / "dashboards"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_pictures_of_the_docs_show_every_panel_with_data(name: str) -> None:
    found = texts((DOCS / f"{name}.svg").read_text(encoding="utf-8"))
    for panel in DASHBOARDS[name].panels():
        assert panel.title in found, f"{panel.title}: run bench/dashboards/pictures.py"
    assert "no data" not in found


def test_a_panel_without_data_says_so() -> None:
    board = DASHBOARDS["rollout"]
    assert texts(picture(board, {}, SPAN)).count("no data") == len(board.panels())


values = st.floats(min_value=-1e12, max_value=1e12)
lines = st.lists(
    st.builds(
        Series,
        legend=st.sampled_from(["", "a & b <c>", "'quoted\"", "Zürich → Köln", "x" * 200]),
        labels=st.fixed_dictionaries({"site": st.sampled_from(["eu", "<b>us</b>"]), "le": st.just("0.5")}),
        points=st.lists(st.tuples(st.floats(min_value=1_000, max_value=1_060), values), max_size=8).map(
            lambda points: sorted(dict(points).items())
        ),
    ),
    max_size=7,
)


@settings(max_examples=30, deadline=None)
@given(data=lines)
def test_any_data_makes_a_well_formed_picture(data: list[Series]) -> None:
    for board in DASHBOARDS.values():
        svg = picture(board, {panel.title: data for panel in board.panels()}, SPAN, [(1_030.0, "a & b")])
        assert "nan" not in svg.replace("tenant", "")
        assert set(texts(svg)) >= {panel.title for panel in board.panels()}


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.1234, "percentunit", "12.3 %"),
        (0.0042, "s", "4.2 ms"),
        (1.5, "s", "1.5 s"),
        (7_200, "s", "2 h"),
        (2_592_000, "s", "30 d"),
        (0.0, "s", "0 s"),
        (12.3, "reqps", "12.3 /s"),
        (104_000_000, "bytes", "104 MB"),
        (12_345, "short", "12.3 k"),
        (3, "short", "3"),
        (2.5, "currencyUSD", "$2.50"),
    ],
)
def test_values_have_units(value: float, unit: str, words: str) -> None:
    assert show(value, unit) == words
