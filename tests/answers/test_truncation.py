"""Check tuned models whose updates are truncated to a rank."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lowrank_study.answers import truncated_runs
from lowrank_study.answers.full_runs import chosen_full_runs
from lowrank_study.answers.functional_rank import (
    SCOPES,
    scores_by_kept_rank,
    truncation_table,
)
from lowrank_study.answers.truncated_runs import (
    TruncateRequest,
    read_request,
    truncate_run,
    truncate_sweep,
)
from lowrank_study.answers.truncation import (
    DecomposedUpdate,
    Truncation,
    TunedModel,
    decompose,
    energy_kept,
    threads_of,
    truncated,
    truncations_of,
    tuned_matrices,
)
from lowrank_study.checkpoints import find_matrices, open_weights
from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.results import truncation_file
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spectra.tables import row
from lowrank_study.sweeps.updates import spectra_of_run


def runs_of(results: Path) -> list[TrainedRun]:
    store = RunStore(results / "runs")
    [runs] = chosen_full_runs(store.ended(store.sweep("two")))
    return runs


def decomposed(run: TrainedRun) -> list[DecomposedUpdate]:
    with tuned_matrices(run) as (pairing, matrices):
        return [decompose(pairing, matrix) for matrix in matrices]


def model_of(run: TrainedRun) -> TunedModel:
    with tuned_matrices(run) as (pairing, _):
        return TunedModel(run, pairing, "cpu")


def test_the_full_rank_is_the_run_and_rank_0_only_its_head(results: Path) -> None:
    run = runs_of(results)[0]
    updates, model = decomposed(run), model_of(run)
    tuned = {name: p.detach().clone() for name, p in model._model.named_parameters()}
    recorded = pd.read_parquet(run.folder / "predictions.parquet")
    sides = [update.matrix.side for update in updates]
    with threads_of(run):
        model.keep(updates, [0] * len(updates))
        pretrained = {update.matrix.match.after.tensor: update.W0_OI for update in updates}
        for name, parameter in model._model.named_parameters():
            expected = torch.from_numpy(pretrained[name]) if name in pretrained else tuned[name]
            assert torch.equal(parameter, expected), name
        assert {n for n, p in tuned.items() if p.ndim > 1} - set(pretrained) == {
            "classifier.weight"
        }
        truncated_model = model.predict()
        model.keep(updates, sides)
        whole = model.predict()
    assert all(torch.equal(p, tuned[name]) for name, p in model._model.named_parameters())
    np.testing.assert_array_equal(whole.columns["predicted"], recorded["predicted"])
    np.testing.assert_array_equal(whole.losses, recorded["loss"])
    assert truncated_model.metrics()["loss"] != whole.metrics()["loss"]


def test_the_error_follows_eckart_and_young(results: Path) -> None:
    updates = decomposed(runs_of(results)[0])
    assert {update.W_OI.shape for update in updates} >= {(16, 16), (24, 16), (16, 24), (48, 16)}
    for update in updates:
        delta = update.W_OI.astype(np.float64) - update.W0_OI
        singular = np.linalg.svd(delta, compute_uv=False)
        for kept in (1, 3, update.matrix.side - 1):
            left_over = np.linalg.norm(truncated(update, kept) - update.W_OI.astype(np.float64))
            dropped = np.sqrt(np.sum(singular[kept:] ** 2))
            # The sum W0 + [ΔW]_k is rounded once to float32.
            rounding = np.finfo(np.float32).eps * np.linalg.norm(update.W_OI)
            assert abs(left_over - dropped) <= rounding
    for kept in (0, 1, 4):
        parts = [min(kept, update.matrix.side) for update in updates]
        squares = [u.directions.singular_values**2 for u in updates]
        expected = sum(s[:kept].sum() for s in squares) / sum(s.sum() for s in squares)
        assert energy_kept(updates, parts) == pytest.approx(expected)


def test_the_noise_rank_is_that_of_the_spectra(results: Path) -> None:
    run = runs_of(results)[0]
    measured = {s.module: row(s)["gavish_donoho_rank"] for s in spectra_of_run(run)}
    truncation = Truncation(scope="noise_cut", part="", kept_rank=None)
    found = {update.matrix.match.name: truncation.kept(update) for update in decomposed(run)}
    assert found == measured


def test_layers_and_roles_partition_the_matrices(results: Path) -> None:
    updates = decomposed(runs_of(results)[0])
    for scope, names in (
        ("layers", ["outside", "0", "1"]),
        ("roles", ["query", "mlp_up", "bert.pooler.dense", "bert.embeddings.word_embeddings"]),
    ):
        truncations = truncations_of(
            [update.matrix for update in updates], scopes=[scope], ranks=None
        )
        assert {truncation.part for truncation in truncations} >= set(names)
        for update in updates:
            kept = [truncation.kept(update) for truncation in truncations]
            assert sorted(kept)[-2:] == [0, update.matrix.side]
            assert sum(kept) == update.matrix.side


def test_the_full_rank_comes_before_doubling_ones(results: Path) -> None:
    matrices = [update.matrix for update in decomposed(runs_of(results)[0])]

    def ranks(asked: list[int] | None) -> list[int | None]:
        return [
            truncation.kept_rank
            for truncation in truncations_of(matrices, scopes=["all"], ranks=asked)
        ]

    assert ranks(None) == [16, 0, 1, 2, 4, 8]
    assert ranks([3, 0, 99]) == [16, 0, 3]


def request(results: Path, **changes: object) -> TruncateRequest:
    settings = {
        "sweep": "two", "results": str(results), "device": "cpu", "launcher": "inline",
        "workers": None, "scopes": list(SCOPES), "ranks": None, "seeds_of_parts": 1,
    }  # fmt: skip
    return read_request(settings | changes)


def test_a_sweep_is_truncated_once(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = truncate_sweep(request(results))
    table = truncation_table([first, second], results)
    counts = table.groupby(["run_id", "scope"]).size().unstack(fill_value=0)
    assert counts.loc[first.spec.run_id].to_dict() == {
        "all": 6, "layers": 3, "noise_cut": 1, "roles": 10,
    }  # fmt: skip
    assert counts.loc[second.spec.run_id].to_dict() == {
        "all": 6, "layers": 0, "noise_cut": 1, "roles": 0,
    }  # fmt: skip
    for run in (first, second):
        of_all = table[(table["run_id"] == run.spec.run_id) & (table["scope"] == "all")]
        assert of_all["kept_rank"].tolist() == [0, 1, 2, 4, 8, 16]
        assert of_all["test_score"].iloc[-1] == run.record["test"]["accuracy"]
        assert of_all["energy_kept"].is_monotonic_increasing
        assert of_all["energy_kept"].iloc[[0, -1]].tolist() == [0.0, 1.0]
        assert (of_all["examples"] == run.record["examples"]["test"]).all()
    parts = table[table["scope"] == "layers"]
    assert parts["energy_kept"].sum() == pytest.approx(1.0)

    correct = scores_by_kept_rank([first, second], results)
    assert list(correct) == [0, 1, 2, 4, 8, 16]
    own = pd.read_parquet(second.folder / "predictions.parquet")
    np.testing.assert_array_equal(correct[16][1], own["label"] == own["predicted"])
    assert correct[4].shape == (2, 60)

    def fails(*_: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(truncated_runs, "TunedModel", fails)
    truncate_sweep(request(results))
    with pytest.raises(InputError, match="AssertionError: evaluated again"):
        truncate_sweep(request(results, ranks=[5]))


@pytest.mark.slow
def test_several_processes_find_what_one_does(results: Path) -> None:
    runs = truncate_sweep(request(results, launcher="local", workers=2, scopes=["all"]))
    together = truncation_table(runs, results)
    shutil.rmtree(results / "truncation")
    truncate_sweep(request(results, scopes=["all"]))
    pd.testing.assert_frame_equal(together, truncation_table(runs, results))


def test_a_stopped_command_leaves_whole_files_and_resumes(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs_of(results)[0]
    path = truncation_file(results, run.spec.run_id)
    predict, calls = TunedModel.predict, []

    def until_killed(self: TunedModel) -> object:
        calls.append(len(calls))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return predict(self)

    monkeypatch.setattr(TunedModel, "predict", until_killed)
    with pytest.raises(KeyboardInterrupt):
        truncate_run(run, results, ["all"], None, "cpu")
    assert pd.read_parquet(path)["kept_rank"].unique().tolist() == [16, 0, 1]
    to_parquet = pd.DataFrame.to_parquet

    def killed_while_writing(self: pd.DataFrame, file: object, **options: object) -> None:
        to_parquet(self.iloc[:7], file, **options)  # type: ignore[call-overload]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", killed_while_writing)
        with pytest.raises(KeyboardInterrupt):
            truncate_run(run, results, ["all"], None, "cpu")
    assert pd.read_parquet(path)["kept_rank"].unique().tolist() == [16, 0, 1]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    calls[:] = [0] * 10
    truncate_run(run, results, ["all"], None, "cpu")
    assert pd.read_parquet(path)["kept_rank"].unique().tolist() == [16, 0, 1, 2, 4, 8]
    assert len(calls) == 10 + 1 + 3  # the whole model, then 2, 4 and 8


def test_a_checkpoint_with_another_score_than_recorded_is_refused(results: Path) -> None:
    run = runs_of(results)[0]
    record = json.loads((run.folder / "record.json").read_text())
    record["test"]["accuracy"] -= 1 / 60
    (run.folder / "record.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="was recorded: truncate it where it was trained"):
        truncate_sweep(request(results))
    assert not truncation_file(results, run.spec.run_id).exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scopes": ["al"]}, r"scopes=\['al'\]: give one or more of all, noise_cut, layers, roles"),
        ({"scopes": []}, r"scopes=\[\]: give one or more of all"),
        ({"ranks": [1, -1]}, "whole numbers from 0 on"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_invalid_settings_are_refused(
    changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        request(tmp_path, **changes)


def test_validation_chooses_the_rate(tiny_overrides: list[str], tmp_path: Path) -> None:
    def ended(accuracy: float, *more: str, status: str = "done") -> TrainedRun:
        validation = {"accuracy": accuracy, "loss": 0.5}
        record = {"validation": validation, "test": {"accuracy": 1 - accuracy}}
        spec = compose(*tiny_overrides, *more)
        return TrainedRun(spec=spec, status=status, record=record, folder=tmp_path)

    full = ["method=full"]
    good = [ended(0.8, *full, "method.learning_rate=1e-4", f"seed={s}") for s in (1, 0)]
    others = [
        ended(0.7, *full, "method.learning_rate=1e-5"),
        ended(0.99, *full, "method.learning_rate=1e-3"),
        ended(0.0, *full, "method.learning_rate=1e-3", "seed=1", status="diverged"),
        ended(0.99, *full, "trainer.read_test=false"),
        ended(0.99, *full, "trainer.shuffle_labels=true"),
        ended(0.99, "method.rank=2"),
    ]
    [runs] = chosen_full_runs([*others, *good])
    assert runs == [good[1], good[0]]
    assert chosen_full_runs(others[3:]) == []


def test_put_inverts_cut(tiny_model: Callable[[str], Path]) -> None:
    # GPT-2 stores (in, out), and query, key and value in one tensor.
    with open_weights(tiny_model("gpt2")) as weights:
        matrices, _ = find_matrices(weights)
        fused = [matrix for matrix in matrices.values() if "h.0.attn.c_attn" in matrix.name]
        assert len(fused) == 3
        stored = weights.read(fused[0].tensor)
        before = [matrix.cut(stored) for matrix in fused]
        fused[1].put(stored, -before[1])
        after = [matrix.cut(stored) for matrix in fused]
        np.testing.assert_array_equal(after[0], before[0])
        np.testing.assert_array_equal(after[1], -before[1])
        np.testing.assert_array_equal(after[2], before[2])
