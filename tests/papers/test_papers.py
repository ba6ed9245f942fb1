"""Check the papers' files and the comparison with our own numbers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lowrank_study.config.composition import CONF_FOLDER
from lowrank_study.config.grids import planned_configs
from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.methods.lora import Lora
from lowrank_study.papers import measures as paper_measures
from lowrank_study.papers.measures import PAPER_MEASURES
from lowrank_study.papers.tables import beside, load_paper, read_paper, runs_of
from lowrank_study.reporting.papers import markdown_of
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import HubRepo
from lowrank_study.spectra.noise import noise_energy_rank
from lowrank_study.spectra.updates import FactoredUpdate
from lowrank_study.training.fit import fit
from lowrank_study.training.tracking import Tracker

NAMES = sorted(path.stem for path in (CONF_FOLDER / "paper").glob("*.yaml"))


def run_of(*overrides: str, accuracy: float, status: str = "done") -> TrainedRun:
    record = {"test": {"accuracy": accuracy}, "examples": {"train": 100}, "steps": 7}
    spec = compose(*overrides)
    return TrainedRun(spec=spec, status=status, record=record, folder=Path())


@pytest.fixture
def trained(
    tiny_overrides: list[str], tmp_path_factory: pytest.TempPathFactory
) -> list[TrainedRun]:
    """Train two seeds of two ranks and of full fine-tuning on the tests' tiny model."""
    runs = []
    for seed in range(2):
        for method in (["method.rank=2"], ["method.rank=4"], ["method=full"]):
            spec = compose(*tiny_overrides, *method, f"seed={seed}")
            folder = tmp_path_factory.mktemp("run")
            found = fit(spec, checkpoint_folder=folder / "checkpoint", tracker=Tracker())
            runs.append(TrainedRun(spec=spec, status="done", record=found.record, folder=folder))
    return runs


EXPERIMENTS = sorted({load_paper(name).experiment for name in NAMES})


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_papers_experiment_exists_at_both_scales(name: str) -> None:
    embedded = planned_configs(f"experiment={name}")
    assert {config.sweep for config in embedded} == {name}
    published = planned_configs(f"experiment={name}", "scale=paper")
    assert len(published) == len(embedded)
    assert all(isinstance(config.spec.model.source, HubRepo) for config in published)
    assert all(isinstance(config.spec.task.source, HubRepo) for config in published)


def test_published_and_own_numbers_share_rows() -> None:
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
    page = markdown_of(paper, table.reset_index(), runs)
    assert "| attention_qv | 8 | 91.6 | 71 |" in page
    assert "| query | 1 | 90.7 | – |" in page


def test_published_numbers_are_not_rounded() -> None:
    paper, run = load_paper("shuttleworth_accuracy"), run_of("method=full", accuracy=0.71234)
    assert "| full | 0 | 87.45 | 71.2 |" in markdown_of(paper, beside(paper, [run]), [run])


def test_a_page_states_what_was_trained_and_lost() -> None:
    paper = load_paper("lora_table6")
    lost = run_of(
        "method.rank=8", "seed=1", "method.learning_rate=0.1", accuracy=0, status="failed"
    )
    runs = [run_of("method.rank=8", "seed=0", accuracy=0.7), lost]
    table = beside(paper, runs)
    assert table.set_index(["target", "adapter_rank"]).loc[("attention_qv", 8), "n"] == 1
    assert (
        "Here: minilm on rotten_tomatoes; 100 training texts; 7 steps of 16; learning rates 0.002, "
        "0.1; seeds 0, 1; 1 of 2 runs done. (`experiment=paper_lora_table6`)"
    ) in markdown_of(paper, table, runs)


def test_a_paper_needs_all_of_its_runs(tmp_path: Path) -> None:
    paper, store = load_paper("lora_table6"), RunStore(tmp_path / "runs")
    specs = [compose(f"method.rank={rank}") for rank in (1, 2)]
    store.plan(paper.sweep, [[spec] for spec in specs], question="?")
    with pytest.raises(InputError, match="0 of 2 runs of paper_lora_table6 have ended"):
        runs_of(paper, tmp_path)
    for spec, status in zip(specs, ("failed", "done"), strict=True):
        lease = store.lease([spec.run_id])
        assert lease is not None
        lease.commit(status=status, record={"message": "x", "test": {"accuracy": 0.5}})
    assert [run.status for run in runs_of(paper, tmp_path)] == ["failed", "done"]
    with pytest.raises(InputError, match="no sweep 'paper_lora_table6_paper'"):
        runs_of(paper.at_scale("paper"), tmp_path)


def unit_rows(*places: int) -> np.ndarray:
    return np.eye(8)[list(places)]


@pytest.fixture
def known_adapters(monkeypatch: pytest.MonkeyPatch) -> list[TrainedRun]:
    """Return ranks 1 and 2 of two seeds with known axes of A, which ΔW orders differently."""
    axes = {(1, 0): (0,), (2, 0): (0, 1), (1, 1): (2,), (2, 1): (2, 3)}
    weight = np.diag(np.arange(8.0, 0.0, -1.0))

    def updates(run: TrainedRun) -> list[FactoredUpdate]:
        assert isinstance(run.spec.method, Lora)
        rank = run.spec.method.rank
        A_RI = unit_rows(*axes[rank, run.spec.seed]) * np.array([[2.0], [1.0]])[:rank]
        B_OR = np.eye(8)[:, :rank] * np.array([1.0, 6.0])[:rank]  # singular values of ΔW: 2 and 6
        return [
            FactoredUpdate(
                name="layer.0.query",
                layer=0,
                role="query",
                storage_dtype="float64",
                B_OR=B_OR,
                A_RI=A_RI,
                scaling=1.0,
                W0_OI=weight,
            )
        ]

    monkeypatch.setattr(paper_measures, "updates_of_run", updates)
    return [run_of(f"method.rank={rank}", f"seed={seed}", accuracy=0.7) for rank, seed in axes]


