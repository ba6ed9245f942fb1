"""Ranks of updates are condensed over seeds and matrices."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lowrank_study.answers.roles import ROLES, in_order
from lowrank_study.answers.scores import score_by_rank
from lowrank_study.reporting.setting import SettingData, settings_data
from lowrank_study.reporting.study import StudyTables, checked
from lowrank_study.reporting.update_ranks import rank_by_module, spectra_of_chosen
from lowrank_study.spectra.noise import noise_energy_rank
from lowrank_study.tasks.metric import ACCURACY

MakeStudy = Callable[..., StudyTables]


def test_ranks_are_medians_of_the_resolvable(whole_data: SettingData) -> None:
    spectra, modules = whole_data.spectra, whole_data.modules
    lost = modules[(modules["method"] == "full") & (modules["resolvable"] == 0)]
    assert sorted(zip(lost["layer"], lost["role"], strict=True)) == [(0, "key"), (1, "key")]
    assert lost["median_energy_rank_90"].isna().all()
    full = whole_data.configurations.iloc[0]
    mine = spectra[(spectra["method"] == "full") & spectra["resolvable"]]
    assert full["median_energy_rank_90"] == np.median(mine["energy_rank_90"])
    assert (full["n"], full["resolvable"]) == (108, 102)


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
    modules = rank_by_module(spectra_of_chosen(study, score_by_rank(study.runs, ACCURACY)))
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
    table = rank_by_module(spectra_of_chosen(study, score_by_rank(study.runs, ACCURACY)))
    adapters = table[table["adapter_rank"] == 4]
    free = (adapters["layer"] == 5) & (adapters["role"] == "value")
    assert (adapters.loc[free, "largest_possible_rank"] == 384).all()
    assert (adapters.loc[~free, "largest_possible_rank"] == 4).all()
    assert (table.loc[table["method"] == "full", "largest_possible_rank"] == 384).all()


def test_roles_are_in_the_order_of_a_layer_then_of_the_alphabet() -> None:
    roles = ["zeta", "mlp_down", "alpha", "query_key_value", "query", "alpha", *reversed(ROLES)]
    assert in_order(roles) == [*ROLES, "alpha", "zeta"]
    assert in_order([]) == []


@pytest.mark.parametrize(("shape", "share"), [((1000, 1000), 0.5098), ((400, 400), 0.5098)])
def test_noise_reads_half_the_dimension(shape: tuple[int, int], share: float) -> None:
    assert noise_energy_rank(*shape) / shape[0] == pytest.approx(share, abs=1e-4)


def test_noise_of_a_rectangle_reads_what_a_sample_reads() -> None:
    matrix = np.random.default_rng(0).standard_normal((1536, 384))
    energy = np.cumsum(np.linalg.svd(matrix, compute_uv=False) ** 2)
    measured = int(np.searchsorted(energy / energy[-1], 0.9) + 1)
    assert noise_energy_rank(1536, 384) == pytest.approx(measured, abs=1.5)
    assert noise_energy_rank(384, 1536) == noise_energy_rank(1536, 384)
