"""Claims measured from tables of trained runs: synthetic tables whose answer is known."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lowrank_study.claims.files import load_claims
from lowrank_study.claims.measures.evidence import (
    NO_EVIDENCE,
    Evidence,
    load_evidence,
    tuned_runs,
)
from lowrank_study.claims.measures.intervals import median_interval, student_interval
from lowrank_study.claims.measures.outcome import Interval, Measured, Outcome, Unmeasured
from lowrank_study.claims.measures.rates import best_rate_drift, best_rate_ratio
from lowrank_study.claims.measures.score import (
    energy_kept,
    gap_of_full_minus_lora,
    lora_minus_full,
    overfitting_slope,
    rank_difference,
    retention,
    target_difference,
    truncated_minus_whole,
)
from lowrank_study.claims.measures.serving import serving_ratio
from lowrank_study.claims.measures.update_spectra import (
    full_update,
)
from lowrank_study.claims.verdicts import check_claim
from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.runs.store import RunStore

RESULTS = Path(__file__).parents[3] / "results"
NOISE = (-0.002, 0.001, 0.003, -0.001, -0.001)  # of the seeds, shared by all methods

ANY = (0, None)


def run(method: str, seed: int, accuracy: float, **more: object) -> dict[str, object]:
    rank = more.get("adapter_rank")
    return {
        "run_id": f"{method}-{more.get('target')}-{rank}-{seed}-{more.get('learning_rate', 1e-3)}",
        "task": "reviews", "model": "tiny", "method": method, "adapter_rank": rank,
        "target": None, "alpha": 16.0 if rank else None,
        "scaling": 16.0 / float(str(rank)) if rank else None,
        "learning_rate": 1e-3, "seed": seed, "status": "done", "validation_score": accuracy,
        "validation_loss": 1.0 - accuracy, "test_score": accuracy, "train_score": 0.95,
        "chance": 0.5,
        "adapted_parameters": None, "steps": 100, "setting": "reviews, tiny",
    } | more  # fmt: skip


def runs_of(seeds: int = 5) -> pd.DataFrame:
    """Full 0.90; q,v 0.80 + 0.01 log2 r; all four 0.02 above q,v of the same size."""
    rows = []
    for seed in range(seeds):
        rows.append(run("full", seed, 0.90 + NOISE[seed]))
        for rank in (1, 2, 4, 8, 16):
            accuracy = 0.80 + 0.01 * math.log2(rank) + NOISE[seed]
            rows.append(
                run("lora", seed, accuracy, target="attention_qv", adapter_rank=rank,
                    adapted_parameters=100 * rank)
            )  # fmt: skip
            if rank > 1:
                rows.append(
                    run("lora", seed, accuracy + 0.02 + 0.001 * NOISE[-1 - seed],
                        target="attention_all", adapter_rank=rank // 2,
                        adapted_parameters=100 * rank)
                )  # fmt: skip
    return pd.DataFrame(rows)


def evidence(**parts: pd.DataFrame | None) -> Evidence:
    names = ("runs", "spectra", "rates", "truncation", "serving")
    return Evidence(**{name: parts.get(name) for name in names}, papers={})


def only(outcome: Outcome) -> Interval:
    assert isinstance(outcome, Measured), outcome
    (interval,) = outcome.values
    return interval


def lacking(outcome: Outcome) -> str:
    assert isinstance(outcome, Unmeasured), outcome
    return outcome.why


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


def test_a_sweep_of_full_fine_tuning_alone_is_evidence() -> None:
    runs = pd.DataFrame([run("full", seed, 0.9, learning_rate=1e-3) for seed in range(3)])
    worse = pd.DataFrame([run("full", seed, 0.8, learning_rate=1e-2) for seed in range(3)])
    chosen = tuned_runs(evidence(runs=pd.concat([runs, worse], ignore_index=True)))
    assert list(chosen["run_id"]) == list(runs["run_id"])


def test_differences_between_methods_ranks_and_targets() -> None:
    found = evidence(runs=runs_of())
    best = only(lora_minus_full(found, "attention_qv", [1, 4, 16], "test_score"))
    assert best.value == pytest.approx(-0.06)
    assert only(rank_difference(found, "attention_qv", 16, 2)).value == pytest.approx(0.03)
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
    assert only(gap_of_full_minus_lora(found, "attention_qv", 8)).value == pytest.approx(-0.07)
    two_ranks = runs_of()
    two_ranks = two_ranks[two_ranks["adapter_rank"].isin([1, 2])]
    assert "three ranks" in lacking(overfitting_slope(evidence(runs=two_ranks), "attention_qv"))


def test_what_is_missing_is_said() -> None:
    found = evidence(runs=runs_of())
    assert "LoRA runs on mlp" in lacking(lora_minus_full(found, "mlp", [8], "test_score"))
    assert "r = 64" in lacking(retention(found, "attention_qv", 64, above_chance=True))
    failed = runs_of().assign(status="diverged")
    assert "done" in lacking(retention(evidence(runs=failed), "attention_qv", 8, True))


def test_two_seeds_decide_nothing() -> None:
    interval = only(rank_difference(evidence(runs=runs_of(2)), "attention_qv", 16, 2))
    assert (interval.low, interval.high) == (-math.inf, math.inf)


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


def test_two_tasks_share_the_level() -> None:
    one = runs_of()
    generator = np.random.default_rng(0)
    one["test_score"] += generator.normal(0, 0.01, len(one))
    both = pd.concat(
        [one, one.assign(task="news", setting="news, tiny", run_id="n" + one["run_id"])]
    )
    single = only(rank_difference(evidence(runs=one), "attention_qv", 16, 2))
    outcome = rank_difference(evidence(runs=both), "attention_qv", 16, 2)
    assert isinstance(outcome, Measured)
    assert [value.label for value in outcome.values] == ["news, tiny", "reviews, tiny"]
    assert "97.5 % interval over 5 seeds" in outcome.how
    assert outcome.values[0].high - outcome.values[0].low > single.high - single.low


def test_intervals_cover() -> None:
    generator = np.random.default_rng(1)
    draws = generator.normal(3.0, 2.0, (4000, 5))
    means = [student_interval(row, confidence=0.95, label="") for row in draws]
    medians = [median_interval(row, label="") for row in generator.normal(3.0, 2.0, (2000, 15))]
    assert np.mean([i.low <= 3 <= i.high for i in means]) == pytest.approx(0.95, abs=0.015)
    assert 0.95 <= np.mean([i.low <= 3 <= i.high for i in medians]) <= 0.985
    assert math.isinf(median_interval([1.0, 2.0, 3.0], label="").high)


# ---------------------------------------------------------------- rates

GRID = tuple(10.0**k for k in (-4.0, -3.5, -3.0, -2.5, -2.0))


def tuning(best: dict[int | None, float], seeds: int = 4) -> pd.DataFrame:
    """Validation accuracy falls by .05 a grid step from the best rate of each rank (None: full)."""
    rows = []
    for rank, top in best.items():
        for rate in GRID:
            for seed in range(seeds):
                accuracy = 0.9 - 0.1 * abs(math.log10(rate / top)) + NOISE[seed]
                method = "lora" if rank else "full"
                rows.append(
                    run(method, seed, accuracy, learning_rate=rate, adapter_rank=rank,
                        target="attention_qv" if rank else None)
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_the_ratio_of_best_rates_is_as_wide_as_the_grid() -> None:
    found = evidence(rates=tuning({None: 10**-3.5, 8: 10**-2.5}))
    interval = only(best_rate_ratio(found, "attention_qv", 8, "alpha_over_rank", ANY))
    assert interval.value == pytest.approx(10)
    assert interval.low == pytest.approx(10**0.5)
    assert interval.high == pytest.approx(10**1.5)


def test_a_ratio_is_of_runs_of_so_many_steps() -> None:
    found = evidence(rates=tuning({None: 10**-3.5, 8: 10**-2.5}))
    why = lacking(best_rate_ratio(found, "attention_qv", 8, "alpha_over_rank", (101, None)))
    assert why == "needs tuning runs of 101 steps or more"


def test_a_best_rate_at_the_end_of_the_grid_is_open() -> None:
    found = evidence(rates=tuning({None: 10**-3.5, 8: 1e-2}))
    interval = only(best_rate_ratio(found, "attention_qv", 8, "alpha_over_rank", ANY))
    assert math.isinf(interval.high)
    few = evidence(rates=tuning({None: 10**-3.5, 8: 10**-2.5}, seeds=2))
    interval = only(best_rate_ratio(few, "attention_qv", 8, "alpha_over_rank", ANY))
    assert (interval.low, interval.high) == (0.0, math.inf)


def test_drift_over_ranks() -> None:
    steady = evidence(rates=tuning({1: 1e-3, 8: 1e-3, 64: 1e-3}))
    interval = only(best_rate_drift(steady, "attention_qv", "alpha_over_rank", [1, 8, 64]))
    assert (interval.value, interval.low) == (1.0, 1.0)
    assert interval.high == pytest.approx(10**0.5)
    drifting = evidence(rates=tuning({1: 10**-3.5, 8: 1e-3, 64: 10**-2.5}))
    interval = only(best_rate_drift(drifting, "attention_qv", "alpha_over_rank", [1, 8, 64]))
    assert interval.value == pytest.approx(10)
    assert interval.low == pytest.approx(10**0.5)
    why = lacking(best_rate_drift(drifting, "attention_qv", "twice_rank", [1, 64]))
    assert "twice_rank" in why
    assert "alpha_over_sqrt_rank" in lacking(
        best_rate_drift(
            evidence(rates=tuning({64: 1e-3})), "attention_qv", "alpha_over_sqrt_rank", [64]
        )
    )


# ---------------------------------------------------------------- spectra and truncation


def spectra_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Full updates have energy rank 100 of 200, LoRA's half their adapter rank."""
    rows = []
    for row in runs.to_dict("records"):
        lora = row["method"] == "lora"
        for layer, resolvable in ((0, True), (1, True), (2, False)):
            rank = row["adapter_rank"] / 2 if lora else 100.0 + row["seed"] + layer
            rows.append({
                "run_id": row["run_id"], "module": f"layer.{layer}.query", "layer": layer,
                "role": "query", "out_features": 200, "in_features": 300, "resolvable": resolvable,
                "energy_rank_90": rank if resolvable else 1e6,
            })  # fmt: skip
    return pd.DataFrame(rows)


