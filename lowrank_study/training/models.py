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
from lowrank_study.methods.lora_layers import add_lora, check_rank, is_linear
from lowrank_study.methods.peft import add_peft
from lowrank_study.spec import (
    BaseModel,
    FullFineTuning,
    HeadOnly,
    LocalPath,
    Lora,
    PeftMethod,
    RunSpec,
    path_matches,
)
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
    return _with_method(model, spec)


def model_without_weights(spec: RunSpec, folder: Path, *, number_of_labels: int) -> nn.Module:
    """Return what `build_model` would, on the meta device: shapes without numbers."""
    with torch.device("meta"):
        model = copy.deepcopy(_without_weights(folder, number_of_labels, spec.model.dropout))
        return _with_method(model, spec)


def _with_method(model: nn.Module, spec: RunSpec) -> nn.Module:
    match spec.method:
        case FullFineTuning():
            model.requires_grad_(True)
        case HeadOnly():
            model.requires_grad_(False)
            train_head(model)
        case Lora() as lora:
            add_lora(model, dict.fromkeys(target_modules(model, spec.model, lora.target), lora))
            train_head(model)
        case PeftMethod() as method:
            return add_peft(
                model,
                method,
                modules=target_modules(model, spec.model, method.target),
                heads=head_names(model),
                find=functools.partial(
                    target_modules,
                    model,
                    spec.model,
                    setting="method.options.feedforward_modules",
                ),
            )
    return model


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


def head_names(model: nn.Module) -> list[str]:
    """Return the names of the modules outside the pretrained backbone: the new head.

    This is `classifier` in BERT, `pooler` and `classifier` in DeBERTa, `head` and `classifier` in
    ModernBERT. Every weight that a checkpoint lacks is in one of them, since `load_classifier`
    refuses any other gap. A method that trains and saves these modules leaves no random weight.
    """
    backbone = str(model.base_model_prefix)
    return [
        name
        for name, child in model.named_children()
        if name != backbone and any(True for _ in child.parameters())
    ]


def in_head(name: str, heads: Sequence[str]) -> bool:
    """Whether a module or weight, given by its path in the model, is part of a head."""
    return name.partition(".")[0] in heads


def head_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the trained parameters of the new head, of a model adapted by PEFT as well."""
    within_peft = getattr(model, "get_base_model", None)
    classifier: nn.Module = within_peft() if within_peft else model
    heads = [classifier.get_submodule(name) for name in head_names(classifier)]
    return {p for head in heads for p in head.parameters() if p.requires_grad}


def train_head(model: nn.Module) -> None:
    """Make the new head trainable."""
    for name in head_names(model):
        model.get_submodule(name).requires_grad_(True)


def target_modules(
    model: nn.Module, base: BaseModel, target: Sequence[str], *, setting: str = "method.target"
) -> list[str]:
    """Return the paths of the linear maps that a target names.

    Parameters
    ----------
    model
        The pretrained model with its head.
    base
        Its presets and roles.
    target
        Each a preset of the model, a role, or the end of module paths (`*` for the layer's number).
    setting
        Name of the setting that gave them, for the error.

    Raises
    ------
    InputError
        A name that matches no linear map of the model.
    """
    heads = head_names(model)
    linear = [
        name
        for name, module in model.named_modules()
        if is_linear(module) and not in_head(name, heads)
    ]
    chosen: set[str] = set()
    for wanted in target:
        for role in base.target_presets.get(wanted, (wanted,)):
            matched = _matching(linear, base, role)
            if not matched:
                raise _no_target(linear, base, f"{setting}={wanted!r}", role)
            chosen.update(matched)
    return [name for name in linear if name in chosen]


def _matching(linear: Sequence[str], base: BaseModel, role: str) -> list[str]:
    return [name for name in linear if path_matches(name, base.roles.get(role, role))]


def _no_target(linear: Sequence[str], base: BaseModel, setting: str, role: str) -> InputError:
    """Return an error with the reason and the names that are valid for this model."""
    roles = [name for name in base.roles if _matching(linear, base, name)]
    presets = [name for name, of in base.target_presets.items() if set(of) <= set(roles)]
    endings = {
        ".".join("*" if part.isdigit() else part for part in name.split(".")[-2:])
        for name in linear
    }
    valid = ", ".join([*presets, *roles, *sorted(endings)[:16]])
    why = (
        f": the model configuration places the role {role} at {base.roles[role]!r}, which fits "
        "another architecture"
        if role in base.roles
        else ""
    )
    return InputError(
        f"{setting} matches no linear map of {base.name}{why}. Valid are {valid}; "
        "give one or a list, as in [a,b]"
    )


def check_fits(spec: RunSpec, folder: Path, splits: Splits) -> None:
    """Refuse texts, a target or a rank that do not fit the model, before anything is trained.

    Raises
    ------
    InputError
        As in `build_model`, or the model can't read the texts (`check_reads`). Except for PEFT's
        methods, a model without weights is checked, which is fast.
    """
    number_of_labels = len(splits.labels)
    model = _without_weights(folder, number_of_labels, spec.model.dropout)
    check_reads(model, spec, splits)
    if isinstance(spec.method, PeftMethod):
        build_model(spec, folder, number_of_labels=number_of_labels)
    elif isinstance(spec.method, Lora):
        for name in target_modules(model, spec.model, spec.method.target):
            check_rank(spec.method.rank, model.get_submodule(name), name)


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


def halve_frozen(model: nn.Module) -> None:
    """Keep the frozen maps' weights in bf16, so that autocast need not cast them every step."""
    for module in model.modules():
        if is_linear(module) and not module.weight.requires_grad:
            module.weight.data = module.weight.data.bfloat16()
