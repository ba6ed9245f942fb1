"""Claims on scores: retention, differences, overfitting and truncated updates."""

import math

import numpy as np
import pandas as pd
import pytest

from lowrank_study.claims.measures.evidence import Evidence
from lowrank_study.claims.measures.outcome import Measured, Outcome
from lowrank_study.claims.measures.score import (
    overfitting_slope,
    retention,
    score_difference,
    target_difference,
    truncated_update,
)
from lowrank_study.errors import InputError
from tests.claims.measures.synthetic import evidence, lacking, only, run, runs_of

QV = {"target": "attention_qv"}


def ranks_apart(found: Evidence) -> Outcome:
    return score_difference(found, QV | {"ranks": [16]}, QV | {"ranks": [2]})


def test_retention_is_corrected_for_chance_and_paired_by_seed() -> None:
    found = evidence(runs=runs_of())
    plain = only(retention(found, "attention_qv", 8, above_chance=False))
    above = only(retention(found, "attention_qv", 8, above_chance=True))
    assert plain.value == pytest.approx(0.83 / 0.90, abs=1e-3)
    assert above.value == pytest.approx(0.33 / 0.40, abs=1e-3)
    assert above.high - above.low < 0.01
    assert above.label == "reviews, tiny"


def test_retention_near_chance_is_the_ratio_of_means() -> None:
    """A mean of ratios would be 2.7 here: one seed of full fine-tuning is near chance."""
    pairs = zip((0.505, 0.60, 0.62, 0.61, 0.60), (0.55, 0.58, 0.60, 0.60, 0.59), strict=True)
    rows = [
        each
        for seed, (full, lora) in enumerate(pairs)
        for each in (
            run("full", seed, full),
            run("lora", seed, lora, target="attention_qv", adapter_rank=8),
        )
    ]
    found = only(retention(evidence(runs=pd.DataFrame(rows)), "attention_qv", 8, above_chance=True))
    assert found.value == pytest.approx(0.42 / 0.435)
    assert found.low < found.value < found.high


def test_differences_between_methods_ranks_and_targets() -> None:
    found = evidence(runs=runs_of())
    best = only(score_difference(found, QV | {"ranks": [1, 4, 16]}, "full"))
    assert best.value == pytest.approx(-0.06)
    assert only(ranks_apart(found)).value == pytest.approx(0.03)
    targets = target_difference(found, "attention_all", "attention_qv", budget=1, slack=0.05)
    assert only(targets).value == pytest.approx(0.02, abs=1e-4)
    assert isinstance(targets, Measured)
    assert "over ranks 1 and 2, 2 and 4, 4 and 8, 8 and 16; 95 % interval over 5" in targets.how
    double = target_difference(found, "attention_all", "attention_qv", budget=2, slack=0.05)
    assert only(double).value == pytest.approx(0.03, abs=1e-4)
    assert "in the ratio 3" in lacking(
        target_difference(found, "attention_all", "attention_qv", budget=3, slack=0.05)
    )


def test_overfitting_against_rank_and_against_full() -> None:
    found = evidence(runs=runs_of())
    assert only(overfitting_slope(found, "attention_qv")).value == pytest.approx(-0.01)
    assert only(
        score_difference(found, "full", QV | {"ranks": [8]}, of="overfitting")
    ).value == pytest.approx(-0.07)
    two_ranks = runs_of()
    two_ranks = two_ranks[two_ranks["adapter_rank"].isin([1, 2])]
    assert "three ranks" in lacking(overfitting_slope(evidence(runs=two_ranks), "attention_qv"))


def test_what_is_missing_is_said() -> None:
    found = evidence(runs=runs_of())
    assert "LoRA runs on mlp" in lacking(
        score_difference(found, {"target": "mlp", "ranks": [8]}, "full")
    )
    assert "r = 64" in lacking(retention(found, "attention_qv", 64, above_chance=True))
    failed = runs_of().assign(status="diverged")
    assert "done" in lacking(retention(evidence(runs=failed), "attention_qv", 8, True))


def test_two_seeds_decide_nothing() -> None:
    interval = only(ranks_apart(evidence(runs=runs_of(2))))
    assert (interval.low, interval.high) == (-math.inf, math.inf)


def test_two_tasks_share_the_level() -> None:
    one = runs_of()
    generator = np.random.default_rng(0)
    one["test_score"] += generator.normal(0, 0.01, len(one))
    both = pd.concat(
        [one, one.assign(task="news", setting="news, tiny", run_id="n" + one["run_id"])]
    )
    single = only(ranks_apart(evidence(runs=one)))
    outcome = ranks_apart(evidence(runs=both))
    assert isinstance(outcome, Measured)
    assert [value.label for value in outcome.values] == ["news, tiny", "reviews, tiny"]
    assert "97.5 % interval over 5 seeds" in outcome.how
    assert outcome.values[0].high - outcome.values[0].low > single.high - single.low


def test_a_claim_on_one_task_is_held_against_it_alone() -> None:
    runs = pd.concat([runs_of(), runs_of().assign(task="news", setting="news, tiny")])
    found = evidence(runs=runs)
    both = score_difference(found, QV | {"ranks": [8]}, "full")
    assert isinstance(both, Measured)
    assert len(both.values) == 2
    one = only(score_difference(found, QV | {"ranks": [8]}, "full", task="news"))
    assert one.label == "news, tiny"
    none = score_difference(found, QV | {"ranks": [8]}, "full", task="chess")
    assert "trained runs on chess" in lacking(none)


def test_truncated_updates() -> None:
    runs = runs_of()
    ids = runs[runs["method"] == "full"][["run_id", "task", "seed"]].to_dict("records")
    table = pd.DataFrame(
        {"run_id": r["run_id"], "task": r["task"], "scope": "all", "kept_rank": kept,
         "test_score": 0.9 - loss + 0.001 * r["seed"], "energy_kept": 1 - 2 * loss}
        for r in ids for kept, loss in ((0, 0.4), (6, 0.03), (200, 0.0))
    )  # fmt: skip
    found = evidence(runs=runs, truncation=table)
    assert only(truncated_update(found, 6, "test_score")).value == pytest.approx(-0.03)
    assert "to rank 200" in lacking(truncated_update(found, 200, "test_score"))
    assert only(truncated_update(found, 6, "energy_kept")).value == pytest.approx(0.94)
    assert "to rank 8" in lacking(truncated_update(found, 8, "energy_kept"))
    of_layers = evidence(runs=runs, truncation=table.assign(scope="layer"))
    assert "truncated in every matrix" in lacking(truncated_update(of_layers, 6, "energy_kept"))


def test_a_column_that_does_not_exist_is_named() -> None:
    for measure, arguments in ((score_difference, ("full", "full")), (truncated_update, (8,))):
        with pytest.raises(InputError, match="of='speed': valid are test_score"):
            measure(evidence(runs=runs_of()), *arguments, of="speed")
