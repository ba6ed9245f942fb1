"""That the condensed tables say what the runs and spectra say."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lowrank_study.answers.statistics import interval_of_mean
from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.reporting.tables import (
    ROLES,
    SettingData,
    StudyTables,
    checked,
    chosen_runs,
    cost_by_method,
    flat_provenance,
    in_order,
    rank_by_module,
    score_by_rank,
    settings_data,
    shared_provenance,
    spectra_of_chosen,
)
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spectra.noise import noise_energy_rank

MakeStudy = Callable[..., StudyTables]


def test_the_interval_is_students() -> None:
    values = np.array([0.70, 0.72, 0.75, 0.71])
    low, high = interval_of_mean(values)
    expected = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert (low, high) == pytest.approx(expected, rel=1e-12)


def test_equal_seeds_give_an_interval_of_no_width_and_one_seed_none() -> None:
    assert interval_of_mean(np.array([0.5, 0.5, 0.5])) == (0.5, 0.5)
    assert all(math.isnan(edge) for edge in interval_of_mean(np.array([0.5])))


def test_accuracy_is_that_of_the_done_runs(whole_study: StudyTables) -> None:
    table = score_by_rank(whole_study.runs)
    runs = whole_study.runs
    row = table[(table["target"] == "all_linear") & (table["adapter_rank"] == 64)].iloc[0]
    mine = runs[(runs["target"] == "all_linear") & (runs["adapter_rank"] == 64)]
    done = mine.loc[mine["status"] == "done", "test_score"]
    assert (row["runs"], row["n"], row["diverged"], row["failed"]) == (3, 2, 1, 0)
    assert row["mean_test_score"] == pytest.approx(done.mean(), rel=1e-14)
    assert row["sd_test_score"] == pytest.approx(done.std(ddof=1), rel=1e-12)
    assert len(table) == 15
    assert table.iloc[0]["method"] == "full"


def test_one_seed_has_a_mean_but_no_spread(make_study: MakeStudy) -> None:
    table = score_by_rank(make_study(ranks=(1,), seeds=1).runs)
    assert (table["n"] == 1).all()
    assert table["mean_test_score"].notna().all()
    assert table[["sd_test_score", "test_low_95", "test_high_95"]].isna().all(axis=None)


def two_rates(study: StudyTables, *, validation: float, test: float) -> pd.DataFrame:
    runs = study.runs
    other = runs.copy()
    other["run_id"] += "-other"
    other["learning_rate"] *= 3
    other["validation_score"] = validation
    other["test_score"] = test
    return pd.concat([runs, other], ignore_index=True)


def test_the_rate_is_chosen_by_validation_and_not_by_test(small_study: StudyTables) -> None:
    better = score_by_rank(two_rates(small_study, validation=0.99, test=0.1))
    worse = score_by_rank(two_rates(small_study, validation=0.01, test=0.99))
    assert (better.loc[better["chosen"], "mean_test_score"] < 0.11).all()
    assert (worse.loc[worse["chosen"], "mean_test_score"] < 0.9).all()
    assert better["chosen"].sum() == worse["chosen"].sum() == 3


def test_a_rate_that_diverged_is_chosen_only_for_want_of_another(small_study: StudyTables) -> None:
    runs = two_rates(small_study, validation=0.99, test=0.9)
    runs.loc[runs["run_id"].str.endswith("s0-other"), "status"] = "diverged"
    table = score_by_rank(runs)
    assert (table.loc[table["chosen"], "diverged"] == 0).all()
    runs.loc[~runs["run_id"].str.endswith("other") & (runs["seed"] == 1), "status"] = "diverged"
    table = score_by_rank(runs)
    assert (table.loc[table["chosen"], "mean_test_score"] > 0.89).all()


def test_lost_runs_stay_among_the_chosen(whole_study: StudyTables) -> None:
    chosen = chosen_runs(whole_study.runs, score_by_rank(whole_study.runs))
    assert set(chosen["status"]) == {"done", "diverged", "failed"}
    assert len(chosen) == len(whole_study.runs)


@pytest.mark.parametrize(("shape", "share"), [((1000, 1000), 0.5098), ((400, 400), 0.5098)])
def test_noise_reads_half_the_dimension(shape: tuple[int, int], share: float) -> None:
    assert noise_energy_rank(*shape) / shape[0] == pytest.approx(share, abs=1e-4)


def test_noise_of_a_rectangle_reads_what_a_sample_reads() -> None:
    matrix = np.random.default_rng(0).standard_normal((1536, 384))
    energy = np.cumsum(np.linalg.svd(matrix, compute_uv=False) ** 2)
    measured = int(np.searchsorted(energy / energy[-1], 0.9) + 1)
    assert noise_energy_rank(1536, 384) == pytest.approx(measured, abs=1.5)
    assert noise_energy_rank(384, 1536) == noise_energy_rank(1536, 384)


def test_ranks_are_medians_of_the_resolvable(whole_data: SettingData) -> None:
    spectra, modules = whole_data.spectra, whole_data.modules
    lost = modules[(modules["method"] == "full") & (modules["resolvable"] == 0)]
    assert sorted(zip(lost["layer"], lost["role"], strict=True)) == [(0, "key"), (1, "key")]
    assert lost["median_energy_rank_90"].isna().all()
    full = whole_data.configurations.iloc[0]
    mine = spectra[(spectra["method"] == "full") & spectra["resolvable"]]
    assert full["median_energy_rank_90"] == np.median(mine["energy_rank_90"])
    assert (full["n"], full["resolvable"]) == (108, 102)


def test_roles_are_in_the_order_of_a_layer_then_of_the_alphabet() -> None:
    roles = ["zeta", "mlp_down", "alpha", "query_key_value", "query", "alpha", *reversed(ROLES)]
    assert in_order(roles) == [*ROLES, "alpha", "zeta"]
    assert in_order([]) == []


def test_what_is_outside_the_layers_comes_last_and_is_named_by_its_module(
    make_study: MakeStudy,
) -> None:
    study = make_study(ranks=(4,), targets=("attention_qv",), layers=2)
    spectra = study.spectra.copy()
    for role, module in (("mlp_down", "bert.pooler.dense"), ("mlp_up", "classifier.dense")):
        out = (spectra["layer"] == 1) & (spectra["role"] == role)
        spectra.loc[out, ["module", "role"]] = [module, "dense"]
        spectra.loc[out, "layer"] = pd.NA
    study = checked(replace(study, spectra=spectra))
    modules = settings_data(study)[0].modules
    full = modules[modules["method"] == "full"]
    attention = ["query", "key", "value", "attention_output"]
    assert list(full["role"]) == [
        *attention,
        "mlp_up",
        "mlp_down",
        *attention,
        "bert.pooler.dense",
        "classifier.dense",
    ]
    assert list(full["layer"].isna()) == [False] * 10 + [True] * 2
    assert (full["n"] == 3).all()


def test_a_matrix_that_is_half_resolvable_counts_its_resolvable_seeds(
    small_study: StudyTables,
) -> None:
    spectra = small_study.spectra.copy()
    one = (spectra["run_id"].str.contains("full") & spectra["run_id"].str.endswith("s0")) & (
        spectra["module"] == "bert.encoder.layer.5.value"
    )
    spectra.loc[one, ["resolvable", "energy_rank_90"]] = [False, 300]
    study = checked(replace(small_study, spectra=spectra))
    modules = rank_by_module(spectra_of_chosen(study, score_by_rank(study.runs)))
    cell = modules[(modules["layer"] == 5) & (modules["role"] == "value")].iloc[0]
    assert (cell["n"], cell["resolvable"]) == (3, 2)
    assert cell["max_energy_rank_90"] < 300


def test_an_adapter_is_bound_by_its_rank_unless_trained_whole(small_study: StudyTables) -> None:
    spectra = small_study.spectra.copy()
    whole = (spectra["module"] == "bert.encoder.layer.5.value") & spectra["run_id"].str.contains(
        "r4"
    )
    spectra.loc[whole, "numerical_rank"] = 384
    study = checked(replace(small_study, spectra=spectra))
    table = rank_by_module(spectra_of_chosen(study, score_by_rank(study.runs)))
    adapters = table[table["adapter_rank"] == 4]
    free = (adapters["layer"] == 5) & (adapters["role"] == "value")
    assert (adapters.loc[free, "largest_possible_rank"] == 384).all()
    assert (adapters.loc[~free, "largest_possible_rank"] == 4).all()
    assert (table.loc[table["method"] == "full", "largest_possible_rank"] == 384).all()


def test_costs_are_ratios_of_medians(whole_study: StudyTables) -> None:
    runs = whole_study.runs
    table = cost_by_method(runs, score_by_rank(runs))
    row = table[(table["target"] == "attention_qv") & (table["adapter_rank"] == 8)].iloc[0]
    mine = runs[(runs["target"] == "attention_qv") & (runs["adapter_rank"] == 8)]
    full = runs[runs["method"] == "full"]
    ratio = mine["train_seconds"].median() / full["train_seconds"].median()
    assert row["train_seconds_ratio"] == pytest.approx(ratio, rel=1e-12)
    assert row["trainable_parameters"] == 6 * 2 * 8 * 768 + 770


def test_costs_without_full_fine_tuning_have_no_ratio(make_study: MakeStudy) -> None:
    runs = make_study(ranks=(1,), full=False).runs
    table = cost_by_method(runs, score_by_rank(runs))
    assert table["train_seconds_ratio"].isna().all()
    assert table["train_seconds"].notna().all()


def test_provenance_is_flattened() -> None:
    frame = flat_provenance({"a": 1, "b": {"c": {"d": "x"}, "e": [1, 2]}})
    assert frame.to_numpy().tolist() == [["a", "1"], ["b / c / d", "x"], ["b / e", "1, 2"]]


def test_what_runs_share_is_told_once_and_what_they_differ_in_with_counts() -> None:
    runs = [
        TrainedRun(
            spec=compose(f"task.train_size={size}", f"trainer.epochs={epochs}"),
            status="done",
            record={"provenance": {"commit": commit, "cores": 2}},
            folder=Path(),
        )
        for size, epochs, commit in ((100, 9, "a"), (300, 3, "a"), (300, 3, "b"))
    ]
    shared = shared_provenance(runs)
    assert (shared["cores"], shared["commit"]) == (2, {"a": "2 runs", "b": "1 run"})
    setting = shared["rotten_tomatoes on minilm"]
    assert setting["task.train_size"] == {"100": "1 run", "300": "2 runs"}
    assert setting["trainer.epochs"] == {"9": "1 run", "3": "2 runs"}
    assert setting["trainer.batch_size"] == runs[0].spec.train.batch_size


def with_runs(study: StudyTables, **columns: object) -> StudyTables:
    return replace(study, runs=study.runs.assign(**columns))


def test_a_study_without_a_finished_run_is_refused(small_study: StudyTables) -> None:
    with pytest.raises(InputError, match=r"none of the 9 runs is done \(9 diverged, 0 failed\)"):
        checked(with_runs(small_study, status="diverged"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"status": "running"}, "status 'running' is unknown: a run is one of done"),
        ({"run_id": "same"}, "run 'same' appears twice"),
        ({"test_score": 78.2}, "is 78.2: give a share between 0 and 1"),
        ({"test_score": math.nan}, "none of the 9 done runs has a test accuracy"),
        ({"seed": 0}, "have the same task, model, method, target, rank, alpha"),
        ({"seed": "x"}, "the column seed of the runs table does not hold whole numbers"),
    ],
)
def test_runs_that_make_no_sense_are_refused(
    small_study: StudyTables, columns: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        checked(with_runs(small_study, **columns))


def test_a_missing_column_is_named(small_study: StudyTables) -> None:
    with pytest.raises(InputError, match=r"the spectra table lacks the column\(s\) stable_rank"):
        checked(replace(small_study, spectra=small_study.spectra.drop(columns="stable_rank")))


def test_spectra_of_a_stranger_are_refused(small_study: StudyTables) -> None:
    spectra = small_study.spectra.assign(run_id="stranger")
    with pytest.raises(InputError, match="names run 'stranger', which the runs table lacks"):
        checked(replace(small_study, spectra=spectra))