def test_spectra_of_resolvable_layers() -> None:
    runs = runs_of()
    found = evidence(runs=runs, spectra=spectra_of(runs))
    mean = only(full_update(found, "energy_rank_90", ["query"], over=None))
    assert mean.value == pytest.approx(102.5)
    share = only(full_update(found, "energy_rank_90", None, over="dimension"))
    assert share.value == pytest.approx(102.5 / 200)
    first = only(full_update(found, "energy_rank_90", None, over=None, layer="first"))
    last = only(full_update(found, "energy_rank_90", None, over=None, layer="last"))
    assert (first.value, last.value) == (pytest.approx(102.0), pytest.approx(103.0))
    assert "a column stable_rank" in lacking(full_update(found, "stable_rank", None, None))
    assert "full fine-tuning" in lacking(full_update(found, "energy_rank_90", ["key"], None))


def test_a_claim_on_one_task_is_held_against_it_alone() -> None:
    runs = pd.concat([runs_of(), runs_of().assign(task="news", setting="news, tiny")])
    found = evidence(runs=runs)
    both = lora_minus_full(found, "attention_qv", [8], "test_score")
    assert isinstance(both, Measured)
    assert len(both.values) == 2
    one = only(lora_minus_full(found, "attention_qv", [8], "test_score", task="news"))
    assert one.label == "news, tiny"
    none = lora_minus_full(found, "attention_qv", [8], "test_score", task="chess")
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
    assert only(truncated_minus_whole(found, 6)).value == pytest.approx(-0.03)
    assert "to rank 200" in lacking(truncated_minus_whole(found, 200))
    assert only(energy_kept(found, 6)).value == pytest.approx(0.94)
    assert "to rank 8" in lacking(energy_kept(found, 8))
    of_layers = evidence(runs=runs, truncation=table.assign(scope="layer"))
    assert "cut to a rank in every matrix" in lacking(energy_kept(of_layers, 6))


