"""Build a model that is ready to train from a base model and a method."""

import copy
import functools
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank_study import assets
from lowrank_study.data.tokenizer import has_tokenizer, padding_id
from lowrank_study.errors import InputError
from lowrank_study.loaded import model_folder, splits_of
from lowrank_study.methods.layers.modules import adapted_tied, head_names, in_head
from lowrank_study.spec import RunSpec
from lowrank_study.tasks import Task
from lowrank_study.training.padding import check_reads, pad_by_tokenizer

_log = logging.getLogger(__name__)


def build_model(spec: RunSpec, folder: Path, *, number_of_labels: int) -> nn.Module:
    """Return the pretrained model with a new head, prepared for the method of a run.

    The seed is set first, so a seed gives every method the same head.

    Raises:
        InputError: The model can't be read, a target matches no linear map, or a rank doesn't fit.
    """
    torch.manual_seed(spec.seed)
    task, dropout = type(spec.task), spec.model.dropout
    model = load_model(task, folder, number_of_labels=number_of_labels, dropout=dropout)
    return spec.method.attach(model, spec.model)


def tuned_model(spec: RunSpec, checkpoint: Path) -> nn.Module:
    """Return the fine-tuned language model of a run, with fp32 weights and its adapter merged."""
    if not spec.method.is_adapter:
        return load_model(type(spec.task), checkpoint, number_of_labels=0, dropout=None)
    from peft import PeftModel

    folder = model_folder(spec.model)
    base = load_model(type(spec.task), folder, number_of_labels=0, dropout=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a name that transformers moved
        merged: nn.Module = PeftModel.from_pretrained(base, checkpoint).merge_and_unload()
    return _marked(merged, type(spec.task))


def model_without_weights(spec: RunSpec) -> nn.Module:
    """Return the model of `build_model` on the meta device, which has only shapes."""
    with torch.device("meta"):
        return spec.method.attach(copy.deepcopy(_pretrained_shapes(spec)), spec.model)


def load_model(
    task: type[Task], folder: Path, *, number_of_labels: int, dropout: float | None
) -> nn.Module:
    """Return the model in `folder` with fp32 weights, and a new head if the task needs one.

    Args:
        number_of_labels: Number of classes; 0 if the task has none.
        dropout: Every dropout probability; `None` keeps the model's own.
    """
    try:
        config = _configuration(task, folder, number_of_labels, dropout)
        with _quiet_transformers():
            model, loading = task.model_class().from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # a classifier of other classes is replaced
            )
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(task, folder, error) from error
    assert isinstance(model, nn.Module)
    pad_by_tokenizer(_marked(model, task), folder)
    heads = head_names(model)
    if absent := sorted(name for name in loading["missing_keys"] if not in_head(name, heads)):
        raise InputError(
            f"{folder} lacks {absent[0]}, which would be random, and stay frozen under an adapter: "
            "give a checkpoint with all weights that the task reads"
        )
    for name, stored, expected in sorted(loading["mismatched_keys"]):
        if not in_head(name, heads):
            raise InputError(
                f"{folder}: {name} is stored as {tuple(stored)}, but config.json makes it "
                f"{tuple(expected)}: they belong to different models; give the complete checkpoint"
            )
    return model


def _configuration(
    task: type[Task], folder: Path, number_of_labels: int, dropout: float | None
) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    task.configure(config, number_of_labels)
    if dropout is not None:
        set_dropout(config, dropout)
    if config.pad_token_id is None and has_tokenizer(folder):
        config.pad_token_id = padding_id(folder)
    return config


def set_dropout(config: Any, dropout: float) -> None:
    """Set every dropout probability of a configuration of transformers."""
    for name, value in config.to_dict().items():
        if re.search(r"drop(out)?$|_dropout|dropout_", name) and isinstance(value, float):
            setattr(config, name, dropout)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the warning that the head is new."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def check_fits(spec: RunSpec) -> None:
    """Refuse texts or a method that don't fit the model, before anything is trained.

    This is fast, because most methods are checked on a model without weights.
    """
    splits, shapes = splits_of(spec), _pretrained_shapes(spec)
    if spec.train.head_learning_rate is not None and not head_names(shapes):
        raise InputError(
            f"trainer.head_learning_rate={spec.train.head_learning_rate:g}: "
            f"{spec.task.model_noun} has no new head; leave it out"
        )
    check_reads(shapes, spec, splits)
    if spec.method.needs_weights:
        build_model(spec, model_folder(spec.model), number_of_labels=len(splits.labels))
    elif tied := adapted_tied(model_without_weights(spec)):
        _warn_of_tied(spec.model.name, *tied)


@functools.cache
def _warn_of_tied(model: str, *modules: str) -> None:
    _log.warning(
        "%s ties its output head to its token embedding. The adapter changes only %s, so merging "
        "it needs tie_word_embeddings=False: see Vocabularies in docs/methods.md",
        model,
        " and ".join(modules),
    )


def _pretrained_shapes(spec: RunSpec) -> nn.Module:
    """Return the pretrained model with its new head on the meta device; don't change it."""
    folder, labels = model_folder(spec.model), len(splits_of(spec).labels)
    files = assets.sha256_of_source(folder)
    return _without_weights(type(spec.task), folder, files, labels, spec.model.dropout)


@functools.cache
def _without_weights(
    task: type[Task], folder: Path, sha256: str, number_of_labels: int, dropout: float | None
) -> nn.Module:
    """Return the model of a folder; the hash of its files is part of the cache's key."""
    try:
        model = shapes_of(task, _configuration(task, folder, number_of_labels, dropout))
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(task, folder, error) from error
    pad_by_tokenizer(model, folder)
    return model


def shapes_of(task: type[Task], config: Any) -> nn.Module:
    """Return the model of a configuration of transformers on the meta device."""
    with torch.device("meta"):
        return _marked(task.model_class().from_config(config), task)


def _marked(model: Any, task: type[Task]) -> nn.Module:
    """Store on a loaded model the task that it was loaded for; see `task_of`."""
    model.task = task
    loaded: nn.Module = model
    return loaded


def _unloadable(task: type[Task], folder: Path, error: Exception) -> InputError:
    reason = str(error).strip().splitlines()[0][:200]
    return InputError(f"{folder} can't be loaded as {task.model_noun}: {reason}")
