"""Measures that papers report, applied to this suite's own runs.

    PAPER_MEASURES["accuracy"](runs)    # target, adapter_rank, own, low, high, n

`own` is a mean over seeds, `low` and `high` its 95 % Student t interval over them, `n` the number
of seeds. A measure that compares two seeds is a mean over pairs, with a jackknife interval over
seeds. `of_noise`, where it applies, is the value for random matrices of the same shapes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2

from lowrank_study.answers.statistics import CONFIDENCE, interval_of_mean, interval_over_pairs
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
from lowrank_study.spectra.subspaces import chance_similarity, directions_of, subspace_similarity
from lowrank_study.spectra.tables import row
from lowrank_study.spectra.updates import FactoredUpdate, Update
from lowrank_study.sweeps.updates import updates_of_run

Runs = Sequence[TrainedRun]
Row = dict[str, Any]
"""The keys of a number, the number `own`, and where they apply `of_noise` and `pair`."""
Measure = Callable[[Runs], pd.DataFrame]

CONFIGURATION = ["target", "adapter_rank"]
"""Full fine-tuning has the target `full` and rank 0."""
SIMILARITY = ["first_rank", "second_rank", "seeds", "of", "i", "j"]

INTRUDERS_AMONG, INTRUDER_COSINE = 10, 0.5
"""k and ε of Shuttleworth et al. 2024."""


def accuracy(run: TrainedRun) -> Iterator[Row]:
    """Yield the test accuracy in per cent."""
    score = run.record["test"][run.spec.task.metric.name]
    yield {**_configuration(run), "own": 100 * score}


def amplified(run: TrainedRun) -> Iterator[Row]:
    """Yield LoRA's Table 7 for the query maps: the weight along the directions of the update.

    `along_update`, `along_weight` and `along_random` are ‖UᵀW0V‖_F with U and V the leading
    directions of ΔW, of W0, and random ones (the root mean square over all). `update_norm`,
    `weight_norm` and `factor` complete the table. Values are medians over layers. `of_noise` is
    the value for an update of the same norm along random directions.
    """
    if (rank := run.spec.method.adapter_rank) is None:
        return
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
    noise = {"along_update": medians["along_random"], "factor": medians.pop("factor_of_noise")}
    for name, value in medians.items():
        yield {
            "adapter_rank": rank,
            "quantity": name,
            "own": float(value),
            "of_noise": noise.get(str(name), np.nan),
        }


def energy_shares(run: TrainedRun, *, weights: bool) -> Iterator[Row]:
    """Yield the energy ranks of Biderman et al., section 4.6, for full fine-tuning.

    A value is the 90 % energy rank as a percentage of min(out, in), the median over layers. `maps`
    is `query`, the `attention` maps, the `mlp` maps or `all`. Updates whose rank is below the
    rounding floor are left out.
    """
    if run.spec.method.label != "full":
        return
    found = pd.DataFrame(
        [each for update in _updates(run) for each in _shares(update, weights=weights)]
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


def _shares(update: Update, *, weights: bool) -> Iterator[Row]:
    assert update.W0_OI is not None
    side = min(update.shape)
    shared = {"role": update.role, "of_noise": 100 * noise_energy_rank(*update.shape) / side}
    if (measured := row(measure(update, method="gram")))["resolvable"]:
        yield {**shared, "matrix": "update", "own": 100 * measured["energy_rank_90"] / side}
    if weights:
        before = update.W0_OI.astype(np.float64)
        for name, matrix in (("before", before), ("after", before + update.dense())):
            values = svd.svd_of_matrix(matrix, method="gram").singular_values
            yield {**shared, "matrix": name, "own": 100 * energy_rank(values, 0.9) / side}


def similarity_of_ranks(runs: Runs) -> Iterator[Row]:
    """Yield LoRA's Figure 3: φ(i, j) between the directions of neighbouring ranks.

    Two runs of one seed (`seeds` is `same`) share the initial head, the order of the texts and
    part of the initial A. Runs of a seed and the next one (`other`) share none of these.
    """
    by_rank: dict[int, dict[int, _Directions]] = {}
    for adapter in _directions(runs):
        by_rank.setdefault(adapter.rank, {})[adapter.seed] = adapter
    for low, high in pairwise(sorted(by_rank)):
        seeds = sorted(by_rank[low].keys() & by_rank[high].keys())
        for seed, following in zip(seeds, [*seeds[1:], *seeds[:1]], strict=True):
            yield from _similarities(by_rank[low][seed], by_rank[high][seed])
            if following != seed:
                yield from _similarities(by_rank[low][seed], by_rank[high][following])


def similarity_of_seeds(runs: Runs) -> Iterator[Row]:
    """Yield LoRA's Figure 4: φ(i, j) between all pairs of seeds of one rank."""
    for first, second in combinations(_directions(runs), 2):
        if first.rank == second.rank and first.seed != second.seed:
            yield from _similarities(first, second)


@dataclass(frozen=True, slots=True)
class _Directions:
    """The right singular directions of A and of ΔW in a run's query maps, layer by layer."""

    rank: int
    seed: int
    layers: list[dict[str, Any]]


