"""Train several LoRA runs of one base model together: the model's batch dimension is the run.

Each run of a pack has its own factors, head, optimizer and schedule. The runs share the frozen
weights, the data order and the dropout masks. One forward pass computes all runs, with one matrix
product for a frozen weight and a batched product for the factors. No gradient of a run depends on
another run, and a dropped run costs nothing.

A single run is a pack of one and rounds at the same places. In bf16, its weights are equal in any
pack, bit by bit on x86. In fp32, sums in another order change losses by less than 1e-5.

    >>> models = [build_model(spec, folder, number_of_labels=2) for spec in specs]
    >>> pack = Pack(models, device=device, pad_id=0, sample=batch, reference=False)
    >>> scores_RNC = pack.scores(batch)
    >>> pack.drop(2)                       # the third run has diverged

Letters: R runs, N texts, S scored tokens, C classes.
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

    Args:
        models: A single model of any kind, or LoRA models of one base with the same adapted maps,
            which share their frozen weights (`share_frozen`). Ranks, scalings and heads may differ.
            They are prepared in place for `unpadded_scores`.
        sample: A batch of the longest and the shortest texts, to check the computation with.
        reference: Whether to leave a single model unchanged, and to pad texts to the longest.

    Raises:
        InputError: A text has other scores or gradients in a batch than alone.
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
        """Numbers of the models that are still trained."""
        self._models, self._device, self._pad_id = models, device, pad_id
        self._mode: tuple[nn.Module, bool] | None = None
        self._plain = reference or not can_unpad(models[0])
        assert len(models) == 1 or not self._plain
        # A single run is computed as a pack of one, so that bf16 rounds at the same places.
        layer = next((module for _, module in adapted_modules(models[0])), None)
        is_packable = layer is not None and layer.packed is not None and not self._plain
        self._joint = _joint(models, self.active) if is_packable else models[0]
        alone = self._alone(sample)
        if not self._plain:
            for model in {*models, self._joint}:
                unpad(model)
        self._check_neighbours(sample, alone)

    def parts(self, batch: Batch, precision: str) -> Iterable[Batch]:
        """Return the parts of a batch that are computed in one pass; a padded batch is one part."""
        return [batch] if self._plain else batch.parts(part_tokens(self._joint, precision))

    def scores(self, batch: Batch) -> Tensor:
        """Return the scores of all active runs in training mode, (R, N, C).

        Where the task scores tokens, they are the losses of tokens, (R, S).
        """
        return self._scores(self._in_mode(self._joint, True), batch, len(self.active))

    def scores_of(self, number: int, batch: Batch) -> Tensor:
        """Return the scores of one run in evaluation mode, (N, C) or (S,)."""
        return self._scores(self._in_mode(self._models[number], False), batch, 1)[0]

    def _in_mode(self, model: nn.Module, training: bool) -> nn.Module:
        """Return a model in training or evaluation mode; models share some of their modules."""
        if self._mode != (model, training):
            model.train(training)
            self._mode = model, training
        return model

    def drop(self, number: int) -> None:
        """Stop training a run."""
        self.active.remove(number)

    def _scores(self, model: nn.Module, batch: Batch, runs: int) -> Tensor:
        if self._plain:
            return self._padded(model, batch)
        return unpadded_scores(model, batch, self._device, runs)

    def _padded(self, model: nn.Module, batch: Batch) -> Tensor:
        return padded_scores(model, batch, self._device, self._pad_id)

    def _alone(self, sample: Batch) -> Findings:
        """Return scores and gradients of each text alone, by the first model before `unpad`."""
        first = self._models[0]
        alone = _tried(
            lambda: findings(
                first,
                task_of(first),
                evaluate=lambda text: self._padded(first.eval(), text)[0],
                train=lambda text: self._padded(first.train(), text),
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
        """Refuse a model in which other texts or padding change the result of a text."""
        found = _tried(
            lambda: findings(
                self._models[0],
                task_of(self._models[0]),
                evaluate=partial(self.scores_of, 0),
                train=self.scores,
                # A text and its neighbour: more would need more memory than training in bf16.
                parts=[sample] if self._plain else sample.parts(1, least=2),
            )
        )
        for model in self._models:
            model.zero_grad()
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
            f"{name} can't read concatenated texts: {changed}. Train it with trainer=reference, "
            "which pads texts and trains one run at a time"
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
    """Replace the frozen parameters of `other` by those of `first`, which are equal."""
    frozen = {name: p for name, p in first.named_parameters() if not p.requires_grad}
    for name, parameter in list(other.named_parameters()):
        if not parameter.requires_grad:
            path, _, attribute = name.rpartition(".")
            setattr(other.get_submodule(path), attribute, frozen[name])


def _joint(models: Sequence[nn.Module], active: list[int]) -> nn.Module:
    """Copy the first model with the packed layers of all runs, without copying parameters."""
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
    """Applies the head of each run to the texts of that run."""

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
            # Every head gets the dropout masks that it would get alone.
            with one_run(), contextlib.nullcontext() if last else torch.random.fork_rng(devices):
                scored.append(self.heads[number](part))
        return torch.cat(scored)
