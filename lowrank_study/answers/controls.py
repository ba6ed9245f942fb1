"""Controls: the values of the measures where there is nothing to find.

Each row is one matrix under one `control`:

* `trained`: the update of a real run, for comparison;
* `noise`: independent Gaussian entries with the shape and norm of that update;
* `weight_decay`: −c·W0, the change that weight decay alone would have made;
* `shuffled_labels`: the update of a run with shuffled training labels;
* `seeds`: the overlap between the updates of two seeds;
* `noise_pair`: the overlap between two noise matrices of that shape;
* `training`: W − W0 after `step` steps of training.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import nn

from lowrank_study.errors import InputError
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.spectra.measures import shown_in
from lowrank_study.spectra.spectrum import measure
from lowrank_study.spectra.subspaces import Directions, chance_similarity, subspace_similarity
from lowrank_study.spectra.svd import frobenius_norm
from lowrank_study.spectra.tables import row
from lowrank_study.spectra.updates import DenseUpdate, Update, update_of_match
from lowrank_study.sweeps.measured_spectra import read_spectra
from lowrank_study.sweeps.updates import updates_of_run

RANKS = tuple(measure.name for measure in shown_in("controls"))
SIMILARITIES = (
    "similarity_right", "similarity_right_chance", "similarity_left", "similarity_left_chance",
)  # fmt: skip
CONTROL_COLUMNS = {
    **dict.fromkeys(["task", "model", "control", "run_id", "other_run_id"], "text"),
    "step": "whole",
    "module": "text",
    "layer": "whole",
    "role": "text",
    **dict.fromkeys(["out_features", "in_features"], "whole"),
    "resolvable": "flag",
    **dict.fromkeys(RANKS, "real"),
    "directions": "whole",
    **dict.fromkeys(SIMILARITIES, "real"),
}
"""The columns of the table; values that a control does not have are NA."""
_DTYPES = {"text": "str", "whole": "Int64", "flag": "boolean", "real": "float64"}

Row = dict[str, Any]


def controls_table(spec: RunSpec, rows: Sequence[Row]) -> pd.DataFrame:
    """Return the rows of one task and model as a table with `CONTROL_COLUMNS`."""
    table = pd.DataFrame(list(rows), columns=list(CONTROL_COLUMNS))
    kinds = {column: _DTYPES[kind] for column, kind in CONTROL_COLUMNS.items()}
    return table.assign(task=spec.task.name, model=spec.model.name).astype(kinds)


def controls_of(
    runs: Sequence[TrainedRun], shuffled: Sequence[TrainedRun], *, results: Path, directions: int
) -> pd.DataFrame:
    """Return all controls except `training` for full fine-tuning of one task and model.

    Args:
        runs: Runs that differ only in their seeds. Noise and decay use the first one.
        directions: Compare the leading 1, 2, 4 … directions of two updates, up to this number.
    """
    rows = [row for run in runs for row in _measured(run, "trained", results)]
    rows += [row for run in shuffled for row in _measured(run, "shuffled_labels", results)]
    rows += _noise_and_decay(runs[0])
    rows += _overlaps(runs, directions)
    return controls_table(runs[0].spec, rows)


def _measured(run: TrainedRun, control: str, results: Path) -> list[Row]:
    """Return the spectra that were measured for a run, as rows of a control."""
    if (spectra := read_spectra(run, results)) is None:
        raise InputError(
            f"{run.spec.run_id} has no spectra: rerun its sweep to measure them or to see why "
            "that fails"
        )
    return [{**row(each), "control": control, "run_id": run.spec.run_id} for each in spectra]


def _noise_and_decay(run: TrainedRun) -> Iterator[Row]:
    rng, decayed = np.random.default_rng(run.spec.seed), decayed_share(run)
    for update in updates_of_run(run):
        of_run = {"run_id": run.spec.run_id}
        # Noise and decay have no W0 of their own; their relative norm refers to the real one.
        assert update.W0_OI is not None
        base = frobenius_norm(update.W0_OI)
        noise = row(measure(noise_like(update, rng), method="gram"))
        share = noise["frobenius_norm"] / base if base else math.nan
        yield {**noise, **of_run, "control": "noise", "relative_norm": share}
        if decayed:
            decay = row(measure(decay_of(update, decayed), method="gram"))
            yield {**decay, **of_run, "control": "weight_decay", "relative_norm": decayed}


def noise_like(update: Update, rng: np.random.Generator) -> DenseUpdate:
    """Return Gaussian noise with the shape and the Frobenius norm of an update."""
    noise = rng.standard_normal(update.shape)
    noise *= update.frobenius_norm() / np.linalg.norm(noise)
    return _in_place_of(update, noise)


def decayed_share(run: TrainedRun) -> float:
    """Return c, the share of a matrix that weight decay alone removes by the kept step.

    c = 1 − Π_t (1 − ηₜ λ) over the steps t, with the learning rate ηₜ and the weight decay λ.
    AdamW multiplies a weight by 1 − ηₜ λ before each step.

    Source: Loshchilov & Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.
    """
    train, steps = run.spec.train, run.record["steps"]
    left = 0.0
    for step in range(run.record["best_step"]):
        share = train.rate_share(step, steps)
        left += math.log1p(-run.spec.method.learning_rate * share * train.weight_decay)
    return -math.expm1(left)


def decay_of(update: Update, share: float) -> DenseUpdate:
    """Return −share·W0 as an update."""
    assert update.W0_OI is not None
    delta = -share * update.W0_OI.astype(np.float64)
    return _in_place_of(update, delta)


def _in_place_of(update: Update, delta_OI: npt.NDArray[np.float64]) -> DenseUpdate:
    return DenseUpdate(
        name=update.name,
        layer=update.layer,
        role=update.role,
        storage_dtype="float64",
        delta_OI=delta_OI,
        W0_OI=None,
    )


def _overlaps(runs: Sequence[TrainedRun], directions: int) -> Iterator[Row]:
    """Yield the overlap of the updates of two seeds, and of two noise matrices."""
    rng = np.random.default_rng([runs[0].spec.seed, 1])
    ids = [run.spec.run_id for run in runs]
    for updates in zip(*(updates_of_run(run) for run in runs), strict=True):
        first = updates[0]
        assert len({update.name for update in updates}) == 1
        found = [update.leading_directions(directions) for update in updates]
        for one, other in combinations(range(len(runs)), 2):
            pair = {"control": "seeds", "run_id": ids[one], "other_run_id": ids[other]}
            yield from (pair | each for each in _similarities(first, found[one], found[other]))
        if first.frobenius_norm() > 0.0:
            noise = [noise_like(first, rng).leading_directions(directions) for _ in range(2)]
            pair = {"control": "noise_pair", "run_id": ids[0]}
            yield from (pair | each for each in _similarities(first, *noise))


def _similarities(update: Update, one: Directions, other: Directions) -> Iterator[Row]:
    """Yield φ(k, k) for k = 1, 2, 4 … on both sides, with its chance level."""
    out, in_ = update.shape
    k, most = 1, min(one.singular_values.size, other.singular_values.size)
    while k <= most:
        yield {
            "module": update.name,
            "layer": update.layer,
            "role": update.role,
            "out_features": out,
            "in_features": in_,
            "directions": k,
            "similarity_right": subspace_similarity(one.V_IK, other.V_IK, k, k),
            "similarity_right_chance": chance_similarity(k, k, dimension=in_),
            "similarity_left": subspace_similarity(one.U_OK, other.U_OK, k, k),
            "similarity_left_chance": chance_similarity(k, k, dimension=out),
        }
        k *= 2


def rank_along_training(
    run: TrainedRun, *, device: str, on_progress: Callable[[float], None] = lambda share: None
) -> pd.DataFrame:
    """Train a run of full fine-tuning again and measure its updates after 1, 2, 4 … steps.

    The steps and weights are those of the run; only its evaluations are left out. W0 and the names
    of the matrices come from the run's checkpoint.
    """
    from lowrank_study.answers.truncation import threads_of, tuned_matrices
    from lowrank_study.training.fit import Job, fit_together
    from lowrank_study.training.tracking import Tracker

    last = int(run.record["steps"])
    watched = {2**octave for octave in range(last.bit_length())} | {last}
    roles = run.spec.model.roles_by_path
    rows: list[Row] = []
    train = replace(run.spec.train, read_test=False, evaluations=1)
    with tuned_matrices(run) as (pairing, _), TemporaryDirectory() as folder:

        def watch(step: int, model: nn.Module) -> None:
            if step not in watched:
                return
            for match in pairing.matches:
                stored = model.get_parameter(match.after.tensor).detach().cpu().numpy()
                W_OI = match.after.cut(stored)
                update = update_of_match(match, match.before.read(), W_OI, roles=roles)
                made = {"control": "training", "run_id": run.spec.run_id, "step": step}
                rows.append({**row(measure(update, method="gram")), **made})

        job = Job(
            spec=replace(run.spec, train=train),
            checkpoint_folder=Path(folder) / "checkpoint",
            tracker=Tracker(),
            on_progress=on_progress,
            watch=watch,
        )
        with threads_of(run):
            [outcome] = fit_together([job], device=device)
    if isinstance(outcome, Exception):
        raise outcome
    return controls_table(run.spec, rows)
