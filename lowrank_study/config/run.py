"""Read composed configurations into records. No other module knows the YAML of runs.

    >>> spec = compose("task=reuters_r8", "method=lora", "method.rank=16", "seed=1")
    >>> spec.method.rank
    16

Every value is checked here before anything is fetched or written. Checks that need the model or the
data (does a target match? does the column exist?) are made where these are first read.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_study.config.composition import composer_of, plain
from lowrank_study.config.fields import Fields
from lowrank_study.config.sources import read_source
from lowrank_study.config.task import read_task
from lowrank_study.config.tuning import Tuning, read_tuning
from lowrank_study.errors import InputError
from lowrank_study.machine import may_have_gpu, processor
from lowrank_study.methods import method_named, method_names
from lowrank_study.spec import BaseModel, RunSpec, TrainSpec
from lowrank_study.tasks import Task

PRECISIONS = ("auto", "fp32", "bf16")
TRACKERS = ("none", "jsonl", "wandb")
SPENDING = ("obrien_fleming", "pocock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When seeds are added to a sweep, up to all of its seeds (`answers/sequential.py`)."""

    first: int
    """Seeds of every configuration before the first look."""
    step: int
    """Seeds that are added between two looks."""
    spending: str
    """One of `SPENDING`: how much of the error rate is spent by each look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A run, and the settings of its sweep, which don't change the run's numbers."""

    spec: RunSpec
    results: Path
    """Folder of the run store and of everything made from it."""
    sweep: str
    """Name of the sweep and of its report."""
    question: str
    """What the sweep asks, in one sentence, for its report."""
    margin: float | str
    """Largest loss of test score at which a rank still suffices; see `Metric.read_margin`."""
    device: str
    """`auto` (a GPU if there is one), or torch's name of a device."""
    launcher: str
    """What starts the workers: a file of `sweeps/launch/`."""
    tracker: str
    """`none`, `jsonl` or `wandb`."""
    workers: int | None
    """Processes that train at the same time; None is one per core or GPU."""
    pack: int | None
    """Most runs that one process trains together; None is the device's limit (`sweeps/plan.py`)."""
    forecast: bool
    """Whether only the time of the sweep is asked for."""
    allow_partial: bool
    """Whether to continue when more than 5 % of an input is left out (`left_out.py`)."""
    tuning: Tuning | None
    """How to choose each configuration's learning rate; None takes the configured one."""
    stopping: Stopping | None
    """When to add seeds where the answer is open; None trains all seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """The sweep to report."""

    sweep: str
    results: Path
    margin: float | str
    """See `Metric.read_margin`; the sweep's task gives the metric."""


def compose(*overrides: str) -> RunSpec:
    """Return the specification that a command line with these overrides gives.

    To vary a specification, use `dataclasses.replace`.
    """
    return read_config(composed("config", *overrides)).spec


def composed(name: str, *overrides: str) -> dict[str, Any]:
    """Return the configuration that a file of `conf/` with these overrides gives."""
    return plain(composer_of(name).config(overrides))


def read_yaml(path: Path) -> Any:
    """Read a file of `conf/` that Hydra does not compose, such as a claim or a paper."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(path), resolve=True)


def read_config(config: Mapping[str, Any]) -> RunConfig:
    """Read one composed configuration."""
    top = Fields("", config)
    device = top.text("device")
    trainer = top.part("trainer")
    method = top.part("method")
    head_learning_rate = trainer.optional_number("head_learning_rate", above=0.0)
    task = read_task(top.part("task"))
    return RunConfig(
        results=Path(top.utf8_path_text("results")),
        sweep=sweep_name(top),
        question=top.text("question"),
        margin=_margin(top, task),
        device=device,
        launcher=top.text("launcher"),
        tracker=top.one_of("tracker", TRACKERS),
        workers=top.optional_integer("workers", at_least=1),
        pack=top.optional_integer("pack", at_least=1),
        forecast=top.flag("forecast"),
        allow_partial=top.flag("allow_partial"),
        tuning=read_tuning(top.part("tuning")) if "tuning" in top.settings else None,
        stopping=_stopping(top.part("stopping")) if "stopping" in top.settings else None,
        spec=RunSpec(
            seed=top.integer("seed", at_least=0),
            data_seed=top.integer("data_seed", at_least=0),
            method=method_named(method.one_of("name", method_names())).from_fields(
                method, head_learning_rate=head_learning_rate
            ),
            model=read_model(top.part("model")),
            task=task,
            train=_train(trainer, device),  # last: with a GPU, `precision: auto` imports torch
        ),
    )


def read_report_request(config: Mapping[str, Any]) -> ReportRequest:
    """Read the settings of `conf/report.yaml`; see `read_config`."""
    top = Fields("", config)
    return ReportRequest(
        sweep=sweep_name(top),
        results=top.path_of("results"),
        margin=top.value("margin"),
    )


def sweep_name(fields: Fields) -> str:
    """Return the name of a sweep, which must be a valid file name."""
    name = fields.text("sweep")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise InputError(f"sweep={name!r}: give one name of letters, digits and ._-")
    return name


def _margin(fields: Fields, task: Task) -> float | str:
    """Return the margin as it was given, if the task's metric can read it."""
    given: float | str = fields.value("margin")
    task.metric.read_margin(given)
    return given


