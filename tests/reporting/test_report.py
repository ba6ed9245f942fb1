"""That the folder holds a whole, safe and repeatable report."""

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from lowrank_study.answers.scores import score_by_rank
from lowrank_study.errors import InputError
from lowrank_study.reporting.drawing import figure
from lowrank_study.reporting.report import write_report
from lowrank_study.reporting.study import StudyTables
from lowrank_study.tasks.metric import ACCURACY

MakeStudy = Callable[..., StudyTables]
EVIL = '=1+1</script><img src=x onerror="alert(1)">&\u202e'


class Elements(HTMLParser):
    """Collects tags with their attributes, and the cells of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.table = ""
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "table":
            self.table = attributes["id"] or ""
            self.tables[self.table] = []
        elif tag == "tr":
            self.tables[self.table].append([])
        elif tag in {"td", "th"}:
            self.in_cell = True
            self.tables[self.table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th"}:
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.tables[self.table][-1][-1] += data


@pytest.fixture(scope="module")
def folder(report_folder: Path) -> Path:
    return report_folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def contents_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_everything_promised_is_there(folder: Path) -> None:
    names = set(contents_of(folder))
    figures = {Path(name).stem for name in names if name.endswith(".pdf")}
    tables = {Path(name).stem for name in names if name.startswith("tables/") and ".tex" in name}
    assert figures >= {
        "score_against_rank",
        "singular_value_decay",
        "rank_heat_map",
        "energy_rank_against_adapter_rank",
        "cost_by_method",
    }
    assert tables >= {
        "score_by_rank",
        "cost_by_method",
        "rank_by_configuration",
        "rank_by_layer",
        "rank_by_module",
        "runs",
        "provenance",
        *(f"figure_{name}" for name in figures),
    }
    assert names == {
        "report.html",
        "report.tex",
        "files.json",
        "tables/spectra.csv",
        "tables/singular_values.csv",
        *(f"figures/{name}{end}" for name in figures for end in (".svg", "_dark.svg", ".pdf")),
        *(f"tables/{name}{end}" for name in tables for end in (".csv", ".tex")),
    }


def test_the_list_of_files_holds_their_hashes(folder: Path) -> None:
    listed = json.loads((folder / "files.json").read_text())
    files = contents_of(folder)
    del files["files.json"]
    assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_the_same_study_gives_the_same_bytes(
    folder: Path, thin_study: StudyTables, tmp_path: Path
) -> None:
    shuffled = replace(thin_study, runs=thin_study.runs.iloc[::-1])
    write_report(shuffled, tmp_path)
    assert contents_of(tmp_path) == contents_of(folder)


def test_the_page_shows_recomputed_numbers(page: str, thin_study: StudyTables) -> None:
    rows = Elements(page).tables["table-score_by_rank"]
    place = rows[0].index("test accuracy")
    expected = score_by_rank(thin_study.runs, ACCURACY)
    assert [row[place] for row in rows[1:]] == [
        f"{mean:.3f}" for mean in expected["mean_test_score"]
    ]
    assert [row[rows[0].index("95 % low")] for row in rows[1:]] == [
        f"{low:.3f}" for low in expected["test_low_95"]
    ]
    full = thin_study.runs.loc[thin_study.runs["method"] == "full", "test_score"].mean()
    assert f"reaches a test accuracy of {full:.3f} (3 seeds, 95\u202f% interval " in page


def test_the_answer_comes_first_and_then_each_question_with_its_figure_above_its_text(
    page: str, folder: Path
) -> None:
    order = [
        '<section class="box" id="answer">',
        "No rank of LoRA on attention_qv has a mean inside full fine-tuning’s",
        'id="score">Accuracy against adapter rank',
        'aria-label="Accuracy against adapter rank.',
        "Full fine-tuning reaches",
        "<summary>How to read this</summary>",
        "The means are over 3 seeds each",
        "<summary>Table: Accuracy by rank</summary>",
        'id="cost">What does it cost?',
        'id="provenance">Provenance',
        "9 of 9 planned runs are done.",
    ]
    for text in (page, page.replace("\n", " ")):
        places = [text.index(each) for each in order]
        assert places == sorted(places)
    assert page.split('id="answer">')[1].split("</section>")[0].count("<li>") <= 5
    latex = (folder / "report.tex").read_text(encoding="utf-8")
    order = [r"\section*{Answer}", "No rank of", r"\section*{Accuracy against adapter rank}"]
    order += [r"\includegraphics", "reaches a test accuracy", r"\paragraph{How to read this}"]
    places = [latex.index(each) for each in order]
    assert places == sorted(places)


@pytest.mark.usefixtures("undrawn")
def test_a_gap_in_the_study_comes_before_the_answer(
    thin_study: StudyTables, tmp_path: Path
) -> None:
    study = replace(thin_study, left_out=("left out: 12 of 300 rows of reviews.csv",))
    page = write_report(study, tmp_path).read_text(encoding="utf-8")
    first = page.split("<h2>Answer</h2>")[1]
    assert re.match(r'\s*<p class="completeness">9 of 9 planned runs are done. Left out: 12', first)
    latex = (tmp_path / "report.tex").read_text(encoding="utf-8")
    assert latex.split(r"\section*{Answer}")[1].startswith("\n9 of 9 planned runs are done.")
    assert page.count("12 of 300 rows") == 1


def test_the_csv_holds_what_the_table_was_made_from(folder: Path, thin_study: StudyTables) -> None:
    runs = pd.read_csv(folder / "tables" / "runs.csv")
    mine = thin_study.runs.sort_values("run_id", ignore_index=True)
    assert list(runs["test_score"]) == list(mine["test_score"])
    values = pd.read_csv(folder / "tables" / "singular_values.csv")
    assert len(values) == len(thin_study.singular_values)
    total = thin_study.singular_values["singular_value"].sum()
    assert values["singular_value"].sum() == pytest.approx(total, rel=1e-12)


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    elements = Elements(page)
    for tag, attributes in elements.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,", (tag, value)
    assert "http://" not in page
    assert "https://" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page
    assert [tag for tag, _ in elements.tags].count("script") == 1


def test_the_policy_allows_only_the_pages_own_script(page: str) -> None:
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    digest = hashlib.sha256(script[1].encode()).digest()
    policy = next(
        attributes["content"]
        for tag, attributes in Elements(page).tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in (policy or "")
    assert "default-src 'none'" in (policy or "")


def test_both_schemes_and_both_widths_are_in_the_page(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert ':root[data-scheme="dark"]' in page
    tags = Elements(page).tags
    assert sum(tag == "svg" for tag, _ in tags) == 10
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_links_lead_somewhere(page: str) -> None:
    tags = Elements(page).tags
    ids = {attributes["id"] for _, attributes in tags if "id" in attributes}
    targets = {attributes["href"] for tag, attributes in tags if tag == "a"}
    assert len(targets) >= 6
    assert {(target or "").removeprefix("#") for target in targets} <= ids


@pytest.fixture(scope="module")
def evil_folder(make_study: MakeStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = make_study(
        ranks=(1,),
        targets=("attention_qv",),
        seeds=1,
        tasks=(EVIL,),
        role_names={"value": EVIL},
        layers=1,
        roles=("query", "value"),
    )
    study = replace(study, title=EVIL, question=EVIL, provenance={EVIL: {EVIL: EVIL}, "n": [EVIL]})
    study.runs["message"] = EVIL
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure, "pdf_of", lambda canvas: b"")  # a name never reaches it as code
        return write_report(study, tmp_path_factory.mktemp("evil")).parent


def test_hostile_names_are_text_on_the_page(evil_folder: Path) -> None:
    page = (evil_folder / "report.html").read_text(encoding="utf-8")
    elements = Elements(page)
    tags = [tag for tag, _ in elements.tags]
    assert "img" not in tags
    assert tags.count("script") == 1
    assert not any(name.startswith("on") for _, attributes in elements.tags for name in attributes)
    assert "\u202e" not in page
    assert "&lt;/script&gt;&lt;img src=x" in page


def test_hostile_names_stay_out_of_paths_and_formulas(evil_folder: Path) -> None:
    for name, content in contents_of(evil_folder).items():
        assert re.fullmatch(r"(tables/|figures/)?[a-z0-9_]+\.[a-z]+", name), name
        if name.endswith(".csv"):
            frame = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
            numbers = re.compile(r"-?[\d.]+(e[-+]\d+)?")
            for cell in [*frame.columns, *frame.to_numpy().ravel()]:
                assert not cell.startswith(("=", "+", "@", "\t")), cell
                assert not cell.startswith("-") or numbers.fullmatch(cell), cell


def test_latex_includes_files_that_are_there(folder: Path, evil_folder: Path) -> None:
    for report in (folder, evil_folder):
        text = (report / "report.tex").read_text(encoding="utf-8")
        files = re.findall(r"(?:\\input|\\includegraphics\[[^]]*\])\{([^}]+)\}", text)
        assert len(files) >= 12
        assert all((report / name).is_file() for name in files)
        for path in [report / "report.tex", *(report / "tables").glob("*.tex")]:
            source = path.read_text(encoding="utf-8")
            assert report == evil_folder or "[U+" not in source
            assert source.count(r"\begin{") == source.count(r"\end{")


@pytest.mark.usefixtures("undrawn")
def test_each_setting_has_its_own_tables(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(ranks=(1,), targets=("attention_qv",), tasks=("../../etc", "b"), layers=1)
    text = write_report(study, tmp_path).read_text(encoding="utf-8")
    names = set(contents_of(tmp_path))
    assert {"tables/rank_by_module_1.csv", "tables/rank_by_module_2.csv"} <= names
    assert "<h3>../../etc on all-MiniLM-L6-v2</h3>" in text


@pytest.mark.usefixtures("undrawn")
def test_a_report_that_is_killed_leaves_only_whole_files(
    thin_study: StudyTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(thin_study, tmp_path)
    before = contents_of(tmp_path)
    renamed: list[str] = []
    real = os.replace

    def dies_after_two(source: str, target: Path) -> None:
        if len(renamed) == 2:
            raise KeyboardInterrupt
        renamed.append(str(target.relative_to(tmp_path)))
        real(source, target)

    monkeypatch.setattr(os, "replace", dies_after_two)
    with pytest.raises(KeyboardInterrupt):
        write_report(replace(thin_study, title="another"), tmp_path)
    after = contents_of(tmp_path)
    assert set(after) == set(before)
    assert {name for name in after if after[name] != before[name]} <= set(renamed)
    assert after["report.html"] == before["report.html"]


@pytest.mark.usefixtures("undrawn")
def test_what_cannot_be_reported_writes_nothing(thin_study: StudyTables, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of the 9 runs is done"):
        write_report(
            replace(thin_study, runs=thin_study.runs.assign(status="failed")), tmp_path / "new"
        )
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file: give a folder"):
        write_report(thin_study, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("undrawn")
def test_files_of_an_earlier_report_go_and_others_stay(
    thin_study: StudyTables, tmp_path: Path
) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "stale.csv").write_text("old")
    (tmp_path / "tables" / "mine.csv").write_text("mine")
    (tmp_path / "precious").write_text("mine")
    listed = {"tables/stale.csv": "0", "precious": "0", "../outside": "0", "tables/..": "0"}
    (tmp_path / "files.json").write_text(json.dumps(listed))
    write_report(thin_study, tmp_path)
    assert not (tmp_path / "tables" / "stale.csv").exists()
    assert (tmp_path / "tables" / "mine.csv").read_text() == "mine"
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw and lay out every figure, but don't write it in a format, which takes longest."""
    empty = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>'
    monkeypatch.setattr(figure, "pdf_of", lambda canvas: b"")
    monkeypatch.setattr(figure, "svg_of", lambda canvas: empty)


