"""That drawings hold their table's numbers, in colours that every scheme can change."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import pandas as pd
import pytest

from lowrank_study.reporting.figures import (
    Figure,
    drawing,
    energy_rank_against_adapter_rank,
    rank_heat_map,
    score_against_rank,
    singular_value_decay,
)
from lowrank_study.reporting.svg import DARK, LEVEL_TEXT, LIGHT, file_svg, inline_svg
from lowrank_study.reporting.tables import ROLES, SettingData, StudyTables, checked, settings_data

MakeStudy = Callable[..., StudyTables]


def data_of(study: StudyTables) -> SettingData:
    return settings_data(checked(study))[0]


@pytest.fixture(scope="module", autouse=True)
def without_pdf() -> Iterator[None]:
    """Leave the PDF out, which takes longest and is not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "pdf_of", lambda canvas: b"")
        yield


@pytest.fixture(scope="module")
def two_layers(make_study: MakeStudy) -> SettingData:
    return data_of(make_study(ranks=(1, 4), targets=("attention_qv",), layers=2))


@pytest.fixture(scope="module")
def heat_map(two_layers: SettingData) -> Figure:
    figure = rank_heat_map(two_layers)
    assert figure is not None
    return figure


@pytest.fixture(scope="module")
def decay(two_layers: SettingData) -> Figure:
    figure = singular_value_decay(two_layers)
    assert figure is not None
    return figure


@pytest.fixture(scope="module")
def accuracy(whole_data: SettingData) -> Figure:
    return score_against_rank(whole_data)


@pytest.mark.parametrize("words", ["short", "as long as a rule for α with its target"])
def test_a_legend_has_as_many_columns_as_fit(words: str) -> None:
    widths: list[float] = []

    def draw(on: drawing.Paper) -> None:
        on.panels(1, across=(1, 1), height=(2.0, 2.0))
        on.legend([drawing.line(f"{words} {index}", "black") for index in range(5)], columns=(5, 5))
        [legend] = on.canvas.legends
        widths.append(legend.get_window_extent().width / on.canvas.bbox.width)

    frame = pd.DataFrame({"a": [1]})
    about = {"title": "", "caption": "", "note": ""}
    drawing.draw_figure(draw, name="legend", frame=frame, columns=(), **about)
    assert all(0.4 < width <= 1.0 for width in widths)


def test_the_heat_map_writes_each_cell_and_hatches_the_unresolvable(heat_map: Figure) -> None:
    cells = heat_map.table.frame
    written = re.findall(r">\(?(\d+(?:\.\d)?)\)?</text>", heat_map.wide)
    known = cells["median_energy_rank_90"].dropna()
    for rank in known:
        assert f"{rank:g}" in written
    assert (cells["resolvable"] < cells["n"]).sum() == 2
    # Two cells and the legend's own patch.
    assert heat_map.wide.count("fill: url(#") == 3


def test_every_seed_is_a_row_and_lost_runs_are_too(accuracy: Figure) -> None:
    frame = accuracy.table.frame
    assert len(frame) == 45
    assert sorted(frame["status"].unique()) == ["diverged", "done", "failed"]
    assert frame.loc[frame["status"] == "done", "test_score"].notna().all()
    assert "diverged or failed" in accuracy.wide
    assert "commonest class: 0.504, below" in accuracy.wide


def test_the_decay_begins_at_one_and_an_adapter_ends_at_its_rank(decay: Figure) -> None:
    frame = decay.table.frame
    assert (frame.loc[frame["index"] == 1, "relative"] == 1).all()
    assert frame.loc[frame["method"] == "lora", "index"].max() == 1  # the middle of ranks 1, 4
    assert frame.loc[frame["method"] == "full", "index"].max() == 384


def test_roles_are_in_the_order_of_a_layer(decay: Figure, heat_map: Figure) -> None:
    titles = re.findall(r"<text[^>]*font-weight: 700[^>]*>([a-z_]+)</text>", decay.wide)
    known = [role for role in ROLES if role not in {"query_key_value", "mlp_gate"}]
    assert titles == known
    for figure in (decay, heat_map):
        frame = figure.table.frame
        rows = frame[(frame["method"] == "full") & (frame["layer"] == 0)]
        assert list(dict.fromkeys(rows["role"])) == known


def test_a_matrix_that_is_not_adapted_is_a_dash(heat_map: Figure) -> None:
    # Four of six roles in two layers, by an adapter of queries and values.
    assert heat_map.wide.count(">–</text>") == 8


def test_the_bound_is_a_line_where_there_is_one_rank_too(make_study: MakeStudy) -> None:
    study = make_study(ranks=(4,), targets=("attention_qv",), seeds=1, layers=1)
    figure = energy_rank_against_adapter_rank(data_of(study))
    assert figure is not None
    dashed = r'<path d="M (\S+) \S+\s+L (\S+) \S+\s+"[^>]*clip-path[^>]*stroke-dasharray'
    bound = re.search(dashed, figure.wide)
    assert bound is not None
    assert float(bound[2]) - float(bound[1]) > 400  # of the 540 units of a wide drawing


def test_without_spectra_there_is_no_spectral_figure(two_layers: SettingData) -> None:
    empty = replace(
        two_layers,
        spectra=two_layers.spectra.iloc[:0],
        modules=two_layers.modules.iloc[:0],
        configurations=two_layers.configurations.iloc[:0],
    )
    assert singular_value_decay(empty) is None
    assert rank_heat_map(empty) is None
    assert energy_rank_against_adapter_rank(empty) is None


def test_inline_every_colour_is_a_variable(accuracy: Figure, heat_map: Figure) -> None:
    for svg in (accuracy.wide, accuracy.narrow, heat_map.wide):
        page = inline_svg(svg, name="x", label="y")
        assert not re.search(r"(fill|stroke): #", page)
        assert set(re.findall(r"var\(--([a-z0-9-]+)\)", page)) <= set(LIGHT)
        assert set(re.findall(r'font-family: ([^;"]+)', page)) == {"inherit"}
        assert "http" not in page


def test_ids_are_the_drawings_own(accuracy: Figure) -> None:
    page = inline_svg(accuracy.wide, name="one", label="y")
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("one-") for name in ids)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', page))
    assert used
    assert used <= set(ids)


def test_a_file_in_each_scheme_has_that_schemes_colours(accuracy: Figure) -> None:
    light, dark = file_svg(accuracy.wide, LIGHT), file_svg(accuracy.wide, DARK)
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


def test_schemes_have_the_same_roles_and_light_tells_them_apart() -> None:
    assert set(LIGHT) == set(DARK)
    assert len(set(LIGHT.values())) == len(LIGHT)


def test_names_are_text_in_a_drawing(make_study: MakeStudy) -> None:
    name = "<script>alert(1)</script>$\\frac{1}{2}$中\u202e"
    study = make_study(
        ranks=(1,), targets=("attention_qv",), seeds=1, layers=1, role_names={"value": name}
    )
    figure = rank_heat_map(data_of(study))
    assert figure is not None
    assert "<script" not in inline_svg(figure.wide, name="x", label=name)
    assert "\u202e" not in figure.wide
