"""A sweep reports the rows that it reads or leaves out, and trains no run on other rows."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lowrank_study.config.run import compose
from lowrank_study.data.splits import load_splits
from lowrank_study.errors import InputError
from lowrank_study.loaded import model_folder
from lowrank_study.runs.store import RunStore
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.plan import check_data
from lowrank_study.sweeps.sweep import sweep
from lowrank_study.training.fit import fit
from lowrank_study.training.tracking import Tracker

FIRST = "left out: 6 of 246 rows of holes.csv (2.4 %): 'verdict' is empty (first in row 241)"


@pytest.fixture
def specs(tiny_overrides: list[str], review_file: Path, tmp_path: Path) -> Callable[..., RunSpec]:
    """Return specifications of runs on reviews, some of which lack a verdict."""

    def give(holes: int, *overrides: str) -> RunSpec:
        path = tmp_path / "holes.csv"
        path.write_text(review_file.read_text() + "good,,film0\n" * holes)
        return compose(*tiny_overrides, f"task.source={path}", "method.rank=2", *overrides)

    return give


def test_left_out_parts_are_printed_first_with_and_without_a_cache(
    specs: Callable[..., RunSpec], tmp_path: Path
) -> None:
    for _ in range(2):
        lines = check_data([specs(6), specs(6, "seed=1")])
        assert lines[0] == FIRST
        assert lines[1] == "holes.csv: 246 rows read, UTF-8, separated by commas"
        assert [line.split(":")[0] for line in lines[2:5]] == ["train", "validation", "test"]
        assert lines.count(FIRST) == 1


def test_more_than_five_percent_left_out_is_refused_unless_allowed(
    specs: Callable[..., RunSpec], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"left out: 20 of 260 rows .*allow_partial=true"):
        check_data([specs(20)])
    first, *_ = check_data([specs(20)], allow_partial=True)
    assert first.startswith("left out: 20 of 260 rows of holes.csv (7.7 %)")


def test_files_of_equal_names_are_counted_separately(
    specs: Callable[..., RunSpec], tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, holes in ((one, 8), (other, 9)):
        folder.mkdir()
        specs(holes)
        (tmp_path / "holes.csv").rename(folder / "holes.csv")
    asked = [f"task.source={folder / 'holes.csv'}" for folder in (one, other)]
    check_data([specs(0, asked[0]), specs(0, asked[1], "task.name=other")])


def test_a_run_keeps_what_was_left_out_and_refuses_an_edited_file(
    specs: Callable[..., RunSpec], tmp_path: Path
) -> None:
    spec = specs(6, "trainer.evaluations=1")
    result = fit(spec, checkpoint_folder=tmp_path / "out", tracker=Tracker())
    assert result.record["left_out"] == [FIRST]
    specs(7)
    with pytest.raises(InputError, match=r"holes\.csv has changed since"):
        fit(spec, checkpoint_folder=tmp_path / "again", tracker=Tracker())


def test_a_run_refuses_a_base_model_that_was_edited(
    specs: Callable[..., RunSpec], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    import shutil

    base = shutil.copytree(tiny_model("bert"), tmp_path / "base")
    spec = specs(0, f"model.source={base}")
    (base / "README.md").write_text("nothing that is read")
    assert model_folder(spec.model) == base
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\1\1\1")
    with pytest.raises(InputError, match=r"model\.safetensors has changed .*was found"):
        fit(spec, checkpoint_folder=tmp_path / "out", tracker=Tracker())


def ended(spec: RunSpec, results: Path, digest: str) -> None:
    """Make up a done run; one that does not read the test split has no spectra."""
    store = RunStore(results / "runs")
    store.plan("mine", [[spec]], question="")
    lease = store.lease([spec.run_id])
    assert lease is not None
    accuracy = {"accuracy": 0.5, "loss": 1.0}
    record = {"validation": accuracy, "left_out": [FIRST], "provenance": {"data_sha256": digest}}
    lease.commit(status="done", record=record)


def test_ended_runs_report_left_out_parts_again(
    specs: Callable[..., RunSpec], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = specs(6, "trainer.read_test=false")
    ended(spec, tmp_path, "a" * 64)
    sweep([spec], name="mine", results=tmp_path)
    assert capsys.readouterr().out.splitlines() == [FIRST]


def test_new_runs_do_not_join_runs_with_other_splits(
    specs: Callable[..., RunSpec], tmp_path: Path
) -> None:
    old, new = specs(6, "trainer.read_test=false"), specs(6, "trainer.read_test=false", "seed=1")
    ended(old, tmp_path, "a" * 64)
    with pytest.raises(InputError, match="was trained on other rows than the task has now"):
        sweep([old, new], name="mine", results=tmp_path)
    now = load_splits(new.task, model_folder(new.model)).sha256
    others = tmp_path / "others"
    ended(old, others, now)
    check_data([new], ended=RunStore(others / "runs").ended([old.run_id]))
