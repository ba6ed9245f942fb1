"""Curves of made-up runs, with onsets that can be read off by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lowrank_study.answers.curves import curves_table, falls_behind, mean_curves
from lowrank_study.config.run import compose
from lowrank_study.runs.store import TrainedRun
from lowrank_study.tasks.metric import NATS_PER_TOKEN, Margin

TEN_PERCENT = Margin(points=0.0, share=0.1)
BASE = 2.0
FULL = (1.6, 1.3, 1.1, 1.0)
"""Losses of full fine-tuning: a gain of 1 nat, so the margin is 0.1."""
ZEROS = (0.0, 0.0, 0.0, 0.0)


def made_up(
    gaps: dict[int, tuple[float, ...]], *, seeds: int = 3, noise: float = 0.01, base: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return curves and runs; `gaps` are the losses of each rank minus full fine-tuning's."""
    curves, runs = [], []
    for rank, gap in [(None, ZEROS), *gaps.items()]:
        for seed in range(seeds):
            run_id = f"{rank}-{seed}"
            runs.append(
                {
                    "run_id": run_id,
                    "task": "a",
                    "model": "b",
                    "method": "lora" if rank else "full",
                    "target": "all" if rank else "",
                    "adapter_rank": rank,
                    "seed": seed,
                }
            )
            points = list(enumerate(np.add(FULL, gap) + 0.2 * seed, start=1))
            if rank is None and base:
                points = [(0, BASE + 0.2 * seed), *points]
            curves += [
                {
                    "run_id": run_id,
                    "step": 10 * step,
                    "predicted_tokens": 1000 * step + seed,
                    "epochs": step / 4,
                    "rate_share": 1 - step / 5,
                    "validation_score": loss + (noise * (seed - 1) if rank else 0.0),
                }
                for step, loss in points
            ]
    return pd.DataFrame(curves), pd.DataFrame(runs).astype({"adapter_rank": "Int64"})


def behind(
    gap: tuple[float, ...], *, margin: Margin = TEN_PERCENT, **more: object
) -> dict[str, object]:
    curves, runs = made_up({4: gap}, **more)  # type: ignore[arg-type]
    [row] = falls_behind(curves, runs, margin=margin, metric=NATS_PER_TOKEN).to_dict("records")
    return row


def test_a_rank_falls_behind_where_its_gap_exceeds_the_margin() -> None:
    row = behind((0.0, 0.05, 0.2, 0.4))
    assert row["margin"] == pytest.approx(0.1)
    assert row["difference"] == pytest.approx(-0.4)
    # The half width is t(0.975, 2) · 0.01 / √3 = 0.025: only the sign of 0.2 and 0.4 is shown.
    assert [row["behind_from"], row["behind_from_low_95"], row["behind_from_high_95"]] == [3001] * 3
    assert row["seeds"] == 3
    assert np.isnan(row["caught_up_at"])


def test_the_limits_are_where_being_behind_is_possible_and_shown() -> None:
    row = behind((0.0, 0.09, 0.11, 0.4))
    assert row["behind_from_low_95"] == 2001
    assert row["behind_from"] == 3001
    assert row["behind_from_high_95"] == 4001


def test_a_rank_that_catches_up_is_not_behind() -> None:
    row = behind((0.3, 0.2, 0.0, 0.0))
    assert np.isnan(row["behind_from"])
    assert np.isnan(row["behind_from_high_95"])
    assert row["caught_up_at"] == 3001


def test_a_rank_that_is_never_behind_has_no_tokens() -> None:
    row = behind(ZEROS)
    assert np.isnan([row["behind_from"], row["caught_up_at"], row["behind_from_low_95"]]).all()
    assert (row["first_tokens"], row["last_tokens"]) == (1001, 4001)


def test_one_seed_has_no_interval() -> None:
    row = behind((0.2, 0.2, 0.2, 0.2), seeds=1)
    assert row["behind_from"] == 1000
    assert np.isnan([row["behind_from_low_95"], row["behind_from_high_95"]]).all()


def test_a_share_of_the_gain_needs_the_base_model() -> None:
    curves, runs = made_up({4: ZEROS}, base=False)
    assert not len(falls_behind(curves, runs, margin=TEN_PERCENT, metric=NATS_PER_TOKEN))
    fixed = behind((0.0, 0.05, 0.2, 0.4), base=False, margin=Margin(points=0.3, share=0.0))
    assert fixed["behind_from"] == 4001


def test_the_limits_hold_the_onset() -> None:
    """The gap grows by 0.04 an evaluation, so it exceeds 0.1 from the third one on."""
    rng, ranks = np.random.default_rng(0), range(1, 301)
    curves, runs = made_up(dict.fromkeys(ranks, (0.04, 0.08, 0.12, 0.16)), noise=0.0)
    adapters = ~curves["run_id"].str.startswith("None")
    of_run = dict(zip(runs["run_id"], rng.normal(0, 0.02, len(runs)), strict=True))
    noise = curves["run_id"].map(of_run) + rng.normal(0, 0.01, len(curves))
    curves.loc[adapters, "validation_score"] += noise
    table = falls_behind(curves, runs, margin=TEN_PERCENT, metric=NATS_PER_TOKEN)
    assert len(table) == len(ranks)
    below = (table["behind_from_high_95"] < 3001).mean()
    above = 1 - (table["behind_from_low_95"] <= 3001).mean()
    # 2.5 % and, at most, 2.5 % for each of the two later evaluations, plus four standard errors
    assert below < 0.025 + 0.036
    assert above < 0.05 + 0.05
    assert table["behind_from_high_95"].notna().any(), "so that the limits say something"


def test_mean_curves_pair_seeds_with_full_fine_tuning() -> None:
    curves, runs = made_up({1: (0.1,) * 4, 4: ZEROS})
    table = mean_curves(curves, runs)
    assert len(table) == 5 + 2 * 4
    rank = table[table["adapter_rank"] == 1]
    assert rank["mean_difference"].tolist() == pytest.approx([0.1] * 4)
    assert rank["mean_validation_score"].tolist() == pytest.approx(np.add(FULL, 0.3))
    assert rank["max_validation_score"].tolist() == pytest.approx(np.add(FULL, 0.51))
    assert rank["predicted_tokens"].tolist() == [1001, 2001, 3001, 4001]


def test_runs_without_counted_tokens_have_no_curve() -> None:
    spec = compose("task=texts", "task.source=README.md", "model=smollm2", "method=full")
    spec = replace(spec, train=replace(spec.train, epochs=2, warmup_fraction=0.5))
    old = [{"step": 10, "nats_per_token": 1.5, "loss": 1.5}]
    new = [
        {"step": 0, "predicted_tokens": 0, "nats_per_token": 2.0, "loss": 2.0},
        *({**old[0], "step": step, "predicted_tokens": 100 * step} for step in (5, 10)),
    ]
    runs = [
        TrainedRun(spec=spec, status=status, record=record, folder=Path())
        for status, record in (
            ("done", {"curve": old, "steps": 10}),
            ("done", {"steps": 10}),
            ("stopped", {"curve": new, "steps": 10}),
        )
    ]
    assert not len(curves_table(runs))
    [*_, last] = runs
    table = curves_table([replace(last, status="done")])
    assert table["predicted_tokens"].tolist() == [0, 500, 1000]
    assert table["epochs"].tolist() == [0.0, 1.0, 2.0]
    assert table["rate_share"].tolist()[1:] == pytest.approx([1.0, 0.2])
    assert np.isnan(table["rate_share"][0])