def test_similarities_are_of_the_directions_they_say(known_adapters: list[TrainedRun]) -> None:
    table = PAPER_MEASURES["similarity_of_ranks"](known_adapters)
    found = table.set_index(["seeds", "of", "i", "j"])["own"]
    assert found["same", "A", 1, 1] == pytest.approx(1.0)  # A's leading axis is the shared one
    assert found["same", "ΔW", 1, 1] == pytest.approx(0.0)  # that of ΔW is its second
    assert found["same", "A", 1, 2] == found["same", "ΔW", 1, 2] == pytest.approx(1.0)
    assert found["other"].to_numpy() == pytest.approx(0.0)
    assert (table["of_noise"] == table[["i", "j"]].max(axis=1) / 8).all()
    assert set(table["n"]) == {2}
    seeds = PAPER_MEASURES["similarity_of_seeds"](known_adapters)
    assert seeds["own"].to_numpy() == pytest.approx(0.0)
    assert set(seeds["n"]) == {1}
    assert seeds["low"].isna().all()
    others = table[table["seeds"] == "other"]
    assert others["low"].isna().all()  # both pairs are of the same two seeds
    assert table.loc[table["seeds"] == "same", "low"].notna().all()


def test_no_intruders_in_few_matrices_leave_a_wide_interval(
    known_adapters: list[TrainedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper_measures, "INTRUDERS_AMONG", 4)
    [_, row] = PAPER_MEASURES["intruders"](known_adapters).to_dict("records")
    assert row["adapter_rank"] == 2
    assert (row["own"], row["low"], row["n"]) == (0.0, 0.0, 2)
    assert row["high"] == pytest.approx(-np.log(0.025) / 2)  # P(0 | λ) = e^-λ, of two matrices


def test_amplification_is_the_papers_formula(known_adapters: list[TrainedRun]) -> None:
    table = PAPER_MEASURES["amplification"](known_adapters[:1]).set_index("quantity")
    # Rank 1: U = e0, V = e0, so UᵀW0V is W0's first entry, 8; ‖ΔW‖ is 2.
    assert table.loc["along_update", "own"] == pytest.approx(8.0)
    assert table.loc["along_weight", "own"] == pytest.approx(8.0)
    assert table.loc["factor", "own"] == pytest.approx(2 / 8)
    norm = np.linalg.norm(np.arange(1, 9))
    assert table.loc["along_random", "own"] == pytest.approx(norm / 8)
    assert table.loc["along_update", "of_noise"] == pytest.approx(norm / 8)
    assert table.loc["factor", "of_noise"] == pytest.approx(2 / (norm / 8))


def test_rows_of_table_5_have_equal_numbers_of_parameters() -> None:
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
    for name, measure in PAPER_MEASURES.items():
        table = measure(trained)
        assert len(table), name
        assert {"own", "low", "high", "n"} <= set(table.columns), name
        assert np.isfinite(table["own"]).all(), name
    shares = PAPER_MEASURES["energy_shares"](trained).set_index(["matrix", "maps"])
    assert shares.loc[("before", "query"), "of_noise"] == pytest.approx(
        100 * noise_energy_rank(16, 16) / 16
    )
    assert not shares["own"].equals(shares["of_noise"])
    amplified = PAPER_MEASURES["amplification"](trained).set_index(["adapter_rank", "quantity"])
    width = 16
    norm, along = amplified.loc[(2, "weight_norm")], amplified.loc[(2, "along_random")]
    assert along["own"] == pytest.approx(norm["own"] * 2 / width)
    assert amplified.loc[(2, "along_weight"), "own"] <= norm["own"]
    rates = PAPER_MEASURES["best_rates"](trained).set_index(["target", "adapter_rank"])
    assert rates.loc[("full", 0), "own"] == 1.0
    assert PAPER_MEASURES["intruders"](trained)["own"].between(0, 10).all()


def test_an_invalid_paper_is_refused() -> None:
    with pytest.raises(InputError, match="'table9' is unknown; valid: biderman"):
        load_paper("table9")
    good = {"source": "s", "setting": "s", "experiment": "e", "unit": "%", "remark": "r"}
    with pytest.raises(InputError, match=r"measure='luck': valid are accuracy"):
        read_paper("mine", {**good, "measure": "luck", "published": []})
    with pytest.raises(InputError, match="give a list of rows with `published`"):
        read_paper("mine", {**good, "measure": "accuracy", "published": [{"own": 1}]})
    wrong = {**good, "measure": "accuracy", "published": [{"colour": "red", "published": 1}]}
    with pytest.raises(InputError, match=r"'colour'.* are not keys of accuracy"):
        beside(read_paper("mine", wrong), [run_of("method.rank=8", accuracy=0.7)])


def test_the_table_holds_numbers() -> None:
    table = beside(load_paper("lora_table6"), [run_of("method.rank=8", accuracy=0.7)])
    assert pd.api.types.is_float_dtype(table["own"])
    assert pd.api.types.is_float_dtype(table["published"])
