"""Ranks of updates: sentences, figures and the heat map hold the medians of the tables."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from lowrank_study.answers.roles import ROLES
from lowrank_study.reporting.drawing import figure
from lowrank_study.reporting.drawing.figure import Figure
from lowrank_study.reporting.drawing.svg import inline_svg
from lowrank_study.reporting.section import Section
from lowrank_study.reporting.sections import decay, heat_map, update_rank
from lowrank_study.reporting.setting import SettingData
from lowrank_study.reporting.study import StudyTables
from tests.reporting.conftest import (
    data_of,
    said,
)

MakeStudy = Callable[..., StudyTables]


@pytest.fixture(scope="module", autouse=True)
def without_pdf() -> Iterator[None]:
    """Leave the PDF out, which takes longest and is not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure, "pdf_of", lambda canvas: b"")
        yield


def figure_of(section: Section | None) -> Figure:
    assert section is not None
    [drawn] = section.figures
    return drawn


@pytest.fixture(scope="module")
def two_layers(make_study: MakeStudy) -> SettingData:
    return data_of(make_study(ranks=(1, 4), targets=("attention_qv",), layers=2))


@pytest.fixture(scope="module")
def cells(two_layers: SettingData) -> Figure:
    return figure_of(heat_map.section(two_layers))


@pytest.fixture(scope="module")
def curves(two_layers: SettingData) -> Figure:
    return figure_of(decay.section(two_layers))


def test_energy_ranks_are_the_medians(whole_data: SettingData) -> None:
    found = said(update_rank.section(whole_data))
    full = whole_data.configurations.iloc[0]["median_energy_rank_90"]
    text = found["Rank of ΔW, full"]
    assert f"median 90\u202f% energy rank of {full:.0f}: this many of its at most 384" in text
    assert "noise of the same shapes it is about 196 to 292" in text
    assert " at adapter rank 64." in found["Rank of ΔW, adapters"]
    assert found["Resolution"].startswith("6 of 1,068 matrices are not resolvable (key)")


def test_all_unresolvable_gives_no_rank(small_study: StudyTables) -> None:
    study = replace(small_study, spectra=small_study.spectra.assign(resolvable=False))
    found = said(update_rank.section(data_of(study)))
    assert list(found) == ["Resolution"]
    assert found["Resolution"].startswith(
        "180 of 180 matrices are not resolvable (query, key, value, attention_output, mlp_up and "
        "mlp_down)"
    )


def test_the_heat_map_writes_each_cell_and_hatches_the_unresolvable(cells: Figure) -> None:
    frame = cells.table.frame
    written = re.findall(r">\(?(\d+(?:\.\d)?)\)?</text>", cells.wide)
    known = frame["median_energy_rank_90"].dropna()
    for rank in known:
        assert f"{rank:g}" in written
    assert (frame["resolvable"] < frame["n"]).sum() == 2
    # Two cells and the legend's own patch.
    assert cells.wide.count("fill: url(#") == 3


def test_the_decay_begins_at_one_and_an_adapter_ends_at_its_rank(curves: Figure) -> None:
    frame = curves.table.frame
    assert (frame.loc[frame["index"] == 1, "relative"] == 1).all()
    assert frame.loc[frame["method"] == "lora", "index"].max() == 1  # the middle of ranks 1, 4
    assert frame.loc[frame["method"] == "full", "index"].max() == 384


def test_roles_are_in_the_order_of_a_layer(curves: Figure, cells: Figure) -> None:
    titles = re.findall(r"<text[^>]*font-weight: 700[^>]*>([a-z_]+)</text>", curves.wide)
    known = [role for role in ROLES if role not in {"query_key_value", "mlp_gate"}]
    assert titles == known
    for drawn in (curves, cells):
        frame = drawn.table.frame
        rows = frame[(frame["method"] == "full") & (frame["layer"] == 0)]
        assert list(dict.fromkeys(rows["role"])) == known


def test_a_matrix_that_is_not_adapted_is_a_dash(cells: Figure) -> None:
    # Four of six roles in two layers, by an adapter of queries and values.
    assert cells.wide.count(">–</text>") == 8


def test_the_bound_is_a_line_where_there_is_one_rank_too(make_study: MakeStudy) -> None:
    study = make_study(ranks=(4,), targets=("attention_qv",), seeds=1, layers=1)
    drawn = figure_of(update_rank.section(data_of(study)))
    dashed = r'<path d="M (\S+) \S+\s+L (\S+) \S+\s+"[^>]*clip-path[^>]*stroke-dasharray'
    bound = re.search(dashed, drawn.wide)
    assert bound is not None
    assert float(bound[2]) - float(bound[1]) > 400  # of the 540 units of a wide drawing


def test_without_spectra_there_is_no_spectral_figure(two_layers: SettingData) -> None:
    empty = replace(
        two_layers,
        spectra=two_layers.spectra.iloc[:0],
        modules=two_layers.modules.iloc[:0],
        configurations=two_layers.configurations.iloc[:0],
    )
    assert decay.section(empty) is None
    assert heat_map.section(empty) is None
    assert update_rank.section(empty).figures == []


def test_names_are_text_in_a_drawing(make_study: MakeStudy) -> None:
    name = "<script>alert(1)</script>$\\frac{1}{2}$中\u202e"
    study = make_study(
        ranks=(1,), targets=("attention_qv",), seeds=1, layers=1, role_names={"value": name}
    )
    drawn = figure_of(heat_map.section(data_of(study)))
    assert "<script" not in inline_svg(drawn.wide, name="x", label=name)
    assert "\u202e" not in drawn.wide
