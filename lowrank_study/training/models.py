"""Build a model that is ready to train from a base model and a method.

>>> folder = model_folder(spec.model)
>>> model = build_model(spec, folder, number_of_labels=2)
>>> target_modules(model, spec.model, ("attention_qv",))[0]
'bert.encoder.layer.0.attention.self.query'
"""

import copy
import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank_study import assets
from lowrank_study.data.splits import Splits, padding_id
from lowrank_study.errors import InputError
from lowrank_study.hashing import sha256_of
from lowrank_study.methods.layers.modules import head_names, in_head
from lowrank_study.spec import BaseModel, LocalPath, RunSpec
from lowrank_study.tasks import Task
from lowrank_study.training.dequantised import dequantised
from lowrank_study.training.padding import check_reads, pad_by_tokenizer


def model_folder(model: BaseModel) -> Path:
    """Return the folder of the pretrained model in Hugging Face's layout, fetched if need be.

    A GGUF file is dequantised once, through transformers, and kept as fp32 safetensors.
    """
    path = assets.fetch(model.source)
    return dequantised(path) if path.suffix == ".gguf" else path


def weights_sha256(model: BaseModel, folder: Path) -> str:
    """Return one hash over the files of a model that are read."""
    is_local = isinstance(model.source, LocalPath)
    return assets.sha256_of_source(folder) if is_local else sha256_of(folder)


def build_model(spec: RunSpec, folder: Path, *, number_of_labels: int) -> nn.Module:
    """Return the pretrained model with a new classification head, set up for the spec's method.

    The seed is set before anything random is made: the head is the same for every method of a
    seed, and A follows from the seed as well.

    Raises
    ------
    InputError
        A target that matches no linear map, a rank that does not fit, an unreadable model.
    """
    torch.manual_seed(spec.seed)
    task, dropout = type(spec.task), spec.model.dropout
    model = load_model(task, folder, number_of_labels=number_of_labels, dropout=dropout)
    return spec.method.attach(model, spec.model)


def model_without_weights(spec: RunSpec, folder: Path, *, number_of_labels: int) -> nn.Module:
    """Return what `build_model` would, on the meta device: shapes without numbers."""
    with torch.device("meta"):
        task, dropout = type(spec.task), spec.model.dropout
        model = copy.deepcopy(_without_weights(task, folder, number_of_labels, dropout))
        return spec.method.attach(model, spec.model)


def load_model(
    task: type[Task], folder: Path, *, number_of_labels: int, dropout: float | None
) -> nn.Module:
    """Return the model in `folder` with fp32 weights, and a new head if the task needs one.

    Args:
        task: Says which class of model is loaded.
        folder: Folder of the model in Hugging Face's layout.
        number_of_labels: Number of classes; 0 if the task has none.
        dropout: Every dropout probability; `None` keeps the model's own.

    Raises:
        InputError: It can't be read as such a model, or lacks weights other than the head's.
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
    pad_by_tokenizer(model, folder)
    heads = head_names(_marked(model, task))
    if absent := sorted(name for name in loading["missing_keys"] if not in_head(name, heads)):
        raise InputError(
            f"{folder} lacks {absent[0]}: it would be random, and frozen under an adapter; give a "
            "checkpoint that has all of the pretrained model that the task reads"
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
        for name, value in config.to_dict().items():
            if re.search(r"drop(out)?$|_dropout|dropout_", name) and isinstance(value, float):
                setattr(config, name, dropout)
    if config.pad_token_id is None:
        config.pad_token_id = padding_id(folder)
    return config


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the library's report that the head is new: it is meant to be."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def check_fits(spec: RunSpec, folder: Path, splits: Splits) -> None:
    """Refuse texts, a target or a rank that do not fit the model, before anything is trained.

    Raises
    ------
    InputError
        As in `build_model`, or the model can't read the texts (`check_reads`). Except for PEFT's
        methods, a model without weights is checked, which is fast.
    """
    labels = len(splits.labels)
    shapes = _without_weights(type(spec.task), folder, labels, spec.model.dropout)
    check_reads(shapes, spec, splits)
    build = build_model if spec.method.needs_weights else model_without_weights
    build(spec, folder, number_of_labels=labels)


@functools.cache
def _without_weights(
    task: type[Task], folder: Path, number_of_labels: int, dropout: float | None
) -> nn.Module:
    try:
        config = _configuration(task, folder, number_of_labels, dropout)
        with torch.device("meta"):
            model = task.model_class().from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(task, folder, error) from error
    assert isinstance(model, nn.Module)
    pad_by_tokenizer(model, folder)
    return _marked(model, task)


def _marked(model: Any, task: type[Task]) -> nn.Module:
    """Note on a loaded model what it was loaded for; see `task_of`."""
    model.task = task
    loaded: nn.Module = model
    return loaded


def _unloadable(task: type[Task], folder: Path, error: Exception) -> InputError:
    reason = str(error).strip().splitlines()[0][:200]
    return InputError(f"{folder} can't be loaded as a sequence classifier: {reason}")
