"""The measures that papers report, of this suite's own runs: each a tidy table.

    MEASURES["accuracy"](runs)    # target, adapter_rank, own, low, high, n

`own` is a mean over seeds, `low` and `high` its 95 % Student t interval, `n` the seeds.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd

from lowrank_study.runs import TrainedRun
from lowrank_study.spec import FullFineTuning, HeadOnly, Lora, target_name
from lowrank_study.spectra import svd
from lowrank_study.spectra.against_base import (
    amplification,
    intruder_dimensions,
    left_singular_vectors,
)
from lowrank_study.spectra.ranks import energy_rank
from lowrank_study.spectra.spectrum import measure, row
from lowrank_study.spectra.subspaces import (
    chance_similarity,
    leading_directions,
    subspace_similarity,
)
from lowrank_study.spectra.updates import UpdateMatrix
from lowrank_study.study.accuracy import interval_of_mean
from lowrank_study.study.updates import updates_of_run

Runs = Sequence[TrainedRun]
Measure = Callable[[Runs], pd.DataFrame]

INTRUDERS_AMONG, INTRUDER_COSINE = 10, 0.5
"""k and ε of Shuttleworth et al. 2024."""


def accuracy(runs: Runs) -> pd.DataFrame:
    """Test accuracy in per cent by target and rank; full fine-tuning has target `full`, rank 0."""
    return _over_seeds(
        ({**_configuration(run), "own": 100 * run.record["test"]["accuracy"]} for run in runs),
        ["target", "adapter_rank"],
    )


def accuracy_by_examples(runs: Runs) -> pd.DataFrame:
    """Test accuracy in per cent by number of training examples, target and rank."""
    return _over_seeds(
        (
            {
                "examples": run.record["examples"]["train"],
                **_configuration(run),
                "own": 100 * run.record["test"]["accuracy"],
            }
            for run in runs
        ),
        ["examples", "target", "adapter_rank"],
    )


def amplified(runs: Runs) -> pd.DataFrame:
    """LoRA's Table 7, of the query maps: what W0 has along an update's directions.

    Keys are `adapter_rank` and `quantity`: `along_update`, `along_weight` and `along_random` are
    ‖UᵀW0V‖_F with U and V the leading directions of ΔW, of W0, and random (expected);
    `update_norm`, `weight_norm` and `factor` complete it. Medians over layers.
    """
    rows = []
    for run in runs:
        if not isinstance(run.spec.method, Lora):
            continue
        rank = run.spec.method.rank
        found: list[dict[str, float]] = []
        for update in _updates(run, "query"):
            one = amplification(update, k=rank)
            assert update.W0_OI is not None
            own_values = svd.svd_of_matrix(update.W0_OI, method="svd").singular_values
            found.append(
                {
                    "along_update": one.projected_norm,
                    "along_weight": float(np.linalg.norm(own_values[:rank])),
                    "along_random": one.random_projected_norm,
                    "update_norm": one.update_norm,
                    "weight_norm": one.base_norm,
                    "factor": one.factor,
                }
            )
        medians = pd.DataFrame(found).median()
        rows += [
            {"adapter_rank": rank, "quantity": name, "own": float(value)}
            for name, value in medians.items()
        ]
    return _over_seeds(rows, ["adapter_rank", "quantity"])


def similarity_of_ranks(runs: Runs) -> pd.DataFrame:
    """LoRA's Figure 3: φ(A_r, A_s, i, j) between two ranks of a seed, median over query maps.

    Keys are `first_rank`, `second_rank`, `i` and `j`; `chance` rows (i = j = 0) hold what random
    lines give, max(i, j)/d at 1.
    """
    by_seed: dict[int, dict[int, TrainedRun]] = {}
    for run in runs:
        if isinstance(run.spec.method, Lora):
            by_seed.setdefault(run.spec.seed, {})[run.spec.method.rank] = run
    rows = []
    for of_rank in by_seed.values():
        for low, high in pairwise(sorted(of_rank)):
            rows += _similarities(of_rank[low], of_rank[high], low, high)
    return _over_seeds(rows, ["first_rank", "second_rank", "i", "j"])


def similarity_of_seeds(runs: Runs) -> pd.DataFrame:
    """LoRA's Figure 4: the same between pairs of seeds of one rank.

    `n` counts pairs. They share seeds, so that they give no interval.
    """
    rows = []
    for first, second in combinations([r for r in runs if isinstance(r.spec.method, Lora)], 2):
        one, other = first.spec.method, second.spec.method
        assert isinstance(one, Lora)
        assert isinstance(other, Lora)
        if one.rank == other.rank and first.spec.seed != second.spec.seed:
            rows += _similarities(first, second, one.rank, one.rank)
    table = _over_seeds(rows, ["first_rank", "second_rank", "i", "j"])
    return table.assign(low=np.nan, high=np.nan)


def energy_shares(runs: Runs) -> pd.DataFrame:
    """Biderman et al., section 4.6: 90 % energy rank over min(out, in), of ΔW, W0 and W.

    Of full fine-tuning; medians over the matrices of all layers, in per cent. Key: `matrix`. An
    update whose rank is under the floor of rounding is left out.
    """
    rows = []
    for run in runs:
        if not isinstance(run.spec.method, FullFineTuning):
            continue
        shares: dict[str, list[float]] = {"update": [], "before": [], "after": []}
        for update in _updates(run):
            assert update.W0_OI is not None
            assert update.delta_OI is not None
            side = min(update.shape)
            if (measured := row(measure(update, method="gram")))["resolvable"]:
                shares["update"].append(100 * measured["energy_rank_90"] / side)
            before = update.W0_OI.astype(np.float64)
            for name, matrix in (("before", before), ("after", before + update.delta_OI)):
                values = svd.svd_of_matrix(matrix, method="gram").singular_values
                shares[name].append(100 * energy_rank(values, 0.9) / side)
        rows += [
            {"matrix": name, "own": float(np.median(found))}
            for name, found in shares.items()
            if found
        ]
    return _over_seeds(rows, ["matrix"])


def intruders(runs: Runs) -> pd.DataFrame:
    """Shuttleworth et al.: intruder dimensions a matrix, mean over matrices, by target and rank."""
    left: dict[str, Any] = {}
    rows = []
    for run in runs:
        counts = []
        for update in _updates(run):
            assert update.W0_OI is not None
            if update.name not in left:
                left[update.name] = left_singular_vectors(update.W0_OI)
            found = intruder_dimensions(
                update, left[update.name], k=INTRUDERS_AMONG, epsilon=INTRUDER_COSINE
            )
            counts.append(len(found.positions))
        rows.append({**_configuration(run), "own": float(np.mean(counts))})
    return _over_seeds(rows, ["target", "adapter_rank"])


def best_rates(runs: Runs) -> pd.DataFrame:
    """The rates that validation chose, as ratios to full fine-tuning's, by target and rank.

    One choice was made of each, so that there is no interval.
    """
    chosen = {tuple(_configuration(run).values()): run.spec.method.learning_rate for run in runs}
    full = chosen.get(("full", 0), float("nan"))
    rows = [
        {"target": target, "adapter_rank": rank, "own": rate / full}
        for (target, rank), rate in chosen.items()
    ]
    return _over_seeds(rows, ["target", "adapter_rank"])


MEASURES: dict[str, Measure] = {
    "accuracy": accuracy,
    "accuracy_by_examples": accuracy_by_examples,
    "amplification": amplified,
    "similarity_of_ranks": similarity_of_ranks,
    "similarity_of_seeds": similarity_of_seeds,
    "energy_shares": energy_shares,
    "intruders": intruders,
    "best_rates": best_rates,
}


def _configuration(run: TrainedRun) -> dict[str, Any]:
    method = run.spec.method
    if isinstance(method, FullFineTuning | HeadOnly):
        return {"target": run.spec.method_name, "adapter_rank": 0}
    rank = method.rank if isinstance(method, Lora) else 0
    return {"target": target_name(method.target), "adapter_rank": rank}


def _updates(run: TrainedRun, role: str | None = None) -> Iterable[UpdateMatrix]:
    """The updates inside the layers, of one role or of all."""
    return (
        update
        for update in updates_of_run(run)
        if update.layer is not None and role in (None, update.role)
    )


def _similarities(
    first: TrainedRun, second: TrainedRun, first_rank: int, second_rank: int
) -> list[dict[str, Any]]:
    pairs = list(zip(_updates(first, "query"), _updates(second, "query"), strict=True))
    places = sorted({1, 2, 4, 8, first_rank, second_rank})
    grid = [(i, j) for i in places for j in places if i <= min(j, first_rank) and j <= second_rank]
    found: dict[tuple[int, int], list[float]] = {place: [] for place in grid}
    for one, other in pairs:
        ours = leading_directions(one, k=first_rank).V_IK
        theirs = leading_directions(other, k=second_rank).V_IK
        for i, j in grid:
            if i <= ours.shape[1] and j <= theirs.shape[1]:
                found[i, j].append(subspace_similarity(ours, theirs, i, j))
    chance = chance_similarity(1, 1, dimension=pairs[0][0].shape[1])
    ranks = {"first_rank": first_rank, "second_rank": second_rank}
    return [
        *(
            {**ranks, "i": i, "j": j, "own": float(np.median(v))}
            for (i, j), v in found.items()
            if v
        ),
        {**ranks, "i": 0, "j": 0, "own": chance},
    ]


def _over_seeds(rows: Iterable[dict[str, Any]], keys: list[str]) -> pd.DataFrame:
    """Condense one row a seed to mean, interval and count."""
    frame = pd.DataFrame(list(rows), columns=[*keys, "own"])
    condensed = []
    for key, group in frame.groupby(keys, sort=False):
        values = group["own"].to_numpy(dtype=np.float64)
        low, high = interval_of_mean(values)
        condensed.append((*key, values.mean(), low, high, len(values)))
    return pd.DataFrame(condensed, columns=[*keys, "own", "low", "high", "n"])
