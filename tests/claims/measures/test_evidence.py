"""Reading evidence from sweeps and records."""

from pathlib import Path

import pandas as pd
import pytest

from lowrank_study.claims.measures.evidence import NO_EVIDENCE, load_evidence, tuned_runs
from lowrank_study.claims.measures.score import retention
from lowrank_study.claims.measures.update_spectra import full_update
from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.runs.store import RunStore
from tests.claims.measures.synthetic import lacking, runs_of

RESULTS = Path(__file__).parents[3] / "results"


def test_evidence_that_is_not_asked_for_is_none(tmp_path: Path) -> None:
    loaded = load_evidence(tmp_path, sweeps=[], records=[], serving=None)
    assert loaded.runs is loaded.spectra is loaded.rates is loaded.truncation is None
    assert NO_EVIDENCE.runs is None


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none_such"):
        load_evidence(tmp_path, sweeps=["none_such"], records=[], serving=None)


def test_sweeps_are_read_from_the_store_each_run_once(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    specs = [compose("method=lora", "method.rank=4", f"seed={seed}") for seed in range(3)]
    names = {"first": specs[:2], "second": specs[1:], "second_rates": specs[1:]}
    for name, planned in names.items():
        store.plan(name, [[spec] for spec in planned], question="Why?")
    with pytest.raises(InputError, match="no run of the sweep 'first' has ended"):
        load_evidence(tmp_path, sweeps=["first"], records=[], serving=None)
    for lease in iter(lambda: store.lease([spec.run_id for spec in specs]), None):
        accuracy = {"accuracy": 0.7 + 0.01 * lease.spec.seed, "majority_accuracy": 0.5}
        lease.commit(status="done", record={"test": accuracy, "validation": accuracy})
    found = load_evidence(tmp_path, sweeps=["first", "second"], records=[], serving=None)
    assert found.runs is not None
    assert found.rates is not None
    assert sorted(found.runs["seed"]) == [0, 1, 2]
    assert sorted(found.rates["seed"]) == [1, 2]
    assert len(tuned_runs(found)) == 3
    assert "full fine-tuning" in lacking(retention(found, "attention_qv", 4, above_chance=True))
    assert "spectra" in lacking(full_update(found, "energy_rank_90", None, over=None))


def test_sweeps_that_were_trained_otherwise_are_settings_of_their_own(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    lengths = {"short": 32, "long": 64}
    for name, length in lengths.items():
        spec = compose("method=lora", f"task.max_length={length}")
        store.plan(name, [[spec]], question="Why?")
        lease = store.lease([spec.run_id])
        assert lease is not None
        lease.commit(status="done", record={"test": {"accuracy": 0.7}})
    found = load_evidence(tmp_path, sweeps=list(lengths), records=[], serving=None)
    assert found.runs is not None
    [first, second] = found.runs["setting"]
    assert first.endswith(", task.max_length=32")
    assert second.endswith(", task.max_length=64")
    alone = load_evidence(tmp_path, sweeps=["short"], records=[], serving=None)
    assert alone.runs is not None
    assert first == f"{alone.runs['setting'].item()}, task.max_length=32"


def test_records_speak_where_nothing_was_trained() -> None:
    names = ["2026-11-26_flagship_reuters_r52", "2026-11-25_flagship_newsgroups"]
    found = load_evidence(RESULTS, sweeps=[], records=[*names, "2026-11-26_papers"], serving=None)
    assert found.runs is not None
    assert found.spectra is not None
    assert sorted(found.runs["setting"].unique()) == [
        "newsgroups, minilm, 2026-11-25_flagship_newsgroups",
        "reuters_r52, minilm, 2026-11-26_flagship_reuters_r52",
    ]
    assert len(found.runs) == 2 * 84
    assert set(found.spectra["run_id"]) < set(found.runs["run_id"])
    assert "lora_table7" in found.papers
    twice = load_evidence(RESULTS, sweeps=[], records=[names[0], names[0]], serving=None)
    assert twice.runs is not None
    assert len(twice.runs) == 84
    with pytest.raises(InputError, match=r"record='none' does not exist; known are .*_papers"):
        load_evidence(RESULTS, sweeps=[], records=["none"], serving=None)


def test_tasks_of_a_record_that_does_not_say_how_it_was_made_stay_apart(tmp_path: Path) -> None:
    tables = tmp_path / "records" / "old" / "tables"
    tables.mkdir(parents=True)
    (tables.parent / "README.md").write_text("# Old")
    news = runs_of().assign(task="news", run_id=runs_of()["run_id"] + "-news")
    pd.concat([runs_of(), news]).to_csv(tables / "runs.csv", index=False)
    found = load_evidence(tmp_path, sweeps=[], records=["old"], serving=None)
    assert found.runs is not None
    assert set(found.runs["setting"]) == {"reviews, tiny, old", "news, tiny, old"}


def test_columns_of_earlier_records_get_their_names_of_now(tmp_path: Path) -> None:
    tables = tmp_path / "records" / "old" / "tables"
    tables.mkdir(parents=True)
    (tables.parent / "README.md").write_text("# Old")
    earlier = {
        "validation_score": "validation_accuracy",
        "test_score": "test_accuracy",
        "train_score": "train_accuracy",
        "chance": "majority_accuracy",
    }
    runs_of().rename(columns=earlier).to_csv(tables / "runs.csv", index=False)
    found = load_evidence(tmp_path, sweeps=[], records=["old"], serving=None)
    assert found.runs is not None
    assert set(found.runs) == set(runs_of())
    assert found.runs["test_score"].tolist() == runs_of()["test_score"].tolist()


def test_records_that_were_trained_alike_are_one_setting() -> None:
    names = ["2026-11-26_flagship_rotten_tomatoes", "2026-11-26_paper_lora_table5"]
    found = load_evidence(RESULTS, sweeps=[], records=names, serving=None)
    assert found.runs is not None
    assert set(found.runs["setting"]) == {f"rotten_tomatoes, minilm, {names[0]}"}
    assert {"query", "mlp"} <= set(found.runs["target"].dropna())
    assert found.runs["run_id"].is_unique