def _directions(runs: Runs) -> Iterator[_Directions]:
    for run in runs:
        if (rank := run.spec.method.adapter_rank) is None:
            continue
        layers = []
        for update in _updates(run, "query"):
            assert isinstance(update, FactoredUpdate)
            of_A, of_update = directions_of(update.A_RI, rank), update.leading_directions(rank)
            layers.append({"A": of_A.V_IK, "ΔW": of_update.V_IK})
        yield _Directions(rank, run.spec.seed, layers)


def _similarities(first: _Directions, second: _Directions) -> Iterator[Row]:
    """Yield φ(i, j) between the query maps of two runs, the median over layers.

    `of` is A, as in the paper, or ΔW. Their right singular directions span the same space, but in
    a different order.
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
    for (of, i, j), values in found.items():
        yield {
            "first_rank": first.rank,
            "second_rank": second.rank,
            "seeds": "same" if first.seed == second.seed else "other",
            "pair": (first.seed, second.seed),
            "of": of,
            "i": i,
            "j": j,
            "own": float(np.median(values)),
            "of_noise": chance_similarity(i, j, dimension=dimension),
        }


def best_rates(runs: Runs) -> Iterator[Row]:
    """Yield each chosen learning rate as a ratio to that of full fine-tuning, without interval."""
    chosen = {tuple(_configuration(run).values()): run.spec.method.learning_rate for run in runs}
    full = chosen.get(("full", 0), float("nan"))
    for (target, rank), rate in chosen.items():
        yield {"target": target, "adapter_rank": rank, "own": rate / full}


def intruders(runs: Runs) -> pd.DataFrame:
    """Return the intruder dimensions per matrix of Shuttleworth et al., the mean over matrices.

    Each end of the interval is the wider of Student's and the exact one of a Poisson count: three
    seeds without intruders have no spread, but do not show that there are none.
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
    table = _over_seeds(rows, CONFIGURATION)
    matrices = table["n"] * len(left)
    count = (table["own"] * matrices).round()
    least = chi2.ppf((1 - CONFIDENCE) / 2, 2 * count) / 2 / matrices
    most = chi2.ppf((1 + CONFIDENCE) / 2, 2 * count + 2) / 2 / matrices
    low, high = table["low"].clip(lower=0.0), table["high"]
    return table.assign(low=np.fmin(low, np.nan_to_num(least)), high=np.fmax(high, most))


def _over_runs(
    runs: Runs, *, rows_of: Callable[[TrainedRun], Iterable[Row]], keys: list[str]
) -> pd.DataFrame:
    """Apply a measure of one run to all of them, with the number of training examples as a key."""
    rows = (
        {"examples": run.record["examples"]["train"], **each}
        for run in runs
        for each in rows_of(run)
    )
    return _over_seeds(rows, keys)


PAPER_MEASURES: dict[str, Measure] = {
    "accuracy": partial(_over_runs, rows_of=accuracy, keys=CONFIGURATION),
    "accuracy_by_examples": partial(
        _over_runs, rows_of=accuracy, keys=["examples", *CONFIGURATION]
    ),
    "amplification": partial(_over_runs, rows_of=amplified, keys=["adapter_rank", "quantity"]),
    "similarity_of_ranks": lambda runs: _over_seeds(similarity_of_ranks(runs), SIMILARITY),
    "similarity_of_seeds": lambda runs: _over_seeds(similarity_of_seeds(runs), SIMILARITY),
    "energy_shares": partial(
        _over_runs, rows_of=partial(energy_shares, weights=True), keys=["matrix", "maps"]
    ),
    "energy_shares_by_examples": partial(
        _over_runs, rows_of=partial(energy_shares, weights=False), keys=["examples", "maps"]
    ),
    "intruders": intruders,
    "best_rates": lambda runs: _over_seeds(best_rates(runs), CONFIGURATION),
}
"""The measures by the names that `conf/paper/` uses."""


def _configuration(run: TrainedRun) -> Row:
    method = run.spec.method
    target = method.target_label or method.label
    return {"target": target, "adapter_rank": method.adapter_rank or 0}


def _updates(run: TrainedRun, role: str | None = None) -> Iterator[Update]:
    """Yield the updates inside the layers, of one role or of all."""
    for update in updates_of_run(run):
        if update.layer is not None and role in (None, update.role):
            yield update


def _over_seeds(rows: Iterable[Row], keys: list[str]) -> pd.DataFrame:
    """Summarise rows of one seed, or of one `pair` of seeds, by mean, interval and count."""
    frame = pd.DataFrame(list(rows))
    summary = []
    for key, group in frame.groupby(keys, sort=False) if len(frame) else ():
        values = group["own"].to_numpy(dtype=np.float64)
        pairs = list(group["pair"]) if "pair" in group else []
        if all(one == other for one, other in pairs):
            low, high = interval_of_mean(values)
        else:
            low, high = interval_over_pairs(values, pairs)
        noise = [group["of_noise"].mean()] if "of_noise" in group else []
        summary.append((*key, values.mean(), low, high, len(values), *noise))
    noise_column = ["of_noise"] if "of_noise" in frame else []
    return pd.DataFrame(summary, columns=[*keys, "own", "low", "high", "n", *noise_column])
