"""Drawings have colours that every scheme can change, and ids of their own."""

import re
from collections.abc import Iterator

import pandas as pd
import pytest

from lowrank_study.reporting.drawing import figure
from lowrank_study.reporting.drawing.figure import Figure
from lowrank_study.reporting.drawing.svg import DARK, LEVEL_TEXT, LIGHT, file_svg, inline_svg
from lowrank_study.reporting.sections import heat_map
from lowrank_study.reporting.sections.score_figure import score_against_rank
from lowrank_study.reporting.setting import SettingData


@pytest.fixture(scope="module", autouse=True)
def without_pdf() -> Iterator[None]:
    """Leave the PDF out, which takes longest and is not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure, "pdf_of", lambda canvas: b"")
        yield


@pytest.fixture(scope="module")
def score(whole_data: SettingData) -> Figure:
    return score_against_rank(whole_data)


def test_inline_every_colour_is_a_variable(score: Figure, whole_data: SettingData) -> None:
    section = heat_map.section(whole_data)
    assert section is not None
    [cells] = section.figures
    for svg in (score.wide, score.narrow, cells.wide):
        page = inline_svg(svg, name="x", label="y")
        assert not re.search(r"(fill|stroke): #", page)
        assert set(re.findall(r"var\(--([a-z0-9-]+)\)", page)) <= set(LIGHT)
        assert set(re.findall(r'font-family: ([^;"]+)', page)) == {"inherit"}
        assert "http" not in page


def test_ids_are_the_drawings_own(score: Figure) -> None:
    page = inline_svg(score.wide, name="one", label="y")
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("one-") for name in ids)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', page))
    assert used
    assert used <= set(ids)


def test_a_file_in_each_scheme_has_that_schemes_colours(score: Figure) -> None:
    light, dark = file_svg(score.wide, LIGHT), file_svg(score.wide, DARK)
    assert DARK["series-1"] in dark
    assert DARK["series-1"] not in light
    assert LIGHT["series-1"] not in dark
    assert "dc:date" not in light
    assert "font-family: system-ui, " in light
    assert "DejaVu" not in light


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out(scheme: dict[str, str]) -> None:
    for role in ("ink", "faint", "lost"):
        assert contrast(scheme[role], scheme["paper"]) >= 4.5, role
    for level, text in enumerate(LEVEL_TEXT):
        assert contrast(scheme[text], scheme[f"level-{level}"]) >= 4.5, level
    for number in range(1, 7):
        assert contrast(scheme[f"series-{number}"], scheme["paper"]) >= 3, number
    for depth in range(9):
        assert contrast(scheme[f"depth-{depth}"], scheme["paper"]) >= 2.2, depth


def test_the_light_scheme_tells_roles_apart() -> None:
    assert len(set(LIGHT.values())) == len(LIGHT)


@pytest.mark.parametrize("words", ["short", "as long as a rule for α with its target"])
def test_a_legend_has_as_many_columns_as_fit(words: str) -> None:
    widths: list[float] = []

    def draw(on: figure.Paper) -> None:
        on.panels(1, across=(1, 1), height=(2.0, 2.0))
        on.legend([figure.line(f"{words} {index}", "black") for index in range(5)], columns=(5, 5))
        [legend] = on.canvas.legends
        widths.append(legend.get_window_extent().width / on.canvas.bbox.width)

    frame = pd.DataFrame({"a": [1]})
    about = {"title": "", "caption": "", "note": ""}
    figure.draw_figure(draw, name="legend", frame=frame, columns=(), **about)
    assert all(0.4 < width <= 1.0 for width in widths)
