"""The measures that papers report, of this suite's own runs: each a tidy table.

    MEASURES["accuracy"](runs)    # target, adapter_rank, own, low, high, n

`own` is a mean over seeds, `low` and `high` its 95 % Student t interval over them, `n` the seeds.
Of what is between two seeds it is a mean over pairs, and the interval a jackknife over seeds.
`of_noise`, where there is such a thing, is what random matrices of the same shapes give.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2

from lowrank_study.answers.statistics import CONFIDENCE, interval_of_mean, interval_over_pairs
from lowrank_study.methods.full import FullFineTuning
from lowrank_study.methods.lora import Lora
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spectra import svd
from lowrank_study.spectra.against_base import (
    amplification,
    intruder_dimensions,
    left_singular_vectors,
)
from lowrank_study.spectra.noise import noise_energy_rank
from lowrank_study.spectra.ranks import energy_rank
from lowrank_study.spectra.spectrum import measure
from lowrank_study.spectra.subspaces import (
    chance_similarity,
    directions_of,
    subspace_similarity,
)
from lowrank_study.spectra.tables import row
from lowrank_study.spectra.updates import FactoredUpdate, Update
from lowrank_study.sweeps.updates import updates_of_run

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
    ‖UᵀW0V‖_F with U and V the leading directions of ΔW, of W0, and random (the root mean square
    of all of them); `update_norm`, `weight_norm` and `factor` complete it. Medians over layers.
    `of_noise` is what an update of the same norm along random directions gives.
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
                    "factor_of_noise": one.update_norm / one.random_projected_norm,
                }
            )
        medians = pd.DataFrame(found).median()
        noise = {
            "along_update": medians["along_random"],
            "factor": medians.pop("factor_of_noise"),
        }
        rows += [
            {
                "adapter_rank": rank,
                "quantity": name,
                "own": float(value),
                "of_noise": noise.get(str(name), np.nan),
            }
            for name, value in medians.items()
        ]
    return _over_seeds(rows, ["adapter_rank", "quantity"])


def similarity_of_ranks(runs: Runs) -> pd.DataFrame:
    """LoRA's Figure 3: φ(i, j) between the directions of two ranks, median over query maps.

    Keys are those of `_similarities`. Runs of one seed (`seeds` is `same`) share their head, the
    order of the texts and some of what A starts from; those of a seed and the next (`other`) don't.
    """
    by_rank: dict[int, dict[int, _Directions]] = {}
    for run in runs:
        if isinstance(run.spec.method, Lora):
            by_rank.setdefault(_rank(run), {})[run.spec.seed] = _directions_of(run)
    rows = []
    for low, high in pairwise(sorted(by_rank)):
        seeds = sorted(by_rank[low].keys() & by_rank[high].keys())
        for seed, following in zip(seeds, [*seeds[1:], *seeds[:1]], strict=True):
            rows += _similarities(by_rank[low][seed], by_rank[high][seed])
            if following != seed:
                rows += _similarities(by_rank[low][seed], by_rank[high][following])
    return _over_seeds(rows, _SIMILARITY_KEYS)


def similarity_of_seeds(runs: Runs) -> pd.DataFrame:
    """LoRA's Figure 4: the same between all pairs of seeds of one rank; `n` counts pairs."""
    adapted = [_directions_of(run) for run in runs if isinstance(run.spec.method, Lora)]
    rows = []
    for first, second in combinations(adapted, 2):
        if first.rank == second.rank and first.seed != second.seed:
            rows += _similarities(first, second)
    return _over_seeds(rows, _SIMILARITY_KEYS)


def energy_shares(runs: Runs) -> pd.DataFrame:
    """Biderman et al., section 4.6: 90 % energy rank over min(out, in), of ΔW, W0 and W.

    Of full fine-tuning, in per cent; medians over all layers. Keys: `matrix` (`update`, `before`,
    `after`) and `maps` (`query`, the `attention` maps, the `mlp` maps, `all`). An update whose rank
    is under the floor of rounding is left out.
    """
    rows = (row for run in runs for row in _energy_shares_of(run, weights=True))
    return _over_seeds(rows, ["matrix", "maps"])


def energy_shares_by_examples(runs: Runs) -> pd.DataFrame:
    """The same of ΔW alone, by number of training examples."""
    rows = (
        {"examples": run.record["examples"]["train"], **row}
        for run in runs
        for row in _energy_shares_of(run, weights=False)
    )
    return _over_seeds(rows, ["examples", "maps"])


def _energy_shares_of(run: TrainedRun, *, weights: bool) -> Iterable[dict[str, Any]]:
    """Medians over the layers of one run of full fine-tuning, a row each matrix and maps."""
    if not isinstance(run.spec.method, FullFineTuning):
        return
    found = pd.DataFrame(
        [each for update in _updates(run) for each in _shares_of(update, weights=weights)]
    )
    presets = run.spec.model.target_presets
    of_maps = {
        "query": ("query",),
        "attention": presets["attention_all"],
        "mlp": presets["mlp"],
        "all": tuple(found["role"].unique()),
    }
    for maps, roles in of_maps.items():
        chosen = found[found["role"].isin(roles)]
        for matrix, group in chosen.groupby("matrix", sort=False):
            own, noise = group["own"].median(), group["of_noise"].median()
            yield {"matrix": matrix, "maps": maps, "own": own, "of_noise": noise}


