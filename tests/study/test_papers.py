"""Every paper names an experiment that is there, and its numbers stand beside our own."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lowrank_study.config import CONF_FOLDER, compose
from lowrank_study.errors import InputError
from lowrank_study.jobs import planned_configs
from lowrank_study.reporting.papers import markdown_of
from lowrank_study.runs import TrainedRun
from lowrank_study.spec import HubRepo, Lora
from lowrank_study.study.paper_measures import MEASURES
from lowrank_study.study.papers import beside, load_paper, read_paper
from lowrank_study.training.fit import fit
from lowrank_study.training.tracking import NoTracker

NAMES = sorted(path.stem for path in (CONF_FOLDER / "paper").glob("*.yaml"))


def run_of(*overrides: str, accuracy: float, folder: Path = Path()) -> TrainedRun:
    record = {"test": {"accuracy": accuracy}, "examples": {"train": 100}}
    return TrainedRun(spec=compose(*overrides), status="done", record=record, folder=folder)


@pytest.fixture
def trained(
    tiny_overrides: list[str], tmp_path_factory: pytest.TempPathFactory
) -> list[TrainedRun]:
    """Two seeds of two ranks and of full fine-tuning of the tests' tiny model."""
    runs = []
    for seed in range(2):
        for method in (["method.rank=2"], ["method.rank=4"], ["method=full"]):
            spec = compose(*tiny_overrides, *method, f"seed={seed}")
            folder = tmp_path_factory.mktemp("run")
            found = fit(spec, checkpoint_folder=folder / "checkpoint", tracker=NoTracker())
            runs.append(TrainedRun(spec=spec, status="done", record=found.record, folder=folder))
    return runs


@pytest.mark.parametrize("name", NAMES)
def test_a_paper_is_asked_by_an_experiment_at_both_scales(name: str) -> None:
    paper = load_paper(name)
    embedded = planned_configs(f"experiment={paper.experiment}")
    assert {config.sweep for config in embedded} == {paper.experiment}
    published = planned_configs(f"experiment={paper.experiment}", "scale=paper")
    assert len(published) == len(embedded)
    assert all(isinstance(config.spec.model.source, HubRepo) for config in published)
    assert all(isinstance(config.spec.task.source, HubRepo) for config in published)


def test_published_and_own_numbers_meet_in_rows() -> None:
    paper = load_paper("lora_table6")
    runs = [
        run_of("method.rank=8", f"seed={seed}", accuracy=accuracy)
        for seed, accuracy in enumerate((0.70, 0.72))
    ]
    table = beside(paper, runs).set_index(["target", "adapter_rank"])
    row = table.loc[("attention_qv", 8)]
    assert row["published"] == 91.6
    assert row["own"] == pytest.approx(71.0)
    assert row["n"] == 2
    half = 12.7062 * np.std([70, 72], ddof=1) / np.sqrt(2)
    assert (row["low"], row["high"]) == pytest.approx((71 - half, 71 + half), rel=1e-4)
    assert np.isnan(table.loc[("query", 1), "own"])
    page = markdown_of(paper, beside(paper, runs))
    assert "| attention_qv | 8 | 91.6 | 71 |" in page
    assert "| query | 1 | 90.7 | – |" in page


def test_equal_parameters_are_equal() -> None:
    specs = [config.spec for config in planned_configs("experiment=paper_lora_table5")]
    counts = {
        spec.method.rank * len(matrices(spec.method.target))
        for spec in specs
        if isinstance(spec.method, Lora)
    }
    assert counts == {8}


def matrices(target: tuple[str, ...]) -> list[str]:
    presets = compose().model.target_presets
    return [role for name in target for role in presets.get(name, (name,))]


@pytest.mark.slow
def test_every_measure_reads_trained_runs(trained: list[TrainedRun]) -> None:
    for name, measure in MEASURES.items():
        table = measure(trained)
        assert len(table), name
        assert {"own", "low", "high", "n"} <= set(table.columns), name
        assert np.isfinite(table["own"]).all(), name
    seeds = MEASURES["similarity_of_seeds"](trained)
    assert seeds.loc[seeds["i"] > 0, "own"].between(0, 1).all()
    amplified = MEASURES["amplification"](trained).set_index(["adapter_rank", "quantity"])
    width = 16
    norm, along = amplified.loc[(2, "weight_norm")], amplified.loc[(2, "along_random")]
    assert along["own"] == pytest.approx(norm["own"] * 2 / width)
    assert amplified.loc[(2, "along_weight"), "own"] <= norm["own"]
    rates = MEASURES["best_rates"](trained).set_index(["target", "adapter_rank"])
    assert rates.loc[("full", 0), "own"] == 1.0
    assert MEASURES["intruders"](trained)["own"].between(0, 10).all()


def test_a_paper_that_can_not_be_read_is_refused() -> None:
    with pytest.raises(InputError, match="'table9' is unknown: there are biderman"):
        load_paper("table9")
    good = {"source": "s", "setting": "s", "experiment": "e", "unit": "%", "remark": "r"}
    with pytest.raises(InputError, match=r"measure='luck': valid are accuracy"):
        read_paper("mine", {**good, "measure": "luck", "published": []})
    with pytest.raises(InputError, match="a list of rows with `published`"):
        read_paper("mine", {**good, "measure": "accuracy", "published": [{"own": 1}]})
    wrong = {**good, "measure": "accuracy", "published": [{"colour": "red", "published": 1}]}
    with pytest.raises(InputError, match=r"'colour'.* are no keys of accuracy"):
        beside(read_paper("mine", wrong), [run_of("method.rank=8", accuracy=0.7)])


def test_the_table_is_numbers() -> None:
    table = beside(load_paper("lora_table6"), [run_of("method.rank=8", accuracy=0.7)])
    assert pd.api.types.is_float_dtype(table["own"])
    assert pd.api.types.is_float_dtype(table["published"])
