"""Models and splits are read once, and verified at each use."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lowrank_study import assets
from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.loaded import model_folder, splits_of
from lowrank_study.spec import RunSpec
from lowrank_study.training.models import model_without_weights


@pytest.fixture
def spec(
    tiny_overrides: list[str],
    tiny_model: Callable[[str], Path],
    review_file: Path,
    tmp_path: Path,
) -> RunSpec:
    """A run on copies of the tiny model and of the reviews, which a test may edit."""
    model = shutil.copytree(tiny_model("bert"), tmp_path / "model")
    rows = shutil.copy(review_file, tmp_path / "rows.csv")
    return compose(*tiny_overrides, f"model.source={model}", f"task.source={rows}")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_splits_are_read_once(spec: RunSpec) -> None:
    written, read = splits_of(spec), splits_of(spec)
    assert read.sha256 == written.sha256
    assert splits_of(spec) is read


@pytest.mark.parametrize("use", [splits_of, model_without_weights])
def test_an_edited_model_is_refused(use: Callable[[RunSpec], object], spec: RunSpec) -> None:
    use(spec)
    edit(model_folder(spec.model) / "config.json", hidden_dropout_prob=0.5)
    with pytest.raises(InputError, match=r"config\.json has changed since the run was"):
        use(spec)


def test_edited_rows_are_refused(spec: RunSpec, tmp_path: Path) -> None:
    splits_of(spec)
    with (tmp_path / "rows.csv").open("a") as file:
        file.write("word1 good,up,film0\n")
    with pytest.raises(InputError, match=r"rows\.csv has changed since the run was"):
        splits_of(spec)


def test_another_configuration_has_other_shapes(spec: RunSpec, tmp_path: Path) -> None:
    model_without_weights(spec)
    edit(tmp_path / "model" / "config.json", intermediate_size=40)
    source = assets.local(str(tmp_path / "model"))
    again = dataclasses.replace(spec, model=dataclasses.replace(spec.model, source=source))
    shapes = {tuple(weight.shape) for weight in model_without_weights(again).parameters()}
    assert (40, 16) in shapes