def _shares_of(update: Update, *, weights: bool) -> Iterable[dict[str, Any]]:
    assert update.W0_OI is not None
    side = min(update.shape)
    noise = 100 * noise_energy_rank(*update.shape) / side
    of_role = {"role": update.role, "of_noise": noise}
    if (measured := row(measure(update, method="gram")))["resolvable"]:
        yield {**of_role, "matrix": "update", "own": 100 * measured["energy_rank_90"] / side}
    if weights:
        before = update.W0_OI.astype(np.float64)
        for name, matrix in (("before", before), ("after", before + update.dense())):
            values = svd.svd_of_matrix(matrix, method="gram").singular_values
            yield {**of_role, "matrix": name, "own": 100 * energy_rank(values, 0.9) / side}


def intruders(runs: Runs) -> pd.DataFrame:
    """Shuttleworth et al.: intruder dimensions a matrix, mean over matrices, by target and rank.

    The interval is the wider at each end of Student's and the exact one of a Poisson count: three
    seeds without any have no spread, and yet do not show that there are none.
    """
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
    table = _over_seeds(rows, ["target", "adapter_rank"])
    matrices = table["n"] * len(left)
    count = (table["own"] * matrices).round()
    least = chi2.ppf((1 - CONFIDENCE) / 2, 2 * count) / 2 / matrices
    most = chi2.ppf((1 + CONFIDENCE) / 2, 2 * count + 2) / 2 / matrices
    low, high = table["low"].clip(lower=0.0), table["high"]
    return table.assign(low=np.fmin(low, np.nan_to_num(least)), high=np.fmax(high, most))


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
    "energy_shares_by_examples": energy_shares_by_examples,
    "intruders": intruders,
    "best_rates": best_rates,
}


def _configuration(run: TrainedRun) -> dict[str, Any]:
    method = run.spec.method
    return {"target": method.target_label or method.label, "adapter_rank": _rank(run)}


def _rank(run: TrainedRun) -> int:
    return run.spec.method.adapter_rank or 0


def _updates(run: TrainedRun, role: str | None = None) -> Iterable[Update]:
    """The updates inside the layers, of one role or of all."""
    return (
        update
        for update in updates_of_run(run)
        if update.layer is not None and role in (None, update.role)
    )


_SIMILARITY_KEYS = ["first_rank", "second_rank", "seeds", "of", "i", "j"]


@dataclass(frozen=True, slots=True)
class _Directions:
    """The right singular directions of a run's query maps: of A and of ΔW, layer by layer."""

    rank: int
    seed: int
    layers: list[dict[str, Any]]


def _directions_of(run: TrainedRun) -> _Directions:
    rank, layers = _rank(run), []
    for update in _updates(run, "query"):
        assert isinstance(update, FactoredUpdate)
        of_A, of_update = directions_of(update.A_RI, rank), update.leading_directions(rank)
        layers.append({"A": of_A.V_IK, "ΔW": of_update.V_IK})
    return _Directions(rank, run.spec.seed, layers)


def _similarities(first: _Directions, second: _Directions) -> list[dict[str, Any]]:
    """φ(i, j) of two runs' query maps, median over layers: `of` A, as in the paper, and of ΔW.

    The right singular directions of A and of ΔW = B·A span the same space, in another order.
    """
    places = sorted({1, 2, 4, 8, first.rank, second.rank})
    found: dict[tuple[str, int, int], list[float]] = {}
    for ours, theirs in zip(first.layers, second.layers, strict=True):
        for of in ours:
            for i, j in product(places, places):
                if i <= ours[of].shape[1] and j <= theirs[of].shape[1]:
                    similarity = subspace_similarity(ours[of], theirs[of], i, j)
                    found.setdefault((of, i, j), []).append(similarity)
        dimension = len(ours["A"])
    pair = first.seed, second.seed
    seeds = "same" if first.seed == second.seed else "other"
    ranks = {"first_rank": first.rank, "second_rank": second.rank, "seeds": seeds, "pair": pair}
    return [
        {
            **ranks,
            "of": of,
            "i": i,
            "j": j,
            "own": float(np.median(values)),
            "of_noise": chance_similarity(i, j, dimension=dimension),
        }
        for (of, i, j), values in found.items()
    ]


def _over_seeds(rows: Iterable[dict[str, Any]], keys: list[str]) -> pd.DataFrame:
    """Condense one row a seed, or a `pair` of them, to mean, interval and count."""
    frame = pd.DataFrame(list(rows))
    condensed = []
    for key, group in frame.groupby(keys, sort=False) if len(frame) else ():
        values = group["own"].to_numpy(dtype=np.float64)
        pairs = list(group["pair"]) if "pair" in group else []
        if all(one == other for one, other in pairs):
            low, high = interval_of_mean(values)
        else:
            low, high = interval_over_pairs(values, pairs)
        noise = [group["of_noise"].mean()] if "of_noise" in group else []
        condensed.append((*key, values.mean(), low, high, len(values), *noise))
    noise_column = ["of_noise"] if "of_noise" in frame else []
    return pd.DataFrame(condensed, columns=[*keys, "own", "low", "high", "n", *noise_column])
