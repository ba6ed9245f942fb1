"""Check how runs are paired and which rank is found sufficient."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.simulation import EXAMPLES, simulated
from lowrank_study.answers.looks import Looks
from lowrank_study.answers.paired_scores import TRUNCATED, paired_with_full
from lowrank_study.answers.statistics import ERROR, mean_score, paired_difference
from lowrank_study.answers.sufficient_rank import (
    COMPARISON_COLUMNS,
    RankTest,
    against_full,
    rank_tests,
)
from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.methods.full import FullFineTuning
from lowrank_study.methods.lora import Lora
from lowrank_study.results import truncation_file
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spec import RunSpec

LABELS = np.array([0, 1, 1, 0, 1] * 40)


@pytest.fixture
def lora() -> RunSpec:
    return compose("method=lora", "method.rank=4")


class Runs:
    """Ended runs in a folder with made-up predictions."""

    def __init__(self, folder: Path, lora: RunSpec) -> None:
        self.folder, self.lora = folder, lora
        self.made: list[TrainedRun] = []

    def add(
        self,
        seed: int,
        wrong: Sequence[int] | None,
        *,
        rank: int | None,
        status: str = "done",
        labels: np.ndarray = LABELS,
    ) -> TrainedRun:
        assert isinstance(self.lora.method, Lora)
        method = (
            FullFineTuning(learning_rate=1e-4)
            if rank is None
            else dataclasses.replace(self.lora.method, rank=rank)
        )
        spec = dataclasses.replace(self.lora, method=method, seed=seed)
        folder = self.folder / spec.run_id
        folder.mkdir()
        if wrong is not None:
            predicted = labels.copy()
            predicted[list(wrong)] = 1 - predicted[list(wrong)]
            table = pd.DataFrame({"label": labels, "predicted": predicted, "loss": 0.5})
            table.to_parquet(folder / "predictions.parquet")
        run = TrainedRun(spec=spec, status=status, record={}, folder=folder)
        self.made.append(run)
        return run


@pytest.fixture
def runs(tmp_path: Path, lora: RunSpec) -> Runs:
    return Runs(tmp_path, lora)


def test_runs_are_paired_by_seed_and_example(runs: Runs) -> None:
    runs.add(1, [0, 1], rank=4)
    runs.add(0, [5, 6, 7], rank=4)
    runs.add(0, [7], rank=None)
    runs.add(1, [1, 2], rank=None)
    [pairs] = paired_with_full(runs.made)
    assert (pairs.seeds, pairs.adapter_rank, pairs.chance) == ((0, 1), 4, 0.6)
    expected = np.zeros((2, len(LABELS)), dtype=int)
    expected[0, [5, 6]] = -1
    expected[1, 0], expected[1, 2] = -1, 1
    np.testing.assert_array_equal(pairs.difference_SE, expected)
    assert pairs.full_SE.sum(axis=1).tolist() == [199, 198]


def test_a_pair_needs_both_runs_with_their_predictions(runs: Runs) -> None:
    for seed in range(5):
        runs.add(seed, None if seed == 1 else [seed], rank=None)
        if seed != 2:
            status = "diverged" if seed == 3 else "done"
            runs.add(seed, None if seed == 3 else [0], rank=4, status=status)
    [pairs] = paired_with_full(runs.made)
    assert pairs.seeds == (0, 4)


def test_without_full_fine_tuning_nothing_is_compared(runs: Runs) -> None:
    runs.add(0, [0], rank=4)
    assert paired_with_full(runs.made) == []
    table = against_full(runs.made, margin=0.02)
    assert list(table.columns) == list(COMPARISON_COLUMNS)
    assert table.empty


def test_a_lower_score_can_be_better(runs: Runs) -> None:
    runs.add(0, [0, 1, 2], rank=None)
    runs.add(0, [0, 1, 2, 3, 4], rank=4)
    [pairs] = paired_with_full(runs.made)
    error = dataclasses.replace(
        pairs,
        metric=dataclasses.replace(pairs.metric, higher_is_better=False),
        adapter_SE=1 - pairs.adapter_SE,
        full_SE=1 - pairs.full_SE,
        base_E=1 - pairs.base_E,
    )
    np.testing.assert_allclose(error.difference_SE, pairs.difference_SE)
    assert error.retention().ratio == pytest.approx(pairs.retention().ratio)


def test_other_test_examples_are_refused(runs: Runs) -> None:
    mine = runs.add(0, [0], rank=4, labels=LABELS[:-5])
    runs.add(0, [0], rank=None)
    with pytest.raises(InputError, match=f"{mine.spec.run_id}.*tested on different"):
        paired_with_full(runs.made)


def test_a_split_that_differs_between_seeds_is_refused(runs: Runs) -> None:
    # A column holds one example over all seeds.
    for seed, labels in enumerate((LABELS, LABELS[::-1])):
        for rank in (4, None):
            runs.add(seed, [0], rank=rank, labels=labels)
    with pytest.raises(InputError, match="tested on different examples"):
        paired_with_full(runs.made)


def test_predictions_that_cannot_be_read_are_named(runs: Runs) -> None:
    runs.add(0, [0], rank=4)
    broken = runs.add(0, [0], rank=None).folder / "predictions.parquet"
    broken.write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=f"{broken} can't be read"):
        paired_with_full(runs.made)
    pd.DataFrame({"label": LABELS}).to_parquet(broken)
    with pytest.raises(InputError, match="can't be read"):
        paired_with_full(runs.made)


def test_every_rank_has_a_row(runs: Runs) -> None:
    rng = np.random.default_rng(0)
    for seed in range(6):
        hard = list(range(20 + seed))
        runs.add(seed, hard, rank=None)
        runs.add(seed, [*hard, *range(60, 100)], rank=1)
        runs.add(seed, [*hard, 60 + int(rng.integers(9))], rank=8)
        runs.add(seed, None, rank=2, status="failed")
    table = against_full(runs.made, margin=0.05)
    assert list(table["adapter_rank"]) == [1, 2, 8]
    assert list(table["decision"]) == ["inferior", "open", "sufficient"]
    assert list(table["seeds"]) == [6, 0, 6]
    assert list(table["lost"]) == [0, 6, 0]
    one, two, eight = table.to_dict("records")
    assert one["difference"] == pytest.approx(-0.2)
    pairs = paired_with_full(runs.made)[2]
    estimate = paired_difference(pairs.difference_SE)
    assert (eight["low_95"], eight["high_95"]) == estimate.interval()
    assert (eight["lower_limit"], eight["upper_limit"]) == estimate.interval(0.9)
    accuracy = mean_score(pairs.adapter_SE)
    assert (eight["score_low_95"], eight["score_high_95"]) == accuracy.interval()
    full = 1 - 22.5 / 200
    assert eight["score"] == pytest.approx(full - 0.005)
    assert eight["retention"] == pytest.approx((full - 0.005 - 0.6) / (full - 0.6))
    assert eight["retention_bounded"]
    assert eight["retention_low_95"] < eight["retention"] < eight["retention_high_95"]
    assert np.isnan([two["difference"], two["lower_limit"], two["retention"]]).all()
    assert not two["retention_bounded"]


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.02, float("nan")])
def test_a_margin_is_a_share(runs: Runs, margin: float) -> None:
    runs.add(0, [0], rank=None)
    runs.add(0, [0], rank=4)
    with pytest.raises(InputError, match=r"margin=.*give a share between 0 and 1"):
        against_full(runs.made, margin=margin)


def test_truncated_updates_are_tested_against_the_whole_update(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    runs = []
    for seed in range(4):
        spec = compose("method=full", f"seed={seed}")
        record = {
            "validation": {"accuracy": 0.8, "loss": 0.5},
            "test": {"accuracy": 0.8, "majority_accuracy": 0.5},
        }
        runs.append(TrainedRun(spec=spec, status="done", record=record, folder=tmp_path))
        labels = np.arange(500) % 2
        whole = np.where(rng.random(500) < 0.8, labels, 1 - labels)
        by_rank = {0: np.zeros(500, int), 1: np.where(rng.random(500) < 0.6, labels, 1 - labels)}
        rows = [
            pd.DataFrame(
                {
                    "scope": "all",
                    "part": "",
                    "kept_rank": kept,
                    "example": np.arange(500),
                    "label": labels,
                    "predicted": predicted,
                }
            )
            for kept, predicted in (by_rank | {8: whole, 384: whole}).items()
        ]
        path = truncation_file(tmp_path, spec.run_id)
        path.parent.mkdir(exist_ok=True)
        pd.concat(rows).to_parquet(path)
    table = against_full(runs, margin=0.02, results=tmp_path).set_index("adapter_rank")
    assert list(table["method"]) == [TRUNCATED] * 3
    assert list(table["decision"]) == ["inferior", "inferior", "sufficient"]
    assert table.loc[8, "difference"] == 0.0
    assert table.loc[0, "score"] == 0.5
    assert against_full(runs, margin=0.02).empty


# ---------------------------------------------------------------- the sequence of tests


def made_differences(means: dict[int, float], seeds: int = 6) -> dict[int, np.ndarray]:
    """Return differences with exactly these means; seeds deviate by ± 0.2 points."""
    made = {}
    for rank, mean in means.items():
        made[rank] = np.zeros((seeds, EXAMPLES))
        for seed in range(seeds):
            changed = round(EXAMPLES * mean) + (2 if seed % 2 else -2)
            made[rank][seed, : abs(changed)] = np.sign(changed)
    return made


def decisions(tests: list[RankTest]) -> dict[int, str]:
    return {test.rank: test.decision for test in tests}


def bounds(tests: list[RankTest]) -> tuple[int | None, int | None]:
    """Return the lowest rank not shown inferior and the smallest shown sufficient."""
    lowest = next((test.rank for test in tests if test.decision != "inferior"), None)
    return lowest, next((test.rank for test in tests if test.decision == "sufficient"), None)


def test_the_answer_is_an_interval_of_ranks() -> None:
    means = {1: -0.06, 2: -0.05, 4: -0.021, 8: -0.015, 16: -0.004, 32: -0.002}
    found = rank_tests(made_differences(means), margin=0.02)
    assert decisions(found) == {
        1: "inferior",
        2: "inferior",
        4: "open",
        8: "open",
        16: "sufficient",
        32: "sufficient",
    }
    assert bounds(found) == (4, 16)
    for test in found:
        assert (test.low, test.high) == test.difference.interval(0.90)
        assert test.difference.mean == pytest.approx(means[test.rank])
        assert test.seeds == 6


def test_the_sequences_stop_at_the_first_that_fails() -> None:
    means = {1: -0.02, 2: -0.06, 4: -0.001, 8: -0.02, 16: -0.001}
    found = rank_tests(made_differences(means), margin=0.02)
    assert decisions(found) == {1: "open", 2: "open", 4: "open", 8: "open", 16: "sufficient"}
    assert bounds(found) == (1, 16)


def test_either_bound_may_be_open() -> None:
    none = rank_tests(made_differences({1: -0.02, 2: -0.02}), margin=0.02)
    assert bounds(none) == (1, None)
    above = rank_tests(made_differences({1: -0.08, 2: -0.07}), margin=0.02)
    assert bounds(above) == (None, None)
    every = rank_tests(made_differences({1: 0.0, 2: 0.0}), margin=0.02)
    assert bounds(every) == (1, 1)


def test_a_rank_that_cannot_be_tested_ends_the_sequence() -> None:
    differences = made_differences({1: -0.08, 2: -0.07, 4: 0.0, 8: 0.0})
    for rank in (1, 8):
        differences[rank] = differences[rank][:1]
    found = rank_tests(differences, margin=0.02)
    assert set(decisions(found).values()) == {"open"}
    assert bounds(found) == (1, None)
    assert math.isnan(found[-1].low)


def test_a_rank_that_lost_runs_does_not_suffice() -> None:
    differences = made_differences({1: -0.08, 4: 0.0, 8: 0.0, 16: 0.0})
    found = rank_tests(differences, margin=0.02, lost=[4])
    assert decisions(found) == {1: "inferior", 4: "open", 8: "sufficient", 16: "sufficient"}
    assert rank_tests(differences, margin=0.02, lost=[16])[-1].decision == "open"


# ---------------------------------------------------------------- looks

LOOKS = Looks(seeds=(4, 6, 12), spending="obrien_fleming")


def stops(differences: dict[int, np.ndarray], lost: Sequence[int] = ()) -> dict[int, str]:
    tests = rank_tests(differences, margin=0.02, looks=LOOKS, lost=lost)
    return {test.rank: test.stop for test in tests}


def test_the_limits_are_the_tightest_of_all_looks() -> None:
    x_SE = made_differences({8: -0.015}, seeds=7)[8]
    [found] = rank_tests({8: x_SE}, margin=0.02, looks=LOOKS)
    estimates = [paired_difference(x_SE[:count]) for count in (4, 6)]
    ends = [
        estimate.interval(1 - 2 * level)
        for estimate, level in zip(estimates, LOOKS.levels(ERROR), strict=False)
    ]
    assert (found.low, found.high) == (max(low for low, _ in ends), min(high for _, high in ends))
    assert (found.seeds, found.looks, found.difference) == (6, 2, estimates[1])


def test_a_rank_passes_at_an_earlier_look_and_keeps_its_bound() -> None:
    x_SE = made_differences({8: 0.0}, seeds=12)[8]
    x_SE[4:, :28] = -1
    [early] = rank_tests({8: x_SE[:4]}, margin=0.02, looks=LOOKS)
    [late] = rank_tests({8: x_SE}, margin=0.02, looks=LOOKS)
    assert early.decision == late.decision == "sufficient"
    assert late.difference.interval(1 - 2 * LOOKS.levels(ERROR)[-1])[0] < -0.02


def test_seeds_stop_at_a_decided_rank_and_after_the_last_look() -> None:
    first = made_differences({1: -0.3, 2: -0.025, 4: -0.012, 8: 0.0}, seeds=4)
    assert stops(first) == {1: "decided", 2: "", 4: "", 8: "decided"}
    last = {**first, **made_differences({2: -0.0205, 4: -0.0195}, seeds=12)}
    assert stops(last) == {1: "decided", 2: "no seeds left", 4: "no seeds left", 8: "decided"}


def test_seeds_stop_if_all_of_them_are_unlikely_to_decide() -> None:
    at_half = made_differences({4: -0.0195, 8: -0.014}, seeds=6)
    assert stops(at_half) == {4: "unlikely to be decided", 8: ""}
    assert stops({4: at_half[4][:4]}) == {4: ""}  # too early to tell


def test_seeds_stop_at_a_rank_that_neither_sequence_reaches() -> None:
    open_between = made_differences({1: 0.0, 2: -0.02, 4: -0.3}, seeds=4)
    assert stops(open_between) == {1: "decided", 2: "out of reach", 4: "decided"}
    assert stops(made_differences({1: -0.3, 2: -0.02, 4: -0.3}, seeds=4))[2] == ""
    below_lost = made_differences({1: 0.0, 2: -0.02, 4: 0.0}, seeds=4)
    assert stops(below_lost)[2] == ""
    assert stops(below_lost, lost=[4])[2] == "out of reach"


@pytest.mark.slow
@pytest.mark.parametrize(("full", "seed_sd"), [(0.78, 0.007), (0.9, 0.004)])
def test_null_sweeps_are_wrongly_declared_at_most_one_in_twenty(
    full: float, seed_sd: float
) -> None:
    margin, ranks, sweeps = 0.02, [1, 2, 4, 8, 16, 32, 64, 128], 2000
    accuracies = [full, *[full - margin] * len(ranks)]
    sufficient = inferior = 0
    for correct in simulated(sweeps=sweeps, seeds=6, accuracies=accuracies, seed_sd=seed_sd):
        whole = correct[0].astype(np.int8)
        found = rank_tests(
            {rank: run - whole for rank, run in zip(ranks, correct[1:], strict=True)}, margin=margin
        )
        sufficient += found[-1].decision == "sufficient"
        inferior += found[0].decision == "inferior"
    # The 99 % quantile of the count at an error rate of 5 %.
    bound = stats.binom.ppf(0.99, sweeps, ERROR)
    assert sufficient <= bound
    assert inferior <= bound


def test_a_true_loss_of_nothing_is_found_sufficient() -> None:
    found = [
        rank_tests({8: run.astype(int) - full}, margin=0.02)[0].decision
        for full, run in simulated(sweeps=200, seeds=6, accuracies=[0.9, 0.9], seed_sd=0.003)
    ]
    assert found.count("sufficient") > 150