def test_serving_is_a_median_of_paired_ratios() -> None:
    rounds = pd.DataFrame({"base": np.arange(1.0, 22.0), "merged": np.arange(1.0, 22.0) * 1.02})
    interval = only(serving_ratio(evidence(serving=rounds), "merged", "base"))
    assert (interval.value, interval.low) == (pytest.approx(1.02), pytest.approx(1.02))
    assert "times of loop" in lacking(serving_ratio(evidence(serving=rounds), "loop", "base"))


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


# ---------------------------------------------------------------- loading


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
    with pytest.raises(InputError, match=r"record='none': .* known are .*_papers"):
        load_evidence(RESULTS, sweeps=[], records=["none"], serving=None)


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


def test_tasks_of_a_record_that_does_not_say_how_it_was_made_stay_apart(tmp_path: Path) -> None:
    tables = tmp_path / "records" / "old" / "tables"
    tables.mkdir(parents=True)
    (tables.parent / "README.md").write_text("# Old")
    news = runs_of().assign(task="news", run_id=runs_of()["run_id"] + "-news")
    pd.concat([runs_of(), news]).to_csv(tables / "runs.csv", index=False)
    found = load_evidence(tmp_path, sweeps=[], records=["old"], serving=None)
    assert found.runs is not None
    assert set(found.runs["setting"]) == {"reviews, tiny, old", "news, tiny, old"}


def test_records_that_were_trained_alike_are_one_setting() -> None:
    names = ["2026-11-26_flagship_rotten_tomatoes", "2026-11-26_paper_lora_table5"]
    found = load_evidence(RESULTS, sweeps=[], records=names, serving=None)
    assert found.runs is not None
    assert set(found.runs["setting"]) == {f"rotten_tomatoes, minilm, {names[0]}"}
    assert {"query", "mlp"} <= set(found.runs["target"].dropna())
    assert found.runs["run_id"].is_unique
