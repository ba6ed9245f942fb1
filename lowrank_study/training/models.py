"""Build a model that is ready to train from a base model and a method.

>>> folder = model_folder(spec.model)
>>> model = build_model(spec, folder, number_of_labels=2)
>>> target_modules(model, spec.model, ("attention_qv",))[0]
'bert.encoder.layer.0.attention.self.query'
"""

import copy
import functools
import re
from collections.abc import Iterator, Sequence
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
    model = load_classifier(folder, number_of_labels=number_of_labels, dropout=spec.model.dropout)
    return spec.method.attach(model, spec.model)


def model_without_weights(spec: RunSpec, folder: Path, *, number_of_labels: int) -> nn.Module:
    """Return what `build_model` would, on the meta device: shapes without numbers."""
    with torch.device("meta"):
        model = copy.deepcopy(_without_weights(folder, number_of_labels, spec.model.dropout))
        return spec.method.attach(model, spec.model)


def load_classifier(folder: Path, *, number_of_labels: int, dropout: float | None) -> nn.Module:
    """Return the model in `folder` as a sequence classifier with fp32 weights and a new head.

    Raises
    ------
    InputError
        It can't be read as one, or lacks weights other than the head's.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        config = _configuration(folder, number_of_labels, dropout)
        with _quiet_transformers():
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # a classifier of other classes is replaced
            )
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(folder, error) from error
    assert isinstance(model, nn.Module)
    pad_by_tokenizer(model, folder)
    heads = head_names(model)
    if absent := sorted(name for name in loading["missing_keys"] if not in_head(name, heads)):
        raise InputError(
            f"{folder} lacks {absent[0]}: it would be random, and frozen under an adapter; give a "
            "checkpoint that has all of the pretrained model that a classifier reads"
        )
    for name, stored, expected in sorted(loading["mismatched_keys"]):
        if not in_head(name, heads):
            raise InputError(
                f"{folder}: {name} is stored as {tuple(stored)}, but config.json makes it "
                f"{tuple(expected)}: they belong to different models; give the complete checkpoint"
            )
    return model


def _configuration(folder: Path, number_of_labels: int, dropout: float | None) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    config.num_labels = number_of_labels  # also sets the number of class names
    if dropout is not None:
        for name, value in config.to_dict().items():
            if re.search(r"drop(out)?$|_dropout|dropout_", name) and isinstance(value, float):
                setattr(config, name, dropout)
    if config.pad_token_id is None:
        config.pad_token_id = padding_id(folder)
    return config


def name_classes(model: nn.Module, labels: Sequence[str]) -> None:
    """Write the class names into the configuration that is saved with the model.

    Otherwise BART would load two classes as three, its configuration's default.
    """
    config: Any = model.config
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}


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
    check_reads(_without_weights(folder, labels, spec.model.dropout), spec, splits)
    build = build_model if spec.method.needs_weights else model_without_weights
    build(spec, folder, number_of_labels=labels)


@functools.cache
def _without_weights(folder: Path, number_of_labels: int, dropout: float | None) -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    try:
        config = _configuration(folder, number_of_labels, dropout)
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(folder, error) from error
    assert isinstance(model, nn.Module)
    pad_by_tokenizer(model, folder)
    return model


def _unloadable(folder: Path, error: Exception) -> InputError:
    reason = str(error).strip().splitlines()[0][:200]
    return InputError(f"{folder} can't be loaded as a sequence classifier: {reason}")
