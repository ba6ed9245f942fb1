"""Many LoRA runs of one frozen base, trained together: the model's batch dimension is the run.

Every run of a pack is a complete model of its own, with its factors, head, optimizer and
schedule; they share the frozen weights, data order and dropout masks. One forward pass serves all:
one matrix product for a frozen weight, a batched one for the factors. No gradient of one run
depends on another, and a run that is dropped costs the others nothing. A run alone is a pack of
one, rounded at the same places: in bf16 its weights are those of any pack, bit by bit on x86; in
fp32 they differ by the rounding of sums in another order (losses by less than 1e-5).

    >>> models = [build_model(spec, folder, number_of_labels=2) for spec in specs]
    >>> pack = Pack(models, device=device, pad_id=0, sample=batch, reference=False)
    >>> scores_RNC = pack.scores(batch)
    >>> pack.drop(2)                       # the third run has diverged

Letters: R runs, N texts, C classes, O out_features, I in_features, K the pack's largest rank.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_study.errors import InputError
from lowrank_study.methods.layers.linear import adapted_modules
from lowrank_study.methods.layers.modules import head_names, task_of
from lowrank_study.training.attention import one_run
from lowrank_study.training.batches import Batch
from lowrank_study.training.probe import Findings, difference, findings
from lowrank_study.training.unpadded import (
    can_unpad,
    padded_scores,
    part_tokens,
    unpad,
    unpadded_scores,
)


class Pack:
    """The models of several runs, computed as one.

    Parameters
    ----------
    models
        LoRA models of one base and one set of adapted maps; or a single model of any kind.
        Ranks, scalings and heads may differ; they share the first one's frozen weights
        (`share_frozen`). Set up in place for `unpadded_scores`.
    device
        Where they are.
    pad_id
        The tokenizer's padding token.
    sample
        A batch of the size used in training, with the longest and the shortest texts, for a check
        of the computation.
    reference
        Whether to leave the (single) model unchanged, and to pad texts to the longest.

    Raises
    ------
    InputError
        The model gives other scores or gradients for a text in a batch than for the text alone.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        device: torch.device,
        pad_id: int,
        sample: Batch,
        reference: bool,
    ) -> None:
        self.active = list(range(len(models)))
        """Which of the models are still trained."""
        self._models, self._device, self._pad_id = models, device, pad_id
        self._plain = reference or not can_unpad(models[0])
        assert len(models) == 1 or not self._plain
        # A run alone is a pack of one: its operations round at the same places as in any other
        # pack. In bf16, other operations would give other weights.
        layer = next((module for _, module in adapted_modules(models[0])), None)
        is_packable = layer is not None and layer.packed is not None and not self._plain
        self._joint = _joint(models, self.active) if is_packable else models[0]
        alone = self._alone(sample)
        if not self._plain:
            for model in {*models, self._joint}:
                unpad(model)
        self._check_neighbours(sample, alone)

    def parts(self, batch: Batch) -> Iterable[Batch]:
        """Yield what is computed at once of a batch: its parts, or all of it where it is padded."""
        return [batch] if self._plain else batch.parts(part_tokens(self._joint))

    def scores(self, batch: Batch) -> Tensor:
        """Return the class scores of all active runs while they train, (R, N, C)."""
        return self._scores(self._joint.train(), batch, len(self.active))

    def scores_of(self, number: int, batch: Batch) -> Tensor:
        """Return the class scores of one run for evaluation, (N, C)."""
        return self._scores(self._models[number].eval(), batch, 1)[0]

    def drop(self, number: int) -> None:
        """Leave a run out from now on."""
        self.active.remove(number)

    def _scores(self, model: nn.Module, batch: Batch, runs: int) -> Tensor:
        if self._plain:
            return self._padded(model, batch)
        return unpadded_scores(model, batch, self._device, runs)

    def _padded(self, model: nn.Module, batch: Batch) -> Tensor:
        return padded_scores(model, batch, self._device, self._pad_id)

    def _alone(self, sample: Batch) -> Findings:
        """Return scores and gradients of each text alone, from the first, still stock model."""
        first = self._models[0]
        alone = _tried(
            lambda: findings(
                first,
                task_of(first),
                evaluate=lambda text: self._padded(first.eval(), text)[0],
                train=lambda text: self._padded(first.train(), text)[0],
                parts=sample.parts(1),
            )
        )
        if isinstance(alone, Findings):
            return alone
        raise InputError(
            f"{type(first).__name__} {alone} on texts of {min(sample.lengths)} to "
            f"{max(sample.lengths)} tokens: set a smaller task.max_length, or choose another model"
        )

    def _check_neighbours(self, sample: Batch, alone: Findings) -> None:
        """Refuse a computation in which other texts or padding change a text's result."""
        found = _tried(
            lambda: findings(
                self._models[0],
                task_of(self._models[0]),
                evaluate=partial(self.scores_of, 0),
                train=lambda part: self.scores(part)[0],
                parts=self.parts(sample),
            )
        )
        changed = found if isinstance(found, str) else difference(found, alone)
        if changed is None:
            return
        name = type(self._models[0]).__name__
        if self._plain:
            raise InputError(
                f"{name} reads padding: {changed} when texts are padded, so its results would "
                "be wrong: choose another model"
            )
        raise InputError(
            f"{name} can't take texts laid end to end: {changed}. Train it with "
            "trainer=reference, which pads them and trains one run at a time"
        )


def _tried(compute: Callable[[], Findings]) -> Findings | str:
    """Return the result, or a description of the model's exception, which may be of any type."""
    try:
        return compute()
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        return f"raises {type(error).__name__} ({reason})"


def share_frozen(first: nn.Module, other: nn.Module) -> None:
    """Let `other` use the frozen parameters of `first`, which hold the same numbers, in place."""
    frozen = {name: p for name, p in first.named_parameters() if not p.requires_grad}
    for name, parameter in list(other.named_parameters()):
        if not parameter.requires_grad:
            path, _, attribute = name.rpartition(".")
            setattr(other.get_submodule(path), attribute, frozen[name])


def _joint(models: Sequence[nn.Module], active: list[int]) -> nn.Module:
    """Copy the first model around the runs' own parts; no parameter is copied."""
    first = models[0]
    instead: dict[int, Any] = {id(tensor): tensor for tensor in first.parameters()}
    instead |= {id(tensor): tensor for tensor in first.buffers()}
    for name, module in adapted_modules(first):
        assert module.packed is not None
        instead[id(module)] = module.packed([m.get_submodule(name) for m in models], active)
    for name in head_names(first):
        heads = [model.get_submodule(name) for model in models]
        instead[id(heads[0])] = _PackedHead(heads, active)
    joint: nn.Module = copy.deepcopy(first, instead)
    return joint


class _PackedHead(nn.Module):
    """Each run's own head on its own texts."""

    def __init__(self, heads: Sequence[nn.Module], active: list[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self._active = active

    def forward(self, x: Tensor) -> Tensor:
        """Map (R N, ...) to (R N, classes)."""
        parts = x.chunk(len(self._active))
        devices = [x.device] if x.device.type == "cuda" else []
        scored = []
        for position, (number, part) in enumerate(zip(self._active, parts, strict=True)):
            last = position == len(parts) - 1
            # Each head draws the dropout masks that it would draw alone.
            with one_run(), contextlib.nullcontext() if last else torch.random.fork_rng(devices):
                scored.append(self.heads[number](part))
        return torch.cat(scored)
