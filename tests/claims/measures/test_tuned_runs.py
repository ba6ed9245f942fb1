"""Which runs of a configuration claims are checked on, and the verdicts that follow."""

import pandas as pd

from lowrank_study.claims.files import load_claims
from lowrank_study.claims.measures.evidence import tuned_runs
from lowrank_study.claims.verdicts import check_claim
from tests.claims.measures.synthetic import evidence, run, runs_of, spectra_of


def test_a_sweep_of_full_fine_tuning_alone_is_evidence() -> None:
    runs = pd.DataFrame([run("full", seed, 0.9, learning_rate=1e-3) for seed in range(3)])
    worse = pd.DataFrame([run("full", seed, 0.8, learning_rate=1e-2) for seed in range(3)])
    chosen = tuned_runs(evidence(runs=pd.concat([runs, worse], ignore_index=True)))
    assert list(chosen["run_id"]) == list(runs["run_id"])


def test_each_setting_stands_at_its_best_rate() -> None:
    runs = runs_of()
    worse = runs.assign(
        learning_rate=3e-3, validation_score=0.6, test_score=0.99,
        run_id=runs["run_id"] + "-worse",
    )  # fmt: skip
    chosen = tuned_runs(evidence(runs=pd.concat([runs, worse])))
    assert set(chosen["learning_rate"]) == {1e-3}
    assert len(chosen) == len(runs)
    assert set(chosen["method"]) == {"full", "lora"}


def test_a_rate_that_lost_a_run_gives_way_as_in_the_report() -> None:
    runs = runs_of()
    risky = runs.assign(
        learning_rate=3e-3, validation_score=0.99, run_id=runs["run_id"] + "-risky",
        status=["diverged" if seed == 0 else "done" for seed in runs["seed"]],
    )  # fmt: skip
    both = pd.concat([runs, risky], ignore_index=True)
    assert set(tuned_runs(evidence(runs=both))["learning_rate"]) == {1e-3}


def test_a_setting_that_few_seeds_tried_does_not_speak_for_a_rank() -> None:
    tried = [run("lora", 0, 0.99, target="attention_qv", adapter_rank=8, learning_rate=9e-3)]
    both = evidence(runs=pd.concat([runs_of(), pd.DataFrame(tried)]))
    chosen = tuned_runs(both)
    of_rank = chosen[(chosen["target"] == "attention_qv") & (chosen["adapter_rank"] == 8)]
    assert set(of_rank["learning_rate"]) == {1e-3}
    assert len(of_rank) == 5


def test_verdicts_from_runs() -> None:
    claims = {claim.id: claim for claim in load_claims()}
    runs = runs_of()
    found = evidence(runs=runs, spectra=spectra_of(runs))
    verdicts = {
        name: check_claim(claims[name], found).verdict
        for name in ("d002_retention_8_measured", "d002_query_value_best", "d002_energy_rank_90",
                     "biderman2024_half_dimension", "hu2021_table_5_all_ties",
                     "d002_retention_64_measured")
    }  # fmt: skip
    assert verdicts == {
        "d002_retention_8_measured": "fails",
        "d002_query_value_best": "fails",
        "d002_energy_rank_90": "fails",
        "biderman2024_half_dimension": "holds",
        "hu2021_table_5_all_ties": "holds",
        "d002_retention_64_measured": "not tested here",
    }