def _stopping(fields: Fields) -> Stopping:
    return Stopping(
        first=fields.integer("first", at_least=2),
        step=fields.integer("step", at_least=1),
        spending=fields.one_of("spending", SPENDING),
    )


def read_model(fields: Fields) -> BaseModel:
    """Read the `model` part of a configuration."""
    roles = fields.part("roles").texts()
    presets = fields.part("targets")
    named = {preset: presets.names(preset) for preset in presets.settings}
    for preset, wanted in named.items():
        if unknown := [role for role in wanted if role not in roles]:
            raise InputError(
                f"model.targets.{preset} names {unknown}: model.roles has {', '.join(roles)}"
            )
    if isinstance(fields.value("source"), str):
        fields.utf8_path_text("source")
    return BaseModel(
        name=fields.text("name"),
        source=read_source(fields, subset=None, named=()),
        roles=roles,
        target_presets=named,
        dropout=fields.optional_number("dropout", least=0.0, below=1.0),
    )


def check_used(config: Mapping[str, Any]) -> None:
    """Refuse an adapter's setting if no run of the command has an adapter.

    In a sweep over several methods, a setting may belong to one of them only.
    """
    method = Fields("", config).part("method")
    kind = method.value("name")
    if method_named(kind).is_adapter:
        return
    for name in method.settings:
        value = method.value(name)
        if name not in ("name", "learning_rate") and value is not None:
            raise InputError(
                f"method.{name}={value!r}: method={kind} has no {name} and would ignore it: leave "
                "it out, or choose method=lora"
            )


def _train(fields: Fields, device: str) -> TrainSpec:
    precision = fields.one_of("precision", PRECISIONS)
    betas = fields.value("adam_betas")
    if not (isinstance(betas, Sequence) and len(betas) == 2 and all(_is_share(b) for b in betas)):
        raise InputError(f"trainer.adam_betas={betas!r}: two numbers in [0, 1) are needed")
    return TrainSpec(
        epochs=fields.integer("epochs", at_least=1),
        batch_size=fields.integer("batch_size", at_least=1),
        head_learning_rate=fields.optional_number("head_learning_rate", above=0.0),
        weight_decay=fields.number("weight_decay", least=0.0),
        warmup_fraction=fields.number("warmup_fraction", least=0.0, below=1.0),
        max_grad_norm=fields.number("max_grad_norm", above=0.0),
        adam_betas=(float(betas[0]), float(betas[1])),
        adam_epsilon=fields.number("adam_epsilon", above=0.0),
        evaluations=fields.integer("evaluations", at_least=1),
        reference=fields.flag("reference"),
        read_test=fields.flag("read_test"),
        shuffle_labels=fields.flag("shuffle_labels"),
        precision=fast_precision(device) if precision == "auto" else precision,
    )


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1


def fast_precision(device: str = "auto") -> str:
    """Return the faster precision: `bf16` if the device multiplies it in hardware, else `fp32`.

    `device` is `auto` (a GPU if there is one), or torch's name of a device.
    """
    if device != "cpu" and may_have_gpu():
        import torch

        if torch.cuda.is_available():
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    _, instruction_sets = processor()
    return "bf16" if instruction_sets & {"amx_bf16", "avx512_bf16"} else "fp32"