@pytest.mark.usefixtures("unsaved")
@pytest.mark.parametrize("missing", ["full", "adapters", "spectra_and_costs", "every_adapter"])
def test_a_study_with_a_missing_piece_is_reported(
    make_study: MakeStudy, tmp_path: Path, missing: str
) -> None:
    study = make_study(
        ranks=() if missing == "adapters" else (2,),
        targets=("attention_qv",),
        seeds=2,
        full=missing != "full",
        losses=False,
        layers=1,
        roles=("query", "value"),
    )
    if missing == "spectra_and_costs":
        study = replace(
            study, spectra=study.spectra.iloc[:0], singular_values=study.singular_values.iloc[:0]
        )
        columns = ["checkpoint_bytes", "train_seconds", "peak_memory_bytes"]
        study = replace(study, runs=study.runs.assign(**dict.fromkeys(columns)))
    if missing == "every_adapter":
        runs = study.runs.copy()
        lost = runs["adapter_rank"].notna()
        runs.loc[lost, "status"] = "diverged"
        runs.loc[lost, "test_score"] = float("nan")
        study = replace(study, runs=runs)
    text = write_report(study, tmp_path).read_text(encoding="utf-8")
    expected = {
        "full": ["No run of full fine-tuning is done"],
        "adapters": ["Full fine-tuning reaches a test accuracy"],
        "spectra_and_costs": [
            "This report has no spectra",
            "Not measured: checkpoint size, training time and peak",
        ],
        "every_adapter": ["2 of 4 planned runs are done; 2 diverged."],
    }
    for sentence in expected[missing]:
        assert sentence in text
