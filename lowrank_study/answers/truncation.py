"""Truncate the update of a fine-tuned model to rank k and evaluate the model again.

Every matrix W = W0 + ΔW becomes W0 + [ΔW]_k, where [ΔW]_k is the best approximation of rank k.

Biases, norms and the new head have no ΔW of low rank and keep their tuned values. So k = 0 is not
the pretrained model but "only head, biases and norms tuned"; the full rank is the tuned model.
Embeddings are matrices like any other.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lowrank_study.checkpoints import Match, Pairing, module_of, open_weights, pair
from lowrank_study.data.tokenizer import padding_id
from lowrank_study.errors import InputError
from lowrank_study.loaded import model_folder, splits_of
from lowrank_study.methods.layers.modules import head_names
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spectra.spectrum import measure
from lowrank_study.spectra.subspaces import Directions
from lowrank_study.spectra.tables import row
from lowrank_study.spectra.updates import layer_of, role_in, update_of_match
from lowrank_study.sweeps.settings import check_same_rows, rows_key
from lowrank_study.tasks import Predictions
from lowrank_study.training.batches import extreme_texts
from lowrank_study.training.evaluate import batch_tokens, predict
from lowrank_study.training.fit import torch_device
from lowrank_study.training.models import load_model
from lowrank_study.training.packing import Pack

OUTSIDE = "outside"
"""The part of the scope `layers` for matrices outside the layers, such as embeddings."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpdatedMatrix:
    """A tuned matrix and its place in the model; its weights are not read yet."""

    match: Match
    """The matrix in both checkpoints."""
    layer: str
    """Number of its layer, or `OUTSIDE`."""
    role: str
    """Its role in the layer; outside the layers its module path."""

    @property
    def side(self) -> int:
        """min(out, in), the largest possible rank of its update."""
        return min(self.match.shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecomposedUpdate:
    """A matrix before and after tuning, with the singular directions of its update."""

    matrix: UpdatedMatrix
    W0_OI: npt.NDArray[np.floating[Any]]
    W_OI: npt.NDArray[np.floating[Any]]
    directions: Directions
    """All of ΔW = W − W0, in float64."""
    noise_rank: int
    """Number of directions above the Gavish–Donoho threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """How much of every matrix's update one evaluation keeps."""

    scope: str
    """`all`: every matrix truncated to `kept_rank`; `noise_cut`: every matrix truncated to its
    directions above noise; `layers` or `roles`: only the whole update of one `part`."""
    part: str
    """Number of the layer, or the role; empty for the other scopes."""
    kept_rank: int | None
    """Directions kept of each matrix; only for the scope `all`."""

    def kept(self, update: DecomposedUpdate) -> int:
        """Return the number of directions kept of one update."""
        matrix = update.matrix
        match self.scope:
            case "all":
                assert self.kept_rank is not None
                return min(self.kept_rank, matrix.side)
            case "noise_cut":
                return update.noise_rank
            case "layers":
                return matrix.side if matrix.layer == self.part else 0
            case _:
                return matrix.side if matrix.role == self.part else 0


def truncations_of(
    matrices: Sequence[UpdatedMatrix], *, scopes: Sequence[str], ranks: Sequence[int] | None
) -> list[Truncation]:
    """Return the truncations to evaluate for a run.

    Args:
        ranks: Ranks of the scope `all`; `None` is 0, 1, 2, 4 … The full rank is always added.
    """
    largest = max(matrix.side for matrix in matrices)
    doubling = [0, *(2**octave for octave in range(largest.bit_length()))]
    kept = sorted({rank for rank in (doubling if ranks is None else ranks) if rank < largest})
    parts = {
        "layers": dict.fromkeys(matrix.layer for matrix in matrices),
        "roles": dict.fromkeys(matrix.role for matrix in matrices),
    }
    found = []
    for scope in scopes:
        match scope:
            case "all":
                # The full rank comes first: it costs nothing, and the others are compared with it.
                found += [Truncation(scope=scope, part="", kept_rank=k) for k in [largest, *kept]]
            case "noise_cut":
                found.append(Truncation(scope=scope, part="", kept_rank=None))
            case _:
                found += [
                    Truncation(scope=scope, part=part, kept_rank=None) for part in parts[scope]
                ]
    return found


@contextmanager
def tuned_matrices(run: TrainedRun) -> Iterator[tuple[Pairing, list[UpdatedMatrix]]]:
    """Check the hashes of a run's checkpoint and open it together with the pretrained one."""
    run.check_files("checkpoint/")
    model = run.spec.model
    roles = model.roles_by_path
    with open_weights(model_folder(model)) as base, open_weights(run.checkpoint) as tuned:
        pairing = pair(base, tuned)
        pairing.refuse_partial()
        yield pairing, [_placed(match, roles) for match in pairing.matches]


def _placed(match: Match, roles: dict[str, str]) -> UpdatedMatrix:
    layer = layer_of(match.name)
    if layer is None:
        return UpdatedMatrix(match=match, layer=OUTSIDE, role=match.name)
    return UpdatedMatrix(match=match, layer=str(layer), role=role_in(match.name, roles))


def decompose(pairing: Pairing, matrix: UpdatedMatrix) -> DecomposedUpdate:
    """Decompose the update of one matrix."""
    match = matrix.match
    if (both := pairing.read(match)) is None:
        raise InputError(f"{match.name}: {pairing.skipped[match.name]}; train the run again")
    update = update_of_match(match, *both, roles={})
    return DecomposedUpdate(
        matrix=matrix,
        W0_OI=both[0],
        W_OI=both[1],
        directions=update.leading_directions(matrix.side),
        noise_rank=int(row(measure(update, method="gram"))["gavish_donoho_rank"]),
    )


def truncated(update: DecomposedUpdate, kept: int) -> npt.NDArray[np.floating[Any]]:
    """Return W0 + Σ_{i≤kept} σᵢ uᵢ vᵢᵀ, (out, in), summed in float64, in the dtype of W.

    Rank 0 gives W0 and the full rank gives W, both bit for bit. No other matrix of that rank is
    nearer to ΔW in the Frobenius norm; the squared error is Σ_{i>kept} σᵢ².

    Source: Eckart & Young, "The approximation of one matrix by another of lower rank", 1936.
    """
    if kept == 0:
        return update.W0_OI
    if kept >= update.matrix.side:
        return update.W_OI
    found = update.directions
    scaled_OK = found.U_OK[:, :kept] * found.singular_values[:kept]
    whole = update.W0_OI + scaled_OK @ found.V_IK[:, :kept].T
    return whole.astype(update.W_OI.dtype)


def energy_kept(updates: Sequence[DecomposedUpdate], kept: Sequence[int]) -> float:
    """Return the kept share of Σ‖ΔW‖²_F over all matrices; NaN if no matrix changed."""
    squares = [update.directions.singular_values**2 for update in updates]
    total = sum(float(square.sum()) for square in squares)
    held = sum(float(square[:k].sum()) for square, k in zip(squares, kept, strict=True))
    return held / total if total else float("nan")


class TunedModel:
    """A run's model, set up for evaluation, with matrices that can be overwritten.

    Raises:
        InputError: A matrix of the backbone has no W0 and so can't be truncated.
    """

    def __init__(self, run: TrainedRun, pairing: Pairing, device: str) -> None:
        spec = run.spec
        splits = splits_of(spec)
        check_same_rows([run], {rows_key(spec): splits.sha256})
        self._test, self._train = splits.test, spec.train
        self._device = torch_device(device)
        self._task = spec.task
        self._model = load_model(
            type(spec.task), run.checkpoint, number_of_labels=len(splits.labels), dropout=None
        ).to(self._device)
        self._model.requires_grad_(False)
        self._check_covered(pairing)
        self._pack = Pack(
            [self._model],
            device=self._device,
            pad_id=padding_id(model_folder(spec.model)),
            sample=extreme_texts((splits.test,), spec.train.batch_size),
            reference=spec.train.reference,
        )

    def predict(self) -> Predictions:
        """Predict the test split."""
        precision = self._train.precision
        return predict(
            self._task,
            partial(self._pack.scores_of, 0),
            self._test,
            tokens=batch_tokens(self._model, precision=precision, reference=self._train.reference),
            device=self._device,
            precision=precision,
        )

    @torch.no_grad()
    def keep(self, updates: Sequence[DecomposedUpdate], kept: Sequence[int]) -> None:
        """Truncate the update of each matrix to its number of kept directions."""
        stored: dict[str, npt.NDArray[np.floating[Any]]] = {}
        for update, directions in zip(updates, kept, strict=True):
            after = update.matrix.match.after
            if after.tensor not in stored:  # query, key and value may share a tensor
                parameter = self._model.get_parameter(after.tensor)
                stored[after.tensor] = parameter.cpu().numpy().copy()
            after.put(stored[after.tensor], truncated(update, directions))
        for tensor, values in stored.items():
            self._model.get_parameter(tensor).copy_(torch.from_numpy(values))

    def _check_covered(self, pairing: Pairing) -> None:
        matched = {match.after.tensor for match in pairing.matches}
        heads = head_names(self._model)
        for name, parameter in self._model.named_parameters():
            reason = pairing.skipped.get(module_of(name), pairing.skipped.get(name, "no matrix"))
            new = name.split(".")[0] in heads or reason == "only in the tuned checkpoint"
            if parameter.ndim >= 2 and name not in matched and not new:
                raise InputError(f"{name} can't be truncated: {reason}")


@contextmanager
def threads_of(run: TrainedRun) -> Iterator[None]:
    """Use as many threads as the run did, as another order of sums may flip a prediction."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(run.record["provenance"]["threads"]))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_recorded(run: TrainedRun, whole: Predictions) -> None:
    """Check that a run's checkpoint without truncation gives the recorded test score."""
    metric = run.spec.task.metric
    found, recorded = whole.metrics()[metric.name], run.record["test"][metric.name]
    # A count of right answers is exact; a mean of losses depends on the order of sums.
    if not math.isclose(found, recorded, rel_tol=0.0 if metric.is_binary else 1e-6):
        precision = run.spec.train.precision
        raise InputError(
            f"{run.spec.run_id}: its checkpoint has a test {metric.label} of {found:.6f} here, "
            f"{recorded:.6f} was recorded: truncate it where it was trained (in {precision})"
        )
